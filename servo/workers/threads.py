"""Threads that run the application, and that don't keep a stopping worker alive."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class WorkerThread(threading.Thread):
    """A thread that Python treats as a daemon, while the application sees an ordinary thread.

    name  the thread's name
    work  the function to run

    Python must not wait for this thread when the process ends: a stuck request must not hold a
    drained worker. So the thread is a daemon. But a new thread inherits `daemon` from the thread
    that starts it, and the application's threads should not become daemons. So while this thread
    runs, its attribute `daemon` is False.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._begun = False

    @property
    def daemon(self) -> bool:  # type: ignore[override]
        """True until the thread runs: `threading` reads it before that, the application later."""
        return not self._begun

    def run(self) -> None:
        """See threading.Thread."""
        self._begun = True
        self._work()
