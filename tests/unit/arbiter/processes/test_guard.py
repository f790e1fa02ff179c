"""The guard, with real processes that wait for what the test does; nobody sleeps."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from servo.arbiter.processes import spawn
from servo.arbiter.processes.guard import _RECORD, Guard, Watched, guard_workers

LONG_S = 3600.0


def nothing() -> None:
    pass


def ends_by(pid: int) -> int:
    """The exit code of a child, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def worker() -> Iterator[Callable[[], int]]:
    """Makes processes that do nothing until they are killed."""
    pids: list[int] = []

    def make() -> int:
        def main() -> int:
            while True:
                signal.pause()

        # Without the test's sockets: the end of one has to be seen.
        pids.append(spawn.fork(main, lambda: os.closerange(3, 256)))
        return pids[-1]

    yield make
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue  # the test has waited for it


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_an_orphan_is_killed_when_its_grace_is_over(worker, pair) -> None:
    ours, theirs = pair
    first, second = worker(), worker()
    ours.send(_RECORD.pack(second, 0.0))
    ours.close()
    guard_workers(theirs, [Watched(first, 0.0)], None)
    assert ends_by(first) == ends_by(second) == -signal.SIGKILL


def test_it_ends_with_its_last_worker(worker, pair) -> None:
    ours, theirs = pair
    pid = worker()
    ours.close()
    os.kill(pid, signal.SIGKILL)
    guard_workers(theirs, [Watched(pid, LONG_S)], None)
    assert ends_by(pid) == -signal.SIGKILL


def test_it_ends_at_once_without_workers(pair) -> None:
    ours, theirs = pair
    ours.close()
    guard_workers(theirs, [], None)


def test_a_worker_that_is_gone_already_is_none(worker, pair) -> None:
    ours, theirs = pair
    pid = worker()
    os.kill(pid, signal.SIGKILL)
    ends_by(pid)
    ours.close()
    guard_workers(theirs, [Watched(pid, LONG_S)], None)


def test_workers_come_and_go_while_the_arbiter_lives(worker, pair) -> None:
    ours, theirs = pair
    pids = [worker() for _ in range(3)]
    guard = spawn.fork(lambda: guard_workers(theirs, [], None) or 0, ours.close)
    theirs.close()
    for pid in pids:
        ours.send(_RECORD.pack(pid, 0.0))
    os.kill(pids[0], signal.SIGKILL)
    assert ends_by(pids[0]) == -signal.SIGKILL
    ours.close()
    assert [ends_by(pid) for pid in pids[1:]] == [-signal.SIGKILL] * 2
    assert ends_by(guard) == 0


def test_the_arbiter_notices_the_guards_end_and_starts_another(worker) -> None:
    guard = Guard(nothing, None)
    assert guard.tick([], 100.0)
    assert not guard.tick([], 100.0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # it is nobody's child to wait for
    guard.ended(100.1)
    assert guard.fileno() == -1
    assert not guard.tick([], 100.1)
    pid = worker()
    assert guard.tick([Watched(pid, 0.0)], 200.0)
    guard.close()
    assert ends_by(pid) == -signal.SIGKILL


def test_a_guard_that_can_not_be_forked_is_tried_again(monkeypatch, caplog) -> None:
    def refuse(*_args: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    guard = Guard(nothing, None)
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork", refuse)
        assert not guard.tick([], 100.0)
    assert "can't be started" in caplog.text
    guard.watch(Watched(os.getpid(), 0.0))
    assert guard.tick([], 200.0)
    guard.close()


def test_its_end_is_readable(pair) -> None:
    guard = Guard(nothing, None)
    guard.tick([], 100.0)
    poller = select.poll()
    poller.register(guard.fileno(), select.POLLIN)
    assert poller.poll(0) == []
    guard.close()
