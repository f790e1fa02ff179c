"""The `sync` worker: the poller's own thread runs the application, one request at a time.

While a request runs, nothing else happens in this process: no heartbeat, no sweep. If the request
takes longer than `timeout` or `request_timeout`, the arbiter kills the worker, whose stack is
logged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from servo.shared_memory import row_layout
from servo.workers.blocking.poller import PollerWorker
from servo.workers.forks import end_child

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.apps.loader import LoadedApp
    from servo.workers.blocking.connection import Connection
    from servo.workers.context import WorkerContext
    from servo.workers.health_probes import Probe


class SyncWorker(PollerWorker):
    """A poller that runs the application itself."""

    kind: ClassVar[str] = "sync"

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        self.served = 0

    def dispatch(self, connection: Connection) -> None:
        """See PollerWorker.dispatch."""
        self.row[row_layout.OLDEST_START_NS] = connection.started_ns
        connection.run()
        if self.is_child:
            end_child()
        self.row[row_layout.OLDEST_START_NS] = 0
        self.served += 1
        self.complete(connection)

    def sweep(self, now_ns: int) -> None:
        """See PollerWorker.sweep."""
        super().sweep(now_ns)
        busy_ns = self.row[row_layout.LATENCY_SUM_NS]
        self.close_after_response = self.should_close_connections(self.served, busy_ns, now_ns)

    def held_ns(self, now_ns: int) -> list[int]:
        """See Worker.held_ns. Requests hold the only thread."""
        return [self.row[row_layout.LATENCY_SUM_NS]]

    def health_check_starter(self, probe: Probe) -> Callable[[], None]:
        """See PollerWorker.health_check_starter. The check runs in this thread, like requests."""
        health = self.health
        assert health is not None
        return lambda: health.done(probe())

    def progress(self) -> None:
        """Send a heartbeat: a worker whose response makes progress is alive."""
        self.row[row_layout.BEAT_NS] = row_layout.now_ns()
