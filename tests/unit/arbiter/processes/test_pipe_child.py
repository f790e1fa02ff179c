"""A child that reports through a pipe."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from servo.arbiter.processes import spawn
from servo.arbiter.processes.pipe_child import PipeChild


class Child(PipeChild):
    """Keeps what it reads."""

    def __init__(self, table: Any, text: bytes) -> None:
        self.text = b""
        self.codes: list[int] = []
        super().__init__(table, lambda fd: os.write(fd, text) and 0)

    def on_ready(self, _mask: int) -> None:
        data = os.read(self.fileno(), 100)
        self.text += data
        if not data:
            self._table.unwatch(self)

    def on_exit(self, code: int) -> None:
        self.codes.append(code)
        self._forget()


def test_what_it_writes_arrives_before_its_end(loop: Any) -> None:
    child = Child(loop.table, b"hello")
    fd = child.fileno()
    loop.run_until(lambda: not loop.table.is_watched(fd))
    assert child.text == b"hello"
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    loop.table.reap()
    assert child.codes == [0]
    assert child.fileno() == -1


def test_it_can_be_killed_more_than_once(loop: Any) -> None:
    child = Child(loop.table, b"")
    pid = child.pid
    child.kill()
    child.kill()
    assert child.fileno() == -1
    assert os.waitpid(pid, 0)[1] in (0, signal.SIGKILL)


def test_no_descriptor_is_left_if_it_can_not_be_forked(
    loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(spawn, "fork", refuse)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BlockingIOError):
        Child(loop.table, b"")
    assert os.listdir("/proc/self/fd") == before
