"""Dropped messages are all counted, and logged once in a while."""

from __future__ import annotations

from servo.ipc.drops import LOG_EVERY_S, Drops


def test_the_first_drop_is_logged_at_once_and_the_next_ones_together():
    drops = Drops()
    assert drops.note(100.0) == 1
    assert drops.note(101.0) == 0
    assert drops.note(102.0, 5) == 0
    assert drops.due(100.0 + LOG_EVERY_S - 0.1) == 0
    assert drops.due(100.0 + LOG_EVERY_S) == 6
    assert drops.total == 7


def test_nothing_is_due_without_a_new_drop():
    drops = Drops()
    assert drops.due(0.0) == 0
    assert drops.note(1.0) == 1
    assert drops.due(1.0 + 2 * LOG_EVERY_S) == 0
    # The interval counts from the last log entry, so this drop is logged at once.
    assert drops.note(2.0 + 2 * LOG_EVERY_S) == 1
