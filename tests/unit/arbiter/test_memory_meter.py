"""The choice of workers to measure, the method, and the interval."""

from __future__ import annotations

import pytest

from servo.arbiter.core.policy import Policy
from servo.arbiter.core.worker_table import WorkerEntry
from servo.arbiter.memory_meter import MemoryMeter

LIMITED = {1: Policy(1, max_memory_bytes=100, max_memory_hard_bytes=200)}


class Machine:
    """Processes with memory, and a clock that reading the PSS moves."""

    def __init__(self) -> None:
        self.now = 50.0
        self.resident: dict[int, int] = {}
        self.proportional: dict[int, int] = {}
        self.reads: list[int] = []
        self.meter = MemoryMeter(self.resident.get, self.read, lambda: self.now)

    def read(self, pid: int) -> int | None:
        self.reads.append(pid)
        self.now += 0.1
        return self.proportional.get(pid)


def worker(serial: int, ready_at: float | None = 1.0) -> WorkerEntry:
    return WorkerEntry(serial, serial, 1, 0.0, pid=100 + serial, ready_at=ready_at)


def test_without_limits_nothing_is_measured() -> None:
    machine = Machine()
    machine.resident[101] = 500
    assert machine.meter.measure([worker(1)], {1: Policy(1)}) == {}
    assert machine.meter.at_ready(worker(1), Policy(1)) == {}


def test_far_below_the_limits_the_resident_size_is_enough() -> None:
    machine = Machine()
    machine.resident.update({101: 89, 102: 120})
    machine.proportional[102] = 60
    workers = [worker(1), worker(2), worker(3), worker(4, ready_at=None)]
    assert machine.meter.measure(workers, LIMITED) == {1: 89, 2: 60}
    assert machine.reads == [102]


def test_reading_takes_a_twentieth_of_the_time_and_each_has_its_turn() -> None:
    machine = Machine()
    workers = [worker(1), worker(2)]
    machine.resident.update({101: 95, 102: 95})
    machine.proportional.update({101: 95, 102: 95})
    seen = []
    for _ in range(9):
        seen.append(machine.meter.measure(workers, LIMITED))
        machine.now += 1.0
    assert seen == [{1: 95}, {}, {}, {2: 95}, {}, {}, {1: 95}, {}, {}]


def test_a_worker_that_gets_ready_is_measured_at_once() -> None:
    machine = Machine()
    machine.resident.update({101: 95, 102: 95, 103: 20})
    machine.proportional.update({101: 91, 102: 92})
    assert machine.meter.at_ready(worker(1), LIMITED[1]) == {1: 91}
    assert machine.meter.at_ready(worker(2), LIMITED[1]) == {2: 92}
    assert machine.meter.at_ready(worker(3), LIMITED[1]) == {3: 20}
    assert machine.meter.at_ready(worker(4), LIMITED[1]) == {}


def test_where_the_kernel_does_not_say_the_resident_size_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = Machine()
    machine.resident[101] = 150
    for _ in range(2):
        assert machine.meter.measure([worker(1)], LIMITED) == {1: 150}
        machine.now += 10.0
    assert [record.message for record in caplog.records] == [
        "The kernel doesn't show the PSS of worker 1 (pid 101), so its memory limits count pages "
        "that it shares in full (is CAP_SYS_PTRACE missing?)"
    ]
