"""The keep-alive policy: whether a worker keeps its connections open between requests.

A connection stays with one worker. While a `sync` worker runs a request, or a request blocks the
event loop of an `async` worker, requests on the worker's other connections wait, even if another
worker is idle. If the clients opened new connections instead, the idle worker would accept them.
But a new connection takes CPU time: about 100 us, or 500 us with TLS. A small request takes only a
fraction of that.

So each worker measures itself once a second. If its requests held it for less than 1 ms each on
average, or for less than 5 % of the time, it keeps connections: waiting costs less than a new
connection would. Otherwise it closes each connection after its response, for the next 30 s.

Closing connections causes more work, and this work must not be a reason to keep closing them. So
time in which the worker waited for a CPU does not count as busy, and with TLS the time of a
handshake is subtracted for each new connection.
"""

from __future__ import annotations

from typing import Final

# If requests take this long on average, connections are closed. It is ten times the cost of a new
# connection.
SLOW_REQUEST_NS: Final = 1_000_000
TLS_SLOW_REQUEST_NS: Final = 5_000_000
# The time subtracted for each TLS handshake, because a handshake also blocks the event loop. With
# an RSA key of 4096 bits it takes 5 ms.
HANDSHAKE_NS: Final = 10_000_000
# How long connections are closed after the requests were found to be slow.
CLOSE_FOR_NS: Final = 30_000_000_000
# If requests hold the worker for less than 1/20 (5 %) of the time, connections are kept: waiting
# costs less than a new connection would.
_BUSY_DIVISOR: Final = 20


class KeepalivePolicy:
    """Decides whether one of several workers closes connections after each response.

    tls  whether connections begin with a TLS handshake
    """

    __slots__ = (
        "_busy_ns",
        "_checked_ns",
        "_close_until_ns",
        "_connections",
        "_handshake_ns",
        "_requests",
        "_slow_request_ns",
    )

    def __init__(self, tls: bool = False) -> None:
        self._slow_request_ns = TLS_SLOW_REQUEST_NS if tls else SLOW_REQUEST_NS
        self._handshake_ns = HANDSHAKE_NS if tls else 0
        self._checked_ns = self._busy_ns = self._requests = self._connections = 0
        self._close_until_ns = 0

    def closes(self, requests: int, connections: int, busy_ns: int, now_ns: int) -> bool:
        """Whether to close connections after each response. Call it once a second.

        requests, connections  how many the worker has served and accepted since it started
        busy_ns                how long requests held the worker since it started, in nanoseconds,
                               without the time that it waited for a CPU
        now_ns                 monotonic nanoseconds
        """
        new_requests = requests - self._requests
        new_connections = connections - self._connections
        allowed_ns = new_requests * self._slow_request_ns + new_connections * self._handshake_ns
        busy = busy_ns - self._busy_ns
        if busy > allowed_ns and busy > (now_ns - self._checked_ns) // _BUSY_DIVISOR:
            self._close_until_ns = now_ns + CLOSE_FOR_NS
        self._requests = requests
        self._connections = connections
        self._busy_ns = busy_ns
        self._checked_ns = now_ns
        return now_ns < self._close_until_ns
