"""The `sync` worker: the poller's own thread runs the application, one request at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from servo.observe import words
from servo.workers.poller import PollerWorker

if TYPE_CHECKING:
    from servo.apps.loader import LoadedApp
    from servo.workers.connection import Connection
    from servo.workers.context import WorkerContext

# Whose mean request takes longer closes connections, and does so for a while.
QUICK_NS: Final = 1_000_000
WARY_NS: Final = 30_000_000_000


class SyncWorker(PollerWorker):
    """One request at a time. While it runs nothing beats, so a request that outlasts `timeout` (or
    `request_timeout`) makes the arbiter end this worker, with its stack in the log."""

    kind: ClassVar[str] = "sync"

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        self.habit = Habit() if self.settings.keeps_while_quick else None
        self.served = 0

    def dispatch(self, connection: Connection) -> None:
        """See PollerWorker.dispatch."""
        self.row[words.OLDEST_START_NS] = connection.started_ns
        connection.run()
        self.row[words.OLDEST_START_NS] = 0
        self.served += 1
        self.complete(connection)

    def sweep(self, now_ns: int) -> None:
        """See PollerWorker.sweep."""
        super().sweep(now_ns)
        if self.habit is not None:
            self.closes_each = self.habit.is_slow(
                self.served, self.row[words.LATENCY_SUM_NS], now_ns
            )

    def progress(self) -> None:
        """A part of a response went out: this worker is alive."""
        self.row[words.BEAT_NS] = words.now_ns()


class Habit:
    """Whether a worker's requests are slow enough for its connections to be closed after each.

    While one request runs, those on the worker's other connections wait, and siblings may be idle
    that would take them if they came anew. To come anew costs some 50 us: five times a small
    request, but little beside one of QUICK_NS.
    """

    __slots__ = ("_busy_ns", "_served", "_wary_until_ns")

    def __init__(self) -> None:
        self._served = 0
        self._busy_ns = 0
        self._wary_until_ns = 0

    def is_slow(self, served: int, busy_ns: int, now_ns: int) -> bool:
        """To be asked about once a second.

        served, busy_ns   how many requests it has had by now, and how long they took in all
        """
        if busy_ns - self._busy_ns > (served - self._served) * QUICK_NS:
            self._wary_until_ns = now_ns + WARY_NS
        self._served = served
        self._busy_ns = busy_ns
        return now_ns < self._wary_until_ns
