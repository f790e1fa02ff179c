"""The asyncio driver: one protocol object a connection, over the sans-I/O HTTP connection."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from time import monotonic_ns
from typing import TYPE_CHECKING

from servo.apps.asgi import ASGICall
from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.forwarded import resolve_client
from servo.http.h1 import H1Connection
from servo.observe import scoreboard as board
from servo.workers.hooks import HookResponse
from servo.workers.pace import BodyPace

if TYPE_CHECKING:
    from servo._types import Scope
    from servo.apps.asgi import ASGIAdapter
    from servo.http.events import Event
    from servo.workers.aio import AsyncWorker
    from servo.workers.hooks import HookRequest
    from servo.workers.proxied import Preface

log = logging.getLogger("servo.error")

# Body bytes that wait for an application that doesn't ask for them; past it reading pauses.
BODY_HIGH_WATER = 65536
LINGER_S = 2.0
_SENDFILE_MAX = 1 << 30
# A stopping worker waits this long for the first request of a connection that it took just now.
FRESH_GRACE_S = 1.0
# In the access log, of a client that went before it was answered; nginx's code for it.
CLIENT_CLOSED = 499


class StreamServer:
    """What the connections of one worker have in common."""

    def __init__(
        self, worker: AsyncWorker, adapter: ASGIAdapter, loop: asyncio.AbstractEventLoop
    ) -> None:
        settings = worker.settings
        self.worker = worker
        self.settings = settings
        self.adapter = adapter
        self.loop = loop
        self.row = worker.row
        self.meter = worker.meter
        self.limits = settings.limits
        self.server_header = settings.server_header.encode() or None
        self.trusted = worker.trusted_proxies
        self.keep_alive_s = settings.keepalive_for("async")
        self.request_timeout_ns = int(settings.request_timeout * 1e9)
        self.connections: set[StreamProtocol] = set()
        self.calls: set[ASGICall] = set()
        self.draining = False
        self._context = contextvars.copy_context()

    def spawn(self, call: ASGICall) -> None:
        """Run a call in a task of its own.

        In the worker's context, not the current one: that may be of another request, whose
        application has just sent its last byte, or has let the reading go on.
        """
        self.calls.add(call)
        call.task = self._context.run(self.loop.create_task, call.run())

    def sweep(self, now_ns: int) -> None:
        """Once a second: end what has lasted too long."""
        oldest = 0
        for connection in list(self.connections):
            call = connection.call
            if call is not None:
                oldest = min(oldest or call.started_ns, call.started_ns)
                if self.request_timeout_ns and now_ns - call.started_ns > self.request_timeout_ns:
                    connection.on_request_timeout(call)
            if connection.deadline_ns and now_ns >= connection.deadline_ns:
                connection.on_timeout()
        self.row[board.OLDEST_START_NS] = oldest


class StreamProtocol(asyncio.Protocol):
    """One HTTP/1.1 connection. An `asgi.Transport` to its calls."""

    __slots__ = (
        "_drain_waiter",
        "_eof",
        "_facade",
        "_http",
        "_lingering",
        "_pace",
        "_paused",
        "_paused_ns",
        "_preface",
        "_reading_head",
        "_requests",
        "_server",
        "_template",
        "_transport",
        "_trusted",
        "_unsent",
        "call",
        "deadline_ns",
        "loop",
        "peer_name",
        "writable",
    )

    def __init__(self, server: StreamServer) -> None:
        settings = server.settings
        self._server = server
        self.loop = server.loop
        self._http = H1Connection(
            server.limits,
            parser=settings.http_parser,
            server=server.server_header,
            date=settings.date_header,
        )
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # connection_made
        self._template: Scope = {}
        self._trusted = False
        self._requests = 0
        self._paused = False
        self._paused_ns = 0
        self._pace: BodyPace | None = None
        self._preface: Preface | None = None
        self._reading_head = False
        self._lingering = False
        self._eof = False
        self._facade: HookRequest | None = None
        self._unsent = 0
        self._drain_waiter: asyncio.Future[None] | None = None
        self.writable = True
        self.call: ASGICall | None = None
        self.peer_name = ""
        self.deadline_ns = 0

    # --- asyncio --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        server = self._server
        self._transport = transport  # type: ignore[assignment]
        peer = transport.get_extra_info("peername")
        client = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        own = transport.get_extra_info("sockname")
        address = (own[0], own[1]) if isinstance(own, tuple) else (own or "", None)
        self._preface = server.worker.proxy_protocol.preface(client)
        self._describe(address, client)
        server.connections.add(self)
        self._expires_in(server.settings.header_timeout)
        if server.draining:
            self.drain(FRESH_GRACE_S, FRESH_GRACE_S)

    def _describe(
        self, server: tuple[str, int] | tuple[str, None], client: tuple[str, int] | None
    ) -> None:
        """What the scopes say of the two ends."""
        self._template = self._server.adapter.template(server, client, "http")
        self.peer_name = client[0] if client else ""
        self._trusted = (client[0] if client else None) in self._server.trusted

    def _read_preface(self, data: bytes) -> bytes:
        """Take the PROXY protocol's header off the first bytes."""
        assert self._preface is not None
        try:
            found = self._preface.feed(data)
        except ProtocolError as error:
            self._refuse(Refused(error))
            return b""
        if found is None:
            return b""
        self._preface = None
        header, rest = found
        if header.source is not None:
            self._describe(header.destination or ("", None), header.source)
        return rest

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._lingering:
            return
        if self._preface is not None:
            data = self._read_preface(data)
            if not data:
                return
        event = self._http.receive_data(data)
        if event is not None:
            self._on_event(event)
        else:
            self._await_more()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. A half-closed client still gets its answers."""
        self._eof = True
        if self._lingering:
            return False  # it has our answer, and has closed too
        event = self._http.receive_eof()
        if event is not None:
            self._on_event(event)
            return True
        if self.call is not None:
            # It may have shut only its own side, and wait for the answer, or be gone for good:
            # TCP does not tell. So who asks is told of a disconnect, and may send all the same.
            self.call.end_of_input()
        return self.call is not None or not self._http.idle

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        server = self._server
        server.connections.discard(self)
        call = self.call
        if call is not None:
            self.call = None
            self._give_up(call, CLIENT_CLOSED)
        if self._drain_waiter is not None:
            self._wake_drained()
        server.worker.connection_closed()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.writable = False
        self._unsent = self._transport.get_write_buffer_size()
        self._expires_in(self._server.settings.send_timeout)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.writable = True
        if self.call is not None:
            self.deadline_ns = 0
        self._wake_drained()

    def _wake_drained(self) -> None:
        if self._drain_waiter is not None:
            _settle(self._drain_waiter)

    # --- reading --------------------------------------------------------------------------------

    def _on_event(self, event: Event | None) -> None:
        http = self._http
        while event is not None:
            if isinstance(event, Request):
                self._start(event)
                if not event.more_body:
                    break
            elif isinstance(event, Data):
                call = self.call
                if call is not None:
                    call.feed(event)
                    self._expect_body(len(event.data))
                    if call.buffered > BODY_HIGH_WATER:
                        self._pause_reading()
            else:
                self._refuse(event)
                return
            event = http.next_event()
        self._await_more()

    def _await_more(self) -> None:
        """Wait for the client, under the time limit of what it is sending."""
        http = self._http
        if self._lingering:
            return
        if not http.want_read:
            self._pause_reading()
        if self.call is None and http.in_head and not self._reading_head:
            # Once: the limit is for the whole head, however slowly it trickles in.
            self._reading_head = True
            self._expires_in(self._server.settings.header_timeout)

    def _expect_body(self, received: int) -> None:
        """Bound the wait for more of the body, unless it is we who don't read, or don't write."""
        if not self.writable or self.call is None:
            return
        if self._paused or not self.call.more_body:
            self.deadline_ns = 0
            return
        now = monotonic_ns()
        if self._pace is None:
            settings = self._server.settings
            self._pace = BodyPace(settings.body_timeout, settings.body_min_rate, now)
        self.deadline_ns = self._pace.deadline_ns(now, received)

    def _start(self, request: Request) -> None:
        server = self._server
        http = self._http
        self._reading_head = False
        self._requests += 1
        limit = server.settings.keepalive_requests
        if server.draining or (limit and self._requests >= limit) or not server.keep_alive_s:
            http.close_next()
        most = server.settings.limit_concurrency
        if most and server.row[board.IN_FLIGHT] >= most:
            self._overloaded(request)
            return
        call = ASGICall(
            server.adapter, self._template, request, http, self, server.worker.begin_request()
        )
        self.call = call
        self._pace = None
        self.deadline_ns = 0
        if request.more_body:
            self._expect_body(len(request.body))
        hooks = server.worker.request_hooks
        if hooks:
            self._facade = hooks.before(request, self.peer_name)
        if self._trusted and not server.trusted.names.isdisjoint(request.named):
            try:
                self._apply_forwarded(call)
            except ProtocolError as error:
                server.row[board.IN_FLIGHT] -= 1
                self.call = None
                self._refuse(Refused(error, True, request.method, request.target))
                return
        server.spawn(call)

    def _apply_forwarded(self, call: ASGICall) -> None:
        """Put what a trusted proxy says of the client in place of what the socket says."""
        scope = call.scope
        request = call.request
        info = resolve_client(
            request.headers, scope["client"], self._server.trusted, scope["scheme"], request.named
        )
        scope["client"] = info.address
        scope["scheme"] = info.scheme
        if info.host is not None:
            others = [item for item in request.headers if item[0] != b"host"]
            scope["headers"] = [(b"host", info.host), *others]
        if info.prefix:
            self._server.adapter.mount(scope, info.prefix)

    def _refuse(self, event: Refused) -> None:
        log.debug("Refused a request of %s: %s", self.peer_name, event.error)
        call = self.call
        if call is not None:
            self.call = None
            self._give_up(call, event.error.status)
        else:
            self._server.meter.refused(
                event.error.status, event.method, event.target, self.peer_name
            )
        self._transport.write(self._http.refuse(event))
        self._hang_up(linger=True)

    def _give_up(self, call: ASGICall, status: int) -> None:
        http = self._http
        self._server.meter.end(
            call.started_ns,
            call.request,
            http.status if http.response_started else status,
            http.body_sent,
            self._remote(call),
            call.response_headers,
        )
        call.disconnect()

    def _overloaded(self, request: Request) -> None:
        http = self._http
        http.close_next()
        headers = [(b"retry-after", b"1"), (b"content-type", b"text/plain; charset=utf-8")]
        self._transport.write(http.send_response(503, headers, b"Overloaded\n"))
        self._server.meter.refused(503, request.method, request.target, self.peer_name)
        self._hang_up(linger=True)

    def _pause_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._paused_ns = monotonic_ns()
            self.deadline_ns = 0
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See asgi.Transport."""
        if self._paused and self._http.want_read and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            if self._pace is not None:
                self._pace.pause(monotonic_ns() - self._paused_ns)
                self._expect_body(0)

    # --- writing --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """See asgi.Transport."""
        self._transport.write(data)

    async def drained(self) -> None:
        """See asgi.Transport."""
        while not self.writable:
            if self._drain_waiter is None or self._drain_waiter.done():
                self._drain_waiter = self.loop.create_future()
            await asyncio.shield(self._drain_waiter)
            if self._transport.is_closing():
                raise ClientDisconnected("the client has closed the connection")

    async def send_file(self, path: str) -> None:
        """See asgi.Transport. By sendfile, on a copy of the socket's descriptor: uvloop has no
        `loop.sendfile`, and lets nobody else watch a descriptor of its transports."""
        await self._flush()
        sock = self._transport.get_extra_info("socket")
        out = os.dup(sock.fileno())
        source = await self.loop.run_in_executor(None, os.open, path, os.O_RDONLY)
        offset, left = 0, os.fstat(source).st_size
        if self._http.raw_body:
            self._http.account(left)
        else:
            left = 0
        try:
            while left:
                try:
                    sent = os.sendfile(out, source, offset, min(left, _SENDFILE_MAX))
                except BlockingIOError:
                    await self._writable(out)
                    continue
                except OSError as error:
                    raise ClientDisconnected(str(error)) from error
                if not sent:
                    raise ClientDisconnected("the file became shorter while it was sent")
                offset += sent
                left -= sent
        finally:
            os.close(source)
            os.close(out)

    async def _flush(self) -> None:
        """Wait until asyncio has nothing of ours left."""
        while self._transport.get_write_buffer_size():
            if self._transport.is_closing():
                raise ClientDisconnected("the client has closed the connection")
            await asyncio.sleep(0.001)

    async def _writable(self, fd: int) -> None:
        ready = self.loop.create_future()
        self.loop.add_writer(fd, _settle, ready)
        try:
            await asyncio.wait_for(ready, self._server.settings.send_timeout or None)
        except asyncio.TimeoutError as error:
            raise ClientDisconnected("the client has stopped reading") from error
        finally:
            self.loop.remove_writer(fd)

    def response_complete(self) -> None:
        """See asgi.Transport."""
        call = self.call
        if call is None:
            return
        self.call = None
        http = self._http
        server = self._server
        server.meter.end(
            call.started_ns,
            call.request,
            http.status,
            http.body_sent,
            self._remote(call),
            call.response_headers,
        )
        if self._facade is not None:
            response = HookResponse(http.status, call.response_headers, http.body_sent)
            server.worker.request_hooks.after(self._facade, call.scope, response)
            self._facade = None
        if http.close_after:
            self._hang_up(linger=call.more_body)
            return
        self._expires_in(server.settings.drain_idle if server.draining else server.keep_alive_s)
        if not http.idle:
            # Not from here: this is the application's own `send`.
            self.loop.call_soon(self._go_on)
        elif self._eof:
            self._hang_up(linger=False)
        elif self._paused:
            self.resume_reading()

    def _go_on(self) -> None:
        """More was pipelined behind the last request."""
        if self.call is not None or self._transport.is_closing():
            return
        event = self._http.next_event()
        if event is not None:
            self._on_event(event)
        elif self._eof:
            self._hang_up(linger=False)
        else:
            self.resume_reading()
            self._await_more()

    def call_done(self, call: ASGICall) -> None:
        """See asgi.Transport."""
        self._server.calls.discard(call)
        if self._server.draining:
            self._server.worker.check_drained()

    def _remote(self, call: ASGICall) -> str:
        client = call.scope["client"]
        return client[0] if client else ""

    # --- closing --------------------------------------------------------------------------------

    def _hang_up(self, linger: bool) -> None:
        """Close after the response is out; see PollerWorker._hang_up for the lingering."""
        transport = self._transport
        if transport.is_closing():
            return
        if linger and transport.can_write_eof() and not self._eof:
            self._lingering = True
            transport.write_eof()
            self.deadline_ns = monotonic_ns() + int(LINGER_S * 1e9)
            if self._paused:
                self._paused = False
                transport.resume_reading()
        else:
            transport.close()

    def drain(self, idle_s: float, fresh_s: float) -> None:
        """Answer what has come; a silent client is cut after `idle_s`, one that has not asked for
        anything yet after `fresh_s` seconds."""
        self._http.close_next()
        if self.call is None and self._http.idle and not self._lingering:
            self.deadline_ns = 0
            self.loop.call_later(idle_s if self._requests else fresh_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.call is None and self._http.idle:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    # --- time -----------------------------------------------------------------------------------

    def _expires_in(self, seconds: float) -> None:
        self.deadline_ns = monotonic_ns() + int(seconds * 1e9) if seconds else 0

    def on_timeout(self) -> None:
        """The sweep found the deadline passed."""
        if not self.writable or self._lingering:
            self._on_stalled()
        elif self.call is not None:
            self._refuse(Refused(ProtocolError(408, "the body did not come in time"), True))
        elif self._http.in_head:
            self._refuse(Refused(ProtocolError(408, "the head did not come in time")))
        else:
            self._transport.close()

    def _on_stalled(self) -> None:
        """The client is not reading: cut it, unless some of the buffer has gone since."""
        left = self._transport.get_write_buffer_size()
        if left < self._unsent and not self._lingering:
            self._unsent = left
            self._expires_in(self._server.settings.send_timeout)
        else:
            self._transport.abort()

    def on_request_timeout(self, call: ASGICall) -> None:
        """`request_timeout` has passed: 504 when nothing was sent yet, else close."""
        log.error(
            "%s %a has run for more than %g s (request_timeout): cancelled",
            call.request.method,
            call.request.target.decode("latin-1"),
            self._server.settings.request_timeout,
        )
        call.timed_out = True
        if call.task is not None:
            call.task.cancel()
        self._refuse(Refused(ProtocolError(504, "the application took too long"), in_body=True))


def _settle(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
