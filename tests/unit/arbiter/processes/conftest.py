"""A table of children like the arbiter's, and a loop that runs until a condition holds."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator

import pytest

from servo.arbiter.processes.child_table import ChildTable

DEADLINE_S = 30.0


class Loop:
    """Passes events to the table's children, as the arbiter's loop does."""

    def __init__(self, epoll: select.epoll) -> None:
        self.epoll = epoll
        self.table = ChildTable(epoll)

    def run_until(self, condition: Callable[[], object]) -> None:
        while not condition():
            ready = self.epoll.poll(DEADLINE_S)
            assert ready, "nothing happens"
            for fd, mask in ready:
                assert self.table.on_ready(fd, mask)


@pytest.fixture
def loop() -> Iterator[Loop]:
    with select.epoll() as epoll:
        yield Loop(epoll)
