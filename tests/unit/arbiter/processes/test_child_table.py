"""The descriptors of a new child, and the reports about its descriptor and exit."""

from __future__ import annotations

import os
import select
from typing import Any

import pytest

from servo.arbiter.processes import spawn


class Child:
    """A child whose descriptor is the read end of a pipe."""

    def __init__(self) -> None:
        self.pid = 0
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        self.masks: list[int] = []
        self.codes: list[int] = []

    def fileno(self) -> int:
        return self.reader

    def on_ready(self, mask: int) -> None:
        self.masks.append(mask)

    def on_exit(self, code: int) -> None:
        self.codes.append(code)

    def close_in_child(self) -> None:
        os.close(self.reader)

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class Resource:
    def __init__(self) -> None:
        self.fd = os.open(os.devnull, os.O_RDONLY)

    def close(self) -> None:
        os.close(self.fd)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def reap(loop: Any, *children: Child) -> None:
    """Wait until these children have ended, then reap as the loop does.

    Another test's child may be a zombie of this process, so waiting for any child is not enough.
    """
    for child in children:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    loop.table.reap()


def test_a_child_keeps_only_what_it_names(loop: Any) -> None:
    one, two = Child(), Child()
    kept, other = Resource(), Resource()
    loop.table.own(kept, kept.close)
    loop.table.own(other, other.close)
    loop.table.start(one, lambda: 0)
    epoll_fd = loop.epoll.fileno()

    def main() -> int:
        closed = [one.reader, two.reader, other.fd, epoll_fd]
        return 7 if is_open(kept.fd) and not any(map(is_open, closed)) else 1

    loop.table.start(two, main, keep=(kept,))
    reap(loop, one, two)
    assert (one.codes, two.codes) == ([0], [7])
    # The arbiter's own are open.
    assert all(map(is_open, [one.reader, two.reader, kept.fd, other.fd, epoll_fd]))
    for each in (one, two, kept, other):
        each.close()


def test_events_go_to_the_child_that_has_the_descriptor(loop: Any) -> None:
    one, two = Child(), Child()
    for child in (one, two):
        loop.table.start(child, lambda: 0)
    os.write(two.writer, b"x")
    loop.run_until(lambda: two.masks)
    assert two.masks == [select.EPOLLIN]
    assert one.masks == []
    loop.table.unwatch(two)
    assert not loop.table.on_ready(two.reader, select.EPOLLIN)
    assert loop.table.on_ready(one.reader, select.EPOLLHUP)
    reap(loop, one, two)
    for child in (one, two):
        loop.table.remove(child)
        child.close()


def test_a_removed_child_is_reaped_as_a_stranger(
    loop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "servo.error")
    child = Child()
    loop.table.start(child, lambda: 0)
    loop.table.remove(child)
    reap(loop, child)
    assert child.codes == []
    assert f"Reaped process {child.pid}" in caplog.text
    child.close()


def test_a_fork_that_fails_leaves_nothing(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    child = Child()
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork", refuse)
        with pytest.raises(BlockingIOError):
            loop.table.start(child, lambda: 0)
    assert not loop.table.on_ready(child.reader, select.EPOLLIN)
    loop.table.start(child, lambda: 3)
    reap(loop, child)
    assert child.codes == [3]
    loop.table.remove(child)
    child.close()


def test_helpers_are_started_in_turn_and_stopped(loop: Any) -> None:
    calls: list[Any] = []

    class FakeHelper:
        def __init__(self, name: str) -> None:
            self.name = name

        def tick(self, now: float) -> None:
            calls.append((self.name, now))

        def reopen_logs(self) -> None:
            calls.append((self.name, "reopen"))

        def stop(self) -> None:
            calls.append((self.name, "stop"))

    for name in ("a", "b"):
        loop.table.keep_running(FakeHelper(name))
    loop.table.tick(5.0)
    loop.table.reopen_logs()
    loop.table.stop_helpers()
    assert calls == [(name, what) for what in (5.0, "reopen", "stop") for name in "ab"]
