"""A worker's reports: stacks, requests and log lines, all within limits."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from servo.ipc.channel import (
    MAX_FRAME_BYTES,
    Channel,
    ChannelClosed,
    SharedChannel,
    channel_pair,
)
from servo.ipc.messages import LogRecords, encode
from servo.workers import inspection
from servo.workers.query_signals import REQUESTS_SIGNAL


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("servo.error", level, "a.py", 1, text, (), None)


def test_records_are_sent_once() -> None:
    tap = inspection.LogTap()
    arbiter, worker = channel_pair()
    tap(record("one"))
    tap(record("two", logging.ERROR))
    tap.send(worker)
    tap.send(worker)
    (message,) = arbiter.receive()
    assert isinstance(message, LogRecords)
    assert [(level, text) for _, level, text in message.records] == [
        ("info", "one"),
        ("error", "two"),
    ]
    assert message.lost == 0
    arbiter.close()
    worker.close()


def test_the_first_record_to_send_is_told_of() -> None:
    tap = inspection.LogTap()
    told: list[bool] = []
    tap.on_first = lambda: told.append(tap.waiting)
    tap(record("one"))
    tap(record("two"))
    assert told == [True]
    arbiter, worker = channel_pair()
    tap.send(worker)
    assert not tap.waiting
    tap(record("three"))
    assert told == [True, True]
    arbiter.close()
    worker.close()


def seconds() -> Callable[[], float]:
    """A clock on which each look is a second later than the one before."""
    counter = itertools.count(100.0)
    return lambda: next(counter)


def test_too_many_records_are_counted_and_any_fit_a_frame() -> None:
    now = [100.0]
    tap = inspection.LogTap(lambda: now[0])
    for _ in range(1000):
        tap(record("\u2603" * 5000))
    for _ in range(1000):
        tap(record("short"))
    arbiter, worker = channel_pair()
    tap.send(worker)
    received: list[Any] = []
    while not received:
        worker.flush()
        received = arbiter.receive()
    (message,) = received
    assert isinstance(message, LogRecords)
    assert message.lost == 2000 - len(message.records)
    assert len(encode(message)) < MAX_FRAME_BYTES
    # The next second begins afresh.
    now[0] += 1.0
    tap(record("later"))
    tap.send(worker)
    (message,) = arbiter.receive()
    assert isinstance(message, LogRecords)
    assert [text for _, _, text in message.records] == ["later"]
    arbiter.close()
    worker.close()


def test_an_arbiter_that_does_not_read_gets_no_more() -> None:
    tap = inspection.LogTap(seconds())
    arbiter, worker = channel_pair()
    while not worker.wants_write:
        tap(record("x" * 8000))
        tap.send(worker)
    tap(record("waits"))
    tap.send(worker)
    texts: list[str] = []
    while "waits" not in texts:
        for message in arbiter.receive():
            assert isinstance(message, LogRecords)
            texts += [text for _, _, text in message.records]
        tap.send(worker)
    arbiter.close()
    with pytest.raises(ChannelClosed):  # noqa: PT012  which of them fails is its affair
        while True:
            tap(record("x"))
            tap.send(worker)
    tap(record("x"))
    tap.send_last(worker)
    worker.close()


def test_stacks_of_threads() -> None:
    inside, leave = threading.Event(), threading.Event()

    def waits_here() -> None:
        inside.set()
        leave.wait()

    thread = threading.Thread(target=waits_here, name="a-thread")
    thread.start()
    inside.wait()
    found = inspection.stacks(None)
    leave.set()
    thread.join()
    stacks = {each["name"]: each["stack"] for each in found["threads"]}
    assert "in waits_here" in stacks["a-thread"]
    assert "in test_stacks_of_threads" in stacks["MainThread"]
    assert (found["tasks"], found["left_out"]) == ([], 0)


def test_stacks_of_tasks_to_their_depth_and_within_bounds() -> None:
    async def deep() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await deep()

    async def main() -> dict[str, Any]:
        tasks = [asyncio.create_task(outer(), name=f"task {number}") for number in range(3000)]
        await asyncio.sleep(0)
        found = inspection.stacks(asyncio.get_running_loop())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return found

    found = asyncio.run(main())
    waiting = [task["stack"] for task in found["tasks"] if "in outer" in task["stack"]]
    assert all("in deep" in stack for stack in waiting)
    assert 0 < len(found["tasks"]) < 3001
    assert found["left_out"] == 3001 - len(found["tasks"])
    assert len(json.dumps(found)) < MAX_FRAME_BYTES


def test_requests_are_the_oldest_first_and_not_all() -> None:
    now = 10**12
    requests = [(now - n * 10**9, "GET", b"/%d" % n, "192.0.2.1") for n in range(500)]
    found = inspection.running(requests, now)
    assert found["total"] == 500
    assert len(found["requests"]) == inspection.MAX_REQUESTS
    assert found["requests"][0] == {
        "method": "GET",
        "target": "/499",
        "client": "192.0.2.1",
        "seconds": 499.0,
    }
    (long,) = inspection.running([(now, "GET", b"/" * 9000, "")], now)["requests"]
    assert len(long["target"]) == inspection.MAX_TARGET


@pytest.mark.skipif(not REQUESTS_SIGNAL, reason="there are no spare signals here")
def test_a_busy_main_thread_answers_a_signal() -> None:
    before = signal.getsignal(REQUESTS_SIGNAL)
    reader, writer = os.pipe()
    found: list[dict[str, Any]] = [{"requests": [], "total": 0}]
    inspection.answer_requests_signal(found.pop, writer)
    try:
        signal.raise_signal(REQUESTS_SIGNAL)
        assert json.loads(os.read(reader, 1000)) == {"requests": [], "total": 0}
        # The application must not get to see what goes wrong here.
        signal.raise_signal(REQUESTS_SIGNAL)
    finally:
        signal.signal(REQUESTS_SIGNAL, before)
        os.close(reader)
        os.close(writer)


@pytest.fixture
def shared():
    arbiter, worker = channel_pair()
    tap = inspection.LogTap()
    tap.channel = SharedChannel(worker)
    yield SimpleNamespace(tap=tap, arbiter=arbiter, channel=tap.channel)
    arbiter.close()
    worker.close()


def texts_at(arbiter: Channel) -> list[str]:
    try:
        messages = arbiter.receive()
    except ChannelClosed:
        return []
    return [text for message in messages for _, _, text in message.records]


def test_a_line_is_with_the_arbiter_when_the_logging_call_returns(shared) -> None:
    shared.tap(record("one"))
    assert texts_at(shared.arbiter) == ["one"]
    assert not shared.tap.waiting
    shared.tap(record("two"))
    assert texts_at(shared.arbiter) == ["two"]


def test_a_line_of_a_handler_that_interrupts_a_message_comes_after_it(shared) -> None:
    """Sent amid the other, it would stand in the middle of its bytes."""
    told: list[bool] = []
    shared.tap.on_first = lambda: told.append(True)

    class Interrupted:
        def send(self, data: bytearray) -> int:
            shared.tap(record("from a signal's handler"))
            return real.send(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    real, shared.channel._socket = shared.channel._socket, Interrupted()
    shared.channel.send(LogRecords([[0.0, "info", "a message"]]))
    shared.channel._socket = real
    assert texts_at(shared.arbiter) == ["a message"]
    assert told == [True]
    shared.tap.pass_on()
    assert texts_at(shared.arbiter) == ["from a signal's handler"]


def test_a_line_that_comes_while_one_is_sent_is_sent_by_the_same_thread(shared) -> None:
    send = shared.channel.send_if_free
    shared.tap.channel = Sends(lambda: shared.tap(record("two")), send)
    shared.tap(record("one"))
    assert texts_at(shared.arbiter) == ["one", "two"]


class Sends:
    """A channel on whose first message something happens."""

    def __init__(self, happens: Callable[[], None], send: Callable[[Any], bool]) -> None:
        self._happens = [happens]
        self._send = send

    def send_if_free(self, message: LogRecords) -> bool:
        if self._happens:
            self._happens.pop()()
        return self._send(message)


def test_a_second_has_so_many_lines_and_the_next_one_more() -> None:
    now = [100.0]
    tap = inspection.LogTap(lambda: now[0])
    arbiter, worker = channel_pair()
    tap.channel = SharedChannel(worker)
    told: list[bool] = []
    tap.on_first = lambda: told.append(True)
    for _ in range(inspection.MAX_RECORDS + 5):
        tap(record("x"))
    assert len(texts_at(arbiter)) == inspection.MAX_RECORDS
    assert told == [True]
    tap.pass_on()
    assert arbiter.receive() == []
    now[0] += 1.0
    tap(record("later"))
    assert texts_at(arbiter) == ["later"]
    tap.send(tap.channel)
    (message,) = arbiter.receive()
    assert message == LogRecords([], 5)
    arbiter.close()
    worker.close()


def test_without_an_arbiter_lines_only_wait(shared) -> None:
    shared.arbiter.close()
    shared.tap(record("x"))
    shared.tap(record("y"))
    assert shared.tap.channel is None
