"""Requests of `servoctl call` to the app's message handlers in workers, with their time limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.message_router import MessageRouter


@dataclass(eq=False, slots=True)
class _Call:
    on_answer: Callable[[str, Any], None]
    due: float
    number: int = -1


class WorkerCalls:
    """All unanswered calls.

    router   carries the messages
    """

    def __init__(self, router: MessageRouter) -> None:
        self._router = router
        self._calls: list[_Call] = []

    def call(
        self, value: Any, slot: int, topic: str, due: float, on_answer: Callable[[str, Any], None]
    ) -> None:
        """Send a request to a worker.

        value      any JSON value
        slot       the worker's slot
        topic      selects the handler
        due        the time limit, in monotonic seconds
        on_answer  called once: with ("", the handler's result), or with the kind of a failure and
                   its text; the kind is "timeout" after the time limit

        Raises TypeError if `value` is not a JSON value, and ValueError if it or `topic` is too
        long.
        """
        call = _Call(on_answer, due)
        self._calls.append(call)
        try:
            call.number = self._router.ask(
                value, slot, topic, lambda error, answer: self._end(call, error, answer)
            )
        except BaseException:
            self._calls.remove(call)
            raise

    def wake_at(self) -> float:
        """The next time for `tick`, in monotonic seconds; infinity if there is none."""
        return min((call.due for call in self._calls), default=float("inf"))

    def tick(self, now: float) -> None:
        """End the calls whose time is over.

        now  monotonic seconds
        """
        for call in [each for each in self._calls if now >= each.due]:
            self._router.forget(call.number)
            self._end(call, "timeout", "")

    def _end(self, call: _Call, error: str, answer: Any) -> None:
        self._calls.remove(call)
        call.on_answer(error, answer)
