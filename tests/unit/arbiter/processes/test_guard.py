"""The guard, with real processes that wait for the test. No process sleeps."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from servo.arbiter.processes import spawn
from servo.arbiter.processes.guard import _DISMISSED, _RECORD, Guard, GuardedWorker, guard_workers

LONG_S = 3600.0


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
    guard_workers(theirs, [GuardedWorker(first, 0.0)], None)
    assert ends_by(first) == ends_by(second) == -signal.SIGKILL


def test_it_ends_with_its_last_worker(worker, pair) -> None:
    ours, theirs = pair
    pid = worker()
    ours.close()
    os.kill(pid, signal.SIGKILL)
    guard_workers(theirs, [GuardedWorker(pid, LONG_S)], None)
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
    guard_workers(theirs, [GuardedWorker(pid, LONG_S)], None)


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


def test_the_arbiter_notices_the_guards_end_and_starts_another(worker, loop) -> None:
    workers: list[GuardedWorker] = []
    guard = Guard(loop.table, lambda: workers, None)
    guard.tick(100.0)
    fd = guard.fileno()
    assert fd >= 0
    guard.tick(100.0)
    assert guard.fileno() == fd
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # it is no child of this process
    guard.on_ready(select.EPOLLHUP)
    assert guard.fileno() == -1
    guard.tick(time.monotonic())
    assert guard.fileno() == -1
    workers.append(GuardedWorker(worker(), 0.0))
    guard.tick(time.monotonic() + 100.0)
    assert guard.fileno() >= 0
    guard.stop()
    assert ends_by(workers[0].pid) == -signal.SIGKILL
    guard.tick(time.monotonic() + 200.0)
    assert guard.fileno() == -1


def test_a_guard_that_can_not_be_forked_is_tried_again(monkeypatch, caplog, loop) -> None:
    def refuse(*_args: object) -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    guard = Guard(loop.table, list, None)
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "fork", refuse)
        guard.tick(100.0)
    assert guard.fileno() == -1
    assert "can't be started" in caplog.text
    guard.add(GuardedWorker(os.getpid(), 0.0))
    guard.tick(200.0)
    assert guard.fileno() >= 0
    guard.stop()


def test_its_end_is_readable(loop) -> None:
    guard = Guard(loop.table, list, None)
    guard.tick(100.0)
    assert loop.epoll.poll(0) == []
    guard.stop()


def test_a_guard_that_is_dismissed_leaves_the_workers_alone(worker, pair) -> None:
    ours, theirs = pair
    pid = worker()
    ours.send(_DISMISSED)
    guard_workers(theirs, [GuardedWorker(pid, 0.0)], None)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)


def test_the_former_guard_is_dismissed_once_the_new_one_runs(loop, worker, pair) -> None:
    ours, theirs = pair
    pid = worker()
    guard = Guard(loop.table, lambda: [GuardedWorker(pid, LONG_S)], None)
    guard.succeed(guard.to_state(lambda fd: fd))  # there was none
    guard.succeed(os.dup(ours.fileno()))
    ours.close()
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    guard.tick(1000.0)
    assert theirs.recv(100) == _DISMISSED
    assert theirs.recv(100) == b""
    guard.stop()
