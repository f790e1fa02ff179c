"""Which worker runs a job, and when: two workers' runners, with a clock that the test sets."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from servo.cluster.counters import install
from servo.cluster.schedules import IntervalJob
from servo.shared_memory.counters import CounterTable
from servo.workers import schedules
from servo.workers.schedules import STANDBY_S, ScheduleRunner, rank_of

NS = 1_000_000_000


@pytest.fixture(autouse=True)
def table() -> Iterator[CounterTable]:
    table = CounterTable(capacity=20, rows=4)
    install(table)
    yield table
    install(None)
    table.close()


class Clocked(IntervalJob):
    """A job each 10 s, on a clock that begins at 100 s."""

    time_s = 100.0

    def now(self) -> int:
        return int(self.time_s * NS)


class Runs:
    """Functions for jobs: `at_once` counts; `blocked` waits for the test."""

    def __init__(self) -> None:
        self.count = 0
        self.go = threading.Event()

    def at_once(self) -> None:
        self.count += 1

    def blocked(self) -> None:
        self.count += 1
        self.go.wait(10)


@pytest.fixture
def runs() -> Runs:
    return Runs()


def wait_idle(runner: ScheduleRunner) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("job "):
            thread.join(10)
    assert not runner.is_running


def runner_of(job: Clocked, rank: int | None = 0, **options: Any) -> ScheduleRunner:
    return ScheduleRunner([job], lambda: rank, **options)


def test_the_first_run_is_one_interval_after_the_start(runs: Runs) -> None:
    job = Clocked("x", runs.at_once, 10)
    runner = runner_of(job)
    assert runner.look(job) == 0
    assert runner.look(job) == 10
    job.time_s = 109.5
    assert runner.look(job) == 0.5
    job.time_s = 110
    assert runner.look(job) == 0
    wait_idle(runner)
    assert runs.count == 1
    assert runner.look(job) == 10
    assert (job.runs.value(), job.skipped.value(), job.failures.value()) == (1, 0, 0)


def test_missed_times_run_once(runs: Runs) -> None:
    job = Clocked("x", runs.at_once, 10)
    runner = runner_of(job)
    runner.look(job)
    job.time_s = 157
    runner.look(job)
    wait_idle(runner)
    assert runner.look(job) == 3  # 160
    assert runs.count == 1


def test_one_of_two_workers_runs_it(runs: Runs) -> None:
    job = Clocked("x", runs.at_once, 10)
    first, second = runner_of(job, 0), runner_of(job, 1)
    first.look(job)
    job.time_s = 110
    assert second.look(job) == 1
    first.look(job)
    wait_idle(first)
    assert second.look(job) == 10
    assert runs.count == 1


def test_the_next_worker_takes_over_from_a_stopped_leader(runs: Runs) -> None:
    job = Clocked("x", runs.at_once, 10)
    second, third = runner_of(job, 1), runner_of(job, 2)
    second.look(job)
    job.time_s = 110 + STANDBY_S - 0.5
    assert second.look(job) == 0.5
    assert third.look(job) == 1
    assert runs.count == 0
    job.time_s = 110 + STANDBY_S
    second.look(job)
    wait_idle(second)
    assert runs.count == 1
    assert third.look(job) == 5


def test_a_worker_that_is_not_ready_runs_nothing(runs: Runs) -> None:
    job = Clocked("x", runs.at_once, 10)
    runner = runner_of(job, None)
    runner.look(job)
    job.time_s = 500
    assert runner.look(job) == 1
    assert runs.count == 0


def test_an_overlapping_run_is_skipped_and_counted(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    job = Clocked("x", runs.blocked, 10)
    runner = runner_of(job)
    runner.look(job)
    job.time_s = 110
    runner.look(job)
    assert runner.is_running
    job.time_s = 120
    runner.look(job)
    runs.go.set()
    wait_idle(runner)
    assert (runs.count, job.runs.value(), job.skipped.value()) == (1, 1, 1)
    assert "The job 'x' is skipped" in caplog.text
    job.time_s = 130
    runner.look(job)
    wait_idle(runner)
    assert runs.count == 2


def test_a_run_in_another_process_is_not_overlapped(runs: Runs, table: CounterTable) -> None:
    import os

    other = CounterTable.attach(os.dup(table.fd))  # with an opening of its own, like a process
    job = Clocked("x", runs.at_once, 10)
    runner = runner_of(job)
    runner.look(job)
    assert other.locks.try_lock(job.run_place)
    job.time_s = 110
    runner.look(job)
    assert (runs.count, job.skipped.value()) == (0, 1)
    other.close()
    job.time_s = 120
    runner.look(job)
    wait_idle(runner)
    assert runs.count == 1


def test_another_worker_is_just_deciding(runs: Runs, table: CounterTable) -> None:
    import os

    other = CounterTable.attach(os.dup(table.fd))
    job = Clocked("x", runs.at_once, 10)
    runner = runner_of(job)
    assert other.locks.try_lock(job.claim_place)
    assert runner.look(job) == 0.05
    other.locks.unlock(job.claim_place)
    runner.look(job)
    other.locks.try_lock(job.claim_place)
    job.time_s = 110
    assert runner.look(job) == 0.05
    assert runs.count == 0
    other.close()


def test_exceptions_are_logged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise SystemExit("on purpose")

    job = Clocked("x", fail, 10)
    runner = runner_of(job)
    runner.look(job)
    job.time_s = 110
    runner.look(job)
    wait_idle(runner)
    assert (job.runs.value(), job.failures.value()) == (1, 1)
    assert "The job 'x' failed" in caplog.text
    assert "on purpose" in caplog.text


def test_a_coroutine_without_a_loop_runs_in_the_thread(runs: Runs) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        runs.at_once()

    job = Clocked("x", work, 10)
    runner = runner_of(job)
    runner.look(job)
    job.time_s = 110
    runner.look(job)
    wait_idle(runner)
    assert runs.count == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_coroutine_runs_on_the_workers_loop(fails: bool) -> None:
    async def main() -> None:
        loops = []

        async def work() -> None:
            loops.append(asyncio.get_running_loop())
            if fails:
                raise ValueError("on purpose")

        ended = asyncio.Event()
        job = Clocked("x", work, 10)
        runner = runner_of(job, loop=asyncio.get_running_loop(), on_idle=ended.set)
        runner.look(job)
        job.time_s = 110
        runner.look(job)
        assert runner.is_running
        runner.stop()
        await asyncio.wait_for(ended.wait(), 10)
        assert not runner.is_running
        assert loops == [asyncio.get_running_loop()]
        assert job.failures.value() == fails

    asyncio.run(main())


def test_a_draining_worker_starts_nothing(runs: Runs) -> None:
    job = Clocked("x", runs.at_once, 10)
    runner = runner_of(job)
    runner.look(job)
    runner.stop()
    job.time_s = 110
    runner.look(job)
    assert not runner.is_running
    assert job.runs.value() == 0
    # The run is not lost: the next leader takes it.
    following = runner_of(job)
    following.look(job)
    wait_idle(following)
    assert runs.count == 1


def test_a_closed_loop_is_a_failed_run(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None: ...

    loop = asyncio.new_event_loop()
    loop.close()
    job = Clocked("x", work, 10)
    runner = runner_of(job, loop=loop)
    runner.look(job)
    job.time_s = 110
    runner.look(job)
    assert not runner.is_running
    assert job.failures.value() == 1
    assert "Event loop is closed" in caplog.text


def test_the_thread_watches_and_ends() -> None:
    done = threading.Event()
    job = IntervalJob("x", done.set, 0.1)
    runner = runner_of(job)  # type: ignore[arg-type]
    runner.start()
    assert done.wait(10)
    runner.stop()
    runner.join()
    wait_idle(runner)


def test_a_full_table_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    table = CounterTable(capacity=1, rows=1)
    install(table)
    runner = runner_of(Clocked("x", lambda: None, 10))
    assert runner._look_at_all() == schedules._AFTER_ERROR_S
    assert "Scheduled jobs don't run in this worker" in caplog.text
    assert "cluster_counters" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR
    table.close()


@pytest.mark.parametrize(
    ("rows", "rank"),
    [
        ([(1, 1, "ready"), (2, 2, "ready")], 1),
        ([(1, 1, "draining"), (2, 2, "ready")], 0),
        ([(1, 1, "ready"), (2, 2, "draining")], None),
        ([(2, 2, "ready"), (2, 3, "ready")], None),
        ([(2, 1, "ready"), (2, 2, "ready"), (2, 3, "booting")], 0),
        ([(1, 3, "ready"), (3, 4, "ready"), (4, 2, "ready")], 2),
        ([], None),
    ],
)
def test_ranks(rows: list[tuple[int, int, str]], rank: int | None) -> None:
    board: Any = SimpleNamespace(
        snapshot=lambda: [
            SimpleNamespace(slot=slot, serial=serial, state=state) for slot, serial, state in rows
        ]
    )
    assert rank_of(board, 2) == rank
