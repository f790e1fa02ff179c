"""The threads of message handlers, their order, and the number at a time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from unit.workers.mailboxes import Pair, inline

from servo import cluster
from servo.ipc.messages import PLAIN, REQUEST, AppMessage
from servo.workers.messages.handlers import SLICE_NS, LoopRunner, ThreadRunner


class HandlersClock:
    """The clock by which runners end their slices; it moves only when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 0
        monkeypatch.setattr("servo.workers.messages.handlers.monotonic_ns", lambda: self.ns)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandlersClock:
    return HandlersClock(monkeypatch)


def test_inline_handlers_give_the_poller_its_turns(pair: Pair, clock: HandlersClock) -> None:
    """A handler that takes a whole slice of time is the only one of its turn."""
    handled: list[int] = []

    @cluster.on_message("t")
    def slow(value: int) -> None:
        handled.append(value)
        clock.ns += SLICE_NS

    pair.attach()
    pair.mailbox.open(inline(pair))
    for value in range(3):
        pair.tell(value)
    pair.mailbox.on_channel()
    for turn in range(1, 4):
        pair.mailbox.run()
        assert handled == list(range(turn))
        assert pair.owner.wakes == min(turn, 2)


@pytest.mark.parametrize("cost_ns", [0, SLICE_NS])
def test_coroutine_handlers_start_in_order(pair: Pair, clock: HandlersClock, cost_ns: int) -> None:
    """Each message costs a part of the slice; after a whole slice the loop has its turn."""
    order: list[str] = []

    @cluster.on_message("t")
    def handler(value: int) -> Any:
        clock.ns += cost_ns
        return work(value)

    async def work(value: int) -> int:
        order.append(f"begin {value}")
        await asyncio.sleep(0)
        order.append(f"end {value}")
        return value

    async def main() -> None:
        loop = asyncio.get_running_loop()
        pair.attach(loop=loop)
        pair.mailbox.open(LoopRunner(pair.mailbox, loop))
        for value in range(3):
            pair.tell(value, kind=REQUEST, number=value)
        pair.mailbox.on_channel()
        pair.mailbox.run()
        answers: list[Any] = []
        while len(answers) < 3:
            await asyncio.sleep(0)
            answers += pair.values()
        assert answers == [0, 1, 2]

    asyncio.run(main())
    begun = [line for line in order if line.startswith("begin")]
    ended = [line for line in order if line.startswith("end")]
    assert begun == [f"begin {n}" for n in range(3)]
    assert ended == [f"end {n}" for n in range(3)]
    # Within one slice all of them start before the first goes on.
    assert (order == begun + ended) is (cost_ns == 0)


def test_coroutines_under_way_are_bounded(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servo.workers.messages.handlers.MAX_RUNNING", 2)
    running: list[int] = []

    async def main() -> None:
        go_on = asyncio.Event()

        @cluster.on_message("t")
        async def handler(value: int) -> None:
            running.append(value)
            await go_on.wait()

        loop = asyncio.get_running_loop()
        pair.attach(loop=loop)
        pair.mailbox.open(LoopRunner(pair.mailbox, loop))
        for value in range(5):
            pair.tell(value)
        pair.mailbox.on_channel()
        pair.mailbox.run()
        for _ in range(5):
            await asyncio.sleep(0)
        assert running == [0, 1]
        go_on.set()
        while len(running) < 5:
            await asyncio.sleep(0)

    asyncio.run(main())
    assert running == [0, 1, 2, 3, 4]


def test_a_thread_of_its_own(pair: Pair) -> None:
    done = threading.Event()
    seen: list[Any] = []

    @cluster.on_message("t")
    def handler(value: int) -> None:
        seen.append((value, threading.current_thread().name))
        if value == 2:
            done.set()
        if value == 0:
            raise RuntimeError("on purpose")

    pair.attach()
    pair.mailbox.open(ThreadRunner(pair.mailbox))
    for value in range(3):
        pair.tell(value)
        pair.mailbox.on_channel()
        pair.mailbox.run()
    assert done.wait(10)
    assert seen == [(value, "servo-messages") for value in range(3)]


# --- what handlers raise --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3)])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_a_handler_raises_is_logged_and_told_to_who_asked(
    pair: Pair, caplog: pytest.LogCaptureFixture, error: BaseException, asynchronous: bool
) -> None:
    def broken(_value: Any) -> None:
        raise error

    async def broken_later(_value: Any) -> None:
        raise error

    cluster.on_message("t")(broken_later if asynchronous else broken)
    pair.attach()
    pair.mailbox.open(inline(pair))
    pair.tell(1)
    pair.tell(2, kind=REQUEST, number=9)
    pair.mailbox.on_channel()
    pair.run_all()
    ((name, text),) = pair.values()
    assert name == "failed"
    assert type(error).__name__ in text
    assert len([each for each in caplog.records if "handler of a message" in each.message]) == 2


def test_each_handler_gets_a_value_of_its_own(pair: Pair) -> None:
    seen: list[Any] = []

    def change(value: list[int]) -> None:
        value.append(len(seen))
        seen.append(value)

    cluster.on_message("t")(change)
    cluster.on_message("t")(lambda value: change(value))
    pair.attach()
    pair.mailbox.open(inline(pair))
    pair.tell([7])
    pair.mailbox.on_channel()
    pair.run_all()
    assert seen == [[7, 0], [7, 1]]


def test_a_message_that_no_handler_wants_is_counted(pair: Pair) -> None:
    pair.attach()
    pair.mailbox.open(inline(pair))
    pair.tell(1, topic="other")
    pair.tell(1, topic="other", kind=REQUEST, number=3)
    pair.mailbox.on_channel()
    pair.run_all()
    assert cluster.stats().unheard == 2
    assert pair.values() == [["failed", "worker 2 has no handler for 'other'"]]


def test_a_message_that_makes_no_sense_ends_nothing(
    pair: Pair, heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    pair.attach()
    pair.mailbox.open(inline(pair))
    pair.arbiter.send(AppMessage.make(PLAIN, (1, 4), 2, b"t", b"not JSON", 0))
    pair.tell(5)
    pair.mailbox.on_channel()
    pair.run_all()
    assert "worker 1: not JSON" in caplog.text
    assert heard == [5]
