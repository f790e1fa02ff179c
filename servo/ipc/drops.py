"""Counts dropped messages, and limits how often they are logged."""

from __future__ import annotations

LOG_EVERY_S = 10.0


class Drops:
    """Counts dropped messages of one kind.

    total  the number of all dropped messages

    They are logged together, at most once in LOG_EVERY_S.
    """

    __slots__ = ("_next", "_unlogged", "total")

    def __init__(self) -> None:
        self.total = 0
        self._unlogged = 0
        self._next = 0.0

    def note(self, now: float, count: int = 1) -> int:
        """Count dropped messages. Returns the result of `due`.

        now    monotonic seconds
        count  the number of newly dropped messages
        """
        self.total += count
        self._unlogged += count
        return self.due(now)

    def due(self, now: float) -> int:
        """The number of dropped messages to log now; 0 if it is too early to log again."""
        if not self._unlogged or now < self._next:
            return 0
        self._next = now + LOG_EVERY_S
        count, self._unlogged = self._unlogged, 0
        return count
