"""When one of several workers closes its connections after each response."""

from __future__ import annotations

from servo.workers.accept.keepalive_policy import (
    HANDSHAKE_NS,
    QUICK_NS,
    TLS_QUICK_NS,
    WARY_NS,
    Habit,
)

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


def asked(tls: bool = False) -> Habit:
    """A worker that has had its first second, and nothing in it."""
    habit = Habit(tls)
    assert not habit.is_slow(0, 0, 0, HOUR)
    return habit


def test_quick_requests_keep_connections() -> None:
    habit = asked()
    assert not habit.is_slow(1000, 0, 1000 * QUICK_NS, HOUR + SECOND)
    assert not habit.is_slow(1000, 0, 1000 * QUICK_NS, HOUR + 2 * SECOND)


def test_slow_ones_close_them_for_a_while() -> None:
    habit = asked()
    assert habit.is_slow(100, 0, 101 * QUICK_NS, HOUR + SECOND)
    assert habit.is_slow(500, 0, 102 * QUICK_NS, HOUR + WARY_NS)
    assert not habit.is_slow(500, 0, 102 * QUICK_NS, HOUR + WARY_NS + SECOND)


def test_one_long_request_among_many_counts_by_its_time() -> None:
    habit = asked()
    assert habit.is_slow(101, 0, 102 * QUICK_NS, HOUR + SECOND)


def test_a_slow_request_now_and_then_does_not() -> None:
    """It holds up hardly anybody, and to connect anew may take a client far away longer."""
    habit = asked()
    for second in range(1, 100):
        # 40 ms a second.
        assert not habit.is_slow(second, 0, second * 40 * QUICK_NS, HOUR + second * SECOND)


def test_the_first_look_judges_nothing() -> None:
    """What there is then was counted while the worker started."""
    assert not Habit().is_slow(1, 0, 100 * QUICK_NS, HOUR)


def test_over_tls_new_connections_cost_more() -> None:
    habit = asked(tls=True)
    assert not habit.is_slow(100, 0, 100 * TLS_QUICK_NS, HOUR + SECOND)
    assert habit.is_slow(200, 0, 201 * TLS_QUICK_NS, HOUR + 2 * SECOND)


def test_handshakes_are_no_reason_for_more_of_them() -> None:
    habit = asked(tls=True)
    busy = 100 * (TLS_QUICK_NS + HANDSHAKE_NS)
    assert not habit.is_slow(100, 100, busy, HOUR + SECOND)
