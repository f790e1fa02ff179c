"""Pools outside of a server."""

from __future__ import annotations

import os

import pool_jobs as jobs
import pytest
from pool_processes import DEADLINE_S

from servo.pools.errors import NotPicklable, ProcessDied
from servo.pools.local import LocalExecutor, LocalPool, LocalProcesses, initialize

pytestmark = pytest.mark.slow


@pytest.fixture
def processes():
    found = LocalProcesses("test", LocalPool(1, "pool_jobs:add_mark"))
    yield found
    found.close()


def test_tasks_run_in_another_process_that_was_initialized(processes):
    executor = LocalExecutor(processes)
    assert executor.submit(jobs.add, 1, b=2).result(DEADLINE_S) == 3
    assert executor.submit(jobs.pid).result(DEADLINE_S) != os.getpid()
    assert executor.submit(jobs.mark).result(DEADLINE_S) == "initialized"
    assert list(executor.map(jobs.add, range(5), buffersize=2)) == list(range(5))


def test_streams_and_their_errors(processes, tmp_path):
    executor = LocalExecutor(processes)
    assert list(executor.stream(jobs.count, 50)) == list(range(50))
    with pytest.raises(ValueError, match="no more"):
        list(executor.stream(jobs.count_and_fail, 2))
    trace = tmp_path / "trace"
    with executor.stream(jobs.count_into, str(trace), 100, buffer=2) as stream:
        assert next(stream) == 0
    assert executor.submit(jobs.add, 1).result(DEADLINE_S) == 1
    assert trace.read_text().split()[-1] == "closed"
    with pytest.raises(ValueError, match="buffer"):
        executor.stream(jobs.count, 1, buffer=0)
    assert os.listdir(processes._directory) == []


def test_what_can_not_be_a_task_is_refused_alike(processes):
    executor = LocalExecutor(processes)
    with pytest.raises(NotPicklable, match="lambda"):
        executor.submit(lambda: 1)
    with pytest.raises(NotPicklable, match="lock"):
        executor.submit(jobs.take, jobs.lock())


def test_new_processes_replace_dead_ones(processes):
    executor = LocalExecutor(processes)
    with pytest.raises(Exception, match="terminated abruptly"):
        executor.submit(jobs.kill_itself).result(DEADLINE_S)
    assert executor.submit(jobs.add, 1).result(DEADLINE_S) == 1
    with pytest.raises(ProcessDied, match="terminated abruptly"):
        list(executor.stream(jobs.kill_after, 0))
    assert list(executor.stream(jobs.count, 2)) == [0, 1]


def test_shutdown(processes):
    with LocalExecutor(processes) as executor:
        future = executor.submit(jobs.add, 1)
    assert future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.add, 1)
    LocalExecutor(processes).shutdown(wait=False, cancel_futures=True)


def test_an_initializer_is_found_by_its_name():
    initialize("")
    initialize("pool_jobs:add_mark")
    assert jobs.mark() == "initialized"
    jobs.marks.clear()
    with pytest.raises(AttributeError):
        initialize("pool_jobs:nothing")
