"""Computes quantiles from the scoreboard's histograms.

`servoctl`, `monit` and the dashboard all use these functions, so that their numbers agree.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from servo.shared_memory.row_layout import LATENCY_BOUNDS_S

if TYPE_CHECKING:
    from collections.abc import Sequence


class RecentHistogram:
    """The requests of the last seconds, from a histogram that only grows.

    seconds   how many seconds; the owner calls `add` once in each
    """

    def __init__(self, seconds: int) -> None:
        self._looks: deque[Sequence[int]] = deque(maxlen=seconds + 1)

    def __bool__(self) -> bool:
        return bool(self._looks)

    def add(self, counts: Sequence[int]) -> None:
        """Add the current histogram.

        counts   the number of requests in each bucket since the start
        """
        if self._looks and sum(counts) < sum(self._looks[-1]):
            self._looks.clear()  # the counters have begun again
        self._looks.append(counts)

    @property
    def counts(self) -> list[int]:
        """The number of requests in each bucket; [] until two histograms are known."""
        if len(self._looks) < 2:
            return []
        pairs = zip(self._looks[0], self._looks[-1], strict=True)
        return [last - first for first, last in pairs]


def quantile(counts: Sequence[int], part: float) -> float | None:
    """A quantile of the latency in seconds, interpolated within its bucket; None without requests.

    counts  the number of requests in each bucket of the histogram (`LATENCY_BOUNDS_S`)
    part    the quantile, such as 0.99 for the 99th percentile
    """
    total = sum(counts)
    if not total:
        return None
    rank = part * total
    below = 0
    for bucket, count in enumerate(counts):
        if count and below + count >= rank:
            low = LATENCY_BOUNDS_S[bucket - 1] if bucket else 0.0
            high = LATENCY_BOUNDS_S[bucket]
            if high == float("inf"):
                return round(low, 6)
            return round(low + (high - low) * (rank - below) / count, 6)
        below += count
    raise AssertionError("the counts are less than their sum")
