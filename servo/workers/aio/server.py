"""The connections of one `async` worker, whatever protocol they speak.

`StreamServer` holds what they share: settings, limits, admission, counters, and the sets of open
connections and running calls. It starts each application call in a task, counts it at its end, and
sweeps all connections once a second.

**The sweep.** Time limits are deadlines in the connections, not timers: setting a timer for each
request and cancelling it costs more than looking at all connections once a second. So a limit may
take effect up to a second late.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from typing import TYPE_CHECKING, Protocol

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
    from servo.apps.asgi import ASGICall
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
    """The worker of a server, as far as its connections use it; see `AsyncWorker`."""

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
        """A connection that was accepted is closed."""

    def check_drained(self) -> None:
        """A draining worker has one call or connection less: end if it was the last."""


class ServedConnection(Client, Protocol):
    """A connection of any protocol, or a WebSocket on a stream of one."""

    def sweep(self, now_ns: int) -> int:
        """Called once a second: end what has lasted too long.

        Returns when the oldest running request was admitted, in monotonic nanoseconds; 0 if none
        runs.
        """

    def open_calls(self) -> list[ASGICall | WebSocketCall]:
        """The requests whose response is not complete."""

    def drain(self, idle_s: float, fresh_s: float) -> None:
        """Answer the requests that have come, then close the connection.

        idle_s   seconds that an idle client may take to send another request
        fresh_s  seconds that a client may take that has not sent any request yet
        """


class StreamServer:
    """The state that the connections of one worker share.

    worker   the worker
    adapter  the application
    loop     the event loop that runs the connections

    connections           the open connections
    calls                 the calls whose application has not returned
    draining              the worker is about to end: no connection is kept
    close_after_response  connections are closed after each response (see `KeepalivePolicy`)
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
        self.trusted = worker.trusted_proxies
        self.proxy_protocol = worker.proxy_protocol
        self.heartbeat = Heartbeat(worker.row, loop)
        self.keep_alive_s = settings.keepalive_s
        self.close_after_response = not self.keep_alive_s
        self.admission = worker.admission
        self.request_timeout_ns = int(settings.request_timeout * 1e9)
        # Only an ASGI application can answer a WebSocket. For WSGI a request for an upgrade is an
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
        self.idle_ns = int(self.keep_alive_s * 1e9)
        self._context = contextvars.copy_context()

    def template(
        self,
        address: tuple[str, int] | tuple[str, None],
        client: tuple[str, int] | None,
        facts: TLSFacts | None,
    ) -> Scope:
        """Make the parts of the scope that all requests of a connection share.

        address  the server's end
        client   the client's end; None on a Unix socket
        facts    the TLS connection's; None without TLS
        """
        if facts is None:
            return self.adapter.template(address, client, "http")
        template = self.adapter.template(address, client, "https")
        template["extensions"]["tls"] = facts.extension
        if self._for_wsgi:
            template["extensions"][TLS_ENVIRON] = facts.environ
        return template

    def begin(self, call: ASGICall | WebSocketCall, admitted: Admitted) -> None:
        """Run the application with an admitted request.

        call      of the application
        admitted  the request, from `Admission.admit`
        """
        if admitted.client is not None:
            self._apply_forwarded(call, admitted.client)
        self.admission.announce(admitted)
        self.spawn(call)

    def ended(
        self,
        admitted: Admitted,
        call: ASGICall | WebSocketCall,
        http: ASGIResponseWriter,
        status: int,
    ) -> int:
        """Count a request whose response is complete, or was given up, and call `post_request`.

        admitted  the request
        call      of the application
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

    def _apply_forwarded(self, call: ASGICall | WebSocketCall, client: ClientInfo) -> None:
        """Replace the socket's facts about the client by those of a trusted proxy."""
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

        Raises ProtocolError if it is not valid, or asks for something else than a WebSocket.
        """
        if self.websockets is None or request.upgrade != b"websocket":
            raise ProtocolError(501, "no such protocol")
        return self.websockets.handshake(request, key=False)

    def spawn(self, call: ASGICall | WebSocketCall) -> None:
        """Run a call in a task of its own.

        The task gets the worker's context variables, not the current ones. Those may belong to
        another request: its last `send` may be what lets this request begin.
        """
        self.calls.add(call)
        call.task = _start_task(self.loop, call.run(), self._context)

    def sweep(self, now_ns: int) -> None:
        """Once a second: end what has lasted too long, and note the oldest running request."""
        oldest = 0
        for connection in list(self.connections):
            started = connection.sweep(now_ns)
            if started:
                oldest = min(oldest or started, started)
        self.pressure.look(self.connections, now_ns)
        self.row[row_layout.OLDEST_START_NS] = oldest


# All tasks have the same name: numbering them, as asyncio does by default, costs as much as the
# rest of making a task.
_TASK = "request"

if sys.version_info >= (3, 12):

    def _start_task(
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, Any, None],
        context: contextvars.Context,
    ) -> asyncio.Task[None]:
        # An eager task runs here until it waits for the first time. An application that never
        # waits is done without a turn of the loop.
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
