"""When one of several workers closes its connections after each response."""

from __future__ import annotations

from servo.workers.habit import QUICK_NS, WARY_NS, Habit

SECOND = 1_000_000_000


def test_quick_requests_keep_connections() -> None:
    habit = Habit(QUICK_NS)
    assert not habit.is_slow(0, 0, SECOND)
    assert not habit.is_slow(1000, 1000 * QUICK_NS, 2 * SECOND)
    assert not habit.is_slow(1000, 1000 * QUICK_NS, 3 * SECOND)


def test_slow_ones_close_them_for_a_while() -> None:
    habit = Habit(QUICK_NS)
    assert not habit.is_slow(1000, 10 * QUICK_NS, SECOND)
    assert habit.is_slow(1002, 13 * QUICK_NS, 2 * SECOND)
    assert habit.is_slow(1500, 14 * QUICK_NS, 1 * SECOND + WARY_NS)
    assert not habit.is_slow(1500, 14 * QUICK_NS, 2 * SECOND + WARY_NS)


def test_one_long_request_among_many_counts_by_its_time() -> None:
    habit = Habit(QUICK_NS)
    assert not habit.is_slow(10_000, 3000 * QUICK_NS, SECOND)
    assert habit.is_slow(10_101, (3000 + 102) * QUICK_NS, 2 * SECOND)
