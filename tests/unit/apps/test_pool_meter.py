"""The counts of a pool of threads, kept by the thread that hands over the calls."""

from __future__ import annotations

import pytest

from servo.apps import pool_meter
from servo.apps.pool_meter import PoolMeter
from servo.shared_memory.row_layout import (
    ROW_WORDS,
    THREAD_REQUESTS,
    THREAD_WAIT_SUM_NS,
    thread_waits_in,
)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in nanoseconds, as a list of one number that a test changes."""
    now = [1000]
    monkeypatch.setattr(pool_meter, "monotonic_ns", lambda: now[0])
    return now


def test_calls_waits_and_held_threads(now: list[int]) -> None:
    row = memoryview(bytearray(8 * ROW_WORDS)).cast("Q")
    meter = PoolMeter(row, 2)
    first, second = meter.enter(), meter.enter()
    assert not first.has_to_wait
    assert not second.has_to_wait
    for call in (first, second):
        call.run(lambda: None)
    now[0] += 500
    third = meter.enter()
    assert third.has_to_wait
    assert row[THREAD_REQUESTS] == 3
    assert (third.waited_ns, third.held_ns(now[0])) == (-1, 0)
    assert meter.held_ns(now[0]) == 2 * 500

    now[0] += 70
    meter.leave(first)
    third.run(lambda: None)
    assert row[THREAD_REQUESTS] == 2
    now[0] += 30
    meter.leave(third)
    assert (third.waited_ns, sum(thread_waits_in(row.tolist()))) == (70, 1)
    assert row[THREAD_WAIT_SUM_NS] == 70
    # 570 of the first, 600 of the second, which still runs, and 30 of the third.
    assert meter.held_ns(now[0]) == 1200
    meter.leave(second)
    assert (row[THREAD_REQUESTS], meter.held_ns(now[0] + 999)) == (0, 1200)
    assert sum(thread_waits_in(row.tolist())) == 1
