"""The coroutine that runs an ASGI application, and awaitables that are ready at once.

This module is never compiled (see `setup.py`): the stack of a task contains only the frames of
plain Python coroutines, and `servoctl stack` should show the application's.
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
    """Call the application and bring its response to an end, whatever the application does."""
    try:
        await call.adapter.app(call.scope, call.receive, call.send)
    except BaseException as error:  # noqa: BLE001  logged, with its traceback
        # SystemExit, CancelledError, …: an application may end neither the worker nor the
        # connection by raising one of these.
        call.failed(error)
    else:
        call.returned()
    finally:
        call.transport.call_done(call)


class Ready(Coroutine[Any, Any, Any]):
    """An awaitable that has its value already: it costs no frame and no turn of the event loop.

    It is a Coroutine in every respect, because applications pass `send(…)` to `create_task`, too.

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
    """Ready, without a value. An exhausted iterator written in C takes a quarter of the time of
    `__next__` to say that it has ended."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        return _AT_ITS_END


READY: Ready = _Nothing()
