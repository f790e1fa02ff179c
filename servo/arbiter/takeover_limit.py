"""The time limit for a program that takes over in an upgrade, until it has restored the state.

Until then nothing supervises the workers. The preflight has read the same configuration under the
same limit, but the file may have changed since, or may wait for something that no longer answers.
So a timer interrupts the program: SIGALRM raises `LimitExceeded`, again each second if code catches
the exception. As in `limit`, a call into C that continues after EINTR can't be interrupted.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from servo.arbiter.limit import AGAIN_S, LimitExceeded

if TYPE_CHECKING:
    from types import FrameType


class TakeoverLimit:
    """Interrupts this program if it takes too long. Works in the main thread only.

    limit_s  seconds from `begin` to `end`; 0 for no limit
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._is_on = False

    def begin(self) -> None:
        """Start the timer."""
        if self._limit_s:
            self._is_on = True
            signal.signal(signal.SIGALRM, self._interrupt)
            signal.setitimer(signal.ITIMER_REAL, self._limit_s, AGAIN_S)

    def end(self) -> None:
        """Stop the timer. From now on nothing is interrupted."""
        if self._is_on:
            self._is_on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _interrupt(self, _signum: int, _frame: FrameType | None) -> None:
        if self._is_on:  # else the timer has expired just now
            raise LimitExceeded(f"it took over {self._limit_s:g} s (boot_timeout)")
