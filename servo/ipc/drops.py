"""Counting what had to be dropped, and saying so without flooding the log."""

from __future__ import annotations

SAY_EVERY_S = 10.0


class Drops:
    """Drops of one kind. `total` counts all of them; each is said once, some at a time."""

    __slots__ = ("_next", "_unsaid", "total")

    def __init__(self) -> None:
        self.total = 0
        self._unsaid = 0
        self._next = 0.0

    def note(self, now: float, count: int = 1) -> int:
        """Count drops; returns what `due` does. `now` is monotonic seconds."""
        self.total += count
        self._unsaid += count
        return self.due(now)

    def due(self, now: float) -> int:
        """How many to log now: those since the last time, if that is long enough ago; else 0."""
        if not self._unsaid or now < self._next:
            return 0
        self._next = now + SAY_EVERY_S
        count, self._unsaid = self._unsaid, 0
        return count
