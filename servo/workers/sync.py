"""The `sync` worker: the poller's own thread runs the application, one request at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from servo.observe import scoreboard as board
from servo.workers.poller import PollerWorker

if TYPE_CHECKING:
    from servo.workers.connection import Connection


class SyncWorker(PollerWorker):
    """One request at a time. While it runs nothing beats, so a request that outlasts `timeout` (or
    `request_timeout`) makes the arbiter end this worker, with its stack in the log."""

    kind: ClassVar[str] = "sync"

    def dispatch(self, connection: Connection) -> None:
        """See PollerWorker.dispatch."""
        self.row[board.OLDEST_START_NS] = connection.started_ns
        connection.run()
        self.row[board.OLDEST_START_NS] = 0
        self.complete(connection)

    def progress(self) -> None:
        """A part of a response went out: this worker is alive."""
        self.row[board.BEAT_NS] = board.now_ns()
