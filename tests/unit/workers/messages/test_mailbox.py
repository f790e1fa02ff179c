"""A worker's mailbox with a real channel. The test holds the arbiter's end."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest
from unit.workers.mailboxes import SERIAL, SLOT, Pair, inline

from servo import cluster
from servo.cluster.messages import MAX_MESSAGE_BYTES
from servo.ipc.channel import MAX_QUEUED_APP_BYTES, ChannelClosed
from servo.ipc.messages import (
    EVERYONE,
    FAILURE,
    PLAIN,
    REPLY,
    REQUEST,
    AppCommand,
    AppMessage,
    Message,
    Retire,
    Stop,
)
from servo.workers.messages.handlers import LoopRunner
from servo.workers.messages.mailbox import MAX_INBOX_BYTES, Inbox

# --- sending ----------------------------------------------------------------------------------


def test_a_message_leaves_at_once_with_its_sender(pair: Pair) -> None:
    assert cluster.send({"a": 1}, to=3, topic="x")
    assert cluster.broadcast("all", with_self=False)
    one, two = pair.said()
    assert isinstance(one, AppMessage)
    assert isinstance(two, AppMessage)
    assert one[:5] == (PLAIN, SLOT, SERIAL, 3, 0)
    assert (one.topic, one.value()) == ("x", {"a": 1})
    assert two[:5] == (PLAIN, SLOT, SERIAL, EVERYONE, SERIAL)
    assert cluster.stats().sent == 2
    assert (cluster.slot, cluster.pid) == (SLOT, os.getpid())


def test_a_full_socket_is_left_to_the_owner(pair: Pair) -> None:
    pair.attach()
    long = "x" * 900_000
    assert cluster.send(long, to=1)
    assert pair.owner.wakes == 1
    assert pair.mailbox.on_wake() == []
    assert pair.owner.watched == [True]
    values: list[Any] = []
    while not values:
        values = pair.values()
        pair.mailbox.on_channel()
    assert values == [long]
    assert pair.owner.watched == [True, False]


def test_an_arbiter_that_does_not_read_blocks_nobody(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.attach()
    results = [cluster.send([number, "x" * 100_000], to=1) for number in range(60)]
    sent = results.count(True)
    assert sent < 60
    assert sent * 100_000 + 100_000 >= MAX_QUEUED_APP_BYTES
    assert cluster.stats().sent == sent
    assert cluster.stats().overflowed == 60 - sent
    assert len([r for r in caplog.records if "too many wait" in r.getMessage()]) == 1
    with pytest.raises(cluster.ClusterOverflow):
        cluster.request("x" * 100_000, to=1)
    pair.mailbox.on_wake()
    received: list[Any] = []
    while len(received) < sent:
        received += pair.values()
        pair.mailbox.on_channel()
    assert [number for number, _ in received] == [n for n, there in enumerate(results) if there]


# --- receiving --------------------------------------------------------------------------------


def test_what_comes_before_the_worker_is_ready_waits(pair: Pair, heard: list[Any]) -> None:
    pair.attach()
    pair.tell(1)
    pair.arbiter.send(Retire("scaled down"))
    pair.tell(2)
    assert pair.mailbox.on_channel() == [Retire("scaled down")]
    pair.mailbox.run()
    assert heard == []
    pair.mailbox.open(inline(pair))
    pair.run_all()
    assert heard == [1, 2]
    pair.tell(3)
    pair.mailbox.on_channel()
    pair.run_all()
    assert heard == [1, 2, 3]
    assert cluster.stats().received == 3


def test_requests_are_answered(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    cluster.on_message("double")(lambda number: 2 * number)
    cluster.on_message("bad")(lambda _: {1})
    cluster.on_message("long")(lambda _: "x" * MAX_MESSAGE_BYTES)

    @cluster.on_message("async")
    async def later(number: int, sender: cluster.Sender) -> Any:
        await asyncio.sleep(0)
        return [number, sender]

    @cluster.on_message("raises")
    async def raises(_: Any) -> None:
        raise KeyError("key")

    pair.attach()
    pair.mailbox.open(inline(pair))
    for number, topic in enumerate(["double", "async", "nowhere", "bad", "long", "raises"]):
        pair.tell(21, topic, REQUEST, number=number)
    pair.mailbox.on_channel()
    pair.run_all()
    replies = [message for message in pair.said() if isinstance(message, AppMessage)]
    assert [(m.kind, m.target, m.number) for m in replies] == [
        (kind, 4, number) for number, kind in enumerate([REPLY] * 2 + [FAILURE] * 4)
    ]
    assert [m.value() for m in replies] == [
        42,
        [21, [1, 4]],
        ["failed", "worker 2 has no handler for 'nowhere'"],
        [
            "failed",
            "the handler returned no JSON value: a message must consist of JSON values: "
            "Object of type set is not JSON serializable",
        ],
        ["failed", f"the handler's reply of {MAX_MESSAGE_BYTES + 2} bytes is too long"],
        ["failed", "worker 2: KeyError: 'key'"],
    ]
    assert "The handler of a message on 'raises' failed" in caplog.text
    assert cluster.stats().unheard == 1


def test_handlers_that_are_too_slow_lose_messages_not_orders(
    pair: Pair, heard: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    pair.attach()
    value = "x" * 500_000
    count = 0
    while not cluster.stats().dropped:
        pair.tell(value)
        while pair.arbiter.wants_write:
            pair.mailbox.on_channel()
            pair.arbiter.flush()
        pair.mailbox.on_channel()
        count += 1
        assert count < 100
    pair.tell(0, kind=REQUEST, number=7)
    pair.tell(value, kind=REQUEST, number=8)
    pair.arbiter.send(Stop())
    said: list[Message] = []
    while not said:
        said = pair.mailbox.on_channel()
        pair.arbiter.flush()
    assert said == [Stop()]
    assert pair.values() == [["overflow", "worker 2 has too many messages waiting"]]
    assert MAX_INBOX_BYTES - 500_000 < (count - 1) * 500_000 < MAX_INBOX_BYTES
    pair.mailbox.open(inline(pair))
    pair.run_all()
    assert len(heard) == count  # all that fit, and the small request
    assert len([r for r in caplog.records if "too slow" in r.getMessage()]) == 1


# --- asking -----------------------------------------------------------------------------------


def test_the_owner_reads_while_it_waits(pair: Pair, heard: list[Any]) -> None:
    """A reply, with what else comes: orders and messages are kept for the owner's next turn."""
    pair.attach(any_thread_reads=True)
    pair.mailbox.open(inline(pair))
    pair.tell("before")
    pair.arbiter.send(Retire("scaled down"))
    pair.reply({"answer": 42}, number=1)
    assert cluster.request("?", to=1, topic="q") == {"answer": 42}
    assert heard == []
    assert pair.owner.wakes == 1
    assert pair.mailbox.on_wake() == [Retire("scaled down")]
    pair.mailbox.run()
    assert heard == ["before"]
    (question,) = pair.said()
    assert isinstance(question, AppMessage)
    assert question[:5] == (REQUEST, SLOT, SERIAL, 1, 1)


