"""Admission: the steps that each request takes before and after the application.

The steps and their order are the same in every worker class and protocol. Before the application:

1. Count the request on its connection. After `keepalive_requests` of them the driver closes the
   connection. A draining worker, or one that keeps no connections, closes it after each response.
2. Refuse it with 503 and Retry-After if `limit_concurrency` requests are in flight.
3. If `header_map` is `refuse`, refuse a field name with an underscore with 400. (Its two other
   values concern the variables of WSGI, and `wsgi_environ` applies them.)
4. Find out the client's address and scheme. The forwarded fields of a trusted proxy override the
   values of the connection. Fields that contradict each other are refused with 400. Count how long
   the request has waited in queues, if a trusted proxy says so (X-Request-Start).
5. Count the request as in flight, and start its time.
6. Call `pre_request`, in the thread that will run the application, because a hook may block.

After the application: count the request with its status and time, write the line of the access log,
and call `post_request` if `pre_request` was called.

A refused request, whether refused in these steps or by the parser, is counted with its status and
gets a line in the access log. No hook is called for it.

Two checks come earlier: `preface` reads the PROXY protocol's header at the beginning of the
connection, and the parser validates a WebSocket handshake.
"""

from __future__ import annotations

import sys
from time import time_ns
from typing import TYPE_CHECKING, Any

from servo.http.errors import ProtocolError
from servo.http.events import Refused
from servo.http.forwarded import resolve_client
from servo.http.headers import map_names
from servo.http.queue_time import queue_ns
from servo.shared_memory.row_layout import IN_FLIGHT
from servo.workers.request.hooks import HookResponse

if TYPE_CHECKING:
    from servo.http.events import Request
    from servo.http.forwarded import ClientInfo, TrustedPeers
    from servo.settings.sources import Settings
    from servo.workers.request.accounting import Meter
    from servo.workers.request.hooks import HookRequest, RequestHooks

# The status in the access log if the client closed the connection before the response, as in nginx.
CLIENT_CLOSED = 499
RETRY_AFTER_S = 1


class Peer:
    """The other end of a connection.

    address   the client's (host, port), from the socket or the PROXY protocol; None for a Unix
              socket
    scheme    "http" or "https", of the connection itself
    trusted   whether the forwarded fields that it sends are trusted
    requests  the number of requests on the connection so far
    fields    the last fields by name that have no time at which the request began
              (`Request.named`); None for no such fields. H1Connection returns the same object if
              the fields are the same, and then `client` is still right
    client    the client that these fields name; None: the peer is the client
    """

    __slots__ = ("address", "client", "fields", "name", "requests", "scheme", "trusted")

    def __init__(self, address: tuple[str, int] | None, scheme: str, trusted: bool) -> None:
        self.address = address
        self.name = "" if address is None else address[0]
        self.scheme = scheme
        self.trusted = trusted
        self.requests = 0
        self.fields: dict[bytes, bytes] | None = None
        self.client: ClientInfo | None = None

    def forget(self) -> None:
        """Release the memory of the last request. Drivers call this on idle connections."""
        self.fields = self.client = None


class Admitted:
    """An admitted request.

    client      the client that a trusted proxy has named; None: the peer is the client
    remote      the client's address; "" on a Unix socket
    started_ns  when it was admitted, in monotonic nanoseconds
    announced   the `req` that `pre_request` got; None before that call, and after `post_request`
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
    """Takes the steps of admission in one worker. Only the thread that owns the worker's row calls
    `admit`.

    hooks  `pre_request` and `post_request`; None if the configuration has neither
    """

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
        self.hooks: RequestHooks | None = hooks or None
        self._most_requests: int = settings.keepalive_requests or sys.maxsize
        self._most_in_flight: int = settings.limit_concurrency
        self._refuses_underscores: bool = settings.header_map == "refuse"

    def admit(self, request: Request, peer: Peer) -> Admitted | Refused:
        """Take steps 1 to 5. Counts and logs a refused request; the driver sends the response.

        request  the request; `keep_alive` becomes False if it is the last one of its connection
        peer     the client
        """
        meter = self._meter
        peer.requests += 1
        if peer.requests >= self._most_requests:
            # Close even if the client has pipelined more: otherwise it could exceed the limit.
            request.keep_alive = False
        if self._most_in_flight and self._row[IN_FLIGHT] >= self._most_in_flight:
            meter.shed(request, peer.name)
            error = ProtocolError(503, "too many requests are in flight", RETRY_AFTER_S)
            return Refused(error, True, request.method, request.target)
        client: ClientInfo | None = None
        remote = peer.name
        try:
            if self._refuses_underscores:
                map_names(request.headers, "refuse")
            if peer.trusted:
                if request.named is peer.fields:
                    client = peer.client
                else:
                    client = self._read_proxy_fields(request, peer)
                if client is not None and client.address is not None:
                    remote = client.address[0]
        except ProtocolError as error:
            meter.refused(error.status, request.method, request.target, peer.name)
            return Refused(error, True, request.method, request.target)
        return Admitted(request, client, remote, meter.begin())

    def _read_proxy_fields(self, request: Request, peer: Peer) -> ClientInfo | None:
        """Read the fields of a trusted proxy: the client, and when the proxy got the request.

        Returns the client; None if the peer is the client. Raises ProtocolError.
        """
        named = request.named
        client: ClientInfo | None = None
        if self._trusted.names_client(named):
            client = resolve_client(
                request.headers, peer.address, self._trusted, peer.scheme, named
            )
        if b"x-request-start" in named or b"x-queue-start" in named:
            waited_ns = queue_ns(named, time_ns())
            if waited_ns >= 0:
                self._meter.queued(waited_ns)
        elif request.version != "2":
            # HTTP/2 has new objects for each request, so remembering them would be useless.
            peer.fields = named
            peer.client = client
        return client

    def announce(self, admitted: Admitted) -> None:
        """Step 6: call `pre_request`. Without `hooks` the driver need not call this."""
        if self.hooks is not None:
            client = admitted.client
            scheme = "" if client is None else client.scheme
            admitted.announced = self.hooks.before(admitted.request, admitted.remote, scheme)

    def answered(
        self, admitted: Admitted, status: int | str, sent: int, headers: Any, environ: Any
    ) -> None:
        """Call `post_request`, if `pre_request` was called.

        admitted  the request
        status    the response's status: 200, or "200 OK"
        sent      bytes of the response body
        headers   the response's fields, as pairs
        environ   the request's environ; for ASGI, its scope
        """
        announced = admitted.announced
        if announced is not None and self.hooks is not None:
            admitted.announced = None
            self.hooks.after(announced, environ, HookResponse(status, headers, sent))
