"""The end of the metrics process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from servo.arbiter import process_info
from servo.arbiter.facts_writer import FactsWriter
from servo.arbiter.listeners import Sockets
from servo.arbiter.processes import spawn
from servo.arbiter.processes.metrics import MetricsProcess, MetricsSockets
from servo.settings.sources import Settings
from servo.shared_memory.scoreboard import Scoreboard


def pause() -> int:
    while True:
        signal.pause()


@pytest.fixture
def metrics(loop: Any) -> Iterator[MetricsProcess]:
    settings = Settings({"app": "x:app", "bind": [], "statsd_host": "127.0.0.1:9"}, {})
    board = Scoreboard(1)
    facts = FactsWriter(board)
    served = SimpleNamespace(listeners=[])
    yield MetricsProcess(
        settings, loop.table, MetricsSockets(settings), board, facts, cast("Sockets", served)
    )
    facts.close_in_child()
    board.close()


def test_one_that_no_signal_ends_is_left(
    metrics: MetricsProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for a dead disk."""
    sent: list[int] = []
    metrics.pid = pid = spawn.fork(pause, lambda: None)
    monkeypatch.setattr("servo.arbiter.processes.metrics._END_S", 0.02)
    with monkeypatch.context() as patch:
        patch.setattr(
            process_info, "send_signal", lambda _pid, signum, _owner: sent.append(signum) or 1
        )
        metrics.stop()
    assert sent == [signal.SIGKILL]
    assert metrics.pid == 0
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[0] == pid


def test_one_that_ends_is_followed_by_another(
    metrics: MetricsProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(MetricsProcess, "_main", lambda *_: 3)
    metrics.tick(100.0)
    first = metrics.pid
    assert first
    metrics.tick(100.0)
    assert metrics.pid == first
    metrics.on_exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]))
    assert f"The metrics process (pid {first}) ended with code 3; another follows" in caplog.text
    metrics.tick(time.monotonic())
    assert metrics.pid == 0
    metrics.tick(time.monotonic() + 100.0)
    assert metrics.pid not in (0, first)
    metrics.stop()
    metrics.tick(time.monotonic() + 200.0)
    assert metrics.pid == 0


def test_a_renewed_one_is_followed_by_another_without_an_error(
    metrics: MetricsProcess, loop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    metrics.renew()  # nothing runs yet
    reader, metrics._end_fd = os.pipe()
    metrics.pid = pid = spawn.fork(lambda: int(os.read(reader, 1) != b""), lambda: None)
    os.close(reader)
    metrics.renew()
    assert (metrics.pid, metrics.fileno()) == (0, -1)
    os.kill(pid, signal.SIGKILL)  # it has a copy of the pipe's other end, as no real one does
    assert os.waitpid(pid, 0)[0] == pid
    assert caplog.text == ""
