"""Routing between workers, with real channels and no processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from servo.arbiter import message_router as router_module
from servo.arbiter.hook_objects import ArbiterHookWorker
from servo.arbiter.message_router import MAX_UNANSWERED, MessageRouter
from servo.arbiter.processes.workers import WorkerProcess
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
    """The far end of a process's channel."""

    def __init__(self, process: WorkerProcess, channel: Channel) -> None:
        self.process = process
        self.channel = channel
        self.sender = (process.slot, process.serial)

    def got(self) -> list[AppMessage]:
        return [m for m in self.channel.receive() if isinstance(m, AppMessage)]

    def values(self) -> list[Any]:
        return [message.value() for message in self.got()]


class Hub:
    """A router over workers that the test makes. It stands in for `WorkerProcesses`."""

    def __init__(self) -> None:
        self.processes: dict[int, WorkerProcess] = {}
        self.with_unrouted: deque[WorkerProcess] = deque()
        self.flushed: list[int] = []
        self.hook: Callable[[Any, Any, str], Any] | None = None
        self.router = MessageRouter(self, lambda: self.hook)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(self.processes.values())

    def get(self, serial: int) -> WorkerProcess | None:
        return self.processes.get(serial)

    def in_slot(self, slot: int) -> list[WorkerProcess]:
        return [process for process in self if process.slot == slot]

    def flush(self, process: WorkerProcess) -> None:
        self.flushed.append(process.serial)
        assert process.channel is not None
        process.channel.flush()

    def worker(self, slot: int, serial: int, state: int = READY) -> Worker:
        ours, theirs = channel_pair()
        hook_worker = ArbiterHookWorker(serial, slot, SETTINGS)
        process = WorkerProcess(self, serial, slot, 1, SETTINGS, hook_worker, None)  # type: ignore[arg-type]
        process.pid = 1000 + serial
        process.channel = ours
        process.row = memoryview(bytearray(8 * row_layout.ROW_WORDS)).cast("Q")
        process.row[row_layout.STATE] = state
        process.hook_worker.send_by = self.router.send_to_worker
        self.processes[serial] = process
        return Worker(process, theirs)

    def lose(self, worker: Worker) -> None:
        """Its channel is at its end; `WorkerProcesses` adds the mark."""
        assert worker.process.channel is not None
        worker.process.channel.close()
        worker.process.channel = None
        self.arrives(worker, None)

    def arrives(self, worker: Worker, *messages: AppMessage | None) -> None:
        if not worker.process.unrouted:
            self.with_unrouted.append(worker.process)
        worker.process.unrouted.extend(messages)

    def send(
        self, worker: Worker, target: int, value: Any, kind: int = PLAIN, tie: int = 0
    ) -> None:
        self.arrives(
            worker, AppMessage.make(kind, worker.sender, target, b"t", to_json(value), tie)
        )
        self.deliver()

    def deliver(self) -> None:
        while self.router.is_behind:
            self.router.route_waiting()


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()
    far: list[Worker] = []
    make = found.worker

    def worker(*args: Any, **options: Any) -> Worker:
        far.append(make(*args, **options))
        return far[-1]

    found.worker = worker  # type: ignore[method-assign]
    yield found
    for each in far:
        each.channel.close()
        if each.process.channel is not None:
            each.process.channel.close()


def test_a_message_goes_to_its_slot_unchanged(hub: Hub) -> None:
    one, two, three = (hub.worker(slot, slot + 10) for slot in (1, 2, 3))
    hub.send(one, 2, {"a": [1]})
    (message,) = two.got()
    assert message[:5] == (PLAIN, 1, 11, 2, 0)
    assert (message.topic, message.value()) == ("t", {"a": [1]})
    hub.send(one, 1, "self")
    assert one.values() == ["self"]
    assert three.values() == []
    assert hub.router.routed == 2


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
def test_a_slot_that_is_being_replaced(hub: Hub, states: list[int], expected: int) -> None:
    """The newest ready worker; else the one that boots; else the newest."""
    sender = hub.worker(9, 9)
    workers = [hub.worker(1, serial, state) for serial, state in enumerate(states, 1)]
    hub.send(sender, 1, "x")
    assert [worker.values() for worker in workers] == [
        ["x"] if serial == expected else [] for serial in (1, 2)
    ]
    assert hub.router.by_slot()[1].age == expected


def test_broadcasts_reach_all_in_the_same_order(hub: Hub) -> None:
    workers = [hub.worker(slot, slot, state) for slot, state in ((1, 3), (2, 2), (3, 4))]
    for value in range(3):
        hub.send(workers[value], EVERYONE, value)
    hub.send(workers[0], EVERYONE, "not to 1", tie=1)
    assert [worker.values() for worker in workers] == [
        [0, 1, 2],
        [0, 1, 2, "not to 1"],
        [0, 1, 2, "not to 1"],
    ]


