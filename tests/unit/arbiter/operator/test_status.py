"""Numbers for operators: quantiles and rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.arbiter.operator.status import RATE_WINDOW_S, Rates, config, quantile
from servo.settings.sources import Settings
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


def test_rates_are_over_a_window() -> None:
    rates = Rates()
    assert rates.total() == rates.of(1) == 0.0
    for second in range(20):
        rates.look(float(second), {1: 10 * second, 2: 0}, 12 * second)
    assert rates.of(1) == pytest.approx(10.0)
    assert rates.of(2) == rates.of(3) == 0.0
    assert rates.total() == pytest.approx(12.0)
    rates.look(20.0, {1: 200, 2: 0, 3: 7}, 247)
    assert rates.of(3) == pytest.approx(7.0)
    for second in range(21, 21 + int(RATE_WINDOW_S) + 1):
        rates.look(float(second), {1: 190}, 247)
    assert rates.of(1) == rates.total() == 0.0


def test_configuration_shows_variables_of_the_app_by_name() -> None:
    settings = Settings({"raw_env": ["TOKEN=hush", "MODE=a=b"]}, {"raw_env": "flag --env"})
    row = next(row for row in config(settings) if row["name"] == "raw_env")
    assert row["value"] == "TOKEN=…,MODE=…"
    assert row["source"] == "flag --env"
