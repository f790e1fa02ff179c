"""Numbers for operators: quantiles and rates."""

from __future__ import annotations

import pytest

from servo.arbiter.operator.status import RATE_WINDOW_S, Rates, config
from servo.settings.sources import Settings


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
