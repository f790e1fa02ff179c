"""Counts dropped messages, and limits how often the log says so."""

from __future__ import annotations

LOG_EVERY_S = 10.0


class Drops:
    """Counts drops of one kind.

    `total` is the number of all drops. Each of them is logged once, together with the others of the
    last LOG_EVERY_S.
    """

    __slots__ = ("_next", "_unlogged", "total")

    def __init__(self) -> None:
        self.total = 0
        self._unlogged = 0
        self._next = 0.0

    def note(self, now: float, count: int = 1) -> int:
        """Count drops. Returns what `due` does.

        now    on the monotonic clock, in seconds
        count  number of new drops
        """
        self.total += count
        self._unlogged += count
        return self.due(now)

    def due(self, now: float) -> int:
        """The number of drops to log now; 0 if the last time was less than LOG_EVERY_S ago."""
        if not self._unlogged or now < self._next:
            return 0
        self._next = now + LOG_EVERY_S
        count, self._unlogged = self._unlogged, 0
        return count
