"""The memory of responses that wait for their clients, bounded for each worker.

A connection bounds what waits on it: `send` of an application waits while the client takes nothing,
and over HTTP/2 no further request is begun (see `H2Protocol`). But an application hands over as
much as it likes in one piece, and a worker has many connections. So all that waits is added up.
Past `WORKER_MOST` HTTP/2 connections with a part in it get one request at a time, and clients that
take nothing at all are cut long before `send_timeout`, the one with the most first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger("servo.error")

# Bytes of responses that wait, of all connections of a worker together. A hundred clients with slow
# networks and a megabyte each stay below it. A container with 512 MiB survives it, though Python
# may hold a body up to three times: the application's, and copies with its head and in the loop.
WORKER_MOST = 128 << 20
# Past it, a client that has taken nothing for so long is cut. A network that stalls for longer is
# rare, and `send_timeout` (30 s) is meant for times with memory to spare.
STALLED_S = 2.0


class Client(Protocol):
    """A connection, as far as it has to do with memory."""

    @property
    def peer_name(self) -> str:
        """The client's address, or nothing."""

    def held_bytes(self) -> int:
        """Bytes that wait for the client."""

    def progress(self) -> object:
        """Something that changes with each byte that the client takes."""

    def abort(self) -> None:
        """Cut the connection."""


class UnsentBytes:
    """Body bytes of HTTP/2 responses that wait for clients, of all connections of the worker.

    bytes  how many; the connections keep it up to date
    """

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Pressure:
    """What waits in one worker, looked at once a second.

    http2  what waits on HTTP/2 connections, counted as it comes and goes
    """

    __slots__ = ("_since", "_total", "http2")

    def __init__(self) -> None:
        self.http2 = UnsentBytes()
        # Of all connections, at the last look.
        self._total = 0
        # While too much waits: what each client had taken when it was seen to take something.
        self._since: dict[Client, tuple[object, int]] = {}

    @property
    def is_high(self) -> bool:
        """More waits than a worker should hold."""
        return self.http2.bytes > WORKER_MOST or self._total > WORKER_MOST

    def look(self, clients: Iterable[Client], now_ns: int) -> None:
        """Add up what waits on these connections, and cut some if it is too much."""
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
