"""Queries of workers: by a message, then by a signal, always with a time limit."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from servo.arbiter.operator.worker_queries import (
    DUMP_POLL_S,
    MESSAGE_S,
    REQUESTS,
    SIGNAL_S,
    STACK,
    WorkerQueries,
)
from servo.arbiter.processes.workers import WorkerProcesses
from servo.ipc.messages import Report, WorkerQuery
from servo.workers.query_signals import REQUESTS_SIGNAL, STACK_SIGNAL


class Workers:
    """The part of `WorkerProcesses` that queries use."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, WorkerQuery]] = []
        self.signals: list[tuple[int, int]] = []
        self.dumps: dict[int, str] = {}
        self.reachable = True

    def send(self, serial: int, message: WorkerQuery) -> None:
        self.sent.append((serial, message))

    def request_dump(self, serial: int, signum: int) -> bool:
        self.signals.append((serial, signum))
        return self.reachable

    def read_dump(self, serial: int) -> str:
        return self.dumps.get(serial, "")


class House:
    def __init__(self) -> None:
        self.workers = Workers()
        self.queries = WorkerQueries(cast("WorkerProcesses", self.workers))
        self.now = 100.0
        self.answers: list[dict[str, Any] | None] = []

    def ask(
        self, serial: int = 1, what: str = STACK, reads: bool = True, interrupt: bool = True
    ) -> None:
        self.queries.ask(
            serial, what, self.now, self.answers.append, reads=reads, interrupt=interrupt
        )

    def passes(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, max(self.now, self.queries.wake_at()))
            self.queries.tick(self.now)


@pytest.fixture
def house() -> House:
    return House()


def test_a_worker_that_answers_is_not_interrupted(house: House) -> None:
    house.ask()
    ((serial, message),) = house.workers.sent
    answer = {"threads": [{"name": "a", "stack": "b"}], "tasks": [], "left_out": 2}
    house.queries.on_report(serial, Report(message.number, answer))
    assert house.answers == [answer]
    house.passes(10)
    assert house.workers.signals == []
    assert house.queries.wake_at() == float("inf")


def test_one_that_does_not_is_asked_by_a_signal(house: House) -> None:
    house.ask()
    house.passes(MESSAGE_S)
    assert house.workers.signals == [(1, STACK_SIGNAL)]
    house.workers.dumps[1] = "Thread 0x1"
    house.passes(DUMP_POLL_S)
    house.workers.dumps[1] += " (most recent call first):"
    house.passes(DUMP_POLL_S)
    assert house.answers == []  # it was still being written
    house.passes(DUMP_POLL_S)
    assert house.answers == [{"text": "Thread 0x1 (most recent call first):"}]


def test_requests_come_from_the_dump_as_json(house: House) -> None:
    house.ask(what=REQUESTS)
    house.workers.dumps[1] = json.dumps({"requests": [], "total": 0})
    house.passes(MESSAGE_S + 3 * DUMP_POLL_S)
    assert house.workers.signals == [(1, REQUESTS_SIGNAL)]
    assert house.answers == [{"requests": []}]
    house.ask(what=REQUESTS)
    house.workers.dumps[1] = "torn {"
    house.passes(MESSAGE_S + SIGNAL_S)
    assert house.answers[1:] == [None]


@pytest.mark.parametrize("why", ["silent", "unreachable", "too young"])
def test_one_that_never_answers(house: House, why: str) -> None:
    house.workers.reachable = why != "unreachable"
    house.ask(interrupt=why != "too young")
    house.passes(MESSAGE_S + SIGNAL_S + DUMP_POLL_S)
    assert house.answers == [None]
    assert bool(house.workers.signals) is (why != "too young")


def test_one_that_does_not_read_yet_is_asked_by_a_signal_at_once(house: House) -> None:
    house.ask(reads=False)
    house.queries.tick(house.now)
    assert house.workers.sent == []
    assert house.workers.signals == [(1, STACK_SIGNAL)]


def test_two_questions_to_one_worker_take_turns_with_its_dump_file(house: House) -> None:
    house.ask(what=STACK)
    house.ask(what=REQUESTS)
    house.workers.dumps[1] = '{"requests": []}'
    house.passes(MESSAGE_S)
    assert house.workers.signals == [(1, STACK_SIGNAL)]
    house.passes(SIGNAL_S)
    assert house.workers.signals == [(1, STACK_SIGNAL), (1, REQUESTS_SIGNAL)]
    assert house.answers == [{"text": '{"requests": []}'}, {"requests": []}]


def test_a_worker_that_ends_answers_nothing(house: House) -> None:
    house.ask(1)
    house.ask(2)
    house.queries.on_gone(1)
    assert house.answers == [None]
    (_, (_, second)) = house.workers.sent
    house.queries.on_report(1, Report(second.number, {"of": "somebody else"}))
    assert house.answers == [None]
    house.queries.on_report(2, Report(second.number, {"text": "mine"}))
    assert house.answers == [None, {"text": "mine"}]


def test_late_and_unknown_answers_are_nothing(house: House) -> None:
    house.queries.on_report(1, Report(77, {}))
    house.ask()
    house.passes(5)
    ((serial, message),) = house.workers.sent
    house.queries.on_report(serial, Report(message.number, {}))
    assert house.answers == [None]


def test_what_makes_no_sense_in_an_answer_is_left_out(house: House) -> None:
    """A worker that somebody has taken over can answer anything."""
    good = {"client": "a", "method": "GET", "target": "/", "seconds": 0.5}
    bad = [None, 7, {}, {**good, "seconds": float("nan")}, {**good, "target": []}]
    house.ask(what=REQUESTS)
    house.workers.dumps[1] = json.dumps({"requests": [good, *bad], "more": 1})
    house.passes(MESSAGE_S + 3 * DUMP_POLL_S)
    for text in ("[1]", '{"requests": 7}', "7", "[" * 100_000):
        house.ask(what=REQUESTS)
        house.workers.dumps[1] = text
        house.passes(MESSAGE_S + SIGNAL_S + 3 * DUMP_POLL_S)
    nothing: dict[str, Any] = {"requests": []}
    assert house.answers == [{"requests": [good]}, None, nothing, None, None]
    house.answers.clear()
    house.ask(what=STACK)
    answer = {"slot": 9, "threads": [{"name": 1, "stack": "x"}, None], "tasks": {}, "left_out": "x"}
    house.queries.on_report(1, Report(house.workers.sent[-1][1].number, answer))
    assert house.answers == [{"threads": [], "tasks": [], "left_out": 0}]
