"""Limits the memory of responses that wait for slow clients, for a whole worker.

Each connection limits its own unsent bytes: the application's `send` waits while the client takes
nothing, and over HTTP/2 no further request is started (see `H2Protocol`). But an application may
pass any number of bytes in one `send`, and a worker has many connections. So once a second
`Pressure` adds up the unsent bytes of all connections. If the sum exceeds `WORKER_MOST`,

* an HTTP/2 connection with unsent bytes runs one request at a time, and
* a client that takes nothing is cut off after `STALLED_S` instead of `send_timeout`. Clients with
  the most bytes are cut off first, until the sum is below the limit.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger("servo.error")

# How many unsent bytes all connections of a worker may have together. A hundred slow clients with a
# megabyte each stay below this. A container with 512 MiB has enough room, although Python may hold
# three copies of a body: the application's, one joined with the head, and one in the event loop.
WORKER_MOST = 128 << 20
# Under memory pressure, a client that takes nothing is cut off after this many seconds. Networks
# rarely stall for longer. Without pressure the limit is `send_timeout`, 60 s by default.
STALLED_S = 2.0


class Client(Protocol):
    """The part of a connection that concerns its memory."""

    @property
    def peer_name(self) -> str:
        """The client's address; "" if it has none."""

    def held_bytes(self) -> int:
        """The number of unsent bytes."""

    def progress(self) -> object:
        """A value that changes with each byte that the client takes."""

    def abort(self) -> None:
        """Close the connection at once."""


class UnsentBytes:
    """Counts the unsent body bytes of all HTTP/2 responses of a worker.

    bytes  the count; the connections update it
    """

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Pressure:
    """Adds up the unsent bytes of one worker. If they are too many, cuts off stalled clients.

    http2  the unsent bytes on HTTP/2 connections, updated at each change
    """

    __slots__ = ("_since", "_total", "http2")

    def __init__(self) -> None:
        self.http2 = UnsentBytes()
        # Unsent bytes on all connections, at the last sweep.
        self._total = 0
        # client -> its last `progress`, and the time since which that value has not changed. Empty
        # while the total is below the limit.
        self._since: dict[Client, tuple[object, int]] = {}

    @property
    def is_high(self) -> bool:
        """Whether the unsent bytes exceed `WORKER_MOST`."""
        return self.http2.bytes > WORKER_MOST or self._total > WORKER_MOST

    def look(self, clients: Iterable[Client], now_ns: int) -> None:
        """Add up the unsent bytes, and cut off stalled clients if needed. Called once a second.

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
