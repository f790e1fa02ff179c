"""The delays before the restart of a helper process."""

from __future__ import annotations

from servo.arbiter.core.backoff import BACKOFF_FIRST_S
from servo.arbiter.processes.child import PROVED_S, RestartDelay


def test_failures_at_birth_are_waited_for_ever_longer() -> None:
    delay = RestartDelay()
    assert delay.is_over(0.0)
    now = 100.0
    for expected in (1, 2, 4):
        delay.started(now)
        delay.ended(now + 0.1)
        assert not delay.is_over(now + 0.1 + expected * BACKOFF_FIRST_S * 0.9)
        now += 0.1 + expected * BACKOFF_FIRST_S * 1.01
        assert delay.is_over(now)


def test_one_that_has_lived_starts_a_new_series() -> None:
    delay = RestartDelay()
    for start in (100.0, 101.0, 103.0):
        delay.started(start)
        delay.ended(start + 0.1)
    delay.started(200.0)
    delay.ended(200.0 + PROVED_S)
    assert delay.is_over(200.0 + PROVED_S + BACKOFF_FIRST_S * 1.01)


def test_forks_that_fail_are_waited_for_too() -> None:
    delay = RestartDelay()
    delay.start_failed(100.0)
    assert not delay.is_over(100.0 + BACKOFF_FIRST_S * 0.9)
    assert delay.is_over(100.0 + BACKOFF_FIRST_S * 1.01)
