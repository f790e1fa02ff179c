"""Failures in a row are counted by rounds."""

from __future__ import annotations

from servo.arbiter.core.failure_rounds import FailureRounds


def test_processes_that_fail_together_count_once() -> None:
    failures = FailureRounds()
    assert failures.failed(spawned_at=1.0, now=5.0)
    assert not failures.failed(spawned_at=1.0, now=5.1)
    assert failures.failed(spawned_at=5.2, now=6.0)
    assert failures.count == 2


def test_a_success_ends_the_count() -> None:
    failures = FailureRounds()
    failures.failed(spawned_at=1.0, now=5.0)
    assert not failures.is_current(spawned_at=4.0)
    failures.reset()
    assert failures.count == 0
    assert failures.failed(spawned_at=4.0, now=5.5)


def test_a_standstill_moves_the_last_failure() -> None:
    failures = FailureRounds()
    failures.failed(spawned_at=1.0, now=5.0)
    failures.shift(10.0)
    assert not failures.failed(spawned_at=14.0, now=16.0)
    assert failures.failed(spawned_at=15.0, now=16.0)
