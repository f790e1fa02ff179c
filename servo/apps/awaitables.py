"""What of an ASGI call tasks run and applications await.

Never compiled (see `setup.py`): a task shows the frames of plain coroutines only, and `servoctl
stack` is to show the application's.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Generator

    from servo.apps.asgi import ASGICall


async def see_through(call: ASGICall) -> None:
    """Call the application and see its response through to an end, whatever it does."""
    try:
        await call.adapter.app(call.scope, call.receive, call.send)
    except BaseException as error:  # noqa: BLE001  logged, with its traceback
        # SystemExit, CancelledError, …: no worker, and no connection, is the application's to
        # end in its own way.
        call.failed(error)
    else:
        call.returned()
    finally:
        call.transport.call_done(call)


class Ready(Coroutine[Any, Any, Any]):
    """An awaitable that is ready, with its value: no frame, no trip through the event loop.

    A Coroutine in every respect, since applications hand `send(…)` to `create_task` and the like.
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
    """Ready without a value: an iterator of C's that is at its end says so in a quarter of the time
    that `__next__` takes."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, Any]:
        return _AT_ITS_END


READY: Ready = _Nothing()
