"""The code of health checks: a request to the application, or a call of a function.

Only workers with a health check import this module. See `health` for when checks run, and where.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from servo.apps.in_process import get_asgi, get_wsgi
from servo.apps.loader import load_function
from servo.errors import AppImportError, BootError
from servo.workers.health import Outcome
from servo.workers.threads import WorkerThread

if TYPE_CHECKING:
    from servo.apps.asgi_scope import ASGIAdapter
    from servo.apps.wsgi_environ import WSGIAdapter

# The code of a check. It never raises: an error is part of its outcome.
Probe = Callable[[], Outcome]
AsyncProbe = Callable[[], Awaitable[Outcome]]


def wsgi_probe(target: str, adapter: WSGIAdapter, scheme: str) -> Probe:
    """Make the check of a WSGI application. Raises BootError.

    target   the setting `health_check`
    adapter  the application
    scheme   "http" or "https"
    """
    if target.startswith("/"):
        return lambda: _guarded(lambda: _judge(get_wsgi(adapter, target, scheme)))
    function = _function(target)
    if inspect.iscoroutinefunction(function):
        raise BootError(
            f"health_check: {target} is an async function, but the app is a WSGI app; "
            "name a plain function"
        )
    return lambda: _guarded(lambda: _truth(function()))


def asgi_probe(target: str, adapter: ASGIAdapter, scheme: str) -> Probe | AsyncProbe:
    """Make the check of an ASGI application; see `wsgi_probe`.

    The result is a coroutine function, unless the setting names a plain function.
    """
    if target.startswith("/"):

        async def request() -> Outcome:
            try:
                return _judge(await get_asgi(adapter, target, scheme))
            except (Exception, SystemExit) as error:  # noqa: BLE001  the outcome says so
                return _raised(error)

        return request
    function = _function(target)
    if not inspect.iscoroutinefunction(function):
        return lambda: _guarded(lambda: _truth(function()))

    async def call() -> Outcome:
        try:
            return _truth(await function())
        except (Exception, SystemExit) as error:  # noqa: BLE001  the outcome says so
            return _raised(error)

    return call


async def within(seconds: float, probe: AsyncProbe) -> Outcome:
    """Await a check, and cancel it after this number of seconds."""
    import asyncio  # only `async` workers have it

    try:
        return await asyncio.wait_for(probe(), seconds)
    except (asyncio.TimeoutError, TimeoutError):
        return Outcome(f"no answer within {seconds:g} s")


def _function(target: str) -> Callable[[], Any]:
    try:
        return load_function(target)
    except AppImportError as error:
        raise BootError(f"health_check: {error}\n{error.details}".rstrip()) from error


def _guarded(check: Callable[[], Outcome]) -> Outcome:
    try:
        return check()
    except (Exception, SystemExit) as error:  # noqa: BLE001  the outcome says so
        return _raised(error)


def _raised(error: BaseException) -> Outcome:
    return Outcome(f"it raised {error!r}")


def _judge(status: int) -> Outcome:
    """The outcome of a request with this status. As in Kubernetes, 200 to 399 is a success."""
    if 200 <= status < 400:
        return Outcome()
    return Outcome(f"answered {status}", not_served=400 <= status < 500)


def _truth(result: object) -> Outcome:
    """The outcome of a function that returned this value. Only False means a failure."""
    return Outcome("it returned False") if result is False else Outcome()


class CheckThread:
    """Runs checks in a separate thread, which starts with the first check.

    probe  the check
    done   takes its outcome
    """

    def __init__(self, probe: Probe, done: Callable[[Outcome], None]) -> None:
        self._probe = probe
        self._done = done
        self._orders: SimpleQueue[None] = SimpleQueue()
        self._thread: WorkerThread | None = None

    def start(self) -> None:
        """Start a check. The previous one must have ended."""
        if self._thread is None:
            self._thread = WorkerThread("servo-health", self._work)
            self._thread.start()
        self._orders.put(None)

    def _work(self) -> None:
        while True:
            self._orders.get()
            self._done(self._probe())
