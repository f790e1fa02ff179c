"""The workers of a program whose state can't be read: told to retire, reaped, killed when late."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from servo.arbiter.processes.old_workers import OldWorkers
from servo.arbiter.upgrade_state import OldWorker

ORDER = b"\0\0\0\2{}"


class Left:
    """One worker that another program has left: a child that sleeps, and its end of a channel."""

    def __init__(self, unsent: bytes = b"", grace_s: float = 30.0) -> None:
        ours, self.channel = socket.socketpair()
        self.channel.settimeout(10)
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            signal.pause()
            os._exit(0)
        self.workers = OldWorkers([OldWorker(self.pid, ours.detach(), grace_s, unsent)], ORDER)

    def close(self) -> None:
        self.workers.close()
        self.channel.close()

    def end(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self.reap()

    def reap(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


Leave = Callable[..., Left]


@pytest.fixture
def leave() -> Iterator[Leave]:
    every: list[Left] = []

    def start(unsent: bytes = b"", grace_s: float = 30.0) -> Left:
        every.append(Left(unsent, grace_s))
        return every[-1]

    yield start
    for left in every:
        left.close()


def test_they_are_told_to_retire_once(leave: Leave) -> None:
    left = leave(unsent=b"the rest of a frame")
    left.workers.tick(100.0)
    left.workers.retire(100.0)
    left.workers.retire(101.0)
    assert left.channel.recv(1000) == b"the rest of a frame" + ORDER
    assert [worker.pid for worker in left.workers.left()] == [left.pid]
    left.end()
    left.workers.tick(102.0)
    assert left.workers.left() == []
    assert left.channel.recv(1000) == b""


def test_a_late_one_is_killed(leave: Leave) -> None:
    left = leave(grace_s=5.0)
    left.workers.tick(1000.0)  # its time begins with the order
    left.workers.retire(1000.0)
    left.workers.tick(1004.9)
    left.workers.tick(1005.0)
    assert left.reap() == -signal.SIGKILL
    left.workers.tick(1006.0)
    assert left.workers.left() == []


def test_one_that_does_not_read_gets_the_end_of_its_channel(leave: Leave) -> None:
    left = leave(unsent=bytes(10_000_000))
    left.workers.retire(100.0)
    size = 0
    while data := left.channel.recv(1 << 20):
        size += len(data)
    assert 0 < size < 10_000_000
    left.end()


def test_one_that_is_gone_already(leave: Leave) -> None:
    left = leave()
    left.channel.close()
    left.end()
    left.workers.retire(100.0)
    left.workers.tick(101.0)
    assert left.workers.left() == []


@pytest.mark.parametrize("told", [True, False])
def test_the_end_of_the_arbiter_closes_their_channels(leave: Leave, told: bool) -> None:
    left = leave()
    if told:
        left.workers.retire(100.0)
        assert left.channel.recv(1000) == ORDER
    left.workers.close()
    assert left.channel.recv(1000) == b""
    left.end()
