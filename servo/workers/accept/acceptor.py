"""Accepts connections from the listeners, one per wake-up, if the load gate agrees.

All workers share the listeners. When a connection is queued, each worker that watches the listener
may wake up. The worker asks the gate (`accept.gate`). If another worker has less to do, this worker
stops watching for a moment. Otherwise this worker accepts one connection, and serves its other
ready sockets before it accepts the next. So the other workers get their share of a burst of
connections.

The acceptor watches the listeners only while it may accept. It stops watching while the worker has
`worker_connections` open, while the gate tells it to wait, and while accept(2) fails for a lasting
reason (`servo.accept_errors`). A watched listener would otherwise wake the worker over and over.

The poller of the `sync` and `thread` workers and the `async` worker both use the acceptor. Each
implements `Driver`: how to watch a socket, and how to be called later.
"""

from __future__ import annotations

import logging
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from servo.accept_errors import CLIENT_LOST, NO_ROOM, AcceptErrors
from servo.shared_memory import row_layout
from servo.workers.accept.accept_queue import AcceptQueue
from servo.workers.accept.gate import WAIT_S, Gate

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from servo.settings.sources import Settings
    from servo.workers.context import WorkerContext

log = logging.getLogger("servo.error")

# How many seconds to pause after a lasting error, such as no free descriptor. The connection stays
# queued, so without a pause the worker would retry at once, and use a whole CPU.
BACKOFF_S = 0.1
# A lasting error is logged at most once in this time, not at each attempt.
LOG_INTERVAL_NS = 10_000_000_000


class AcceptingWorker(Protocol):
    """The part of the worker that the acceptor uses."""

    settings: Settings
    context: WorkerContext
    row: memoryview


class Driver(Protocol):
    """The part of the worker's event loop that the acceptor uses."""

    def watch_listener(self, queue: AcceptQueue) -> None:
        """Call `Acceptor.on_ready(queue)` while a connection is queued."""

    def unwatch_listener(self, queue: AcceptQueue) -> None:
        """Stop calling `Acceptor.on_ready` for this listener."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object:
        """Call `callback` once, after `delay` seconds."""

    def opened(self, sock: socket.socket, peer: Any, local: Any) -> None:
        """Serve an accepted connection.

        sock   its socket, in non-blocking mode
        peer   the client's address, as accept(2) returned it
        local  our address, as getsockname(2) would return it; None if it is not known
        """


class Acceptor:
    """Accepts the connections of one worker.

    open_connections  the number of open connections; the driver calls `closed` when one ends
    """

    def __init__(self, worker: AcceptingWorker, driver: Driver) -> None:
        self.open_connections = 0
        self._driver = driver
        self._max_connections = worker.settings.worker_connections
        self._row = worker.row
        # With `reuse_port` each worker has its own listeners, so no other worker can accept from
        # them.
        alone = worker.settings.reuse_port
        self._gate = Gate(worker.context.scoreboard, worker.row, alone)
        self._shared = worker.context.listeners
        self._queues = [AcceptQueue(listener.socket) for listener in self._shared]
        self._watching = False
        self._pausing = False
        self._stopped = False
        self._next_log_ns = 0
        self._errors = AcceptErrors()

    def start(self) -> None:
        """Begin to accept connections."""
        self._watch(True)

    def on_ready(self, queue: AcceptQueue) -> None:
        """Accept a connection, or leave it to a worker with less to do.

        queue  the queue that has a connection
        """
        if not self._watching:
            return
        if self._gate.admits(monotonic_ns()):
            accepted = self._accept(queue)
            if accepted is not None:
                self._open(accepted[0], accepted[1], queue.local)
        else:
            self._pause(WAIT_S)

    def closed(self) -> None:
        """Note that one of the worker's connections has ended."""
        self.open_connections -= 1
        self._row[row_layout.CONNECTIONS] = self.open_connections
        if not self._watching:
            self._resume()

    def stop(self, take_queued: bool) -> None:
        """Stop accepting, and close this worker's copies of the listeners.

        take_queued  whether to accept the queued connections first, because no other worker will
        """
        # Unwatch before closing. Other workers' copies keep the socket open, so epoll would go on
        # reporting it, under a descriptor number that is closed here.
        self._watch(False)
        self._stopped = True
        taken: list[tuple[socket.socket, Any, Any]] = []
        # Accept all connections before serving any. If each were served at once, this loop might
        # never end: clients can connect as fast as they are served.
        if take_queued:
            for queue in self._queues:
                taken += self._accept_all(queue)
        self._queues = []
        for shared in self._shared:
            shared.close()
        for sock, peer, local in taken:
            self._open(sock, peer, local)

    def _accept(self, queue: AcceptQueue) -> tuple[socket.socket, Any] | None:
        """Accept one connection. Returns None if none is queued, or if the client has gone."""
        try:
            accepted = queue.accept()
        except BlockingIOError:
            self._errors.lost = 0
            return None
        except OSError as error:
            if not self._errors.must_pause(error):
                log.debug("A client disconnected before it was accepted: %s", error)
                return None
            if error.errno not in NO_ROOM and error.errno not in CLIENT_LOST:
                raise
            self._log_error(error)
            self._pause(BACKOFF_S)
            return None
        self._errors.lost = 0
        return accepted

    def _accept_all(self, queue: AcceptQueue) -> list[tuple[socket.socket, Any, Any]]:
        """Accept all queued connections."""
        taken: list[tuple[socket.socket, Any, Any]] = []
        while True:
            accepted = self._accept(queue)
            if accepted is not None:
                taken.append((accepted[0], accepted[1], queue.local))
            elif not self._errors.lost:
                return taken

    def _log_error(self, error: OSError) -> None:
        """Log a lasting error, at most once in `LOG_INTERVAL_NS`."""
        now = monotonic_ns()
        if now >= self._next_log_ns:
            self._next_log_ns = now + LOG_INTERVAL_NS
            log.error("Can't accept a connection: %s; trying again", error)

    def _open(self, sock: socket.socket, peer: Any, local: Any) -> None:
        sock.setblocking(False)
        self.open_connections += 1
        self._row[row_layout.CONNECTIONS] = self.open_connections
        self._row[row_layout.ACCEPTED] += 1
        if self.open_connections >= self._max_connections:
            self._watch(False)
        self._driver.opened(sock, peer, local)

    def _pause(self, seconds: float) -> None:
        self._watch(False)
        if not self._pausing:
            self._pausing = True
            self._driver.call_later(seconds, self._end_pause)

    def _end_pause(self) -> None:
        self._pausing = False
        self._resume()

    def _resume(self) -> None:
        if (
            not self._pausing
            and not self._stopped
            and self.open_connections < self._max_connections
        ):
            self._watch(True)

    def _watch(self, on: bool) -> None:
        if on == self._watching:
            return
        self._watching = on
        for queue in self._queues:
            if on:
                self._driver.watch_listener(queue)
            else:
                self._driver.unwatch_listener(queue)
