"""Limits the memory of responses that wait for slow clients, for a whole worker.

Each connection limits what waits on it: the application's `send` waits while the client takes
nothing, and over HTTP/2 no further request is started (see `H2Protocol`). That is not enough: an
application may pass any number of bytes in one `send`, and a worker has many connections. So once a
second `Pressure` adds up what waits on all of them. Past `WORKER_MOST`

* an HTTP/2 connection on which bytes wait runs one request at a time, and
* clients that take nothing are cut after `STALLED_S` instead of `send_timeout`, those with the most
  bytes first, until the rest is below the limit.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger("servo.error")

# Bytes of responses that may wait on all connections of a worker together. A hundred clients with
# slow networks and a megabyte each stay below it. A container with 512 MiB survives it, though
# Python may hold a body three times: the application's, a copy with the head, one in the loop.
WORKER_MOST = 128 << 20
# Seconds after which a client that takes nothing is cut while too much waits. A network that stalls
# for longer is rare, and `send_timeout` (30 s) is meant for times with memory to spare.
STALLED_S = 2.0


class Client(Protocol):
    """A connection, as far as its memory is concerned."""

    @property
    def peer_name(self) -> str:
        """The client's address; "" if it has none."""

    def held_bytes(self) -> int:
        """Bytes that wait for the client."""

    def progress(self) -> object:
        """A value that changes with each byte that the client takes."""

    def abort(self) -> None:
        """Cut the connection."""


class UnsentBytes:
    """Counts the body bytes of HTTP/2 responses that wait, on all connections of a worker.

    bytes  the count, which the connections keep up to date
    """

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Pressure:
    """Watches how much waits on the connections of one worker.

    http2  the bytes on HTTP/2 connections, counted at each change
    """

    __slots__ = ("_since", "_total", "http2")

    def __init__(self) -> None:
        self.http2 = UnsentBytes()
        # Bytes on all connections, at the last sweep.
        self._total = 0
        # Only while too much waits: for each client, its progress and when that last changed.
        self._since: dict[Client, tuple[object, int]] = {}

    @property
    def is_high(self) -> bool:
        """Whether more waits than a worker should hold."""
        return self.http2.bytes > WORKER_MOST or self._total > WORKER_MOST

    def look(self, clients: Iterable[Client], now_ns: int) -> None:
        """Add up what waits, and cut stalled clients if it is too much. Called once a second.

        clients  all connections of the worker
        now_ns   monotonic nanoseconds
        """
        waiting = [(client.held_bytes(), client) for client in clients]
        total = self._total = sum([size for size, _ in waiting])
        if total <= WORKER_MOST:
            self._since.clear()
            return
        since, self._since = self._since, {}
        stalled = []
        for size, client in waiting:
            if not size:
                continue
            progress = client.progress()
            before = since.get(client)
            if before is None or before[0] != progress:
                before = (progress, now_ns)
            self._since[client] = before
            if now_ns - before[1] >= STALLED_S * 1e9:
                stalled.append((size, client))
        stalled.sort(key=_size_of, reverse=True)
        for size, client in stalled:
            if total <= WORKER_MOST:
                break
            total -= size
            del self._since[client]
            log.warning(
                "%d MB of responses wait for clients: cut %s, which has taken nothing for %g s",
                (total + size) >> 20,
                client.peer_name or "a client",
                STALLED_S,
            )
            client.abort()


def _size_of(entry: tuple[int, Client]) -> int:
    return entry[0]
