"""Counts failures in a row, in rounds.

If the kernel kills 64 workers at once, they have failed for one reason, and count as one *round*.
The first failure begins the round. If another process fails that was forked before this moment, its
failure belongs to the same round, and does not count again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class FailureRounds:
    """Counts rounds of failures since the last success.

    count  the number of rounds since then
    """

    def __init__(self) -> None:
        self.count = 0
        self._failed_at = 0.0

    def failed(self, spawned_at: float, now: float) -> bool:
        """Count a failure; return True if it begins a new round.

        spawned_at  when the failed process was forked, in seconds
        now         the current time, in seconds
        """
        if not self.is_current(spawned_at):
            return False
        self.count += 1
        self._failed_at = now
        return True

    def is_current(self, spawned_at: float) -> bool:
        """Return True if a process was forked after the current round had begun.

        spawned_at  when it was forked, in seconds
        """
        return not self.count or spawned_at >= self._failed_at

    def reset(self) -> None:
        """Count from zero again, after a success."""
        self.count = 0
        self._failed_at = 0.0

    def to_state(self) -> list[float]:
        """Return the values that `restore` takes, as JSON values."""
        return [self.count, self._failed_at]

    def restore(self, state: Sequence[float]) -> None:
        """Restore what `to_state` returned in the previous program. Raises ValueError."""
        count, self._failed_at = state
        self.count = int(count)

    def shift(self, gap_s: float) -> None:
        """Move the start of the round by `gap_s` seconds: the machine stood still for that long."""
        self._failed_at += gap_s
