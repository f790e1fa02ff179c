"""HTTP/1.1 in the async worker: each connection has an `H1Protocol`, which drives `H1Connection`.

The event loop calls `data_received` with bytes. The protocol object passes them to `H1Connection`,
which does no I/O and returns requests. For each request, one at a time, the application runs in a
task, and the bytes of its response are written to the transport. While a request runs, the protocol
pauses reading if the client sends more than the application can use now.

**How a connection ends.** If a socket is closed while it holds unread bytes, the kernel resets the
connection, and the client may lose a response that it has not read yet (RFC 9112 section 9.6). So
if the client may still send, we do a lingering close: we close only our side (FIN), drop what
arrives, and close fully when the client closes its side, or after `LINGER_S`.

**Time limits** are deadlines in `deadline_ns`. The worker's sweep checks all of them once a second,
which is cheaper than a timer for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from time import monotonic_ns
from typing import TYPE_CHECKING, cast

from servo.apps.asgi import ASGICall
from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import LINGER_S
from servo.http.negotiate import upgrade_settings
from servo.net.sockets import end_output, has_unread
from servo.net.tls_facts import TLSFacts
from servo.workers.aio.sendfile import send_region, settle
from servo.workers.aio.tls import ends, send_blocks
from servo.workers.linger import IdleTime, Linger
from servo.workers.request.admission import CLIENT_CLOSED, Peer
from servo.workers.request.body_rate import BodyRate
from servo.workers.request.preface import ProtocolDetector
from servo.workers.timing import FRESH_GRACE_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from servo._types import Scope
    from servo.apps.asgi_websocket import HandshakeTransport, WebSocketCall
    from servo.http.events import Event, Headers
    from servo.http.proxy_protocol import ProxyHeader
    from servo.http.websocket import Handshake, WebSocketConnection
    from servo.workers.aio.h2 import H2Protocol
    from servo.workers.aio.h2_settings import H2Settings
    from servo.workers.aio.server import StreamServer
    from servo.workers.aio.websocket import WebSocketProtocol
    from servo.workers.request.admission import Admitted

log = logging.getLogger("servo.error")

# Bytes of a request body that may wait for the application. Above this, reading pauses.
BODY_HIGH_WATER = 65536
# Bytes of responses to pipelined requests that may wait for the next response.
_MAX_HELD = 65536
# Seconds after which to look again at a draining connection that has unread input.
_LOOK_AGAIN_S = 0.02
# The peer before `connection_made`, which the loop does not call if the TLS handshake fails.
_NOBODY = Peer(None, "http", False)


class H1Protocol:
    """One HTTP/1.1 connection: the loop's protocol object, and the `ASGITransport` of its calls.

    It does not inherit from asyncio.Protocol, because mypyc's native classes can't. The loop needs
    only the methods.

    loop         the worker's event loop
    address      the client's address, as `accept` returned it
    call         the application's current call; None between requests
    peer         the client
    peer_name    the client's address, for logs
    writable     whether the transport's buffer has room
    write        sends bytes, and buffers those that the socket does not take
    deadline_ns  when the sweep has to act, in monotonic nanoseconds; 0: never
    """

    __slots__ = (
        "_admitted",
        "_body_rate",
        "_copy",
        "_detector",
        "_drain_waiter",
        "_ending",
        "_eof",
        "_facts",
        "_header",
        "_held",
        "_http",
        "_idle_time",
        "_in_first_step",
        "_lingering",
        "_local",
        "_next_due",
        "_paused",
        "_paused_ns",
        "_reading_head",
        "_server",
        "_socket",
        "_template",
        "_transport",
        "_unsent",
        "address",
        "call",
        "deadline_ns",
        "loop",
        "peer",
        "peer_name",
        "writable",
        "write",
    )

    def __init__(
        self,
        server: StreamServer,
        sock: socket.socket,
        peer: Any,
        local: Any = None,
        header: ProxyHeader | None = None,
    ) -> None:
        """
        server  the state that the connections of the worker share
        sock    the accepted socket; the loop takes it over, and closes it
        peer    the client's address, as `accept` returned it
        local   our address, as `getsockname` returns it; None if it is not known
        header  the PROXY protocol header, if it was read before a TLS handshake; else None
        """
        settings = server.settings
        # A copy, because `get_extra_info` of the transport takes six times as long.
        self._socket = sock
        self.address = peer
        self._local = local
        self._header = header
        self._facts: TLSFacts | None = None
        self._server = server
        self.loop = server.loop
        self._http = H1Connection(
            server.limits,
            parser=settings.http_parser,
            server=server.server_header,
            date=settings.date_header,
            more=server.response_lines,
        )
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # connection_made
        # An attribute, not a method: `connection_made` sets it to the transport's own `write`,
        # which saves a call.
        self.write: Callable[[bytes], None] = _not_connected
        # The responses to pipelined requests that wait for the next one; see `_hold`.
        self._held: list[bytes] = []
        # Whether `_after_first_step` is due, and whether it has to go on with the next request.
        self._in_first_step = False
        self._next_due = False
        self._template: Scope = {}
        self._paused = False
        self._paused_ns = 0
        self._body_rate: BodyRate | None = None
        self._detector: ProtocolDetector | None = None
        self._reading_head = False
        self._lingering = False
        self._ending: Linger | None = None
        self._idle_time: IdleTime | None = None
        self._copy = -1
        self._eof = False
        self._admitted: Admitted | None = None
        self._unsent = 0
        self._drain_waiter: asyncio.Future[None] | None = None
        self.writable = True
        self.call: ASGICall | WebSocketCall | None = None
        self.peer = _NOBODY
        self.peer_name = ""
        self.deadline_ns = 0

    # --- asyncio --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        server = self._server
        self._transport = transport  # type: ignore[assignment]
        self.write = self._transport.write
        address, client = ends(self._socket, self.address, self._local, self._header)
        proxy_reader = None
        if server.tls is None:
            proxy_reader = server.proxy_protocol.header_reader(client)
        else:
            self._facts = TLSFacts(server.tls, transport.get_extra_info("ssl_object"))
        self._describe(address, client)
        detect_h2 = False
        if server.http2 is not None:
            if self._facts is not None and server.http2.agreed(transport):
                self._make_h2(server.http2).start(b"")
                return
            # A peer that had to send a PROXY protocol header is a trusted proxy. It may use HTTP/2.
            detect_h2 = server.http2.prior_knowledge and self._facts is None
            detect_h2 = detect_h2 and (self.peer.trusted or proxy_reader is not None)
        if proxy_reader is not None or detect_h2:
            self._detector = ProtocolDetector(proxy_reader, detect_h2)
        server.connections.add(self)
        self._expires_in(server.settings.header_timeout)
        if server.draining:
            self.drain(FRESH_GRACE_S, FRESH_GRACE_S)

    def _describe(
        self, server: tuple[str, int] | tuple[str, None], client: tuple[str, int] | None
    ) -> None:
        """Set the addresses of both ends of the connection, for scopes and for admission."""
        self._template = self._server.template(server, client, self._facts)
        scheme = "http" if self._facts is None else "https"
        self.peer = Peer(client, scheme, (client[0] if client else None) in self._server.trusted)
        self.peer_name = self.peer.name

    def _read_first_bytes(self, detector: ProtocolDetector, data: bytes) -> bytes:
        """Read the bytes before HTTP/1.1, and switch to HTTP/2 if the client begins with it.

        detector  parses these bytes
        data      the received bytes

        Returns the bytes of HTTP/1.1 that follow them; b"" if there are none yet.
        """
        try:
            found = detector.feed(data)
        except ProtocolError as error:
            self._refuse(Refused(error))
            return b""
        if found is None:
            return b""
        self._detector = None
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
        if self._detector is not None:
            data = self._read_first_bytes(self._detector, data)
            if not data:
                return
        http = self._http
        event = http.receive_data(data)
        if event.__class__ is Request and not event.more_body:
            # The common case, a whole request in one read, skips the loop over events. Comparing
            # the class by identity is cheaper than isinstance.
            self._start(event)
            if not http.want_read:
                self._await_more()
        elif event is not None:
            self._on_event(event)
        else:
            self._await_more()

    @property
    def connected(self) -> bool:
        """Whether `connection_made` was called. It is not called if the TLS handshake fails."""
        return self._transport is not None

    def eof_received(self) -> bool:
        """See asyncio.Protocol. A half-closed client still gets its responses, except over TLS."""
        return self._on_eof() and self._facts is None

    def _on_eof(self) -> bool:
        self._eof = True
        if self._lingering:
            return False  # both sides are closed now
        event = self._http.receive_eof()
        if event is not None:
            self._on_event(event)
            return True
        if self.call is not None:
            # TCP does not show whether the client has closed only its own side and waits for the
            # response, or is gone. So the application's `receive` reports a disconnect, but its
            # `send` still works.
            self.call.end_of_input()
        return self.call is not None or not self._http.idle

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        server = self._server
        server.connections.discard(self)
        self._end_output()
        self._held.clear()
        self.write = self._transport.write  # not `_hold`: that would be a reference cycle
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
        """Wait for the client, with the time limit of the head or body."""
        http = self._http
        if self._lingering:
            return
        if not http.want_read:
            if self.call is not None and not isinstance(self.call, ASGICall):
                # A client must wait for the response to its handshake (RFC 6455 section 4.1). We
                # don't pause reading instead, because we would not notice if the client left.
                self._refuse(
                    Refused(ProtocolError(400, "data before the handshake's answer"), True)
                )
                return
            self._pause_reading()
        if self.call is None and http.in_head and not self._reading_head:
            # Set the deadline only once, because it is for the whole head.
            self._reading_head = True
            self._expires_in(self._server.settings.header_timeout)

    def _expect_body(self, received: int) -> None:
        """Set the time limit for the next part of the body. While we don't read, there is none.

        received  bytes of the body that have just arrived
        """
        if not self.writable or self.call is None:
            return
        if self._paused or not self.call.more_body:
            self.deadline_ns = 0
            return
        now = monotonic_ns()
        if self._body_rate is None:
            settings = self._server.settings
            self._body_rate = BodyRate(settings.body_timeout, settings.body_min_rate, now)
        self.deadline_ns = self._body_rate.deadline_ns(now, received)

    def _start(self, request: Request) -> None:
        server = self._server
        http = self._http
        self._reading_head = False
        handshake: Handshake | None = None
        if request.upgrade is not None:
            if self._upgrades_to_h2(request):
                return
            if request.upgrade == b"websocket" and server.websockets is not None:
                try:
                    handshake = server.websockets.handshake(request)
                except ProtocolError as error:
                    self._refuse(Refused(error, False, request.method, request.target))
                    return
            elif request.upgrade == b"websocket" and server.missing_websockets is not None:
                server.missing_websockets.on_request()
        if server.close_after_response or server.draining:
            http.close_next()
        admitted = server.admission.admit(request, self.peer)
        if isinstance(admitted, Refused):
            self._answer_refused(admitted)
            return
        started_ns = admitted.started_ns
        server.heartbeat.request_began(started_ns)
        call: ASGICall | WebSocketCall
        if handshake is None:
            call = ASGICall(server.adapter, self._template, request, http, self, started_ns)
        else:
            call = self._websocket_call(admitted, handshake)
        self._admitted = admitted
        self.call = call
        self._body_rate = None
        self.deadline_ns = 0
        if request.more_body:
            self._expect_body(len(request.body))
        server.begin(call, admitted)

    def _refuse(self, event: Refused) -> None:
        """Answer a request that was refused by the parser or by a time limit."""
        call = self.call
        status = event.error.status
        if call is not None:
            self.call = None
            self._give_up(call, status)
        else:
            self._server.meter.refused(status, event.method, event.target, self.peer_name)
        self._answer_refused(event)

    def _answer_refused(self, event: Refused) -> None:
        log.debug("Refused a request from %s: %s", self.peer_name, event.error)
        self._send_held()
        self._transport.write(self._http.refuse(event))
        self._hang_up(linger=True)

    def abandon_handshake(self) -> None:
        """See HandshakeTransport."""
        call, self.call = self.call, None
        if call is not None:
            self._give_up(call, CLIENT_CLOSED)
        self._hang_up(linger=False)

    def _give_up(self, call: ASGICall | WebSocketCall, status: int) -> None:
        admitted, self._admitted = self._admitted, None
        assert admitted is not None
        self._server.ended(admitted, call, self._http, status)
        call.disconnect()

    def _pause_reading(self) -> None:
        if not self._paused and not self._transport.is_closing():
            self._paused = True
            self._paused_ns = monotonic_ns()
            self.deadline_ns = 0
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See ASGITransport."""
        if self._paused and self._http.want_read and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            if self._body_rate is not None:
                self._body_rate.pause(monotonic_ns() - self._paused_ns)
                self._expect_body(0)

    # --- writing --------------------------------------------------------------------------------

    async def drained(self) -> None:
        """See ASGITransport."""
        while not self.writable:
            if self._drain_waiter is None or self._drain_waiter.done():
                self._drain_waiter = self.loop.create_future()
            await asyncio.shield(self._drain_waiter)
            if self._transport.is_closing():
                raise ClientDisconnected("the client has closed the connection")

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        """See ASGITransport. Uses sendfile(2), unless the bytes must be encrypted or framed."""
        if self._facts is not None or not self._http.raw_body:
            await send_blocks(self.loop, fd, offset, count, self._write_body, self.drained)
            return
        self._send_held()
        self._http.account(count)
        transport = self._transport
        if not transport.is_closing():
            # sendfile must not overtake bytes in the transport's buffer. With a limit of 0,
            # `drained` waits until all of them are sent.
            transport.set_write_buffer_limits(high=0)
            await self.drained()
        if transport.is_closing():
            raise ClientDisconnected("the client has closed the connection")
        transport.set_write_buffer_limits()
        await send_region(self._fd(), fd, offset, count, self._server.settings.send_timeout)

    def _write_body(self, data: bytes) -> None:
        self.write(self._http.send_data(data))

    def response_complete(self) -> None:
        """See ASGITransport."""
        call = self.call
        if call is None:
            return
        self.call = None
        http = self._http
        server = self._server
        admitted, self._admitted = self._admitted, None
        assert admitted is not None
        now = server.ended(admitted, call, http, http.status)
        if http.close_after:
            self._hang_up(linger=call.more_body)
            return
        if not self.writable:
            # The client sends requests without reading responses: stop reading until it has taken
            # the bytes that we have sent.
            self._pause_reading()
            self._expires_in(server.settings.send_timeout)
            return
        self.deadline_ns = now + server.idle_ns
        if not http.idle:
            # Start the next request in the next turn of the loop: this code runs inside the
            # application's `send`. `_after_first_step` does it if it is due anyway.
            if self._in_first_step:
                self._next_due = True
            else:
                self.loop.call_soon(self._go_on)
        elif self._eof:
            self._hang_up(linger=False)
        elif self._paused:
            self.resume_reading()

    def _go_on(self) -> None:
        """Handle the requests that the client has pipelined."""
        if self.call is not None or not self.writable or self._transport.is_closing():
            return
        http = self._http
        event = http.next_event()
        if event is not None:
            if self._held or http.next_head_waits:
                # If the application answers in its first step, the answer leaves together with the
                # next one.
                self.write = self._hold
                self._in_first_step = True
                self._on_event(event)
                self.loop.call_soon(self._after_first_step)  # which was scheduled before
            else:
                self._on_event(event)
        elif self._eof:
            self._hang_up(linger=False)
        else:
            self._send_held()
            self.resume_reading()
            self._await_more()

    def _hold(self, data: bytes) -> None:
        """Keep a part of a response to a pipelined request until `_after_first_step`.

        Each write of the transport is a system call, which takes about as long as a small request.
        """
        self._held.append(data)

    def _after_first_step(self) -> None:
        """Send what is held, unless it is complete and the next request waits to be answered."""
        self._in_first_step = False
        goes_on, self._next_due = self._next_due, False
        if not goes_on or not self._http.next_head_waits or sum(map(len, self._held)) > _MAX_HELD:
            self._send_held()
        if goes_on:
            self._go_on()

    def _send_held(self) -> None:
        held = self._held
        transport = self._transport
        self.write = transport.write
        if held:
            data = held[0] if len(held) == 1 else b"".join(held)
            held.clear()
            if not transport.is_closing():
                transport.write(data)

    def call_done(self, call: ASGICall | WebSocketCall) -> None:
        """See ASGITransport."""
        self._server.calls.discard(call)
        if self._server.draining:
            self._server.worker.check_drained()

    # --- becoming another protocol ----------------------------------------------------------------

    def _websocket_call(self, admitted: Admitted, handshake: Handshake) -> WebSocketCall:
        common = self._server.websockets
        assert common is not None
        transport = cast("HandshakeTransport", self)
        return common.call(
            self._server.adapter, self._template, admitted, handshake, self._http, transport
        )

    def open_websocket(
        self, call: WebSocketCall, headers: Headers, connection: WebSocketConnection
    ) -> WebSocketProtocol:
        """See HandshakeTransport. Afterwards the connection belongs to the WebSocket."""
        from servo.workers.aio.websocket import WebSocketProtocol

        server = self._server
        http = self._http
        assert server.websockets is not None
        self._send_held()
        self._transport.write(http.upgrade(b"websocket", headers))
        admitted, self._admitted = self._admitted, None
        assert admitted is not None
        call.response_headers = headers
        server.ended(admitted, call, http, 101)
        self.call = None
        server.connections.discard(self)
        session = WebSocketProtocol(server, server.websockets, call, connection, self._transport)
        self._transport.set_protocol(session)
        session.start(http.take_over(), not self._paused, self.writable)
        # `open_websocket` may run inside our `data_received`, because tasks start eagerly (Python
        # 3.12). The rest of `data_received` must not pause the transport: the session uses it now.
        self._paused = True
        if self._eof:
            session.eof()
        return session

    def _make_h2(self, common: H2Settings) -> H2Protocol:
        """Make the protocol object that replaces this one.

        common  the settings that the HTTP/2 connections of the worker share
        """
        # Imported here because the modules of HTTP/2 take memory, and a worker without HTTP/2 does
        # not need them. A worker with HTTP/2 has already imported them at its start.
        from servo.workers.aio.h2 import H2Protocol

        server = self._server
        server.connections.discard(self)
        return H2Protocol(server, common, self._transport, self._template, self.peer)

    def _upgrades_to_h2(self, request: Request) -> bool:
        """Switch to HTTP/2 if the request asks for it (RFC 7540 section 3.2) and we allow it.

        Returns whether the connection has switched.
        """
        common = self._server.http2
        if request.upgrade != b"h2c" or common is None or not common.upgrade:
            return False
        settings = upgrade_settings(request)
        if settings is None or self._facts is not None:
            return False
        if not (self.peer.trusted or self._header is not None):
            return False
        http = self._http
        self._send_held()
        self._transport.write(http.upgrade(b"h2c", []))
        self._lingering = True  # ignore further calls: the HTTP/2 protocol takes over
        self._make_h2(common).start_upgraded(request, settings, http.take_over())
        return True

    # --- closing --------------------------------------------------------------------------------

    def _hang_up(self, linger: bool) -> None:
        """Close the connection when the response is sent.

        linger  whether the client may still send, so that a lingering close is needed
        """
        transport = self._transport
        if transport.is_closing():
            return
        self._send_held()
        linger = linger or self._paused or has_unread(self._fd())
        if linger and transport.can_write_eof() and not self._eof:
            transport.write_eof()
            self._linger()
            if self._paused:
                self._paused = False
                transport.resume_reading()
        else:
            self._close()

    def _close(self) -> None:
        """Close fully. Over TLS the loop waits for a close_notify; we only limit the wait."""
        if self._facts is not None and self._copy < 0:
            # Keep a duplicate for `_end_output`: the loop closes its own descriptor before it calls
            # `connection_lost`.
            with contextlib.suppress(OSError):
                self._copy = os.dup(self._fd())
        self._transport.close()
        if self._facts is not None:
            self._linger()

    def _end_output(self) -> None:
        """End the stream for all processes that hold the socket; see net.sockets.end_output."""
        if self._fd() >= 0:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as error:
                log.debug("The connection of %s has already ended: %s", self.peer_name, error)
        if self._copy >= 0:
            end_output(self._copy)
            os.close(self._copy)
            self._copy = -1

    def _linger(self) -> None:
        self._ending = Linger(self._fd(), self._server.settings.send_timeout, monotonic_ns())
        self._lingering = True
        self._expires_in(LINGER_S)

    def _fd(self) -> int:
        """The socket's descriptor; -1 if the loop has closed it (with TLS, perhaps at once)."""
        return self._socket.fileno()

    def drain(self, idle_s: float, fresh_s: float) -> None:
        """See ServedConnection."""
        self._http.close_next()
        if self.call is None and self._http.idle and not self._lingering:
            self.deadline_ns = 0
            self.loop.call_later(idle_s if self.peer.requests else fresh_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.call is not None or not self._http.idle or self._lingering:
            return
        if self._has_input():
            self.loop.call_later(_LOOK_AGAIN_S, self._close_if_idle)
            return
        self._send_held()
        idle_left_s = self._idle_left_s()
        if idle_left_s:
            self.loop.call_later(idle_left_s, self._close_if_idle)
        else:
            self._close()

    def cut_requests(self, kept: list[ASGICall | WebSocketCall]) -> None:
        """See ServedConnection."""
        if self.call is None or self.call not in kept:
            self._transport.abort()

    def abort(self) -> None:
        """See memory_pressure.Client."""
        self._transport.abort()

    def held_bytes(self) -> int:
        """See memory_pressure.Client. 0 while the buffer is below the transport's limit."""
        return 0 if self.writable else self._transport.get_write_buffer_size()

    def progress(self) -> object:
        """See memory_pressure.Client.

        The buffer's size is enough: whenever the client takes bytes, the size changes.
        """
        return self.held_bytes()

    # --- time -----------------------------------------------------------------------------------

    def _expires_in(self, seconds: float) -> None:
        self.deadline_ns = monotonic_ns() + int(seconds * 1e9) if seconds else 0

    def sweep(self, now_ns: int) -> int:
        """See ServedConnection."""
        call = self.call
        started_ns = 0
        if call is None:
            self._http.forget()
            self.peer.forget()
        else:
            started_ns = call.started_ns
            limit_ns = self._server.request_timeout_ns
            if limit_ns and now_ns - started_ns > limit_ns:
                self._on_request_timeout(call)
        if self.deadline_ns and now_ns >= self.deadline_ns:
            self._on_timeout()
        return started_ns

    def open_calls(self) -> list[ASGICall | WebSocketCall]:
        """See ServedConnection."""
        return [] if self.call is None else [self.call]

    def _on_timeout(self) -> None:
        """End the phase whose deadline has passed."""
        if self._ending is not None:
            if self._ending.is_over(self._transport.get_write_buffer_size(), monotonic_ns()):
                self._transport.abort()
        elif not self.writable:
            self._on_stalled()
        elif self.call is not None:
            self._refuse(Refused(ProtocolError(408, "the body did not come in time"), True))
        elif self._http.in_head:
            self._refuse(Refused(ProtocolError(408, "the head did not come in time")))
        elif not self._has_input():
            # Before its first request, a connection has only the time of `header_timeout`.
            idle_left_s = self._idle_left_s() if self.peer.requests else 0.0
            if idle_left_s:
                self._expires_in(idle_left_s)
            else:
                self._close()

    def _idle_left_s(self) -> float:
        """How long an idle connection stays open although its time is over; 0: close it now."""
        if self._idle_time is None:
            self._idle_time = IdleTime(self._fd())
        return self._idle_time.left_s(self._server.idle_ns / 1e9, monotonic_ns())

    def _has_input(self) -> bool:
        """Whether a request of an idle connection came in time and waits to be read.

        After a standstill of the process, such as SIGSTOP, uvloop runs timers before it reads.
        """
        return not self._paused and has_unread(self._fd())

    def _on_stalled(self) -> None:
        """Abort if the client has taken no bytes of the buffer since the deadline was set."""
        left = self._transport.get_write_buffer_size()
        if left < self._unsent:
            self._unsent = left
            self._expires_in(self._server.settings.send_timeout)
        else:
            self._transport.abort()

    def _on_request_timeout(self, call: ASGICall | WebSocketCall) -> None:
        """End a request after `request_timeout`: with 504 if no byte was sent, else by closing."""
        log.error(
            "%s %a has run for more than %g s (request_timeout): cancelled",
            call.request.method,
            call.request.target.decode("latin-1"),
            self._server.settings.request_timeout,
        )
        call.cancelled = True
        if call.task is not None:
            call.task.cancel()
        self._refuse(Refused(ProtocolError(504, "the application took too long"), in_body=True))


def _not_connected(_data: bytes) -> None:
    raise ClientDisconnected("no connection yet")
