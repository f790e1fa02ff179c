"""The arbiter's side of a worker, where system calls fail or never end."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest

from servo.arbiter.hook_objects import WorkerFacade
from servo.arbiter.processes.workers import Child, Children
from servo.ipc.channel import Channel
from servo.ipc.messages import Ready
from servo.settings.sources import Settings
from servo.shared_memory.scoreboard import Scoreboard

SETTINGS = Settings({"app": "x:app"}, {})


class Endless:
    """A channel that a process which the worker has left behind fills without end."""

    def __init__(self) -> None:
        self.reads = 0

    def receive(self, _reads: int) -> list[Any]:
        self.reads += 1
        assert self.reads < 10
        return [Ready()]


@pytest.fixture
def children() -> Iterator[tuple[Children, Child]]:
    board = Scoreboard(1)
    with select.epoll() as epoll:
        found = Children(board, epoll, lambda _event: None, lambda: None)
        child = Child(1, 1, 1, SETTINGS, WorkerFacade(1, 1, SETTINGS), None, pid=1000)
        found._by_serial[1] = child
        yield found, child
    board.close()


def test_the_last_words_of_a_worker_have_an_end(children: tuple[Children, Child]) -> None:
    all_of_them, child = children
    child.channel = cast("Channel", Endless())
    assert all_of_them.read_last_words(1000)
    assert child.reaped


def test_a_dump_file_that_fails(children: tuple[Children, Child]) -> None:
    all_of_them, child = children
    reader, writer = os.pipe()  # neither ftruncate() nor pread() is for one
    os.close(writer)
    child.dump_fd = reader
    assert not all_of_them.ask(1, signal.SIGUSR2)
    assert all_of_them.dumped(1) == ""
    os.close(reader)
