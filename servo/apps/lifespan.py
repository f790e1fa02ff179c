"""The ASGI lifespan: one call of the application that lasts from a worker's start to its end.

The call runs in a separate task. The application receives `lifespan.startup`, answers it, and
receives `lifespan.shutdown` when the worker ends.

All errors stay in this task. Otherwise asyncio would raise `SystemExit` and `KeyboardInterrupt` in
the caller of the event loop, which would end the worker. To the arbiter this would look like a
normal exit, so it would start another worker, which would end in the same way, and so on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from servo.errors import AppError, BootError

if TYPE_CHECKING:
    import logging

    from servo._types import ASGIApp

# In _STARTING and _STOPPING the worker waits for an answer. In _ABANDONED it cancels the task.
_STARTING, _STARTED, _STOPPING, _STOPPED, _FAILED, _ABANDONED = range(6)
_WHEN = {
    _STARTING: "before lifespan.startup was answered",
    _STARTED: "before lifespan.shutdown had come",
    _STOPPING: "in answer to lifespan.shutdown",
    _STOPPED: "after lifespan.shutdown.complete",
    _FAILED: "after the lifespan had failed",
    _ABANDONED: "after the worker had given up its start",
}
# Seconds that an application has to clean up after it has reported a failed start.
FAILED_END_S = 2.0


class Lifespan:
    """Runs `lifespan.startup` and `lifespan.shutdown`.

    app   the application
    mode  "auto": an application that raises an ordinary exception before it answers counts as one
          without lifespan; "on": it must have a lifespan; "off": no lifespan is used
    log   the logger for its errors

    state      the application's data for its requests (ASGI lifespan specification, `state`)
    supported  whether the application supports lifespan, as far as is known
    """

    def __init__(self, app: ASGIApp, mode: str, log: logging.Logger) -> None:
        self.state: dict[str, Any] = {}
        self.supported = mode != "off"
        self._app = app
        self._mode = mode
        self._log = log
        self._phase = _STARTING
        self._message = ""
        self._has_asked = False
        self._task: asyncio.Task[None] | None = None
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answered = asyncio.Event()

    async def startup(self) -> None:
        """Start the application. Raises `BootError` if its start fails."""
        if not self.supported:
            return
        self._task = asyncio.get_running_loop().create_task(self._run(), name="servo-lifespan")
        await self._to_app.put({"type": "lifespan.startup"})
        await self._answered.wait()
        if self._phase == _FAILED:
            await asyncio.wait([self._task], timeout=FAILED_END_S)
            raise BootError(f"the application's lifespan startup failed: {self._message}")

    async def shutdown(self) -> None:
        """Let the application clean up. Errors are only logged, because the worker ends anyway."""
        if self._task is None or self._task.done() or self._phase != _STARTED:
            return
        self._phase = _STOPPING
        self._answered.clear()
        await self._to_app.put({"type": "lifespan.shutdown"})
        await self._answered.wait()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that runs the application's call; None before `startup`."""
        return self._task

    def abandon(self) -> None:
        """Don't log the next cancellation as an error: the worker gives up its start."""
        self._phase = _ABANDONED

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except BaseException as error:  # noqa: BLE001  reported, or logged with its traceback
            self._raised(error)
        else:
            self._returned()
        finally:
            self._answered.set()

    def _returned(self) -> None:
        if self._phase == _STARTING and self._mode == "on":
            self._fail("it returned without an answer")
        elif self._phase == _STARTING:
            self._has_none(None)

    def _raised(self, error: BaseException) -> None:
        phase = self._phase
        if phase == _STARTING and self._mode == "auto" and self._may_have_none(error):
            self._has_none(error)
            return
        if phase in (_STARTING, _STARTED, _STOPPING):
            self._fail(f"{type(error).__name__}: {error}")
        if not (phase == _ABANDONED and isinstance(error, asyncio.CancelledError)):
            self._log.error("Error in the application's lifespan", exc_info=error)

    def _may_have_none(self, error: BaseException) -> bool:
        """Whether the error may come from an application without a lifespan.

        Such an application may raise any ordinary exception for the unknown scope. SystemExit and
        the like are not ordinary exceptions: they mean that the process should end. And if the task
        was cancelled after it had received `lifespan.startup`, the application has a lifespan.
        """
        if isinstance(error, asyncio.CancelledError):
            return not self._has_asked
        return isinstance(error, Exception)

    def _has_none(self, error: BaseException | None) -> None:
        self.supported = False
        if error is None or not self._has_asked:
            self._log.debug("The application has no lifespan", exc_info=error)
        else:
            self._log.warning(
                "The application has raised an error in answer to lifespan.startup, and is served"
                " without lifespan; with --lifespan on, the worker would not start",
                exc_info=error,
            )

    async def _receive(self) -> dict[str, Any]:
        self._has_asked = True
        return await self._to_app.get()

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        phase = self._phase
        if kind == "lifespan.startup.complete" and phase == _STARTING:
            self._phase = _STARTED
        elif kind == "lifespan.shutdown.complete" and phase == _STOPPING:
            self._phase = _STOPPED
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._on_failed(kind, str(message.get("message") or "no message given"))
        elif kind == "lifespan.startup.complete" and phase in (_STARTED, _STOPPING):
            # A second answer does no harm, and other servers accept such applications.
            self._log.warning("%s was sent twice", kind)
            return
        elif kind in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            raise AppError(f"{kind} was sent {_WHEN[phase]}")
        else:
            raise AppError(f"{kind!r} is not a message of the lifespan protocol")
        self._answered.set()

    def _on_failed(self, kind: str, text: str) -> None:
        """Handle a reported failure. It counts as an answer only if the worker waits for one."""
        phase = self._phase
        if phase in (_STARTING, _STOPPING):
            self._fail(text)
        # Only log a failed shutdown: `startup` raises the error of a failed start.
        if phase == _STOPPING:
            self._log.error("The application's lifespan shutdown failed: %s", self._message)
        elif phase != _STARTING:
            self._log.error("%s was sent %s: %s", kind, _WHEN[phase], _last_line(text))

    def _fail(self, message: str) -> None:
        self._phase = _FAILED
        self._message = _last_line(message)


def _last_line(text: str) -> str:
    """The last line of a message. Starlette sends a whole traceback, which ends with the error."""
    return text.strip().rsplit("\n", 1)[-1]
