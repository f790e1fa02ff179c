"""The metrics process, as the arbiter ends it."""

from __future__ import annotations

import os
import signal

import pytest

from servo.arbiter import process_info
from servo.arbiter.processes import spawn
from servo.arbiter.processes.metrics import Metrics
from servo.settings.sources import Settings


def pause() -> int:
    while True:
        signal.pause()


def test_one_that_no_signal_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for a dead disk."""
    sent: list[int] = []
    metrics = Metrics()
    metrics._settings = Settings({}, {})
    metrics.pid = pid = spawn.fork(pause, lambda: None)
    monkeypatch.setattr("servo.arbiter.processes.metrics._END_S", 0.02)
    with monkeypatch.context() as patch:
        patch.setattr(
            process_info, "send_signal", lambda _pid, signum, _owner: sent.append(signum) or 1
        )
        metrics.close()
    assert sent == [signal.SIGKILL]
    assert metrics.pid == 0
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[0] == pid
