"""The heartbeat of an event loop while requests run, and the time for which the loop was blocked.

A worker beats by writing the time into its row of the scoreboard. The arbiter replaces a worker
whose last beat is too old, and the load gate of its siblings leaves out a worker that is late. An
idle worker beats once a second, in its sweep. While requests are in flight that is too seldom,
so a timer beats every `BEAT_S`. The timer also measures: if it fires late, something has blocked
the loop.
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
    """Beats from the first request in flight until none is.

    row     the worker's row of the scoreboard
    loop    the worker's event loop

    requests    how many requests have begun
    blocked_ns  for how long timers had to wait for the loop, in all
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
        """A request was admitted, at this time in monotonic nanoseconds."""
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
            # Either one handler blocks the loop or many small ones add up: `KeepalivePolicy` tells
            # them apart.
            self.blocked_ns += late
        if self._row[row_layout.IN_FLIGHT]:
            self._beat_at(now + _INTERVAL_NS)
        else:
            self._beating = False
