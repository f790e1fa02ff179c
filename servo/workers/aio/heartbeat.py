"""The heartbeat of an event loop while requests run, and the time for which the loop was blocked.

A worker sends a heartbeat by writing the time into its row of the scoreboard. If the last heartbeat
is too old, the arbiter replaces the worker. If it is only a little late, the other workers' load
gates count the worker as blocked. An idle worker sends a heartbeat in its sweep, at most once a
second. While requests are in flight, a timer sends one every `BEAT_S`. If the timer fires late, a
handler has blocked the loop, and the delay shows for how long.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, Final

from servo.shared_memory import row_layout
from servo.workers.timing import BEAT_S

if TYPE_CHECKING:
    import asyncio

_INTERVAL_NS: Final = int(BEAT_S * 1e9)


class Heartbeat:
    """Sends heartbeats while requests are in flight.

    row   the worker's row of the scoreboard
    loop  the worker's event loop

    requests    the number of requests begun so far
    blocked_ns  the total delay of the timer, in nanoseconds: how long the loop was blocked
    """

    __slots__ = ("_beating", "_due_ns", "_loop", "_row", "blocked_ns", "requests")

    def __init__(self, row: memoryview, loop: asyncio.AbstractEventLoop) -> None:
        self._row = row
        self._loop = loop
        self._beating = False
        self._due_ns = 0
        self.requests = 0
        self.blocked_ns = 0

    def request_began(self, started_ns: int) -> None:
        """Count an admitted request, and begin to send heartbeats.

        started_ns  when it was admitted, in monotonic nanoseconds
        """
        self.requests += 1
        if not self._beating:
            self._beating = True
            self._beat_at(started_ns + _INTERVAL_NS)

    def _beat_at(self, due_ns: int) -> None:
        self._due_ns = due_ns
        self._loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        now = self._row[row_layout.BEAT_NS] = monotonic_ns()
        late = now - self._due_ns
        if late > _INTERVAL_NS:
            # Either one slow handler has blocked the loop, or many fast ones. `KeepalivePolicy`
            # distinguishes these cases: it divides the blocked time by the number of requests.
            self.blocked_ns += late
        if self._row[row_layout.IN_FLIGHT]:
            self._beat_at(now + _INTERVAL_NS)
        else:
            self._beating = False
