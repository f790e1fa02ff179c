"""The utilisation of a worker, from sums that only grow."""

from __future__ import annotations

import sys

import pytest

from servo.shared_memory.row_layout import FULL_UTILISATION as FULL
from servo.workers import utilisation
from servo.workers.utilisation import CPUTime, UtilisationMeter

SECOND = 1_000_000_000


def meter_without_cpu() -> UtilisationMeter:
    return UtilisationMeter(lambda: 0)


def test_nothing_is_known_after_one_look() -> None:
    assert meter_without_cpu().measure(7 * SECOND, [3 * SECOND]) == 0


def test_the_busiest_resource_counts() -> None:
    meter = UtilisationMeter(iter([0, SECOND // 4]).__next__)
    meter.measure(0, [0, 0])
    assert meter.measure(SECOND, [SECOND // 2, SECOND // 8]) == FULL // 2
    meter = UtilisationMeter(iter([0, SECOND // 4]).__next__)
    meter.measure(0, [0])
    assert meter.measure(SECOND, [0]) == FULL // 4


def test_it_is_an_average_over_the_last_seconds() -> None:
    meter = meter_without_cpu()
    held, found = 0, []
    for second in range(16):
        found.append(meter.measure(second * SECOND, [held]))
        if 5 <= second < 10:
            held += SECOND
    assert found[5] == 0
    assert found[10] == FULL
    assert found[8] == 3 * FULL // 5
    assert found[15] == 0


def test_a_look_after_a_long_time_covers_all_of_it() -> None:
    """A sync worker that runs a long request looks only afterwards."""
    meter = meter_without_cpu()
    meter.measure(0, [0])
    meter.measure(SECOND, [0])
    assert meter.measure(61 * SECOND, [60 * SECOND]) == FULL


@pytest.mark.parametrize(("held_ns", "expected"), [(3 * SECOND, FULL), (-SECOND, 0)])
def test_it_stays_between_nothing_and_full(held_ns: int, expected: int) -> None:
    meter = UtilisationMeter(iter([0, -1]).__next__)
    meter.measure(0, [0])
    assert meter.measure(SECOND, [held_ns]) == expected


def test_two_looks_at_the_same_time() -> None:
    meter = meter_without_cpu()
    meter.measure(SECOND, [0])
    assert meter.measure(SECOND, [5]) == 0


def test_cpu_time_includes_the_wait_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True, raising=False)
    used, asked = [0], []

    def waited_ns() -> int:
        asked.append(used[0])
        return 40_000_000

    monkeypatch.setattr(utilisation, "process_time_ns", lambda: used[0])
    monkeypatch.setattr(utilisation, "waited_ns", waited_ns)
    cpu = CPUTime()
    assert cpu.total_ns() == 0
    used[0] = 999_999  # an idle worker doesn't ask the kernel
    assert cpu.total_ns() == 999_999
    assert asked == []
    used[0] = 10_000_000
    assert cpu.total_ns() == 50_000_000
    used[0] = 10_500_000
    assert cpu.total_ns() == 50_500_000
    assert asked == [10_000_000]


def test_without_the_gil_only_the_main_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    monkeypatch.setattr(utilisation, "process_time_ns", lambda: 5_000)
    monkeypatch.setattr(utilisation, "thread_time_ns", lambda: 3_000)
    assert CPUTime().total_ns() == 3_000