def test_a_request_to_oneself_from_the_only_thread(pair: Pair) -> None:
    cluster.on_message("t")(lambda value: value + 1)
    pair.attach(any_thread_reads=True)
    pair.mailbox.open(inline(pair))

    def route() -> None:
        """The arbiter: it sends back what is for this slot, the question and then the reply."""
        for _ in range(2):
            messages: list[Message] = []
            while not messages:
                messages = pair.said()
            pair.arbiter.send(messages[0])

    thread = threading.Thread(target=route)
    thread.start()
    assert cluster.request(1, to=SLOT, topic="t", timeout=30) == 2
    thread.join()


def test_any_thread_reads_beside_a_busy_owner(pair: Pair) -> None:
    pair.attach(any_thread_reads=True)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(cluster.request(0, to=1, timeout=30)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    questions: list[Message] = []
    while len(questions) < 3:
        questions += pair.said()
    for question in reversed(questions):
        assert isinstance(question, AppMessage)
        pair.reply(question.number, number=question.number)
    for thread in threads:
        thread.join()
    assert sorted(answers) == [1, 2, 3]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("no_worker", cluster.NoSuchWorker),
        ("overflow", cluster.ClusterOverflow),
        ("lost", cluster.WorkerLost),
        ("failed", cluster.RequestFailed),
        ("unheard of", cluster.RequestFailed),
    ],
)
def test_failures(pair: Pair, name: str, error: type[Exception]) -> None:
    pair.attach(any_thread_reads=True)
    pair.reply([name, "why"], number=1, kind=FAILURE)
    with pytest.raises(error, match="why" if name != "unheard of" else "can't decode"):
        cluster.request(0, to=1)


