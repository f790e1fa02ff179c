"""A small HTTP/1.1 server for health probes and scrapers.

It has one thread, and limits on sizes, times and numbers. It serves only requests without a body,
and gets each answer from one function. When MAX_CLIENTS are connected, a new client replaces the
one that has been silent for longest. So idle connections can't block a probe.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.accept_errors import AcceptErrors
from servo.http import serialise
from servo.http.errors import ProtocolError
from servo.http.events import Refused, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import LINGER_S, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servo.http.events import Event

log = logging.getLogger("servo.error")

LIMITS = Limits(request_line=2048, header_count=64, header_field=4096, header_total=8192, body=1024)
MAX_CLIENTS = 32
HEAD_S = 10.0  # seconds for a client to send a whole request head
SEND_S = 20.0  # seconds for a client to read a whole answer
IDLE_S = 75.0  # seconds between two requests: Prometheus usually scrapes at least once a minute
# How many requests a client may pipeline. A client that sends more is no scraper, and is dropped.
_MAX_PIPELINED = 16
_READ_SIZE = 16384
_ACCEPT_AT_ONCE = 16


@dataclass(frozen=True)
class Answer:
    """A response. Several clients may get the same object."""

    status: int
    content_type: str
    body: bytes


class MetricsHTTPServer:
    """Serves HTTP on listening sockets. Its owner calls `turn` in a loop.

    listeners  the sockets, non-blocking
    answer     called with each request; must not raise
    clock      returns monotonic seconds
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        answer: Callable[[Request], Answer],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._answer = answer
        self._clock = clock
        # A dict serves as an ordered set: the client that has been silent for longest comes first.
        self._clients: dict[_Client, None] = {}
        self.selector = selectors.DefaultSelector()
        self._listeners = listeners
        self._is_pausing = False
        self._errors = AcceptErrors()
        for listener in listeners:
            self.selector.register(listener, selectors.EVENT_READ, listener)

    def call_when_readable(self, fd: int, handler: Callable[[], None]) -> None:
        """Watch another descriptor, and call `handler` when it is readable."""
        self.selector.register(fd, selectors.EVENT_READ, handler)

    def turn(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for events, and handle them."""
        ready = self.selector.select(timeout_s)
        serialise.set_clock(time.time())
        for key, mask in ready:
            if isinstance(key.data, _Client):
                if key.data in self._clients:
                    self._on_client(key.data, mask)
            elif isinstance(key.data, socket.socket):
                self._accept(key.data)
            else:
                key.data()

    def sweep(self) -> None:
        """Drop clients that have taken too long. The owner calls this about once a second."""
        if self._is_pausing:
            self._is_pausing = False
            for listener in self._listeners:
                self.selector.register(listener, selectors.EVENT_READ, listener)
        now = self._clock()
        for client in [each for each in self._clients if now >= each.deadline]:
            self._drop(client)

    def finish(self, limit_s: float) -> None:
        """Accept no more clients, and answer the accepted ones. Only `close` may follow.

        limit_s  for how many seconds at most

        Connections that wait in the listeners' queues stay there. At an upgrade another process
        serves the same listeners.
        """
        if not self._is_pausing:
            for listener in self._listeners:
                self.selector.unregister(listener)
        end = self._clock() + limit_s
        while any(client.is_waiting for client in self._clients) and self._clock() < end:
            self.turn(end - self._clock())

    def close(self) -> None:
        """Close the clients' connections and the selector. The listeners stay open."""
        for client in list(self._clients):
            self._drop(client)
        self.selector.close()

    # --- clients --------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                self._errors.lost = 0
                return
            except OSError as error:
                log.debug("Can't accept a client of the metrics: %s", error)
                if not self._errors.must_pause(error):
                    continue
                if not self._is_pausing:
                    # Stop watching the listeners until the next sweep.
                    self._is_pausing = True
                    for each in self._listeners:
                        self.selector.unregister(each)
                return
            self._errors.lost = 0
            if len(self._clients) >= MAX_CLIENTS:
                self._drop(next(iter(self._clients)))
            sock.setblocking(False)
            client = _Client(sock, self._clock() + HEAD_S)
            self._clients[client] = None
            self.selector.register(sock, selectors.EVENT_READ, client)

    def _on_client(self, client: _Client, mask: int) -> None:
        # Move the client to the end: it is now the last one to be replaced.
        del self._clients[client]
        self._clients[client] = None
        try:
            if mask & selectors.EVENT_WRITE:
                if self._flush(client):
                    self._act(client, client.http.next_event())
            elif client.lingers:
                if not client.sock.recv(_READ_SIZE):
                    self._drop(client)
            else:
                self._read(client)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("A client of the metrics is gone: %s", error)
            self._drop(client)

    def _read(self, client: _Client) -> None:
        data = client.sock.recv(_READ_SIZE)
        if not data:
            client.eof = True
            event = client.http.receive_eof()
            if event is None:
                self._drop(client)
                return
        else:
            event = client.http.receive_data(data)
        if event is None and not client.in_head:
            client.in_head = True
            client.deadline = self._clock() + HEAD_S
        self._act(client, event)

    def _act(self, client: _Client, event: Event | None) -> None:
        """Answer received requests, until the client stops reading the answers."""
        http = client.http
        answered = 0
        while event is not None:
            client.in_head = False
            if answered >= _MAX_PIPELINED:
                self._drop(client)
                return
            answered += 1
            if isinstance(event, Request) and not (event.body or event.more_body):
                answer = self._answer(event)
                fields = [(b"Content-Type", answer.content_type.encode("latin-1"))]
                if answer.status == 405:
                    fields.append((b"Allow", b"GET, HEAD"))
                client.out = memoryview(http.send_response(answer.status, fields, answer.body))
            elif isinstance(event, Refused):
                client.out = memoryview(http.refuse(event))
            else:
                error = ProtocolError(413, "a request for metrics can't have a body")
                client.out = memoryview(http.refuse(Refused(error, in_body=True)))
            client.deadline = self._clock() + SEND_S
            if not self._flush(client):
                return
            event = http.next_event()
        if client.eof:
            self._drop(client)

    def _flush(self, client: _Client) -> bool:
        """Send the rest of an answer. Raises OSError.

        Returns True if all of it is sent and the connection can take another request.
        """
        with contextlib.suppress(BlockingIOError):
            while client.out:
                client.out = client.out[client.sock.send(client.out) :]
        if client.out:
            self.selector.modify(client.sock, selectors.EVENT_WRITE, client)
            return False
        self.selector.modify(client.sock, selectors.EVENT_READ, client)
        if client.http.close_after:
            # If a socket is closed with unread input, the kernel resets the connection, and the
            # client may lose the answer. So shut down only our side, and continue to read.
            client.sock.shutdown(socket.SHUT_WR)
            client.lingers = True
            client.deadline = self._clock() + LINGER_S
            return False
        client.deadline = self._clock() + IDLE_S
        return True

    def _drop(self, client: _Client) -> None:
        del self._clients[client]
        self.selector.unregister(client.sock)
        client.sock.close()


class _Client:
    """A connection. It is dropped when the server's clock reaches `deadline`."""

    __slots__ = ("deadline", "eof", "http", "in_head", "lingers", "out", "sock")

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self.sock = sock
        self.http = H1Connection(LIMITS)
        self.deadline = deadline
        self.out = memoryview(b"")
        self.in_head = True
        self.lingers = False
        self.eof = False

    @property
    def is_waiting(self) -> bool:
        """Whether the client waits for an answer, or for the rest of one."""
        return self.in_head or bool(self.out)
