"""The arbiter's side of a worker, where system calls fail or never end."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest

from servo.arbiter.hook_objects import ArbiterHookWorker
from servo.arbiter.processes.child_table import ChildTable
from servo.arbiter.processes.workers import WorkerProcess, WorkerProcesses
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
def workers() -> Iterator[tuple[WorkerProcesses, WorkerProcess]]:
    board = Scoreboard(1)
    with select.epoll() as epoll:
        found = WorkerProcesses(board, ChildTable(epoll), lambda _event: None, lambda *_: None)
        hook_worker = ArbiterHookWorker(1, 1, SETTINGS)
        worker = WorkerProcess(found, 1, 1, 1, SETTINGS, hook_worker, None, pid=1000)
        found._by_serial[1] = worker
        yield found, worker
    board.close()


def test_the_last_messages_of_a_worker_have_an_end(
    workers: tuple[WorkerProcesses, WorkerProcess],
) -> None:
    _, worker = workers
    worker.channel = cast("Channel", Endless())
    worker.on_exit(0)
    assert worker.reaped


def test_a_dump_file_that_fails(workers: tuple[WorkerProcesses, WorkerProcess]) -> None:
    processes, worker = workers
    reader, writer = os.pipe()  # neither ftruncate() nor pread() works on one
    os.close(writer)
    worker.dump_fd = reader
    assert not processes.request_dump(1, signal.SIGUSR2)
    assert processes.read_dump(1) == ""
    os.close(reader)
