"""The asyncio driver: one protocol object a connection, over the sans-I/O HTTP connection."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic_ns
from typing import TYPE_CHECKING

from servo.apps.asgi import ASGICall
from servo.apps.asgi_scope import remote_of
from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.headers import map_names
from servo.net.tls_facts import TLSFacts
from servo.shared_memory import row_layout
from servo.workers.aio.h1_upgrade import StreamUpgrade
from servo.workers.aio.sendfile import send_region, settle
from servo.workers.aio.tls import ends, send_blocks
from servo.workers.request.body_rate import BodyPace
from servo.workers.request.hooks import HookResponse
from servo.workers.request.preface import Beginning

if TYPE_CHECKING:
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.http.events import Event

log = logging.getLogger("servo.error")

# Body bytes that wait for an application that doesn't ask for them; past it reading pauses.
BODY_HIGH_WATER = 65536
# A stopping worker waits this long for the first request of a connection that it took just now.
FRESH_GRACE_S = 1.0
# In the access log, of a client that went before it was answered; nginx's code for it.
CLIENT_CLOSED = 499


class StreamProtocol(StreamUpgrade):
    """One HTTP/1.1 connection: an asyncio.Protocol, and an `asgi.Transport` to its calls.

    Its state, its end and its time limits are those of a `StreamConnection`.
    """

    __slots__ = ()

    # --- asyncio --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        server = self._server
        self._transport = transport  # type: ignore[assignment]
        self.write = self._transport.write
        address, client = ends(self._socket, self._peer, self._header)
        preface = None
        if server.tls is None:
            preface = server.worker.proxy_protocol.preface(client)
        else:
            self._facts = TLSFacts(server.tls, transport.get_extra_info("ssl_object"))
        self._describe(address, client)
        sniffs = False
        if server.http2 is not None:
            if self._facts is not None and server.http2.agreed(transport):
                self._make_h2(server.http2).start(b"")
                return
            # A proxy that may speak for others is trusted as far as this goes.
            sniffs = server.http2.prior_knowledge and self._facts is None
            sniffs = sniffs and (self._trusted or preface is not None)
        if preface is not None or sniffs:
            self._beginning = Beginning(preface, sniffs)
        server.connections.add(self)
        self._expires_in(server.settings.header_timeout)
        if server.draining:
            self.drain(FRESH_GRACE_S, FRESH_GRACE_S)

    def _describe(
        self, server: tuple[str, int] | tuple[str, None], client: tuple[str, int] | None
    ) -> None:
        """What the scopes say of the two ends."""
        self._template = self._server.template(server, client, self._facts)
        self.peer_name = client[0] if client else ""
        self._trusted = (client[0] if client else None) in self._server.trusted

    def _read_beginning(self, beginning: Beginning, data: bytes) -> bytes:
        """Take off what comes before HTTP, and see which version of it this is."""
        try:
            found = beginning.feed(data)
        except ProtocolError as error:
            self._refuse(Refused(error))
            return b""
        if found is None:
            return b""
        self._beginning = None
        self._header, is_h2, rest = found
        if self._header is not None and self._header.source is not None:
            self._describe(self._header.destination or ("", None), self._header.source)
        if is_h2 and self._server.http2 is not None:
            self._make_h2(self._server.http2).start(rest)
            return b""
        return rest

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._lingering:
            return
        if self._beginning is not None:
            data = self._read_beginning(self._beginning, data)
            if not data:
                return
        http = self._http
        event = http.receive_data(data)
        if event.__class__ is Request and not event.more_body:
            # The ordinary request, all of it in one read.
            self._start(event)
            if not http.want_read:
                self._await_more()
        elif event is not None:
            self._on_event(event)
        else:
            self._await_more()

    @property
    def connected(self) -> bool:
        """Whether `connection_made` was called; it is not when a TLS handshake fails."""
        return self._transport is not None

    def eof_received(self) -> bool:
        """See asyncio.Protocol. A half-closed client still gets its answers, except over TLS."""
        return self._on_eof() and self._facts is None

    def _on_eof(self) -> bool:
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
        self._end_output()
        call = self.call
        if call is not None:
            self.call = None
            self._give_up(call, CLIENT_CLOSED)
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
        elif not self._lingering and not self._transport.is_closing():
            self.deadline_ns = monotonic_ns() + self._server.idle_ns
            self._go_on()
        self._wake_drained()

    def _wake_drained(self) -> None:
        if self._drain_waiter is not None:
            settle(self._drain_waiter)

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
                    self._server.meter.received(len(event.data))
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
            if self.call is not None and not isinstance(self.call, ASGICall):
                # RFC 6455 section 4.1: the client must wait for the answer. Paused, we would not
                # notice that it has left.
                self._refuse(
                    Refused(ProtocolError(400, "data before the handshake's answer"), True)
                )
                return
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
        if self._requests >= server.most_requests:
            # Even where more is pipelined, or the limit would be the client's to break.
            request.keep_alive = False
        if server.closes_each or server.draining:
            http.close_next()
        if server.most_in_flight and server.row[row_layout.IN_FLIGHT] >= server.most_in_flight:
            self._overloaded(request)
            return
        if server.refuses_underscores:
            try:
                map_names(request.headers, "refuse")
            except ProtocolError as error:
                self._refuse(Refused(error, True, request.method, request.target))
                return
        call: ASGICall | WebSocketCall | None = None
        if request.upgrade is not None:
            if self._upgrades_to_h2(request):
                return
            if request.upgrade == b"websocket" and server.websockets is not None:
                call = self._start_websocket(request, server.websockets)
                if call is None:
                    return
            elif request.upgrade == b"websocket" and server.missing_websockets is not None:
                server.missing_websockets.asked()
        if call is None:
            call = ASGICall(
                server.adapter, self._template, request, http, self, server.worker.begin_request()
            )
        self.call = call
        self._pace = None
        self.deadline_ns = 0
        if request.more_body:
            self._expect_body(len(request.body))
        if server.hooks is not None:
            self._facade = server.hooks.before(request, self.peer_name)
        if self._trusted and not server.trusted.names.isdisjoint(request.named):
            try:
                server.apply_forwarded(call)
            except ProtocolError as error:
                server.meter.take_back()
                self.call = None
                self._refuse(Refused(error, True, request.method, request.target))
                return
        server.spawn(call)

    def _refuse(self, event: Refused) -> None:
        log.debug("Refused a request of %s: %s", self.peer_name, event.error)
        call = self.call
        status = event.error.status
        if call is not None:
            self.call = None
            self._give_up(call, status)
        else:
            self._server.meter.refused(status, event.method, event.target, self.peer_name)
        self._transport.write(self._http.refuse(event))
        self._hang_up(linger=True)

    def abandon_handshake(self) -> None:
        """See asgi_websocket.HandshakeTransport."""
        call, self.call = self.call, None
        if call is not None:
            self._give_up(call, CLIENT_CLOSED)
        self._hang_up(linger=False)

    def _give_up(self, call: ASGICall | WebSocketCall, status: int) -> None:
        self._count(call, status)
        call.disconnect()

    def _count(self, call: ASGICall | WebSocketCall, status: int) -> None:
        http = self._http
        self._server.meter.end(
            call.started_ns,
            call.request,
            http.status if http.response_started else status,
            http.body_sent,
            remote_of(call.scope),
            call.response_headers,
        )

    def _overloaded(self, request: Request) -> None:
        http = self._http
        http.close_next()
        headers = [(b"retry-after", b"1"), (b"content-type", b"text/plain; charset=utf-8")]
        self._transport.write(http.send_response(503, headers, b"Overloaded\n"))
        self._server.meter.shed(request, self.peer_name)
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

    async def drained(self) -> None:
        """See asgi.Transport."""
        while not self.writable:
            if self._drain_waiter is None or self._drain_waiter.done():
                self._drain_waiter = self.loop.create_future()
            await asyncio.shield(self._drain_waiter)
            if self._transport.is_closing():
                raise ClientDisconnected("the client has closed the connection")

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        """See asgi.Transport. By sendfile, if nothing has to be done to the bytes."""
        if self._facts is not None or not self._http.raw_body:
            await send_blocks(self.loop, fd, offset, count, self._write_body, self.drained)
            return
        self._http.account(count)
        transport = self._transport
        if not transport.is_closing():
            # Past zero bytes the buffer counts as full: `drained` waits until all of it is out.
            transport.set_write_buffer_limits(high=0)
            await self.drained()
        if transport.is_closing():
            raise ClientDisconnected("the client has closed the connection")
        transport.set_write_buffer_limits()
        await send_region(self._fd(), fd, offset, count, self._server.settings.send_timeout)

    def _write_body(self, data: bytes) -> None:
        self.write(self._http.send_data(data))

    def response_complete(self) -> None:
        """See asgi.Transport."""
        call = self.call
        if call is None:
            return
        self.call = None
        http = self._http
        server = self._server
        now = server.meter.end(
            call.started_ns,
            call.request,
            http.status,
            http.body_sent,
            remote_of(call.scope),
            call.response_headers,
        )
        if server.hooks is not None and self._facade is not None:
            response = HookResponse(http.status, call.response_headers, http.body_sent)
            server.hooks.after(self._facade, call.scope, response)
            self._facade = None
        if http.close_after:
            self._hang_up(linger=call.more_body)
            return
        if not self.writable:
            # Who asks on and reads nothing: its next request waits until it does.
            self._pause_reading()
            self._expires_in(server.settings.send_timeout)
            return
        self.deadline_ns = now + server.idle_ns
        if not http.idle:
            # Not from here: this is the application's own `send`.
            self.loop.call_soon(self._go_on)
        elif self._eof:
            self._hang_up(linger=False)
        elif self._paused:
            self.resume_reading()

    def _go_on(self) -> None:
        """More was pipelined behind the last request."""
        if self.call is not None or not self.writable or self._transport.is_closing():
            return
        event = self._http.next_event()
        if event is not None:
            self._on_event(event)
        elif self._eof:
            self._hang_up(linger=False)
        else:
            self.resume_reading()
            self._await_more()

    def call_done(self, call: ASGICall | WebSocketCall) -> None:
        """See asgi.Transport."""
        self._server.calls.discard(call)
        if self._server.draining:
            self._server.worker.check_drained()
