"""The executor against real pool processes, on a socket and a board made by the test."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import os
import signal
import threading
import time
from concurrent.futures import BrokenExecutor, CancelledError, Future
from pathlib import Path

import pool_jobs as jobs
import pytest
from pool_processes import DEADLINE_S, wait_for

from servo.pools import calls as calls_module
from servo.pools.board import TIMED_OUT
from servo.pools.errors import (
    NotPicklable,
    PoolUnavailable,
    ProcessDied,
    QueueFull,
    RemoteError,
    TaskNotLoaded,
    TaskTimeout,
)
from servo.pools.pool_executor import PoolExecutor
from servo.pools.task_server import RemoteTraceback

pytestmark = pytest.mark.slow


def open_descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def occupy(pool, executor, count, tmp_path):
    """Keep `count` processes busy; a function that ends their tasks."""
    go = tmp_path / "go"
    begun = [tmp_path / f"begun{n}" for n in range(count)]
    futures = [executor.submit(jobs.begin_and_wait, str(path), str(go)) for path in begun]
    wait_for(lambda: all(path.exists() and path.read_text() for path in begun), "begun tasks")
    return futures, go


# --- results --------------------------------------------------------------------------------------


def test_a_task_runs_in_another_process(pool):
    executor = pool.executor()
    assert executor.submit(jobs.add, 2, b=3).result(DEADLINE_S) == 5
    assert executor.submit(jobs.pid).result(DEADLINE_S) in (pool.pid(1), pool.pid(2))
    partial = functools.partial(jobs.add, 10)
    assert executor.submit(partial, 1).result(DEADLINE_S) == 11


def test_an_exception_has_the_remote_traceback(pool):
    future = pool.executor().submit(jobs.fail, "no such luck")
    with pytest.raises(ValueError, match="no such luck") as caught:
        future.result(DEADLINE_S)
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "pool_jobs.py" in str(cause)
    assert "raise ValueError(text)" in str(cause)


def test_sys_exit_in_a_task_is_its_result_and_leaves_the_process_alive(pool):
    executor = pool.executor()
    with pytest.raises(SystemExit, match="leaving"):
        executor.submit(jobs.leave).result(DEADLINE_S)
    assert executor.submit(jobs.add, 1).result(DEADLINE_S) == 1


@pytest.mark.parametrize(
    ("job", "text"),
    [(jobs.fail_awkwardly, "Awkward: 7 seven"), (jobs.fail_locally, "Local: a lock")],
)
def test_an_exception_that_can_not_travel_is_replaced(pool, job, text):
    with pytest.raises(RemoteError, match=text) as caught:
        pool.executor().submit(job).result(DEADLINE_S)
    assert "pool_jobs.py" in str(caught.value.__cause__)


def test_a_result_that_can_not_be_pickled(pool):
    with pytest.raises(NotPicklable, match=r"the result of the task can't be pickled: .*lock"):
        pool.executor().submit(jobs.lock).result(DEADLINE_S)


def test_a_result_that_can_not_be_unpickled(pool):
    with pytest.raises(NotPicklable, match=r"the result can't be unpickled: RuntimeError: boom"):
        pool.executor().submit(jobs.explosive).result(DEADLINE_S)


def test_an_argument_that_can_not_be_unpickled(pool):
    with pytest.raises(TaskNotLoaded, match="can't load the task: RuntimeError: boom"):
        pool.executor().submit(jobs.take, jobs.Explosive()).result(DEADLINE_S)


def test_what_can_not_be_a_task_is_refused_at_once(pool):
    def local():
        return 1

    executor = pool.executor()
    with pytest.raises(NotPicklable, match="a lambda can't be a task"):
        executor.submit(lambda: 1)
    with pytest.raises(NotPicklable, match=r"the local function .*local can't be a task"):
        executor.submit(local)
    with pytest.raises(NotPicklable, match="the local function"):
        executor.submit(functools.partial(local))
    with pytest.raises(NotPicklable, match=r"the task can't be pickled: .*lock"):
        executor.submit(jobs.take, threading.Lock())
    with pytest.raises(TypeError, match="is an async function"):
        executor.submit(jobs.coroutine)
    with pytest.raises(TypeError, match="call stream instead"):
        executor.submit(jobs.count, 3)
    with pytest.raises(TypeError, match="must be a function"):
        executor.submit(3)


@pytest.mark.parametrize("size", [0, 100, 32 << 10, 100 << 10, 5 << 20])
def test_data_of_every_size_makes_the_round_trip(pool, size):
    executor = pool.executor()
    data = os.urandom(size)
    assert executor.submit(jobs.echo, data).result(DEADLINE_S) == data
    assert executor.submit(jobs.echo, data.hex()).result(DEADLINE_S) == data.hex()
    block = executor.submit(jobs.echo, jobs.Block(bytearray(data))).result(DEADLINE_S)
    assert bytes(block.data) == data


@pytest.mark.slow
def test_100_mb_cross_out_of_band_and_can_be_changed(pool):
    block = jobs.Block(bytearray(100 << 20))
    found = pool.executor().submit(jobs.invert, block).result(DEADLINE_S)
    view = memoryview(found.data)
    assert (view.nbytes, view[0], view[1]) == (100 << 20, 255, 0)
    view[1] = 7  # the caller's own copy of the page
    assert block.data[0] == 0


def test_many_small_buffers_stay_in_the_pickle(pool):
    blocks = [jobs.Block(bytearray([n % 256]) * 100) for n in range(2000)]
    found = pool.executor().submit(jobs.echo, blocks).result(DEADLINE_S)
    assert [each.data[0] for each in found] == [n % 256 for n in range(2000)]


def test_many_large_buffers(pool):
    blocks = [jobs.Block(bytearray([n % 256]) * 5000) for n in range(1500)]
    found = pool.executor().submit(jobs.echo, blocks).result(DEADLINE_S)
    assert all(bytes(each.data) == bytes([n % 256]) * 5000 for n, each in enumerate(found))


def test_threads_submit_together(pool):
    executor = pool.executor(queue_timeout=DEADLINE_S)
    found = []

    def work(start):
        numbers = range(start, start + 50)
        found.extend(executor.submit(jobs.add, n).result(DEADLINE_S) for n in numbers)

    threads = [threading.Thread(target=work, args=(n * 50,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(found) == list(range(300))


def test_asyncio_uses_it_as_any_executor(pool):
    executor = pool.executor(queue_timeout=DEADLINE_S)

    async def main():
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(executor, jobs.add, n) for n in range(20))
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == list(range(20))


def test_as_completed_and_wait(pool):
    executor = pool.executor(queue_timeout=DEADLINE_S)
    futures = [executor.submit(jobs.add, n) for n in range(10)]
    done = concurrent.futures.as_completed(futures, DEADLINE_S)
    assert sorted(future.result() for future in done) == list(range(10))


def test_nothing_leaks(pool):
    executor = pool.executor()
    executor.submit(jobs.add, 1).result(DEADLINE_S)
    before = open_descriptors()
    for _ in range(20):
        executor.submit(jobs.echo, bytes(100 << 10)).result(DEADLINE_S)
        executor.submit(jobs.echo, jobs.Block(bytearray(100 << 10))).result(DEADLINE_S)
        with pytest.raises(ValueError, match="x"):
            executor.submit(jobs.fail, "x").result(DEADLINE_S)
        assert list(executor.stream(jobs.count, 3)) == [0, 1, 2]
    assert open_descriptors() <= before


# --- map ------------------------------------------------------------------------------------------


def test_map(pool):
    executor = pool.executor()
    assert list(executor.map(jobs.add, range(200), range(200))) == [2 * n for n in range(200)]
    assert list(executor.map(jobs.add, range(100), chunksize=7)) == list(range(100))
    assert list(executor.map(jobs.add, [])) == []


def test_map_submits_only_a_part_ahead(pool):
    taken = []

    def numbers():
        for n in range(1000):
            taken.append(n)
            yield n

    results = pool.executor().map(jobs.add, numbers(), buffersize=3)
    assert len(taken) == 3  # the rest when results are taken
    assert next(results) == 0
    assert len(taken) == 4
    results.close()


def test_map_raises_the_exception_in_its_place(pool):
    results = pool.executor().map(jobs.fail, ["a", "b"])
    with pytest.raises(ValueError, match="a"):
        next(results)
    with pytest.raises(ValueError, match="chunksize"):
        pool.executor().map(jobs.add, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        pool.executor().map(jobs.add, [1], buffersize=0)


def test_map_has_a_time_limit(pool, tmp_path):
    go = tmp_path / "go"
    results = pool.executor().map(jobs.wait_for_file, [str(go)], timeout=0.05)
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    go.touch()


# --- a full queue ---------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once(new_pool, tmp_path):
    pool = new_pool(1, 2)
    executor = pool.executor()
    _running, go = occupy(pool, executor, 1, tmp_path)
    queued = [executor.submit(jobs.add, n) for n in range(2)]
    before = open_descriptors()
    with pytest.raises(QueueFull, match="the queue of the pool test is full: 2 tasks wait"):
        executor.submit(jobs.add, bytes(100 << 10))
    assert open_descriptors() == before
    go.touch()
    assert [future.result(DEADLINE_S) for future in queued] == [0, 1]


def test_a_full_queue_can_be_waited_for(new_pool, tmp_path):
    pool = new_pool(1, 1)
    executor = pool.executor(queue_timeout=DEADLINE_S)
    _running, go = occupy(pool, executor, 1, tmp_path)
    queued = [executor.submit(jobs.add, n) for n in range(2)]  # one in the queue, one before it
    with pytest.raises(QueueFull):
        executor.submit(jobs.add, 9)  # as many may wait for a place as have one
    go.touch()
    assert [future.result(DEADLINE_S) for future in queued] == [0, 1]


def test_the_wait_for_a_place_has_an_end(new_pool, tmp_path):
    pool = new_pool(1, 1)
    _running, go = occupy(pool, pool.executor(), 1, tmp_path)
    executor = pool.executor(queue_timeout=0.05)
    first, second = executor.submit(jobs.add, 1), executor.submit(jobs.add, 2)
    with pytest.raises(QueueFull):
        second.result(DEADLINE_S)
    go.touch()
    assert first.result(DEADLINE_S) == 1


def test_map_waits_for_its_own_tasks_when_the_queue_is_full(new_pool):
    pool = new_pool(1, 1)
    results = pool.executor().map(jobs.add, range(50), buffersize=10)
    assert list(results) == list(range(50))


# --- cancelling -----------------------------------------------------------------------------------


def test_a_queued_task_is_cancelled_and_never_runs(new_pool, tmp_path):
    pool = new_pool(1, 4)
    executor = pool.executor()
    running, go = occupy(pool, executor, 1, tmp_path)
    trace = tmp_path / "trace"
    queued = executor.submit(jobs.touch, str(trace))
    assert queued.cancel()
    assert queued.cancelled()
    assert not running[0].cancel()  # it runs, and this executor doesn't end processes
    go.touch()
    assert executor.submit(jobs.add, 1).result(DEADLINE_S) == 1
    assert not trace.exists()
    assert concurrent.futures.wait([queued], 0).done == {queued}
    assert pool.board.row(0).totals.outcomes[2] == 1  # abandoned


def test_a_running_task_is_cancelled_by_ending_its_process(new_pool, tmp_path):
    pool = new_pool(1, 4)
    executor = pool.executor(cancel_running=True)
    begun = tmp_path / "begun"
    future = executor.submit(jobs.hold_the_interpreter, str(begun))
    wait_for(lambda: begun.exists() and future.running(), "running task")
    called = []
    future.add_done_callback(called.append)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(0)
    assert called == [future]
    assert concurrent.futures.wait([future], 0).done == {future}
    assert pool.processes[1].wait(DEADLINE_S) == -signal.SIGIO


def test_a_finished_task_leaves_its_process_alive(new_pool):
    pool = new_pool(1, 4)
    executor = pool.executor(cancel_running=True)
    for n in range(20):
        future = executor.submit(jobs.add, n)
        assert future.result(DEADLINE_S) == n
        assert not future.cancel()
    assert pool.executor().submit(jobs.pid).result(DEADLINE_S) == pool.pid(1)


def test_giving_up_the_asyncio_future_gives_up_the_task(new_pool, tmp_path):
    pool = new_pool(1, 4)
    executor = pool.executor(cancel_running=True)
    begun = tmp_path / "begun"

    async def main():
        loop = asyncio.get_running_loop()
        task = loop.run_in_executor(executor, jobs.hold_the_interpreter, str(begun))
        while not begun.exists():
            await asyncio.sleep(0.005)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(task, 0.01)

    asyncio.run(main())
    assert pool.processes[1].wait(DEADLINE_S) == -signal.SIGIO


# --- processes that die ---------------------------------------------------------------------------


def test_a_process_killed_while_idle_costs_no_task(new_pool):
    pool = new_pool(2, 8)
    executor = pool.executor()
    executor.submit(jobs.add, 1).result(DEADLINE_S)
    pool.kill(1)
    assert list(executor.map(jobs.add, range(20))) == list(range(20))


def test_a_process_killed_while_it_runs_a_task(new_pool, tmp_path):
    pool = new_pool(1, 8)
    executor = pool.executor()
    (future,), _ = occupy(pool, executor, 1, tmp_path)
    queued = executor.submit(jobs.add, 2)
    pool.kill(1, "killed by SIGKILL")
    with pytest.raises(ProcessDied, match=r"ended while it ran this task: killed by SIGKILL") as e:
        future.result(DEADLINE_S)
    assert isinstance(e.value, BrokenExecutor)
    assert e.value.pid == pool.pid(1)
    assert not queued.done()
    pool.start()  # the queue is the kernel's: it outlives the processes
    assert queued.result(DEADLINE_S) == 2


def test_a_task_past_its_time(new_pool, tmp_path):
    pool = new_pool(1, 8)
    (future,), _ = occupy(pool, pool.executor(), 1, tmp_path)
    pool.processes[1].kill()
    pool.processes[1].wait()
    pool.record_exit(1, TIMED_OUT, "the task ran for 5 s")
    with pytest.raises(TaskTimeout, match="ran for 5 s") as caught:
        future.result(DEADLINE_S)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, BrokenExecutor)


def test_a_process_that_ends_itself(new_pool):
    pool = new_pool(1, 8)
    future = pool.executor().submit(jobs.kill_itself)
    assert pool.processes[1].wait(DEADLINE_S) == -signal.SIGKILL
    pool.record_exit(1, 0, "killed by SIGKILL")
    with pytest.raises(ProcessDied):
        future.result(DEADLINE_S)


def test_without_a_reason_the_future_still_ends(new_pool, monkeypatch):
    monkeypatch.setattr(calls_module, "_REASON_S", 0.05)
    pool = new_pool(1, 8)
    future = pool.executor().submit(jobs.kill_itself)
    with pytest.raises(ProcessDied, match="the reason is not known"):
        future.result(DEADLINE_S)


def test_a_process_that_dies_between_accepting_and_beginning(new_pool):
    """The task has not begun, so it is sent again."""
    pool = new_pool(0, 8)
    executor = pool.executor()
    future = executor.submit(jobs.add, 1)
    for _ in range(3):
        wait_for(lambda: _accept_and_close(pool), "connection")
    pool.start()
    assert future.result(DEADLINE_S) == 1


def test_a_task_that_no_process_begins(new_pool):
    pool = new_pool(0, 8)
    future = pool.executor().submit(jobs.add, 1)
    for _ in range(6):
        wait_for(lambda: _accept_and_close(pool), "connection")
    with pytest.raises(ProcessDied, match="6 processes in turn ended before they began"):
        future.result(DEADLINE_S)


def _accept_and_close(pool):
    try:
        sock, _ = pool.listener.accept()
    except BlockingIOError:
        return False
    sock.close()
    return True


def test_a_pool_that_has_ended(new_pool):
    pool = new_pool(0, 8)
    executor = pool.executor()
    queued = executor.submit(jobs.add, 1)
    pool.listener.close()
    with pytest.raises((PoolUnavailable, ProcessDied)):
        queued.result(DEADLINE_S)
    with pytest.raises(PoolUnavailable, match="the pool test has ended"):
        executor.submit(jobs.add, 1)
    os.unlink(pool.path)
    with pytest.raises(PoolUnavailable, match="the pool test has ended"):
        executor.submit(jobs.add, 1)


def test_a_socket_of_another_user_is_refused(new_pool, monkeypatch):
    pool = new_pool(0, 8)
    monkeypatch.setattr("servo.pools.wire.peer", lambda _sock: (7, os.geteuid() + 1))
    with pytest.raises(PoolUnavailable, match="belongs to process 7"):
        pool.executor().submit(jobs.add, 1)


# --- streams --------------------------------------------------------------------------------------


def test_a_stream(pool):
    executor = pool.executor()
    assert list(executor.stream(jobs.count, 100)) == list(range(100))
    assert list(executor.stream(jobs.count, 10, buffer=1)) == list(range(10))
    assert list(executor.stream(jobs.echo, [1, 2])) == [1, 2]  # any iterable
    with pytest.raises(ValueError, match="buffer"):
        executor.stream(jobs.count, 1, buffer=0)


def test_a_stream_for_asyncio(pool):
    async def main():
        async with pool.executor().stream(jobs.count, 30) as stream:
            return [item async for item in stream]

    assert asyncio.run(main()) == list(range(30))


def test_a_stream_in_the_loop_s_thread_must_be_async(pool):
    async def main():
        with (
            pool.executor().stream(jobs.count, 3) as stream,
            pytest.raises(RuntimeError, match="async for"),
        ):
            next(stream)

    asyncio.run(main())


def test_a_stream_raises_the_generator_s_exception_after_its_items(pool):
    stream = pool.executor().stream(jobs.count_and_fail, 3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_generator_waits_for_its_reader(pool, tmp_path):
    trace = tmp_path / "trace"
    with pool.executor().stream(jobs.count_into, str(trace), 1000, buffer=4) as stream:
        assert next(stream) == 0
        wait_for(lambda: len(trace.read_text().split()) >= 5, "filled buffer")
        time.sleep(0.05)
        assert len(trace.read_text().split()) <= 8
    wait_for(lambda: "closed" in trace.read_text(), "closed generator")
    assert pool.executor().submit(jobs.add, 1).result(DEADLINE_S) == 1


def test_a_dropped_stream_is_closed(pool, tmp_path):
    trace = tmp_path / "trace"
    for _ in pool.executor().stream(jobs.count_into, str(trace), 1000, buffer=4):
        break
    gc.collect()
    wait_for(lambda: "closed" in trace.read_text(), "closed generator")


def test_a_stream_whose_process_dies(new_pool, tmp_path):
    pool = new_pool(1, 8)
    stream = pool.executor().stream(jobs.count_into, str(tmp_path / "trace"), 1000, buffer=2)
    assert next(stream) == 0
    pool.kill(1, "killed by SIGKILL")
    with pytest.raises(ProcessDied, match="killed by SIGKILL"):
        list(stream)


# --- the executor's end ---------------------------------------------------------------------------


def test_shutdown_waits_and_then_refuses(new_pool, tmp_path):
    pool = new_pool(1, 4)
    executor = pool.executor()
    (running,), go = occupy(pool, executor, 1, tmp_path)
    queued = executor.submit(jobs.add, 1)
    executor.shutdown(wait=False, cancel_futures=True)
    assert queued.cancelled()
    assert not running.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.add, 1)
    go.touch()
    executor.shutdown()
    assert running.done()
    with pool.executor() as another:
        future = another.submit(jobs.add, 2)
    assert future.done()


def test_a_future_without_a_call_can_be_cancelled():
    from servo.pools.pool_executor import PoolFuture

    future: PoolFuture[int] = PoolFuture(can_end_process=False)
    assert isinstance(future, Future)
    assert future.cancel()
    assert future.cancel()


def test_an_executor_is_cheap_and_needs_no_pool():
    from servo.pools.calls import Pool

    executor = PoolExecutor(Pool("none", "/nonexistent/socket"))
    with pytest.raises(PoolUnavailable):
        executor.submit(jobs.add, 1)
    assert not Path("/nonexistent").exists()
