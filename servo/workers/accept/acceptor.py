"""Accepting from the shared listeners: one connection per wake-up, through the load gate.

Both drivers use it; each brings its own way of watching a socket and of waiting a moment.
"""

from __future__ import annotations

import logging
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

from servo.accept_errors import CLIENT_LOST, NO_ROOM, AcceptErrors
from servo.shared_memory import row_layout
from servo.workers.accept.gate import WAIT_S, Gate

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from servo.workers.worker import Worker

log = logging.getLogger("servo.error")

# With no descriptor or buffer left, accepting again at once would spin.
BACKOFF_S = 0.1
COMPLAINT_NS = 10_000_000_000


class Driver(Protocol):
    """How a driver watches listeners."""

    def watch_listener(self, listener: socket.socket) -> None:
        """Call `Acceptor.on_ready(listener)` whenever a connection is queued."""

    def unwatch_listener(self, listener: socket.socket) -> None:
        """No more."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object:
        """Call back once after `delay` seconds."""

    def opened(self, sock: socket.socket, peer: Any) -> None:
        """A connection was accepted; the socket does not block."""


class Acceptor:
    """The listeners of one worker.

    open  how many connections the worker has; the driver says when one is `closed`
    """

    def __init__(self, worker: Worker, driver: Driver) -> None:
        self.open = 0
        self._driver = driver
        self._most = worker.settings.worker_connections
        self._row = worker.row
        # With a listener of its own nobody else could take a connection that it leaves.
        own = worker.settings.reuse_port
        self._gate = Gate(worker.context.scoreboard, worker.row, own)
        self._shared = worker.context.listeners
        self._listeners = [listener.socket for listener in self._shared]
        self._watching = False
        self._pausing = False
        self._stopped = False
        self._next_complaint_ns = 0
        self._errors = AcceptErrors()

    def start(self) -> None:
        """Begin to accept."""
        self._watch(True)

    def on_ready(self, listener: socket.socket) -> None:
        """A connection is queued: take it, or leave it to a sibling with less to do."""
        if not self._watching:
            return
        if self._gate.admits(monotonic_ns()):
            accepted = self._accept(listener)
            if accepted is not None:
                self._open(*accepted)
        else:
            self._pause(WAIT_S)

    def closed(self) -> None:
        """One of the worker's connections is gone."""
        self.open -= 1
        self._row[row_layout.CONNECTIONS] = self.open
        if not self._watching:
            self._resume()

    def stop(self, take_queued: bool) -> None:
        """Accept no more, and close this worker's copies of the listeners.

        `take_queued`: first accept what is queued, as no sibling is left to do so; none of it is
        served before the listeners are closed, or clients that come as fast as they are served
        would keep this going for ever. Unwatched before they are closed: the queue lives on in the
        siblings' copies, and epoll would tell of it, under a descriptor that is no more.
        """
        self._watch(False)
        self._stopped = True
        taken = []
        if take_queued:
            for listener in self._listeners:
                taken += self._accept_all(listener)
        self._listeners = []
        for shared in self._shared:
            shared.close()
        for sock, peer in taken:
            self._open(sock, peer)

    def _accept(self, listener: socket.socket) -> tuple[socket.socket, Any] | None:
        """Take one connection. None when none is queued, or its client is lost."""
        try:
            accepted = listener.accept()
        except BlockingIOError:
            self._errors.lost = 0
            return None
        except OSError as error:
            if not self._errors.must_pause(error):
                log.debug("A client was lost before it was accepted: %s", error)
                return None
            if error.errno not in NO_ROOM and error.errno not in CLIENT_LOST:
                raise
            self._complain(error)
            self._pause(BACKOFF_S)
            return None
        self._errors.lost = 0
        return accepted

    def _accept_all(self, listener: socket.socket) -> list[tuple[socket.socket, Any]]:
        """Take everything that is queued."""
        taken = []
        while True:
            accepted = self._accept(listener)
            if accepted is not None:
                taken.append(accepted)
            elif not self._errors.lost:
                return taken

    def _complain(self, error: OSError) -> None:
        """In the log, but not ten times a second."""
        now = monotonic_ns()
        if now >= self._next_complaint_ns:
            self._next_complaint_ns = now + COMPLAINT_NS
            log.error("Can't accept a connection: %s; trying again", error)

    def _open(self, sock: socket.socket, peer: Any) -> None:
        sock.setblocking(False)
        self.open += 1
        self._row[row_layout.CONNECTIONS] = self.open
        self._row[row_layout.ACCEPTED] += 1
        if self.open >= self._most:
            self._watch(False)
        self._driver.opened(sock, peer)

    def _pause(self, seconds: float) -> None:
        self._watch(False)
        if not self._pausing:
            self._pausing = True
            self._driver.call_later(seconds, self._end_pause)

    def _end_pause(self) -> None:
        self._pausing = False
        self._resume()

    def _resume(self) -> None:
        if not self._pausing and not self._stopped and self.open < self._most:
            self._watch(True)

    def _watch(self, on: bool) -> None:
        if on == self._watching:
            return
        self._watching = on
        for listener in self._listeners:
            if on:
                self._driver.watch_listener(listener)
            else:
                self._driver.unwatch_listener(listener)
