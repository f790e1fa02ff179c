"""A time limit for the operator's code: configuration files at a reload, and hooks.

This code runs in the arbiter, between two turns of its loop. While it runs, the arbiter neither
supervises workers nor handles signals. So a timer interrupts code that takes too long: its SIGALRM
raises `LimitExceeded`. If the code catches it, the timer raises it again each second.
`LimitExceeded` is not an `Exception`, so the usual `except Exception` does not catch it. When a
signal asks the server to stop, running code gets 2 s more. Hooks that are called during the stop
have their whole time.

A call into C can't be interrupted in this way if it continues after EINTR.
"""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

# Seconds that running code gets after a signal asks the server to stop.
STOP_S = 2.0
# Seconds until code that has caught the exception is interrupted again.
AGAIN_S = 1.0
# The shortest time for the timer, in seconds: 0 would switch it off.
_AT_ONCE_S = 0.001


class LimitExceeded(BaseException):
    """Raised in code that takes too long."""


class CodeError(ConfigError):
    """Raised after the operator's code took too long, or tried to end the arbiter."""


class CodeLimit:
    """Calls the operator's code under a time limit. Works in the main thread only."""

    def __init__(self) -> None:
        self._ends_at: float | None = None
        self._limit_s = 0.0
        self._is_stopping = False

    def call(self, limit_s: float, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function under the limit. Returns its result, or raises its `Exception`.

        limit_s   seconds that it may take; 0 for no limit
        function  called with `args`

        Raises CodeError if the function took longer, or if it raised SystemExit or
        KeyboardInterrupt, because these would end the arbiter.
        """
        try:
            with self._within(limit_s):
                return function(*args)
        except LimitExceeded as error:
            raise CodeError(str(error)) from error
        except Exception:
            raise
        except BaseException as error:
            raise CodeError(f"it raised {error!r}") from error

    def stop(self) -> None:
        """Give running code at most `STOP_S` more, because a signal asks the server to stop.

        The signal's handler calls this. Later the loop reads the signal, and calls `signals_read`.
        """
        self._is_stopping = True
        if self._ends_at is not None:
            self._ends_at = min(self._ends_at, time.monotonic() + STOP_S)
            self._set_timer()

    def signals_read(self) -> None:
        """Undo `stop`: code gets its whole time again. Called when all signals were read."""
        self._is_stopping = False

    @contextmanager
    def _within(self, limit_s: float) -> Iterator[None]:
        if self._ends_at is not None:
            yield  # called by code that already has a limit
            return
        if self._is_stopping:
            limit_s = min(limit_s or STOP_S, STOP_S)
        # In an upgrade, this program has another time limit (`takeover_limit`).
        outer = signal.setitimer(signal.ITIMER_REAL, 0)
        began_at = time.monotonic()
        before = signal.signal(signal.SIGALRM, self._interrupt)
        self._ends_at = time.monotonic() + (limit_s or float("inf"))
        self._limit_s = limit_s
        try:
            self._set_timer()
            yield
        finally:
            self._end(before)
            if outer[0]:
                left_s = outer[0] - (time.monotonic() - began_at)
                signal.setitimer(signal.ITIMER_REAL, max(left_s, _AT_ONCE_S), outer[1])

    def _end(self, before: Any) -> None:
        while True:
            try:
                self._ends_at = None
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            except LimitExceeded:
                continue  # the timer expired just now
            return

    def _set_timer(self) -> None:
        assert self._ends_at is not None
        left_s = self._ends_at - time.monotonic()
        if left_s != float("inf"):
            signal.setitimer(signal.ITIMER_REAL, max(left_s, _AT_ONCE_S), AGAIN_S)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._ends_at is None:
            return  # the code has returned meanwhile
        if self._is_stopping:
            raise LimitExceeded("it was interrupted because the server is stopping")
        raise LimitExceeded(f"it took over {self._limit_s:g} s (hook_timeout)")
