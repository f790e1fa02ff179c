"""Quantiles of histograms, and the histogram of the last seconds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from servo.metrics.histograms import RecentHistogram, quantile
from servo.shared_memory.row_layout import LATENCY_BOUNDS_S, LATENCY_BUCKETS


def test_no_requests_have_no_latency() -> None:
    assert quantile([0] * LATENCY_BUCKETS, 0.5) is None


@given(
    st.lists(st.integers(0, 50), min_size=LATENCY_BUCKETS, max_size=LATENCY_BUCKETS),
    st.floats(0.01, 1.0),
)
def test_a_quantile_lies_in_the_bucket_of_its_rank(counts: list[int], part: float) -> None:
    if not sum(counts):
        return
    found = quantile(counts, part)
    assert found is not None
    every = [bucket for bucket, count in enumerate(counts) for _ in range(count)]
    rank = max(0, -int(-part * len(every) // 1) - 1)
    bucket = every[min(rank, len(every) - 1)]
    low = LATENCY_BOUNDS_S[bucket - 1] if bucket else 0.0
    assert low - 1e-6 <= found
    if bucket < LATENCY_BUCKETS - 1:
        assert found <= LATENCY_BOUNDS_S[bucket] + 1e-6


def test_a_recent_histogram_covers_the_last_seconds() -> None:
    recent = RecentHistogram(2)
    assert not recent
    assert recent.counts == []
    recent.add([5, 0])
    assert recent
    assert recent.counts == []
    for counts in ([6, 1], [7, 2], [7, 5]):
        recent.add(counts)
    assert recent.counts == [1, 4]


def test_counters_that_begin_again_begin_a_new_histogram() -> None:
    recent = RecentHistogram(5)
    recent.add([5, 5])
    recent.add([1, 0])
    assert recent.counts == []
    recent.add([1, 2])
    assert recent.counts == [0, 2]
