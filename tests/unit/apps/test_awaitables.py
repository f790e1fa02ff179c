"""Awaitables that are ready at once, and the coroutine that runs an application."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from servo.apps.awaitables import READY, Ready, run_app


@pytest.mark.parametrize(("awaitable", "value"), [(Ready("it"), "it"), (READY, None)])
def test_ready_gives_its_value_again_and_again(awaitable: Ready, value: object) -> None:
    async def use() -> None:
        assert await awaitable == value
        assert await awaitable == value
        assert await asyncio.get_running_loop().create_task(awaitable) == value
        assert await asyncio.wait_for(awaitable, 5) == value

    asyncio.run(use())


def test_ready_is_a_coroutine() -> None:
    assert isinstance(READY, Coroutine)
    assert asyncio.iscoroutine(READY)
    READY.close()
    with pytest.raises(ZeroDivisionError):
        READY.throw(ZeroDivisionError)


class Call:
    """A call that records how its application has ended."""

    scope: dict[str, Any] = {}

    def __init__(self, app: Any) -> None:
        self.adapter = SimpleNamespace(app=app)
        self.transport = SimpleNamespace(call_done=lambda call: self.notes.append(call is self))
        self.notes: list[object] = []

    def receive(self) -> Any:
        return Ready({})

    def send(self, message: Any) -> Any:
        return READY

    def returned(self) -> None:
        self.notes.append("returned")

    def failed(self, error: BaseException) -> None:
        self.notes.append(type(error))


@pytest.mark.parametrize("error", [None, RuntimeError, SystemExit, asyncio.CancelledError])
def test_a_call_ends_whatever_its_application_does(error: type[BaseException] | None) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if error is not None:
            raise error

    call = Call(app)
    asyncio.run(run_app(call))
    assert call.notes == [error or "returned", True]
