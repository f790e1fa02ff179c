"""Threads in which a worker runs the application, and which do not keep it from ending."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class WorkerThread(threading.Thread):
    """A thread that is a daemon to Python, but not to the application.

    name  the thread's name
    work  the function to run

    It must be a daemon, because Python waits for all other threads when it ends, and a stuck
    request must not keep a drained worker from ending. But threads inherit the property from the
    thread that starts them. So while this thread runs, it says that it is none: then the threads
    that an application starts are the same as without a server.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._begun = False

    @property
    def daemon(self) -> bool:  # type: ignore[override]
        """True until the thread runs: `threading` asks before, and the application after."""
        return not self._begun

    def run(self) -> None:
        """See threading.Thread."""
        self._begun = True
        self._work()
