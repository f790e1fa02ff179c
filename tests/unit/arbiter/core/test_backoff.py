"""The back-off doubles with each round of failures, and ends when a process survives."""

from __future__ import annotations

import pytest

from servo.arbiter.core.backoff import BACKOFF_CAP_S, Backoff


def test_the_wait_doubles_up_to_its_cap() -> None:
    backoff, now, delays = Backoff(), 100.0, []
    for _ in range(12):
        assert backoff.failed(spawned_at=now, now=now)
        delays.append(backoff.not_before - now)
        now = backoff.not_before
    assert delays[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert delays[-1] == BACKOFF_CAP_S


def test_failures_of_one_round_count_once() -> None:
    backoff = Backoff()
    assert backoff.failed(spawned_at=1.0, now=5.0)
    assert not backoff.failed(spawned_at=2.0, now=6.0)
    backoff.survived(spawned_at=3.0)  # forked before the failure, so of an older round
    assert backoff.rounds == 1
    backoff.survived(spawned_at=5.2)
    assert (backoff.rounds, backoff.not_before) == (0, 0.0)


def test_a_standstill_moves_the_wait() -> None:
    backoff = Backoff()
    backoff.failed(spawned_at=1.0, now=5.0)
    due = backoff.not_before
    backoff.shift(10.0)
    assert backoff.not_before == due + 10.0
    assert not backoff.failed(spawned_at=14.0, now=16.0)  # still before the shifted failure
