"""Admission: the steps between a request that was read and the application, and those at its end.

Each request takes these steps in this order, in every worker class and protocol:

1. It is counted on its connection. Request number `keepalive_requests` is the last one: the driver
   ends the connection after its response. In a worker that drains, or keeps no connections, it
   does so after each response.
2. `limit_concurrency`: with as many requests in flight, it is refused with 503 and Retry-After.
3. `header_map = refuse`: a field name with an underscore is refused with 400. (The other two values
   of that setting are about WSGI's variables, and are applied where these are made.)
4. Who is the client? What a trusted proxy says in forwarded fields takes the place of what the
   connection says. Fields that contradict each other are refused with 400.
5. It is counted in flight, and its time begins.
6. `pre_request` is called, in the thread that will run the application: a hook may take its time.

The driver then runs the application. At the end the request is counted with its status and time,
the access log gets its line, and `post_request` is called: exactly if `pre_request` was.

A request that is refused, in these steps or by the parser before them, is counted with its status,
and gets a line in the access log. No hook sees it.

The first line of a connection, the PROXY protocol's, is read before all this; see `preface`. A
request that asks for another protocol is judged by that protocol before it comes here: a WebSocket
handshake with a bad key is as malformed as a bad request line.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from servo.http.errors import ProtocolError
from servo.http.events import Refused
from servo.http.forwarded import resolve_client
from servo.http.headers import map_names
from servo.shared_memory.row_layout import IN_FLIGHT
from servo.workers.request.hooks import HookResponse

if TYPE_CHECKING:
    from servo.http.events import Request
    from servo.http.forwarded import ClientInfo, TrustedPeers
    from servo.settings.sources import Settings
    from servo.workers.request.accounting import Meter
    from servo.workers.request.hooks import HookRequest, RequestHooks

# In the access log: the client left before there was an answer. It is nginx's code for that.
CLIENT_CLOSED = 499
RETRY_AFTER_S = 1


class Peer:
    """The other end of a connection.

    address   the client as the socket or the PROXY protocol has it; None for a Unix socket
    scheme    "http" or "https": the connection's own
    trusted   whether its forwarded fields are believed
    requests  how many it has brought
    """

    __slots__ = ("address", "name", "requests", "scheme", "trusted")

    def __init__(self, address: tuple[str, int] | None, scheme: str, trusted: bool) -> None:
        self.address = address
        self.name = "" if address is None else address[0]
        self.scheme = scheme
        self.trusted = trusted
        self.requests = 0


class Admitted:
    """A request that an application gets.

    client      what a trusted proxy says of the client; None: it is the peer
    remote      the client's address, or "" on a Unix socket
    started_ns  when it was admitted, monotonic nanoseconds
    announced   what `pre_request` was given; None: it was not called, or `post_request` has been
    """

    __slots__ = ("announced", "client", "remote", "request", "started_ns")

    def __init__(
        self, request: Request, client: ClientInfo | None, remote: str, started_ns: int
    ) -> None:
        self.request = request
        self.client = client
        self.remote = remote
        self.started_ns = started_ns
        self.announced: HookRequest | None = None


class Admission:
    """The steps, for one worker. Only the thread that owns its scoreboard row may call `admit`."""

    def __init__(
        self,
        settings: Settings,
        meter: Meter,
        trusted: TrustedPeers,
        hooks: RequestHooks,
    ) -> None:
        self._meter = meter
        self._row = meter.row
        self._trusted = trusted
        self._hooks: RequestHooks | None = hooks or None
        self._most_requests: int = settings.keepalive_requests or sys.maxsize
        self._most_in_flight: int = settings.limit_concurrency
        self._refuses_underscores: bool = settings.header_map == "refuse"

    def is_last(self, peer: Peer) -> bool:
        """Step 1: count a request. Whether its connection may bring no more."""
        peer.requests += 1
        return peer.requests >= self._most_requests

    def admit(self, request: Request, peer: Peer) -> Admitted | Refused:
        """Steps 2 to 5. What is refused is counted and logged here; the driver answers it."""
        meter = self._meter
        if self._most_in_flight and self._row[IN_FLIGHT] >= self._most_in_flight:
            meter.shed(request, peer.name)
            error = ProtocolError(503, "too many requests are in flight", RETRY_AFTER_S)
            return Refused(error, True, request.method, request.target)
        client: ClientInfo | None = None
        remote = peer.name
        try:
            if self._refuses_underscores:
                map_names(request.headers, "refuse")
            if peer.trusted and not self._trusted.names.isdisjoint(request.named):
                client = resolve_client(
                    request.headers, peer.address, self._trusted, peer.scheme, request.named
                )
                if client.address is not None:
                    remote = client.address[0]
        except ProtocolError as error:
            meter.refused(error.status, request.method, request.target, peer.name)
            return Refused(error, True, request.method, request.target)
        return Admitted(request, client, remote, meter.begin())

    def announce(self, admitted: Admitted) -> None:
        """Step 6: `pre_request`."""
        if self._hooks is not None:
            admitted.announced = self._hooks.before(admitted.request, admitted.remote)

    def answered(
        self, admitted: Admitted, status: int | str, sent: int, headers: Any, environ: Any
    ) -> None:
        """`post_request`, if there was a `pre_request`.

        status   of the response, as a number or with its phrase
        sent     bytes of its body
        headers  of the response, as pairs
        environ  of the request; in ASGI, its scope
        """
        announced = admitted.announced
        if announced is not None and self._hooks is not None:
            admitted.announced = None
            self._hooks.after(announced, environ, HookResponse(status, headers, sent))
