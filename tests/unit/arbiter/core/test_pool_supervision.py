"""The decisions about a pool's processes, with a fake clock."""

from __future__ import annotations

from typing import Any

import pytest

from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.policy import ABORT_S
from servo.arbiter.core.pool_supervision import (
    ForkProcess,
    LogPool,
    PoolEntry,
    PoolPolicy,
    PoolState,
    PoolSupervision,
    Reading,
    RetireProcess,
    SignalProcess,
)

POLICY = PoolPolicy(
    workers=2,
    timeout_s=10,
    max_tasks=0,
    max_memory_bytes=0,
    boot_timeout_s=30,
    graceful_timeout_s=5,
)
IDLE = Reading(None, "", 0, 0)


class Driver:
    """Performs the actions: forks give serials, the others are kept."""

    def __init__(self, **policy: Any) -> None:
        self.pool = PoolSupervision("ml", POLICY._replace(**policy), 1)
        self.serial = 0
        self.now = 100.0
        self.done: list[Any] = []
        self.log: list[str] = []
        self.pool.step(self.now)
        self.perform()

    def perform(self) -> list[Any]:
        """Perform all actions; the signals and retirements since the last call."""
        while self.pool.actions:
            action = self.pool.actions.pop(0)
            if isinstance(action, ForkProcess):
                self.serial += 1
                self.pool.forked(self.serial, 1000 + self.serial, action, self.now)
            elif isinstance(action, LogPool):
                self.log.append(f"{action.level}: {action.text}")
            else:
                self.done.append(action)
        done, self.done = self.done, []
        return done

    def ready(self, *serials: int) -> list[Any]:
        for serial in serials:
            self.pool.ready(serial, self.now)
        return self.perform()

    def exited(self, serial: int, *, is_failure: bool = False, text: str = "it ended") -> list[Any]:
        self.pool.exited(serial, text, self.now, is_failure=is_failure)
        return self.perform()

    def measured(self, after: float = 1.0, **readings: Reading) -> list[Any]:
        self.now += after
        given = {int(name[1:]): reading for name, reading in readings.items()}
        self.pool.measured({s: given.get(s, IDLE) for s in self.pool.entries}, self.now)
        return self.perform()

    @property
    def slots(self) -> list[tuple[int, str]]:
        return [(each.slot, each.state.value) for each in self.pool.entries.values()]


def test_every_slot_gets_a_process():
    driver = Driver()
    assert driver.slots == [(1, "booting"), (2, "booting")]
    assert driver.ready(1, 2) == []
    assert driver.slots == [(1, "ready"), (2, "ready")]
    assert "info: process 1 of pool ml (pid 1001) is ready" in driver.log[0]
    driver.ready(1)
    assert driver.slots == [(1, "ready"), (2, "ready")]


def test_a_process_that_dies_is_replaced_at_once():
    driver = Driver()
    driver.ready(1, 2)
    driver.exited(1, is_failure=True, text="killed")
    assert driver.slots == [(2, "ready"), (1, "booting")]
    assert driver.pool.restarts == 1
    assert driver.log[-1] == "error: process 1 of pool ml (pid 1001) has ended: killed"


def test_processes_that_can_not_boot_wait_longer_and_longer():
    driver = Driver(workers=1)
    waits = []
    for serial in range(1, 6):
        driver.pool.boot_failed(serial, "no model\ntraceback")
        driver.exited(serial, is_failure=True)
        start = driver.now
        while not driver.pool.entries:
            driver.measured(0.05)
        waits.append(driver.now - start)
    assert waits == sorted(waits)
    assert waits[0] < 0.3 < waits[-1]
    assert driver.pool.failure == "no model"
    driver.ready(6)
    assert driver.pool.failure == ""
    driver.exited(6, is_failure=True)
    assert driver.slots == [(1, "booting")]


def test_a_process_that_leaves_before_it_is_ready_has_failed():
    driver = Driver(workers=1)
    driver.exited(1)
    assert driver.slots == []  # not at once
    assert driver.pool.restarts == 1


def test_a_fork_that_fails_is_tried_again():
    driver = Driver(workers=1)
    driver.pool.entries.clear()
    driver.pool.fork_failed("no memory", driver.now)
    driver.perform()
    assert "can't be forked: no memory" in driver.log[-1]
    assert driver.slots == []
    driver.measured(1.0)
    assert driver.slots == [(1, "booting")]


def test_a_reload_replaces_one_process_after_the_other_new_first():
    driver = Driver()
    driver.ready(1, 2)
    driver.pool.adopt(POLICY, 2, driver.now)
    assert driver.perform() == []
    assert driver.slots == [(1, "ready"), (2, "ready"), (1, "booting")]
    assert driver.ready(3) == [RetireProcess(1)]
    assert driver.slots == [(1, "retiring"), (2, "ready"), (1, "ready"), (2, "booting")]
    assert driver.ready(4) == [RetireProcess(2)]
    driver.exited(1)
    driver.exited(2)
    assert [each.generation for each in driver.pool.entries.values()] == [2, 2]
    assert driver.pool.restarts == 0


