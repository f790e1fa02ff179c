"""Routing between workers, with real channels and no processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servo.arbiter import message_router as post_module
from servo.arbiter.hook_objects import WorkerFacade
from servo.arbiter.message_router import MAX_OWED, Post
from servo.arbiter.processes.workers import Child
from servo.cluster import ClusterError
from servo.ipc.channel import MAX_QUEUED_APP_BYTES, Channel, channel_pair
from servo.ipc.messages import (
    ARBITER,
    EVERYONE,
    FAILURE,
    PLAIN,
    REPLY,
    REQUEST,
    AppMessage,
    to_json,
)
from servo.settings.sources import Settings
from servo.shared_memory import row_layout

SETTINGS = Settings({"app": "x:app", "workers": 1}, {})
SPAWNED, BOOTING, READY, DRAINING = 1, 2, 3, 4


class Worker:
    """The far end of a child's channel."""

    def __init__(self, child: Child, channel: Channel) -> None:
        self.child = child
        self.channel = channel
        self.sender = (child.slot, child.serial)

    def got(self) -> list[AppMessage]:
        return [m for m in self.channel.receive() if isinstance(m, AppMessage)]

    def values(self) -> list[Any]:
        return [message.value() for message in self.got()]


class Office:
    """A Post over children that the test makes: what `Children` is to it."""

    def __init__(self) -> None:
        self.children: dict[int, Child] = {}
        self.with_mail: deque[Child] = deque()
        self.flushed: list[int] = []
        self.hook: Callable[[Any, Any, str], Any] | None = None
        self.post = Post(self, lambda: self.hook)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Child]:
        return iter(self.children.values())

    def get(self, serial: int) -> Child | None:
        return self.children.get(serial)

    def in_slot(self, slot: int) -> list[Child]:
        return [child for child in self if child.slot == slot]

    def flush(self, child: Child) -> None:
        self.flushed.append(child.serial)
        assert child.channel is not None
        child.channel.flush()

    def worker(self, slot: int, serial: int, state: int = READY) -> Worker:
        ours, theirs = channel_pair()
        child = Child(serial, slot, 1, SETTINGS, WorkerFacade(serial, slot, SETTINGS), None)
        child.pid = 1000 + serial
        child.channel = ours
        child.row = memoryview(bytearray(8 * row_layout.ROW_WORDS)).cast("Q")
        child.row[row_layout.STATE] = state
        child.facade.post = self.post.send_to
        self.children[serial] = child
        return Worker(child, theirs)

    def lose(self, worker: Worker) -> None:
        """Its channel is at its end; `Children` adds the mark."""
        assert worker.child.channel is not None
        worker.child.channel.close()
        worker.child.channel = None
        self.mail(worker, None)

    def mail(self, worker: Worker, *messages: AppMessage | None) -> None:
        if not worker.child.mail:
            self.with_mail.append(worker.child)
        worker.child.mail.extend(messages)

    def send(
        self, worker: Worker, target: int, value: Any, kind: int = PLAIN, tie: int = 0
    ) -> None:
        self.mail(worker, AppMessage.make(kind, worker.sender, target, b"t", to_json(value), tie))
        self.deliver()

    def deliver(self) -> None:
        while self.post.waiting:
            self.post.deliver()


@pytest.fixture
def office() -> Iterator[Office]:
    found = Office()
    far: list[Worker] = []
    make = found.worker

    def worker(*args: Any, **options: Any) -> Worker:
        far.append(make(*args, **options))
        return far[-1]

    found.worker = worker  # type: ignore[method-assign]
    yield found
    for each in far:
        each.channel.close()
        if each.child.channel is not None:
            each.child.channel.close()


def test_a_message_goes_to_its_slot_unchanged(office: Office) -> None:
    one, two, three = (office.worker(slot, slot + 10) for slot in (1, 2, 3))
    office.send(one, 2, {"a": [1]})
    (message,) = two.got()
    assert message[:5] == (PLAIN, 1, 11, 2, 0)
    assert (message.topic, message.value()) == ("t", {"a": [1]})
    office.send(one, 1, "self")
    assert one.values() == ["self"]
    assert three.values() == []
    assert office.post.routed == 2


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([READY, BOOTING], 1),
        ([READY, READY], 2),
        ([DRAINING, BOOTING], 2),
        ([DRAINING, SPAWNED], 2),
        ([DRAINING, DRAINING], 2),
        ([DRAINING, READY], 2),
        ([READY, DRAINING], 1),
    ],
)
def test_a_slot_that_is_being_replaced(office: Office, states: list[int], expected: int) -> None:
    """The newest ready worker; else the one that boots; else the newest."""
    sender = office.worker(9, 9)
    workers = [office.worker(1, serial, state) for serial, state in enumerate(states, 1)]
    office.send(sender, 1, "x")
    assert [worker.values() for worker in workers] == [
        ["x"] if serial == expected else [] for serial in (1, 2)
    ]
    assert office.post.by_slot()[1].age == expected


