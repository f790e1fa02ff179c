"""The ASGI lifespan: one long call of the application around the life of a worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from servo.errors import BootError

if TYPE_CHECKING:
    import logging

    from servo._types import ASGIApp

_UNTRIED, _STARTED, _FAILED, _STOPPED = range(4)


class Lifespan:
    """Runs `lifespan.startup` and `lifespan.shutdown`.

    mode   "auto": an application that raises before it answers has no lifespan; "on": it must
           have one; "off": it is not asked
    state  what the application left for its requests (ASGI lifespan specification, `state`)
    """

    def __init__(self, app: ASGIApp, mode: str, log: logging.Logger) -> None:
        self.state: dict[str, Any] = {}
        self.supported = mode != "off"
        self._app = app
        self._mode = mode
        self._log = log
        self._phase = _UNTRIED
        self._message = ""
        self._task: asyncio.Task[None] | None = None
        self._to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answered = asyncio.Event()

    async def startup(self) -> None:
        """Start the application. Raises BootError when it says that it can't start."""
        if not self.supported:
            return
        self._task = asyncio.get_running_loop().create_task(self._run(), name="servo-lifespan")
        await self._to_app.put({"type": "lifespan.startup"})
        await self._answered.wait()
        if self._phase == _FAILED:
            await self._task
            raise BootError(f"the application's lifespan startup failed: {self._message}")

    async def shutdown(self) -> None:
        """Let the application clean up. What it raises is logged: the worker ends anyway."""
        if self._task is None or self._task.done() or self._phase != _STARTED:
            return
        self._answered.clear()
        await self._to_app.put({"type": "lifespan.shutdown"})
        await self._answered.wait()
        if self._phase == _FAILED:
            self._log.error("The application's lifespan shutdown failed: %s", self._message)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._to_app.get, self._send)
        except Exception as error:  # noqa: BLE001  reported, or logged with its traceback
            self._ended(error)
        else:
            self._ended(None)
        finally:
            self._answered.set()

    def _ended(self, error: Exception | None) -> None:
        if self._phase == _UNTRIED:
            if self._mode == "on":
                self._fail(_describe(error) if error else "it returned without an answer")
                self._log.error("Error in the application's lifespan", exc_info=error)
                return
            self.supported = False
            self._log.debug("The application has no lifespan", exc_info=error)
        elif self._phase == _STARTED and error is not None:
            self._fail(_describe(error))
            self._log.error("Error in the application's lifespan", exc_info=error)
        elif self._phase == _FAILED and error is not None:
            self._log.error("Error in the application's lifespan", exc_info=error)

    async def _send(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete":
            self._phase = _STARTED
        elif kind == "lifespan.shutdown.complete":
            self._phase = _STOPPED
        elif kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self._fail(message.get("message", "") or "no message given")
        else:
            raise BootError(f"{kind!r} is no message of the lifespan protocol")
        self._answered.set()

    def _fail(self, message: str) -> None:
        self._phase = _FAILED
        # Starlette's message is a whole traceback; the last line says what happened.
        self._message = message.strip().rsplit("\n", 1)[-1]


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
