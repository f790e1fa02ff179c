"""Pools of real processes (`pool_processes`) for the tests of `servo.pools`."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pool_processes import PoolOfProcesses


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoolOfProcesses]:
    """Two processes, for all tests of a module that leave them alive."""
    found = PoolOfProcesses(tmp_path_factory.mktemp("pool"), 16)
    found.start()
    found.start()
    yield found
    found.close()


@pytest.fixture
def new_pool(tmp_path: Path) -> Iterator[Callable[[int, int], PoolOfProcesses]]:
    """Makes pools of a number of processes and a length of the queue."""
    made: list[PoolOfProcesses] = []

    def make(processes: int, queue: int) -> PoolOfProcesses:
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(PoolOfProcesses(directory, queue))
        for _ in range(processes):
            made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ends
    for end in ends:
        end.close()
