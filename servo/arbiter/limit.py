"""A time limit for code of the configuration: files that are read again at a reload, and hooks.

That code runs in the arbiter, between two turns of its loop. While it hangs nobody looks after the
workers, and no signal is obeyed. A timer interrupts it: SIGALRM raises an exception in it, and once
more each second while it catches that. The exception is no `Exception`, so the usual `except` of
such code does not take it for an error of its own. A signal to stop leaves a moment to what runs
when it comes; the hooks that are called during the stop have their whole time again.

What can't be interrupted so is a call into C that goes on after EINTR.
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

# What a signal to stop leaves to code that holds its handling up.
STOP_S = 2.0
# Code that has caught the exception is interrupted again after this long.
_AGAIN_S = 1.0
# The timer's "now": 0 would switch it off.
_AT_ONCE_S = 0.001


class LimitExceeded(BaseException):
    """Raised in code that takes too long."""


class CodeError(ConfigError):
    """Code of the configuration took too long, or tried to end the arbiter."""


class CodeLimit:
    """Calls code of the configuration under a limit. In the main thread only."""

    def __init__(self) -> None:
        self._ends_at: float | None = None
        self._limit_s = 0.0
        self._stops = False

    def call(self, limit_s: float, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function; what it returns, or raises if that is an Exception.

        Raises CodeError where it took longer than `limit_s` seconds (0: there is no limit), or
        raised what would end the arbiter: SystemExit, KeyboardInterrupt.
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
        """A signal to stop has come: code that keeps it from being obeyed gets STOP_S at most.

        To be called from the signal's handler, and `obeyed` afterwards by the loop.
        """
        self._stops = True
        if self._ends_at is not None:
            self._ends_at = min(self._ends_at, time.monotonic() + STOP_S)
            self._set_timer()

    def obeyed(self) -> None:
        """The loop has read the signals."""
        self._stops = False

    @contextmanager
    def _within(self, limit_s: float) -> Iterator[None]:
        if self._ends_at is not None:
            yield  # called by code that has a limit
            return
        if self._stops:
            limit_s = min(limit_s or STOP_S, STOP_S)
        before = signal.signal(signal.SIGALRM, self._interrupt)
        self._ends_at = time.monotonic() + (limit_s or float("inf"))
        self._limit_s = limit_s
        try:
            self._set_timer()
            yield
        finally:
            self._end(before)

    def _end(self, before: Any) -> None:
        while True:
            try:
                self._ends_at = None
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            except LimitExceeded:
                continue  # the timer has fired just now
            return

    def _set_timer(self) -> None:
        assert self._ends_at is not None
        left_s = self._ends_at - time.monotonic()
        if left_s != float("inf"):
            signal.setitimer(signal.ITIMER_REAL, max(left_s, _AT_ONCE_S), _AGAIN_S)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._ends_at is None:
            return  # too late: the code has returned
        if self._stops:
            raise LimitExceeded("it was interrupted, as the server is to stop")
        raise LimitExceeded(f"it took over {self._limit_s:g} s (hook_timeout)")
