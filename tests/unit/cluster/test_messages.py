"""`servo.cluster` outside of a server: a cluster of one worker, with the same rules."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from servo import cluster
from servo.cluster.messages import MAX_MESSAGE_BYTES, LocalBackend, forget_handlers, install


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    forget_handlers()
    install(LocalBackend())
    yield
    forget_handlers()
    install(LocalBackend())


@pytest.fixture
def heard() -> list[Any]:
    """The messages that the handlers of the topic "x" have received."""
    messages: list[Any] = []
    cluster.on_message("x")(messages.append)
    return messages


def test_the_cluster_has_one_worker() -> None:
    assert cluster.slot == 1
    assert cluster.pid == os.getpid()
    assert cluster.workers() == [cluster.WorkerInfo(1, os.getpid(), "ready", 1, 1)]
    assert not cluster.is_draining()
    with pytest.raises(AttributeError, match="no attribute 'slots'"):
        _ = cluster.slots


def test_send_to_oneself_comes_back_as_json(heard: list[Any]) -> None:
    assert cluster.send({"pair": (1, 2.5), 3: None, "ü": "\ud800"}, to=1, topic="x")
    assert heard == [{"pair": [1, 2.5], "3": None, "ü": "\ud800"}]


def test_topics_and_their_absence(heard: list[Any]) -> None:
    plain: list[Any] = []

    @cluster.on_message
    def first(message: Any) -> None:
        plain.append(message)

    @cluster.on_message()
    def second(message: Any) -> None:
        plain.append([message])

    cluster.send(1, to=1)
    cluster.broadcast(2, topic="x")
    cluster.broadcast(3, topic="other")
    assert plain == [1, [1]]
    assert heard == [2]
    assert cluster.stats() == cluster.Stats(3, 3, 0, 0, 1)


def test_a_broadcast_without_oneself(heard: list[Any]) -> None:
    assert cluster.broadcast(1, topic="x", with_self=False)
    assert heard == []


def test_each_handler_has_its_own_copy(heard: list[Any]) -> None:
    cluster.on_message("x")(lambda message: message.append(2))
    cluster.on_message("x")(heard.append)
    cluster.send([1], to=1, topic="x")
    assert heard == [[1], [1]]


def test_a_handler_may_want_the_sender() -> None:
    seen: list[Any] = []
    cluster.on_message("s")(lambda message, sender: seen.append((message, sender)))
    cluster.on_message("s")(lambda message, sender=None: seen.append((message, sender)))
    cluster.send("m", to=1, topic="s")
    assert seen == [("m", cluster.Sender(1, 1)), ("m", None)]


def test_a_message_sent_by_a_handler_comes_after_it() -> None:
    order: list[str] = []

    @cluster.on_message("a")
    def on_a(_: Any) -> None:
        cluster.send(0, to=1, topic="b")
        order.append("a")

    cluster.on_message("b")(lambda _: order.append("b"))
    cluster.send(0, to=1, topic="a")
    assert order == ["a", "b"]


def test_requests_from_blocking_code() -> None:
    cluster.on_message("double")(lambda number: number * 2)
    cluster.on_message("double")(lambda number: pytest.fail("the first one answers"))

    @cluster.on_message("quadruple")
    def quadruple(number: int) -> Any:
        return cluster.request(2 * number, to=1, topic="double")

    @cluster.on_message("later")
    async def later(number: int) -> int:
        await asyncio.sleep(0)
        return number + 1

    assert cluster.request(2, to=1, topic="double") == 4
    assert cluster.request(2, to=1, topic="quadruple") == 8
    assert cluster.request(2, to=1, topic="later") == 3


def test_requests_from_an_event_loop() -> None:
    seen: list[int] = []

    @cluster.on_message("later")
    async def later(number: int) -> int:
        await asyncio.sleep(0)
        seen.append(number)
        return number + 1

    async def main() -> None:
        assert await cluster.arequest(1, to=1, topic="later") == 2
        with pytest.raises(RuntimeError, match=r"await cluster\.arequest"):
            cluster.request(2, to=1, topic="later")
        cluster.send(3, to=1, topic="later")
        while 3 not in seen:
            await asyncio.sleep(0)

    asyncio.run(main())
    cluster.send(4, to=1, topic="later")
    assert seen == [1, 3, 4]


@pytest.mark.parametrize("ask", ["request", "arequest"])
def test_requests_that_fail(ask: str) -> None:
    def request(*args: Any, **options: Any) -> Any:
        if ask == "request":
            return cluster.request(*args, **options)
        return asyncio.run(cluster.arequest(*args, **options))

    cluster.on_message("bad")(lambda _: {1, 2})
    cluster.on_message("raises")(lambda message: 1 // message)

    @cluster.on_message("never")
    async def never(_: Any) -> None:
        await asyncio.Event().wait()

    for to in (0, 2):
        with pytest.raises(cluster.NoSuchWorker, match=f"no worker {to}"):
            request(1, to=to)
    with pytest.raises(cluster.RequestFailed, match="no handler for 'nowhere'"):
        request(1, to=1, topic="nowhere")
    with pytest.raises(cluster.RequestFailed, match="ZeroDivisionError"):
        request(0, to=1, topic="raises")
    with pytest.raises(cluster.RequestFailed, match="JSON"):
        request(0, to=1, topic="bad")
    with pytest.raises(cluster.RequestTimeout, match=r"no answer from worker 1 within 0\.001 s"):
        request(0, to=1, topic="never", timeout=0.001)
    assert issubclass(cluster.RequestTimeout, TimeoutError)


def test_an_exception_of_a_handler_reaches_the_sender() -> None:
    """A test wants to see the exception. In a server the receiving worker logs it."""
    cluster.on_message("raises")(lambda message: 1 // message)
    with pytest.raises(ZeroDivisionError):
        cluster.send(0, to=1, topic="raises")
    assert cluster.send(1, to=1, topic="raises")


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    "value",
    [{1, 2}, [b"bytes"], object(), float("nan"), float("inf"), {(1, 2): 3}, CYCLE, [{"a": 1j}]],
    ids=lambda value: type(value).__name__,
)
def test_values_that_are_not_json_are_refused(value: Any) -> None:
    for send in (
        lambda: cluster.send(value, to=1),
        lambda: cluster.broadcast(value),
        lambda: cluster.request(value, to=1),
        lambda: asyncio.run(cluster.arequest(value, to=1)),
    ):
        with pytest.raises(TypeError, match="a message must consist of JSON values: "):
            send()


def test_messages_have_a_maximum_length(heard: list[Any]) -> None:
    longest = "x" * (MAX_MESSAGE_BYTES - 2)
    cluster.send(longest, to=1, topic="x")
    assert heard == [longest]
    with pytest.raises(cluster.MessageTooLong, match=str(MAX_MESSAGE_BYTES + 1)):
        cluster.send(longest + "x", to=1, topic="x")
    with pytest.raises(ValueError, match="is longer than"):
        cluster.broadcast(longest + "x")


def test_slots_and_topics_are_checked() -> None:
    for slot in ("1", None, True, 1.0):
        with pytest.raises(TypeError, match="to must be a slot"):
            cluster.send(1, to=slot)  # type: ignore[arg-type]
    for number in (-1, 1 << 32):
        with pytest.raises(ValueError, match=f"there is no slot {number}"):
            cluster.send(1, to=number)
    with pytest.raises(TypeError, match="a topic must be text"):
        cluster.send(1, to=1, topic=b"x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 255 bytes"):
        cluster.on_message("ü" * 128)


def test_a_message_to_a_missing_worker_is_counted(heard: list[Any]) -> None:
    assert cluster.send(1, to=7, topic="x")
    assert heard == []
    assert cluster.stats().sent == 1
    assert cluster.stats().received == 0


def test_bytes_as_messages_and_answers(heard: list[Any]) -> None:
    assert cluster.broadcast(bytearray(b"\0\xff"), topic="x")
    assert heard == [b"\0\xff"]
    cluster.on_message("double")(lambda message: message * 2)
    assert cluster.request(b"\xfe", to=1, topic="double") == b"\xfe\xfe"
    assert asyncio.run(cluster.arequest(b"a", to=1, topic="double")) == b"aa"
    with pytest.raises(cluster.MessageTooLong):
        cluster.send(bytes(MAX_MESSAGE_BYTES), to=1)