def test_requests_and_replies(hub: Hub) -> None:
    one, two = hub.worker(1, 1), hub.worker(2, 2)
    hub.send(one, 2, "question", REQUEST, tie=7)
    (question,) = two.got()
    assert two.process.unanswered
    hub.send(two, question.serial, "answer", REPLY, tie=question.number)
    assert not two.process.unanswered
    (answer,) = one.got()
    assert (answer.kind, answer.number, answer.value()) == (REPLY, 7, "answer")
    # A successor in the slot gets no replies to what it did not ask.
    hub.send(one, 2, "question", REQUEST, tie=8)
    hub.lose(one)
    hub.deliver()
    del hub.processes[1]
    successor = hub.worker(1, 3)
    hub.send(two, 1, "answer", REPLY, tie=8)
    assert successor.got() == []


def test_nobody_has_the_slot(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    one = hub.worker(1, 1)
    for value in range(3):
        hub.send(one, 5, value)
    assert hub.router.unaddressed.total == 3
    assert caplog.text.count("no worker has the slots that they were for") == 1
    hub.send(one, 5, "question", REQUEST, tie=3)
    (failure,) = one.got()
    assert (failure.kind, failure.number) == (FAILURE, 3)
    assert failure.value() == ["no_worker", "there is no worker 5"]


def test_a_worker_that_does_not_read(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """It loses what does not fit; others lose nothing, and who asks hears of it."""
    one, slow, three = (hub.worker(slot, slot) for slot in (1, 2, 3))
    value = "x" * 100_000
    for number in range(40):
        hub.send(one, EVERYONE, [number, value])
        assert one.values() == three.values() == [[number, value]]
    kept = 40 - slow.process.dropped.total
    assert 0 < kept < 40
    assert kept * 100_000 > MAX_QUEUED_APP_BYTES - 200_000
    assert hub.router.dropped.total == 40 - kept
    assert caplog.text.count("Worker 2 (pid 1002) does not read its messages") == 1
    hub.send(one, 2, value, REQUEST, tie=1)
    assert one.values() == [["overflow", "worker 2 does not read its messages"]]
    assert not slow.process.unanswered
    got: list[Any] = []
    while len(got) < kept:
        got += slow.values()
        hub.flush(slow.process)
    assert [number for number, _ in got] == list(range(kept))


def test_a_worker_that_ends_owes_nothing(hub: Hub) -> None:
    """Its replies that had come are delivered; the other requests fail at once."""
    one, two = hub.worker(1, 1), hub.worker(2, 2)
    for tie in (1, 2, 3):
        hub.send(one, 2, tie, REQUEST, tie=tie)
    hub.arrives(two, AppMessage.make(REPLY, two.sender, 1, b"", b'"yes"', 2))
    hub.lose(two)
    del hub.processes[2]
    hub.deliver()
    assert [(m.kind, m.number, m.value()) for m in one.got()] == [
        (REPLY, 2, "yes"),
        (FAILURE, 1, ["lost", "worker 2 (pid 1002) has ended"]),
        (FAILURE, 3, ["lost", "worker 2 (pid 1002) has ended"]),
    ]


def test_what_a_worker_owes_is_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_UNANSWERED > 1000
    monkeypatch.setattr(router_module, "MAX_UNANSWERED", 3)
    one, two = hub.worker(1, 1), hub.worker(2, 2)
    for tie in range(5):
        hub.send(one, 2, 0, REQUEST, tie=tie)
    assert list(two.process.unanswered) == [(1, 2), (1, 3), (1, 4)]


def test_a_flood_has_its_turns(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one turn of the loop a flood of one sender does not come before another's message."""
    monkeypatch.setattr(router_module, "MESSAGES_A_TURN", 4)
    monkeypatch.setattr(router_module, "SLICE_S", 3600.0)
    flooder, other, reader = (hub.worker(slot, slot) for slot in (1, 2, 3))
    flood = [AppMessage.make(PLAIN, flooder.sender, 3, b"", b"%d" % n) for n in range(10)]
    hub.arrives(flooder, *flood)
    hub.arrives(other, AppMessage.make(PLAIN, other.sender, 3, b"", b'"me"'))
    hub.router.route_waiting()
    assert reader.values() == [0, 1, 2, 3, "me", *range(4, 10)]
    assert hub.flushed == [3]  # one system call for all of it


def test_a_turn_has_an_end(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "SLICE_S", 0.0)
    one, two = hub.worker(1, 1), hub.worker(2, 2)
    hub.arrives(one, *[AppMessage.make(PLAIN, one.sender, 2, b"", b"1")] * 3)
    turns = 0
    while hub.router.is_behind:
        hub.router.route_waiting()
        turns += 1
    assert turns == 3
    assert two.values() == [1, 1, 1]


def test_nobody_speaks_in_the_name_of_another(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    one, two = hub.worker(1, 1), hub.worker(2, 2)
    hub.arrives(one, AppMessage.make(PLAIN, two.sender, 2, b"", b"1"))
    hub.deliver()
    assert two.values() == []
    assert "Worker 1 has sent a message with the serial of another worker" in caplog.text


# --- the arbiter's own ------------------------------------------------------------------------


def test_the_configurations_hook(hub: Hub) -> None:
    one = hub.worker(1, 1)
    calls: list[Any] = []

    def on_message(worker: Any, value: Any, topic: str) -> Any:
        calls.append((worker.slot, value, topic))
        return {"for": worker.slot}

    hub.hook = on_message
    hub.send(one, ARBITER, "plain")
    assert one.got() == []
    hub.send(one, ARBITER, "question", REQUEST, tie=4)
    (answer,) = one.got()
    assert answer[:5] == (REPLY, 0, 0, 1, 4)
    assert answer.value() == {"for": 1}
    assert calls == [(1, "plain", "t"), (1, "question", "t")]


def test_the_hook_may_fail_or_be_missing(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    one = hub.worker(1, 1)
    hub.send(one, ARBITER, 1, REQUEST)
    hub.send(one, ARBITER, 1)
    assert one.values() == [["failed", "the configuration has no on_message hook"]]
    assert hub.router.unaddressed.total == 1
    hub.hook = lambda worker, value, topic: 1 // value
    hub.send(one, ARBITER, 0, REQUEST)
    hub.hook = lambda worker, value, topic: {value}
    hub.send(one, ARBITER, 0, REQUEST)
    zero, no_json = one.values()
    assert zero[1].startswith("the on_message hook: ZeroDivisionError")
    assert no_json[1].startswith("the on_message hook: TypeError")
    assert caplog.text.count("The on_message hook failed") == 2


def test_hook_workers_send(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = hub.worker(1, 1), hub.worker(2, 2)
    assert one.process.hook_worker.send({"a": 1}, "topic")
    (message,) = one.got()
    assert (message.slot, message.serial, message.topic) == (0, 0, "topic")
    assert hub.router.send_to_slot(2, 2)
    assert not hub.router.send_to_slot(2, 9)
    assert hub.router.broadcast("all") == 2
    assert (one.values(), two.values()) == (["all"], [2, "all"])
    hub.lose(two)
    assert not two.process.hook_worker.send(1)
    assert hub.router.broadcast("all") == 1
    with pytest.raises(TypeError, match="JSON"):
        one.process.hook_worker.send(object())
    with pytest.raises(ValueError, match="is longer than"):
        hub.router.broadcast("x" * (1 << 20))
    monkeypatch.setattr(router_module.os, "getpid", lambda: 1)
    for send in (lambda: one.process.hook_worker.send(1), lambda: hub.router.broadcast(1)):
        with pytest.raises(ClusterError, match=r"sent by servo\.cluster"):
            send()
    with pytest.raises(ClusterError, match="not forked yet"):
        ArbiterHookWorker(1, 1, SETTINGS).send(1)


def test_requests_of_the_arbiter(hub: Hub) -> None:
    two = hub.worker(2, 2)
    answers: list[Any] = []

    def ask(value: Any, slot: int = 2) -> int:
        return hub.router.ask(
            value, slot, "t", lambda error, answer: answers.append((error, answer))
        )

    numbers = [ask(value) for value in ("a", "b", "c", "d")]
    questions = two.got()
    assert [(q.kind, q.serial, q.topic, q.value()) for q in questions] == [
        (REQUEST, 0, "t", value) for value in ("a", "b", "c", "d")
    ]
    hub.router.forget(numbers[3])
    hub.send(two, ARBITER, {"x": 1}, REPLY, tie=numbers[1])
    hub.send(two, ARBITER, ["failed", "no"], FAILURE, tie=numbers[0])
    hub.send(two, ARBITER, "late", REPLY, tie=numbers[3])
    hub.send(two, ARBITER, "again", REPLY, tie=numbers[1])
    assert answers == [("", {"x": 1}), ("failed", "no")]
    hub.lose(two)
    hub.deliver()
    assert answers[2:] == [("lost", "worker 2 (pid 1002) has ended")]
    ask("e", slot=9)
    assert answers[3:] == [("no_worker", "there is no worker 9")]
    with pytest.raises(TypeError):
        ask({1})


def test_only_the_worker_that_was_asked_can_answer(hub: Hub) -> None:
    one, two = hub.worker(1, 1), hub.worker(2, 2)
    answers: list[Any] = []
    number = hub.router.ask(1, 2, "", lambda error, answer: answers.append((error, answer)))
    hub.send(one, ARBITER, "forged", REPLY, tie=number)
    hub.arrives(two, AppMessage.make(REPLY, two.sender, ARBITER, b"", b"{no JSON", number))
    hub.deliver()
    ((error, text),) = answers
    assert (error, "can't decode" in text) == ("failed", True)
    number = hub.router.ask(1, 2, "", lambda error, answer: answers.append((error, answer)))
    hub.send(two, ARBITER, "no pair", FAILURE, tie=number)
    assert answers[1] == ("failed", "can't decode the reply")
    number = hub.router.ask(1, 2, "", lambda error, answer: answers.append((error, answer)))
    hub.arrives(two, AppMessage.make(REPLY, two.sender, ARBITER, b"", b"\0abc", number))
    hub.deliver()
    assert answers[2] == ("failed", "the handler returned 3 bytes, and not a JSON value")
