"""Threads in which a worker runs the application."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class WorkerThread(threading.Thread):
    """A daemon, since a stuck request must not keep a drained worker from ending.

    A thread inherits that from the one that starts it, and Python waits for no daemon at its end.
    So to the application this is no daemon: the threads that a request starts are what they are
    without a server.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._begun = False

    @property
    def daemon(self) -> bool:  # type: ignore[override]
        """Whether Python's end takes no notice of it; `threading` asks before it runs."""
        return not self._begun

    def run(self) -> None:
        """See threading.Thread."""
        self._begun = True
        self._work()
