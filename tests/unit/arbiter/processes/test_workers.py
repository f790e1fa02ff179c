"""The arbiter's side of a worker, with system calls that fail or never end."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest

from servo.arbiter.core import events
from servo.arbiter.hook_objects import ArbiterHookWorker
from servo.arbiter.processes.child_table import ChildTable
from servo.arbiter.processes.workers import WorkerProcess, WorkerProcesses
from servo.ipc.channel import Channel, channel_pair
from servo.ipc.messages import REQUEST, AppMessage, Ready
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


def test_a_reaped_worker_gets_no_signal(
    workers: tuple[WorkerProcesses, WorkerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have its pid."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, signum: sent.append((pid, signum)))
    processes, worker = workers
    assert processes.signal(1, signal.SIGUSR1)
    assert processes.kill(1, "SIGTERM")
    worker.reaped = True
    assert not processes.signal(1, signal.SIGUSR1)
    assert processes.kill(1, "SIGTERM")  # there is nothing left to kill
    assert not processes.signal(2, signal.SIGUSR1)
    assert sent == [(1000, signal.SIGUSR1), (1000, signal.SIGTERM)]


def copy_of(fd: int) -> int:
    return os.dup(fd) if fd >= 0 else -1


def test_the_next_program_adopts_a_worker() -> None:
    """With its channel, its row, and the requests that it has not answered."""
    board = Scoreboard(1)
    enqueued: list[Any] = []
    with select.epoll() as epoll:
        table = ChildTable(epoll)
        before = WorkerProcesses(board, ChildTable(epoll), enqueued.append, lambda *_: None)
        worker = WorkerProcess(
            before, 7, 2, 3, SETTINGS, ArbiterHookWorker(7, 2, SETTINGS), None, pid=1000
        )
        worker.row_index = board.allocate(7, 2, 3)
        worker.channel, theirs = channel_pair()
        worker.unanswered[5, 1] = AppMessage.make(REQUEST, (1, 5), 2, b"t", b"{}", 1)
        before._add(worker)
        (state,) = json.loads(json.dumps(before.to_state(lambda fd: fd)))
        after = WorkerProcesses(board, table, enqueued.append, lambda *_: None)
        adopted = after.adopt(state, copy_of, SETTINGS, None)
        worker.channel.close()
        assert (adopted.serial, adopted.slot, adopted.generation, adopted.pid) == (7, 2, 3, 1000)
        assert after.in_slot(2) == [adopted]
        assert after.hook_workers()[1000].age == 7
        (request,) = adopted.unanswered.values()
        assert (request.kind, request.slot, request.serial, request.number) == (REQUEST, 1, 5, 1)
        theirs.send(Ready())
        assert table.on_ready(adopted.fileno(), select.EPOLLIN)
        assert enqueued == [events.MessageReceived(7, Ready())]
        after.close()
        theirs.close()
    board.close()
