"""`cluster.lock`: one owner among threads, tasks and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servo import cluster
from servo.cluster import locks
from servo.cluster.counters import install
from servo.shared_memory.counters import CounterTable


@pytest.fixture(autouse=True)
def table() -> Iterator[CounterTable]:
    table = CounterTable(capacity=4, rows=4)
    install(table)
    yield table
    install(None)
    table.close()
    assert not locks._owners


def in_child(work: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = int(not work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def in_thread(work: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join(10)
    return results[0]


def free_elsewhere(name: str = "x") -> tuple[bool, bool]:
    """Whether another thread, and another process, can take a lock."""
    lock = cluster.lock(name)

    def attempt() -> bool:
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        return taken

    return in_thread(attempt), in_child(attempt)


def test_one_thread_of_one_process_holds_it() -> None:
    with cluster.lock("x") as lock:
        assert free_elsewhere("x") == (False, False)
        assert free_elsewhere("y") == (True, True)
        assert lock.locked()
        assert in_child(cluster.lock("x").locked)
    assert free_elsewhere("x") == (True, True)
    assert not lock.locked()
    assert repr(lock) == "<cluster.lock('x')>"


def test_asked_for_twice_by_one_thread() -> None:
    with cluster.lock("x"):
        with pytest.raises(RuntimeError, match="holds the lock 'x' already"):
            cluster.lock("x").acquire()
        with pytest.raises(RuntimeError, match="holds the lock 'x' already"):
            cluster.lock("x").acquire(blocking=False)
        assert free_elsewhere() == (False, False)


def test_release_without_the_lock() -> None:
    with pytest.raises(RuntimeError, match="does not hold the lock 'x'"):
        cluster.lock("x").release()
    with cluster.lock("x") as lock:

        def release() -> str:
            with pytest.raises(RuntimeError, match="does not hold"):
                lock.release()
            return "refused"

        assert in_thread(release) == "refused"


def test_timeouts() -> None:
    with cluster.lock("x"):

        def wait() -> bool:
            with pytest.raises(cluster.LockTimeout, match=r"'x' was not free within 0\.02 s"):
                cluster.lock("x", timeout=0.02).__enter__()
            with pytest.raises(TimeoutError):
                cluster.lock("x", timeout=0).__enter__()
            return not cluster.lock("x").acquire(timeout=0.01)

        assert in_thread(wait)
        assert in_child(wait)
    assert cluster.lock("x").acquire(timeout=0)
    cluster.lock("x").release()


def test_a_thread_waits_for_another() -> None:
    lock = cluster.lock("x")
    order = []
    lock.acquire()

    def wait(number: int) -> None:
        with cluster.lock("x", timeout=None if number % 2 else 10):
            order.append(number)

    threads = []
    for number in range(4):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        while len(locks._owners["x"].turns) < number + 2:
            pass
    lock.release()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1, 2, 3]


@pytest.mark.parametrize("timeout", [None, 10])
def test_a_process_waits_for_another_that_is_killed(timeout: float | None) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        cluster.lock("x").acquire()
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)
    assert not cluster.lock("x").acquire(blocking=False)
    threading.Timer(0.02, os.kill, (pid, signal.SIGKILL)).start()
    with cluster.lock("x", timeout=timeout):
        os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_a_child_does_not_hold_the_lock_of_its_parent() -> None:
    with cluster.lock("x") as lock:
        pid = os.fork()
        if pid == 0:
            os._exit(2 if lock.acquire(blocking=False) else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_may_leave_the_block_of_its_parent() -> None:
    pid = 0
    try:
        with cluster.lock("x"):
            pid = os.fork()
        if pid == 0:
            os._exit(0)
    except RuntimeError:
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_exception_releases_it() -> None:
    with pytest.raises(ZeroDivisionError), cluster.lock("x"):
        _ = 1 / 0
    assert free_elsewhere() == (True, True)


def test_an_interrupted_wait_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_file: object, _place: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("servo.shared_memory.locks.LockFile.try_lock", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cluster.lock("x").acquire()
    assert not locks._owners


# --- asyncio --------------------------------------------------------------------------------------


def test_tasks_take_turns() -> None:
    order = []

    async def work(number: int) -> None:
        async with cluster.lock("x"):
            order.append(number)
            await asyncio.sleep(0)
            order.append(number)

    async def main() -> None:
        await asyncio.gather(*(work(number) for number in range(5)))

    asyncio.run(main())
    assert order == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_a_task_waits_for_a_thread() -> None:
    async def main() -> list[str]:
        said = []
        held, go = threading.Event(), threading.Event()

        def hold() -> None:
            with cluster.lock("x"):
                held.set()
                go.wait(10)
                said.append("thread")

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(10)
        assert not await cluster.lock("x").aacquire(timeout=0.01)
        with pytest.raises(cluster.LockTimeout):
            async with cluster.lock("x", timeout=0.01):
                pass
        asyncio.get_running_loop().call_later(0.01, go.set)
        async with cluster.lock("x"):
            said.append("task")
        thread.join(10)
        return said

    assert asyncio.run(main()) == ["thread", "task"]


def test_a_task_waits_for_another_process() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        cluster.lock("x").acquire()
        os.write(writer, b"x")
        signal.pause()
    os.read(reader, 1)

    async def main() -> bool:
        assert not await cluster.lock("x").aacquire(timeout=0.01)
        asyncio.get_running_loop().call_later(0.02, os.kill, pid, signal.SIGKILL)
        async with cluster.lock("x"):
            return True

    assert asyncio.run(main())
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)


def test_a_cancelled_task_does_not_keep_its_turn() -> None:
    async def main() -> None:
        lock = cluster.lock("x")
        await lock.aacquire()
        waiting = asyncio.create_task(cluster.lock("x").aacquire())
        after = asyncio.create_task(cluster.lock("x").aacquire(5))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        lock.release()
        assert await after
        locks._owners["x"].turns[0].caller = asyncio.current_task()
        lock.release()

    asyncio.run(main())


def test_asked_for_twice_by_one_task() -> None:
    async def main() -> None:
        async with cluster.lock("x"):
            with pytest.raises(RuntimeError, match="already"):
                async with cluster.lock("x"):
                    pass

    asyncio.run(main())


def test_a_blocking_call_on_an_event_loop_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="would block the event loop: use `async with`"):
            cluster.lock("x").acquire()
        lock = cluster.lock("x")
        assert lock.acquire(blocking=False)
        lock.release()

    asyncio.run(main())


def test_a_turn_of_a_closed_loop_is_left_out() -> None:
    lock = cluster.lock("x")
    lock.acquire()

    loop = asyncio.new_event_loop()
    loop.close()
    locks._owners["x"].turns.append(locks._TaskTurn(object(), loop))
    lock.release()
    assert not locks._owners


# --- names ----------------------------------------------------------------------------------------


def test_each_name_has_a_place_of_its_own() -> None:
    places = {cluster.lock(f"name {each}")._place for each in range(10_000)}
    assert len(places) == 10_000
    assert min(places) >= 1 << 62
    assert max(places) < (1 << 63) - 1


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="must be text, not 5"):
        cluster.lock(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can have 255 bytes: 'ä"):
        cluster.lock("ä" * 128)
    with pytest.raises(ValueError, match="0 or more, not -2"):
        cluster.lock("x", timeout=-2)
    with pytest.raises(ValueError, match="number of seconds or -1"):
        cluster.lock("x").acquire(timeout=-2)
    with pytest.raises(ValueError, match="has no timeout"):
        cluster.lock("x").acquire(blocking=False, timeout=1)


def test_outside_of_a_server() -> None:
    install(None)
    with cluster.lock("x"):
        assert free_elsewhere() == (False, False)
    assert free_elsewhere() == (True, True)