def test_a_reload_whose_first_process_fails_keeps_the_old_ones():
    driver = Driver()
    driver.ready(1, 2)
    driver.pool.adopt(POLICY, 2, driver.now)
    driver.perform()
    driver.pool.boot_failed(3, "no model")
    driver.exited(3, is_failure=True)
    assert driver.slots == [(1, "ready"), (2, "ready")]
    assert "keeps its old processes" in driver.log[-1]
    driver.measured(60)  # the next attempt
    assert driver.slots == [(1, "ready"), (2, "ready"), (1, "booting")]


def test_a_roll_back_keeps_the_processes_of_the_old_generation():
    driver = Driver()
    driver.ready(1, 2)
    driver.pool.adopt(POLICY, 2, driver.now)
    driver.perform()
    driver.ready(3)
    driver.pool.adopt(POLICY, 1, driver.now)
    # The new one in slot 1 is stale, the booting one in slot 2 is killed, the old one stays.
    assert driver.perform() == [SignalProcess(4, "SIGABRT")]
    driver.exited(4)
    assert (2, "ready") in driver.slots
    stale = [each.serial for each in driver.pool.entries.values() if each.stale]
    assert stale == [3]


def test_fewer_and_more_processes():
    driver = Driver()
    driver.ready(1, 2)
    driver.pool.adopt(POLICY._replace(workers=1), 2, driver.now)
    assert driver.perform() == [RetireProcess(2)]
    driver.pool.end(driver.now)
    assert RetireProcess(1) in driver.perform()
    for serial in list(driver.pool.entries):
        driver.exited(serial)
    assert driver.slots == []


@pytest.mark.parametrize(
    ("policy", "reading", "reason"),
    [
        ({"max_tasks": 5}, Reading(None, "", 5, 0), "it has run 5 tasks (max_tasks)"),
        ({"max_memory_bytes": 1 << 20}, Reading(None, "", 0, 3 << 20), "it uses 3 MiB of memory"),
    ],
)
def test_a_process_that_reaches_a_limit_is_replaced_new_first(policy, reading, reason):
    driver = Driver(**policy)
    driver.ready(1, 2)
    assert driver.measured(s1=reading) == []
    assert driver.slots == [(1, "ready"), (2, "ready"), (1, "booting")]
    assert driver.ready(3) == [RetireProcess(1)]
    assert driver.pool.entries[1].cause is not None
    assert str(driver.pool.entries[1].cause).startswith(reason)


def test_a_task_past_its_time_is_aborted_and_then_killed():
    driver = Driver()
    driver.ready(1, 2)
    assert driver.measured(s1=Reading(9.5, "m.f", 1, 0)) == []
    assert driver.measured(s1=Reading(10.5, "m.f", 1, 0)) == [SignalProcess(1, "SIGABRT")]
    assert driver.pool.entries[1].timed_out
    assert "m.f ran for more than 10 s (timeout)" in driver.log[-1]
    assert driver.measured(ABORT_S / 2, s1=Reading(11, "m.f", 1, 0)) == []
    assert driver.measured(ABORT_S, s1=Reading(13, "m.f", 1, 0)) == [SignalProcess(1, "SIGKILL")]
    assert driver.measured(s1=Reading(14, "m.f", 1, 0)) == []


def test_a_task_without_a_limit():
    driver = Driver(timeout_s=0)
    driver.ready(1, 2)
    assert driver.measured(s1=Reading(1e6, "m.f", 1, 0)) == []


def test_a_boot_without_end_is_ended():
    driver = Driver(workers=1)
    assert driver.measured(29) == []
    assert driver.measured(2) == [SignalProcess(1, "SIGABRT")]
    assert driver.pool.entries[1].cause.reason is ExitReason.BOOT_TIMEOUT
    assert "boot_timeout" in driver.pool.failure
    driver = Driver(workers=1, boot_timeout_s=0)
    assert driver.measured(1e6) == []


def test_a_retiring_process_has_graceful_timeout_for_its_task():
    driver = Driver(workers=1)
    driver.ready(1)
    driver.pool.adopt(POLICY._replace(workers=1), 2, driver.now)
    driver.perform()
    assert driver.ready(2) == [RetireProcess(1)]
    assert driver.measured(4, s1=Reading(4, "m.f", 1, 0)) == []
    assert driver.measured(2, s1=Reading(6, "m.f", 1, 0)) == [SignalProcess(1, "SIGABRT")]


def test_a_late_report_of_a_retiring_process_changes_nothing():
    driver = Driver(workers=2)
    driver.ready(1)
    driver.pool.adopt(POLICY._replace(workers=1), 1, driver.now)
    driver.perform()
    assert driver.pool.entries[2].state is PoolState.RETIRING
    driver.ready(2)
    driver.pool.boot_failed(2, "late")
    assert driver.pool.entries[2].state is PoolState.RETIRING
    assert driver.pool.failure == ""


def test_a_process_of_the_previous_program_is_taken_over():
    driver = Driver(workers=1)
    driver.pool.entries.clear()
    driver.pool.restore(PoolEntry(9, 99, 1, 1, 50.0, PoolState.READY))
    driver.pool.step(driver.now)
    assert driver.perform() == []
    assert driver.slots == [(1, "ready")]