def test_broadcasts_reach_all_in_the_same_order(office: Office) -> None:
    workers = [office.worker(slot, slot, state) for slot, state in ((1, 3), (2, 2), (3, 4))]
    for value in range(3):
        office.send(workers[value], EVERYONE, value)
    office.send(workers[0], EVERYONE, "not to 1", tie=1)
    assert [worker.values() for worker in workers] == [
        [0, 1, 2],
        [0, 1, 2, "not to 1"],
        [0, 1, 2, "not to 1"],
    ]


def test_requests_and_replies(office: Office) -> None:
    one, two = office.worker(1, 1), office.worker(2, 2)
    office.send(one, 2, "question", REQUEST, tie=7)
    (question,) = two.got()
    assert two.child.owed
    office.send(two, question.serial, "answer", REPLY, tie=question.number)
    assert not two.child.owed
    (answer,) = one.got()
    assert (answer.kind, answer.number, answer.value()) == (REPLY, 7, "answer")
    # A successor in the slot gets no replies to what it did not ask.
    office.send(one, 2, "question", REQUEST, tie=8)
    office.lose(one)
    office.deliver()
    del office.children[1]
    successor = office.worker(1, 3)
    office.send(two, 1, "answer", REPLY, tie=8)
    assert successor.got() == []


def test_nobody_has_the_slot(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    one = office.worker(1, 1)
    for value in range(3):
        office.send(one, 5, value)
    assert office.post.strays.total == 3
    assert caplog.text.count("nobody has the slots that they were for") == 1
    office.send(one, 5, "question", REQUEST, tie=3)
    (failure,) = one.got()
    assert (failure.kind, failure.number) == (FAILURE, 3)
    assert failure.value() == ["no_worker", "there is no worker 5"]


def test_a_worker_that_does_not_read(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """It loses what does not fit; others lose nothing, and who asks hears of it."""
    one, slow, three = (office.worker(slot, slot) for slot in (1, 2, 3))
    value = "x" * 100_000
    for number in range(40):
        office.send(one, EVERYONE, [number, value])
        assert one.values() == three.values() == [[number, value]]
    kept = 40 - slow.child.overflows.total
    assert 0 < kept < 40
    assert kept * 100_000 > MAX_QUEUED_APP_BYTES - 200_000
    assert office.post.overflows.total == 40 - kept
    assert caplog.text.count("Worker 2 (pid 1002) does not read its messages") == 1
    office.send(one, 2, value, REQUEST, tie=1)
    assert one.values() == [["overflow", "worker 2 does not read its messages"]]
    assert not slow.child.owed
    got: list[Any] = []
    while len(got) < kept:
        got += slow.values()
        office.flush(slow.child)
    assert [number for number, _ in got] == list(range(kept))


def test_a_worker_that_ends_owes_nothing(office: Office) -> None:
    """Its replies that had come are delivered; the other requests fail at once."""
    one, two = office.worker(1, 1), office.worker(2, 2)
    for tie in (1, 2, 3):
        office.send(one, 2, tie, REQUEST, tie=tie)
    office.mail(two, AppMessage.make(REPLY, two.sender, 1, b"", b'"yes"', 2))
    office.lose(two)
    del office.children[2]
    office.deliver()
    assert [(m.kind, m.number, m.value()) for m in one.got()] == [
        (REPLY, 2, "yes"),
        (FAILURE, 1, ["lost", "worker 2 (pid 1002) has ended"]),
        (FAILURE, 3, ["lost", "worker 2 (pid 1002) has ended"]),
    ]


def test_what_a_worker_owes_is_bounded(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_OWED > 1000
    monkeypatch.setattr(post_module, "MAX_OWED", 3)
    one, two = office.worker(1, 1), office.worker(2, 2)
    for tie in range(5):
        office.send(one, 2, 0, REQUEST, tie=tie)
    assert list(two.child.owed) == [(1, 2), (1, 3), (1, 4)]


def test_a_flood_has_its_turns(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one turn of the loop a flood of one sender does not come before another's message."""
    monkeypatch.setattr(post_module, "MESSAGES_A_TURN", 4)
    monkeypatch.setattr(post_module, "SLICE_S", 3600.0)
    flooder, other, reader = (office.worker(slot, slot) for slot in (1, 2, 3))
    flood = [AppMessage.make(PLAIN, flooder.sender, 3, b"", b"%d" % n) for n in range(10)]
    office.mail(flooder, *flood)
    office.mail(other, AppMessage.make(PLAIN, other.sender, 3, b"", b'"me"'))
    office.post.deliver()
    assert reader.values() == [0, 1, 2, 3, "me", *range(4, 10)]
    assert office.flushed == [3]  # one system call for all of it


def test_a_turn_has_an_end(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_module, "SLICE_S", 0.0)
    one, two = office.worker(1, 1), office.worker(2, 2)
    office.mail(one, *[AppMessage.make(PLAIN, one.sender, 2, b"", b"1")] * 3)
    turns = 0
    while office.post.waiting:
        office.post.deliver()
        turns += 1
    assert turns == 3
    assert two.values() == [1, 1, 1]


def test_nobody_speaks_in_the_name_of_another(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = office.worker(1, 1), office.worker(2, 2)
    office.mail(one, AppMessage.make(PLAIN, two.sender, 2, b"", b"1"))
    office.deliver()
    assert two.values() == []
    assert "Worker 1 has sent a message in the name of another" in caplog.text


# --- the arbiter's own ------------------------------------------------------------------------


def test_the_configurations_hook(office: Office) -> None:
    one = office.worker(1, 1)
    calls: list[Any] = []

    def on_message(worker: Any, value: Any, topic: str) -> Any:
        calls.append((worker.slot, value, topic))
        return {"for": worker.slot}

    office.hook = on_message
    office.send(one, ARBITER, "plain")
    assert one.got() == []
    office.send(one, ARBITER, "question", REQUEST, tie=4)
    (answer,) = one.got()
    assert answer[:5] == (REPLY, 0, 0, 1, 4)
    assert answer.value() == {"for": 1}
    assert calls == [(1, "plain", "t"), (1, "question", "t")]


def test_the_hook_may_fail_or_be_missing(office: Office, caplog: pytest.LogCaptureFixture) -> None:
    one = office.worker(1, 1)
    office.send(one, ARBITER, 1, REQUEST)
    office.send(one, ARBITER, 1)
    assert one.values() == [["failed", "the configuration has no on_message hook"]]
    assert office.post.strays.total == 1
    office.hook = lambda worker, value, topic: 1 // value
    office.send(one, ARBITER, 0, REQUEST)
    office.hook = lambda worker, value, topic: {value}
    office.send(one, ARBITER, 0, REQUEST)
    zero, no_json = one.values()
    assert zero[1].startswith("the on_message hook: ZeroDivisionError")
    assert no_json[1].startswith("the on_message hook: TypeError")
    assert caplog.text.count("The on_message hook failed") == 2


def test_the_facades_send(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = office.worker(1, 1), office.worker(2, 2)
    assert one.child.facade.send({"a": 1}, "topic")
    (message,) = one.got()
    assert (message.slot, message.serial, message.topic) == (0, 0, "topic")
    assert office.post.send(2, to=2)
    assert not office.post.send(2, to=9)
    assert office.post.broadcast("all") == 2
    assert (one.values(), two.values()) == (["all"], [2, "all"])
    office.lose(two)
    assert not two.child.facade.send(1)
    assert office.post.broadcast("all") == 1
    with pytest.raises(TypeError, match="JSON"):
        one.child.facade.send(object())
    with pytest.raises(ValueError, match="is longer than"):
        office.post.broadcast("x" * (1 << 20))
    monkeypatch.setattr(post_module.os, "getpid", lambda: 1)
    for send in (lambda: one.child.facade.send(1), lambda: office.post.broadcast(1)):
        with pytest.raises(ClusterError, match=r"sent by servo\.cluster"):
            send()
    with pytest.raises(ClusterError, match="not forked yet"):
        WorkerFacade(1, 1, SETTINGS).send(1)
