"""Calls to message handlers: answers, failures, time limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from servo.arbiter.message_router import MessageRouter
from servo.arbiter.operator.worker_calls import WorkerCalls

Answer = Callable[[str, Any], None]


class Router:
    """Keeps what it is asked; slot 9 has no worker."""

    def __init__(self) -> None:
        self.asked: dict[int, tuple[Any, int, str, Answer]] = {}

    def ask(self, value: Any, slot: int, topic: str, on_answer: Answer) -> int:
        if value is None:
            raise TypeError("no JSON value")
        number = len(self.asked) + 1
        if slot == 9:
            on_answer("no_worker", "there is no worker 9")
        else:
            self.asked[number] = (value, slot, topic, on_answer)
        return number

    def forget(self, number: int) -> None:
        del self.asked[number]


@pytest.fixture
def router() -> Router:
    return Router()


def test_answers_and_time_limits(router: Router) -> None:
    calls = WorkerCalls(cast("MessageRouter", router))
    answers: list[Any] = []

    def on_answer(error: str, answer: Any) -> None:
        answers.append((error, answer))

    assert calls.wake_at() == float("inf")
    calls.call("a", 1, "t", 10.0, on_answer)
    calls.call("b", 2, "t", 20.0, on_answer)
    assert calls.wake_at() == 10.0
    router.asked[2][3]("", 42)
    assert answers == [("", 42)]
    calls.tick(9.9)
    assert len(answers) == 1
    calls.tick(10.0)
    assert answers[1:] == [("timeout", "")]
    assert 1 not in router.asked
    assert calls.wake_at() == float("inf")


def test_failures_at_once(router: Router) -> None:
    calls = WorkerCalls(cast("MessageRouter", router))
    answers: list[Any] = []
    calls.call("a", 9, "t", 10.0, lambda error, answer: answers.append((error, answer)))
    assert answers == [("no_worker", "there is no worker 9")]
    with pytest.raises(TypeError):
        calls.call(None, 1, "t", 10.0, lambda *_: None)
    assert calls.wake_at() == float("inf")
