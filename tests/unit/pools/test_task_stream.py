"""The reader's side of a stream, without a process."""

from __future__ import annotations

import asyncio
import threading

import pytest

from servo.pools.task_stream import TaskStream


def test_items_come_in_order_and_end():
    stream: TaskStream[int] = TaskStream(4)
    for n in range(3):
        stream.receiver.on_value(n)
    stream.receiver.on_end(None)
    assert list(stream) == [0, 1, 2]
    assert list(stream) == []


def test_an_error_comes_after_the_items_and_once():
    stream: TaskStream[int] = TaskStream(4)
    stream.receiver.on_value(1)
    stream.receiver.on_error(KeyError("x"))
    assert next(stream) == 1
    with pytest.raises(KeyError):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_a_reader_in_another_thread_waits():
    stream: TaskStream[int] = TaskStream(4)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(stream))
    thread.start()
    stream.receiver.on_value(1)
    stream.receiver.on_end(None)
    thread.join(20)
    assert found == [1]


def test_closing_wakes_the_reader_and_drops_what_waits():
    stream: TaskStream[int] = TaskStream(4)
    stream.receiver.on_value(1)
    with stream:
        pass
    assert list(stream) == []
    stream.receiver.on_error(KeyError("too late"))
    assert list(stream) == []


def test_an_event_loop_waits_without_blocking():
    stream: TaskStream[int] = TaskStream(4)

    async def main():
        async def feed():
            stream.receiver.on_value(1)
            await asyncio.sleep(0)
            stream.receiver.on_end(None)

        task = asyncio.ensure_future(feed())
        found = [item async for item in stream]
        await task
        await stream.aclose()
        return found

    assert asyncio.run(main()) == [1]


def test_one_reader_at_a_time_on_the_loop():
    stream: TaskStream[int] = TaskStream(4)

    async def main():
        first = asyncio.ensure_future(stream.__anext__())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks"):
            await stream.__anext__()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        stream.receiver.on_value(3)
        return await stream.__anext__()

    assert asyncio.run(main()) == 3


def test_a_loop_that_is_closed_is_not_woken():
    stream: TaskStream[int] = TaskStream(4)
    loop = asyncio.new_event_loop()
    task = loop.create_task(stream.__anext__())
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    stream.receiver._waiter = loop, loop.create_future()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    stream.receiver._waiter = loop, stream.receiver._waiter[1] if stream.receiver._waiter else None
    stream.receiver.on_value(1)
    assert next(stream) == 1


def test_after_a_fork_the_copy_ends_with_an_error():
    stream: TaskStream[int] = TaskStream(4)
    stream.receiver.changed.acquire()  # a thread of the parent held it
    stream.receiver.on_fork(KeyError("forked"))
    with pytest.raises(KeyError):
        next(stream)
