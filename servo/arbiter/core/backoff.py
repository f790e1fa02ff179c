"""Back-off: the wait before the next fork after processes have failed.

If a process fails right after its fork, the next one will probably fail, too, and a loop of forks
would use a whole CPU. So the wait starts at 0.1 s and doubles with each failure, up to 30 s. A
worker that dies after it has served for YOUNG_S (see `policy`) is no such failure: its successor is
forked at once.

Failures count in rounds (see `failure_rounds`): if the kernel kills 64 workers at once, this is one
failure, and must not cost a wait of 30 s. The back-off ends when a process that was forked after
the failure survives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.arbiter.core.failure_rounds import FailureRounds

if TYPE_CHECKING:
    from collections.abc import Sequence

BACKOFF_FIRST_S = 0.1
BACKOFF_CAP_S = 30.0


class Backoff:
    """Decides when the next process may be forked.

    not_before  the earliest time for the next fork, in seconds
    """

    def __init__(self) -> None:
        self.not_before = 0.0
        self._failures = FailureRounds()

    @property
    def rounds(self) -> int:
        """Rounds of failures since the last success."""
        return self._failures.count

    def failed(self, spawned_at: float, now: float) -> bool:
        """Count a failure; return True if it begins a new round.

        spawned_at  when the failed process was forked, in seconds
        now         the current time, in seconds
        """
        if not self._failures.failed(spawned_at, now):
            return False
        # Bound the exponent: the float would overflow after a thousand rounds.
        delay = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2.0 ** min(self.rounds - 1, 20))
        self.not_before = now + delay
        return True

    def survived(self, spawned_at: float) -> None:
        """Note that a process survived. End the back-off if it was forked after the failure.

        spawned_at  when the process was forked, in seconds
        """
        if self.rounds and self._failures.is_current(spawned_at):
            self.reset()

    def reset(self) -> None:
        """Allow the next fork at once, and count from zero."""
        self._failures.reset()
        self.not_before = 0.0

    def to_state(self) -> list[float]:
        """Return the values that `restore` takes, as JSON values."""
        return [self.not_before, *self._failures.to_state()]

    def restore(self, state: Sequence[float]) -> None:
        """Restore what `to_state` returned in the previous program. Raises ValueError."""
        self.not_before, *failures = state
        self._failures.restore(failures)

    def shift(self, gap_s: float) -> None:
        """Move all times by `gap_s` seconds, because the machine stood still for that long."""
        self._failures.shift(gap_s)
        self.not_before += gap_s
