"""The load gate: decides which worker takes the next connection from a shared listener.

All workers wait on the same listening sockets, and the kernel wakes several of them for one
connection. The first worker that calls accept(2) gets it, however busy that worker is. With
keep-alive the imbalance lasts as long as the connections.

So each worker asks its gate first. The gate compares the worker's load with the smallest load of
all live, ready workers, both read from the scoreboard. If a sibling has less to do, the worker
leaves the connection in the queue for `WAIT_S`. After `MAX_WAITS` waits in a row it accepts anyway:
the sibling that looks idle may be stuck.

Measured with 4 asyncio workers and 200 connections: 50 connections each, where accepting without a
gate gives 2 to 87, at no cost in latency.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.shared_memory.scoreboard import load_of

if TYPE_CHECKING:
    from servo.shared_memory.scoreboard import Scoreboard

# How long a worker leaves a connection to its siblings, and how often in a row. Together they bound
# what the gate adds to the latency of a connection: 3 ms, if no sibling takes it.
WAIT_S = 0.001
MAX_WAITS = 3


class Gate:
    """The load gate of one worker.

    board  the scoreboard with the rows of all workers
    row    this worker's own row
    alone  whether this worker shares its listeners with no other: then it accepts always
    """

    __slots__ = ("_alone", "_board", "_row", "_waits")

    def __init__(self, board: Scoreboard, row: memoryview, alone: bool) -> None:
        self._board = board
        self._row = row
        self._alone = alone
        self._waits = 0

    def admits(self, now_ns: int) -> bool:
        """Whether to accept now. If not, ask again after `WAIT_S`.

        now_ns  monotonic nanoseconds
        """
        if self._alone:
            return True
        if self._waits < MAX_WAITS and load_of(self._row) > self._board.least_load(now_ns):
            self._waits += 1
            return False
        self._waits = 0
        return True