def test_no_answer_and_a_late_one(pair: Pair) -> None:
    pair.attach(any_thread_reads=True)
    with pytest.raises(cluster.RequestTimeout, match=r"no answer from worker 1 within 0\.001 s"):
        cluster.request(0, to=1, timeout=0.001)
    with pytest.raises(cluster.RequestTimeout, match="no answer from the arbiter"):
        cluster.request(0, to=0, timeout=0)
    pair.reply("late", number=1)
    pair.reply("in time", number=3)
    assert cluster.request(0, to=1) == "in time"


def test_asking_on_the_event_loop(pair: Pair) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pair.attach(loop=loop)
        pair.mailbox.open(LoopRunner(pair.mailbox, loop))
        task = asyncio.ensure_future(cluster.arequest(0, to=1, timeout=30))
        while not pair.said():
            await asyncio.sleep(0)
        pair.reply("yes", number=1)
        pair.mailbox.on_channel()
        assert await task == "yes"
        with pytest.raises(cluster.RequestTimeout):
            await cluster.arequest(0, to=1, timeout=0.001)

    asyncio.run(main())


def test_the_end_of_the_arbiter_ends_the_waiting(pair: Pair) -> None:
    pair.attach(any_thread_reads=True)
    pair.arbiter.close()
    with pytest.raises(cluster.ClusterError, match="the arbiter is gone"):
        cluster.request(0, to=1)
    with pytest.raises(ChannelClosed):
        pair.mailbox.on_channel()
    assert not cluster.send(1, to=1)
    with pytest.raises(cluster.ClusterError, match="the arbiter is gone"):
        cluster.request(0, to=1)
    pair.mailbox.close()


# --- the rest ---------------------------------------------------------------------------------


def test_a_forked_child_is_no_worker(pair: Pair) -> None:
    pair.mailbox.disable_in_child()
    with pytest.raises(cluster.ClusterError, match="is no worker"):
        cluster.broadcast(1)


def test_workers_are_those_of_the_scoreboard(pair: Pair) -> None:
    for serial, slot, state in [(1, 2, 3), (2, 1, 4), (3, 1, 2), (4, 3, 1)]:
        row = pair.scoreboard.row(pair.scoreboard.allocate(serial, slot, 9))
        row[0] = state
        row[8] = 1000 + serial if slot != 3 else 0  # not forked yet
    assert [tuple(worker) for worker in cluster.workers()] == [
        (1, 1002, "draining", 9, 2),
        (1, 1003, "booting", 9, 3),
        (2, 1001, "ready", 9, 1),
    ]
    assert not cluster.is_draining()
    pair.attach()
    pair.owner.draining = True
    assert cluster.is_draining()


def test_an_inbox_counts_what_is_in_it() -> None:
    inbox = Inbox()
    message = AppMessage.make(PLAIN, (1, 1), 2, b"", b"x" * 1_000_000)
    for _ in range(3):
        fit = 0
        while inbox.put(message):
            fit += 1
        assert fit == MAX_INBOX_BYTES // (len(message.data) + 256) == len(inbox)
        for _ in range(fit):
            assert inbox.take() is message
        assert inbox.take() is None


def test_control_is_refused_unless_the_setting_allows_it(pair: Pair) -> None:
    with pytest.raises(cluster.ClusterError, match="set cluster_control"):
        cluster.reload()
    pair.mailbox.may_control = True
    cluster.scale(2)
    assert AppCommand("scale", "2") in pair.arbiter.receive()
    pair.mailbox.disable_in_child()
    with pytest.raises(cluster.ClusterError, match="this process is no worker"):
        cluster.reload()
