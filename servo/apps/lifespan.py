"""The ASGI lifespan: one long call of the application around the life of a worker.

The application's call is a task of its own. It gets `lifespan.startup`, answers, and gets
`lifespan.shutdown` when the worker ends. Whatever it raises stays in that task: asyncio passes
`SystemExit` and `KeyboardInterrupt` on to whoever runs the loop, which would end a worker that the
arbiter takes for a good one, and the next worker after it, without an end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from servo.apps.asgi import AppError
from servo.errors import BootError

if TYPE_CHECKING:
    import logging

    from servo._types import ASGIApp

# Starting and stopping wait for an answer of the application; an abandoned one is being cancelled.
_STARTING, _STARTED, _STOPPING, _STOPPED, _FAILED, _ABANDONED = range(6)
_WHEN = {
    _STARTING: "before lifespan.startup was answered",
    _STARTED: "before lifespan.shutdown had come",
    _STOPPING: "in answer to lifespan.shutdown",
    _STOPPED: "after lifespan.shutdown.complete",
    _FAILED: "after the lifespan had failed",
    _ABANDONED: "after the worker had given up its start",
}
# An application that has said that it can't start may still put away what it has opened.
FAILED_END_S = 2.0


class Lifespan:
    """Runs `lifespan.startup` and `lifespan.shutdown`.

    mode   "auto": an application that raises an ordinary exception before it answers has no
           lifespan; "on": it must have one; "off": it is not asked
    state  what the application left for its requests (ASGI lifespan specification, `state`)
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
        """Start the application. Raises BootError when it can't start."""
        if not self.supported:
            return
        self._task = asyncio.get_running_loop().create_task(self._run(), name="servo-lifespan")
        await self._to_app.put({"type": "lifespan.startup"})
        await self._answered.wait()
        if self._phase == _FAILED:
            await asyncio.wait([self._task], timeout=FAILED_END_S)
            raise BootError(f"the application's lifespan startup failed: {self._message}")

    async def shutdown(self) -> None:
        """Let the application clean up. What it raises is logged: the worker ends anyway."""
        if self._task is None or self._task.done() or self._phase != _STARTED:
            return
        self._phase = _STOPPING
        self._answered.clear()
        await self._to_app.put({"type": "lifespan.shutdown"})
        await self._answered.wait()

    def abandon(self) -> None:
        """The worker cancels what is left: that is no error of the application."""
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
        """Whether to take an error for the answer of an application that knows no lifespan.

        It may raise whatever it raises for an unknown scope. SystemExit and the like say that the
        process is to end, and a task that is cancelled after it took `lifespan.startup` had one.
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
                " without lifespan; with --lifespan on it would not be",
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
            # It does no harm, and peers serve such applications.
            self._log.warning("%s was sent twice", kind)
            return
        elif kind in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            raise AppError(f"{kind} was sent {_WHEN[phase]}")
        else:
            raise AppError(f"{kind!r} is no message of the lifespan protocol")
        self._answered.set()

    def _on_failed(self, kind: str, text: str) -> None:
        """The application says that it has failed; that is no answer unless one was awaited."""
        phase = self._phase
        if phase in (_STARTING, _STOPPING):
            self._fail(text)
        # A failed start is reported by `startup`.
        if phase == _STOPPING:
            self._log.error("The application's lifespan shutdown failed: %s", self._message)
        elif phase != _STARTING:
            self._log.error("%s was sent %s: %s", kind, _WHEN[phase], _last_line(text))

    def _fail(self, message: str) -> None:
        self._phase = _FAILED
        self._message = _last_line(message)


def _last_line(text: str) -> str:
    """Starlette's message is a whole traceback; its last line says what happened."""
    return text.strip().rsplit("\n", 1)[-1]
