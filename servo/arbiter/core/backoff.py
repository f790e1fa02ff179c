"""Back-off: the wait before the next fork after processes have failed.

A process that fails right after its fork would fail again right after the next one, and a loop of
forks would eat a CPU. So the wait starts at 0.1 s and doubles with each failure, up to 30 s.

A *round* of failures doubles it, not each single failure: if the kernel kills 64 workers at
once, that is one event, and must not cost a wait of 30 s. A process that was forked before the last
failure belongs to the same round, and does not count again. A process of the current round that
survives ends the back-off.
"""

from __future__ import annotations

BACKOFF_FIRST_S = 0.1
BACKOFF_CAP_S = 30.0


class Backoff:
    """When the next process may be forked.

    rounds      rounds of failures since the last success
    not_before  the earliest time for the next fork, in seconds
    """

    def __init__(self) -> None:
        self.rounds = 0
        self.not_before = 0.0
        self._failed_at = 0.0

    def failed(self, spawned_at: float, now: float) -> bool:
        """Count a failure; return True if it begins a new round.

        spawned_at  when the failed process was forked, in seconds
        now         the current time, in seconds
        """
        if self.rounds and spawned_at < self._failed_at:
            return False
        self.rounds += 1
        # The exponent has a bound, or the float would overflow after a thousand rounds.
        delay = min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2.0 ** min(self.rounds - 1, 20))
        self._failed_at = now
        self.not_before = now + delay
        return True

    def survived(self, spawned_at: float) -> None:
        """End the back-off if the process forked at `spawned_at` (seconds) is of this round."""
        if self.rounds and spawned_at >= self._failed_at:
            self.reset()

    def reset(self) -> None:
        """Allow the next fork at once, and count from zero."""
        self.rounds = 0
        self.not_before = 0.0
        self._failed_at = 0.0

    def shift(self, gap_s: float) -> None:
        """Move all times: the machine stood still for `gap_s` seconds."""
        self._failed_at += gap_s
        self.not_before += gap_s
