"""The coroutine that runs an ASGI application, and awaitables that never wait.

This module is never compiled (see `setup.py`). The stack of a task shows only frames of plain
Python coroutines, so a compiled one would hide the application's frames from `servoctl stack`.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from servo._types import ASGIApp, ASGIMessage, Scope


class HasApp(Protocol):
    """The part of an `ASGIAdapter` that `run_app` uses."""

    app: ASGIApp


class CallObserver(Protocol):
    """The part of an `ASGITransport` that `run_app` uses."""

    def call_done(self, call: Any) -> None: ...


class AppCall(Protocol):
    """The part of an `ASGICall` that `run_app` uses."""

    scope: Scope

    @property
    def adapter(self) -> HasApp: ...

    @property
    def transport(self) -> CallObserver: ...

    def receive(self) -> Coroutine[Any, Any, ASGIMessage]: ...

    def send(self, message: ASGIMessage) -> Awaitable[None]: ...

    def returned(self) -> None: ...

    def failed(self, error: BaseException) -> None: ...


async def run_app(call: AppCall) -> None:
    """Call the application, and then end its response, even after an error."""
    try:
        await call.adapter.app(call.scope, call.receive, call.send)
    except BaseException as error:  # noqa: BLE001  logged, with its traceback
        # Catch SystemExit, CancelledError and the like, too: an application that raises them must
        # end neither the worker nor the connection.
        call.failed(error)
    else:
        call.returned()
    finally:
        call.transport.call_done(call)


class Ready(Coroutine[Any, Any, Any]):
    """An awaitable with a known value: awaiting it needs no frame and no turn of the event loop.

    It has all methods of a coroutine, because applications may pass `send(…)` to `create_task`.

    value  the result of awaiting it
    """

    __slots__ = ("_value",)

    def __init__(self, value: Any = None) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> Ready:
        return self

    def __next__(self) -> Any:
        raise StopIteration(self._value)

    def send(self, value: Any) -> Any:
        raise StopIteration(self._value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        if val is None:
            val = typ() if isinstance(typ, type) else typ
        raise val.with_traceback(tb) if tb is not None else val

    def close(self) -> None:
        pass


_AT_ITS_END = cast("Generator[Any, Any, Any]", iter(()))


class _Nothing(Ready):
    """Ready, without a value.

    Its `__await__` returns an exhausted iterator written in C. This takes a quarter of the time
    that a `__next__` in Python would take.
    """

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        return _AT_ITS_END


READY: Ready = _Nothing()
