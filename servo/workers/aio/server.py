"""The connections of one `async` worker, of all protocols.

`StreamServer` has the state that they share: settings, limits, admission, counters, and the sets of
open connections and running calls. It starts each application call in a task, counts it when it
ends, and sweeps all connections once a second.

**The sweep.** Time limits are deadlines in the connections, not timers: setting a timer for each
request and cancelling it costs more than looking at all connections once a second. So a limit may
take effect up to a second late.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from typing import TYPE_CHECKING, Protocol

from servo.apps.asgi import ASGICall
from servo.apps.asgi_scope import TLS_ENVIRON, remote_of
from servo.apps.websockets_missing import MissingWebSockets, has_websockets
from servo.http.errors import ProtocolError
from servo.shared_memory import row_layout
from servo.workers.aio.h2_settings import h2_settings
from servo.workers.aio.heartbeat import Heartbeat
from servo.workers.aio.memory_pressure import Client, Pressure
from servo.workers.aio.websocket_handshake import WebSockets

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from servo._types import Scope
    from servo.apps.asgi_scope import ASGIAdapter
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.apps.loader import LoadedApp
    from servo.apps.response_writer import ASGIResponseWriter
    from servo.http.events import Request
    from servo.http.forwarded import ClientInfo, TrustedPeers
    from servo.http.websocket import Handshake
    from servo.net.tls import TLS
    from servo.net.tls_facts import TLSFacts
    from servo.settings.sources import Settings
    from servo.workers.request.accounting import Meter
    from servo.workers.request.admission import Admission, Admitted
    from servo.workers.request.preface import ProxyProtocol


class Host(Protocol):
    """The part of the worker that a server uses; see `AsyncWorker`."""

    @property
    def app(self) -> LoadedApp: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def context(self) -> Any: ...

    @property
    def slot(self) -> int: ...

    @property
    def row(self) -> memoryview: ...

    @property
    def meter(self) -> Meter: ...

    @property
    def admission(self) -> Admission: ...

    @property
    def trusted_proxies(self) -> TrustedPeers: ...

    @property
    def proxy_protocol(self) -> ProxyProtocol: ...

    def connection_closed(self) -> None:
        """Note that an accepted connection is closed."""

    def check_drained(self) -> None:
        """End a draining worker when no call or connection is left. Called after each one ends."""


class ServedConnection(Client, Protocol):
    """A connection of any protocol, or a WebSocket on an HTTP/2 stream."""

    def sweep(self, now_ns: int) -> int:
        """End requests and phases whose time limit has passed. Called once a second.

        now_ns  monotonic nanoseconds

        Returns when the oldest running request was admitted, in monotonic nanoseconds; 0 if none
        runs.
        """

    def open_calls(self) -> list[ASGICall | WebSocketCall]:
        """The requests without a complete response."""

    def cut_requests(self, kept: list[ASGICall | WebSocketCall]) -> None:
        """End all requests except those in `kept`. If no request is kept, end the connection, too.

        kept  the calls to keep; an open WebSocket is always kept
        """

    def drain(self, idle_s: float, fresh_s: float) -> None:
        """Answer the received requests, then close the connection.

        idle_s   seconds to wait for another request of an idle client
        fresh_s  seconds to wait for the first request of a new client
        """


class StreamServer:
    """The state that the connections of one worker share.

    worker   the worker
    adapter  the application
    loop     the event loop that runs the connections

    connections           the open connections
    calls                 the calls whose application has not returned
    draining              whether the worker drains: then no connection is kept
    lingers               whether the worker drains and keeps WebSockets and event streams open
    close_after_response  whether to close connections after each response (see `KeepalivePolicy`)
    idle_ns               how long a connection may be idle, in nanoseconds
    """

    def __init__(self, worker: Host, adapter: ASGIAdapter, loop: asyncio.AbstractEventLoop) -> None:
        settings = worker.settings
        self.worker = worker
        self.tls: TLS | None = worker.context.tls
        self._for_wsgi = worker.app.interface == "wsgi"
        self.settings = settings
        self.adapter = adapter
        self.loop = loop
        self.row = worker.row
        self.meter = worker.meter
        self.limits = settings.limits
        self.server_header = settings.server_header.encode() or None
        self.response_lines = settings.response_lines
        self.trusted = worker.trusted_proxies
        self.proxy_protocol = worker.proxy_protocol
        self.heartbeat = Heartbeat(worker.row, loop)
        self.keep_alive_s = settings.keepalive_s
        self.close_after_response = not self.keep_alive_s
        self.admission = worker.admission
        self.request_timeout_ns = int(settings.request_timeout * 1e9)
        # Only an ASGI application can serve a WebSocket. A WSGI application gets a handshake as an
        # ordinary request.
        wanted = settings.websocket and worker.app.interface == "asgi"
        self.websockets = WebSockets(settings) if wanted and has_websockets() else None
        self.missing_websockets: MissingWebSockets | None = None
        if wanted and self.websockets is None:
            logs = worker.slot == 1
            self.missing_websockets = MissingWebSockets(worker.app.app, logs=logs)
        self.http2 = h2_settings(settings, self.tls)
        self.connections: set[ServedConnection] = set()
        self.calls: set[ASGICall | WebSocketCall] = set()
        self.pressure = Pressure()
        self.draining = False
        self.lingers = False
        self.idle_ns = int(self.keep_alive_s * 1e9)
        self._context = contextvars.copy_context()

    def template(
        self,
        address: tuple[str, int] | tuple[str, None],
        client: tuple[str, int] | None,
        facts: TLSFacts | None,
    ) -> Scope:
        """Make the parts of the scope that all requests of a connection share.

        address  the server's address
        client   the client's address; None on a Unix socket
        facts    the TLS facts of the connection; None without TLS
        """
        if facts is None:
            return self.adapter.template(address, client, "http")
        template = self.adapter.template(address, client, "https")
        template["extensions"]["tls"] = facts.extension
        if self._for_wsgi:
            template["extensions"][TLS_ENVIRON] = facts.environ
        return template

    def begin(self, call: ASGICall | WebSocketCall, admitted: Admitted) -> None:
        """Run the application with an admitted request, in a new task.

        call      the application's call
        admitted  the request, from `Admission.admit`

        The task gets the worker's context variables, not the current ones. Those may belong to the
        previous request on the connection, whose last `send` may start this one.
        """
        if admitted.client is not None:
            self._apply_forwarded(call, admitted.client)
        if self.admission.hooks is not None:
            self.admission.announce(admitted)
        self.calls.add(call)
        call.task = _start_task(self.loop, call.run(), self._context)

    def ended(
        self,
        admitted: Admitted,
        call: ASGICall | WebSocketCall,
        http: ASGIResponseWriter,
        status: int,
    ) -> int:
        """Count a request after its response, complete or not, and call `post_request`.

        admitted  the request
        call      the application's call
        http      the response writer
        status    the status to count if no response has begun

        Returns the time, in monotonic nanoseconds.
        """
        headers = call.response_headers
        now = self.meter.end(
            admitted.started_ns,
            admitted.request,
            http.status if http.response_started else status,
            http.body_sent,
            remote_of(call.scope),
            headers,
        )
        if admitted.announced is not None:
            self.admission.answered(admitted, http.status, http.body_sent, headers, call.scope)
        return now

    def long_lived(self) -> list[ASGICall | WebSocketCall]:
        """The calls with an open WebSocket or event stream."""
        return [call for call in self.calls if call.is_long_lived]

    def end_event_streams(self) -> list[ASGICall | WebSocketCall]:
        """End all event streams, as if each were complete. Returns their calls."""
        streams: list[ASGICall | WebSocketCall] = []
        for call in self.long_lived():
            if isinstance(call, ASGICall):
                streams.append(call)
                call.end_stream()
        return streams

    def _apply_forwarded(self, call: ASGICall | WebSocketCall, client: ClientInfo) -> None:
        """Replace the client's address and scheme by the values that a trusted proxy sent."""
        scope = call.scope
        scope["client"] = client.address
        scope["scheme"] = client.scheme
        if client.host is not None:
            others = [item for item in call.request.headers if item[0] != b"host"]
            scope["headers"] = [(b"host", client.host), *others]
        if client.prefix:
            self.adapter.mount(scope, client.prefix)

    def tunnel_handshake(self, request: Request) -> Handshake:
        """Check the handshake of an extended CONNECT (RFC 8441).

        Raises ProtocolError if it is not valid, or does not ask for a WebSocket.
        """
        if self.websockets is None or request.upgrade != b"websocket":
            raise ProtocolError(501, "no such protocol")
        return self.websockets.handshake(request, key=False)

    def sweep(self, now_ns: int) -> None:
        """Sweep all connections, and note the oldest running request. Called once a second.

        now_ns  monotonic nanoseconds
        """
        oldest = 0
        for connection in list(self.connections):
            started = connection.sweep(now_ns)
            if started:
                oldest = min(oldest or started, started)
        self.pressure.look(self.connections, now_ns)
        self.row[row_layout.OLDEST_START_NS] = oldest


# The name of all tasks. To number them, as asyncio does by default, takes as long as all other
# steps of making a task.
_TASK = "request"

if sys.version_info >= (3, 12):

    def _start_task(
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
    ) -> asyncio.Task[None]:
        # An eager task runs here until it first waits. If the application never waits, the request
        # needs no turn of the loop.
        return asyncio.Task(
            coroutine, loop=loop, name=_TASK, context=context.copy(), eager_start=True
        )
elif sys.version_info >= (3, 11):

    def _start_task(
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
    ) -> asyncio.Task[None]:
        return asyncio.Task(coroutine, loop=loop, name=_TASK, context=context.copy())
else:

    def _start_task(
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
    ) -> asyncio.Task[None]:
        return context.run(loop.create_task, coroutine)
