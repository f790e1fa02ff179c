"""One request over HTTP/2: `H2Channel` connects the application's call to the request's stream.

The connection (`H2Protocol`) makes a channel when it starts a request, and passes the body to it.
The channel is the `ASGITransport` of the call. The call writes the response into the stream
(`servo.http.h2.stream`), and the connection sends the stream's bytes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from time import monotonic_ns
from typing import TYPE_CHECKING, Protocol

from servo.apps.asgi import ASGICall
from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.h2.frames import CANCEL
from servo.workers.aio.h2_settings import HIGH_WATER
from servo.workers.request.admission import CLIENT_CLOSED
from servo.workers.request.body_rate import BodyRate

if TYPE_CHECKING:
    from servo._types import Scope
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.http.events import Data, Headers
    from servo.http.h2.stream import H2Stream
    from servo.http.websocket import Handshake, WebSocketConnection
    from servo.workers.aio.h2_settings import H2Settings
    from servo.workers.aio.server import StreamServer
    from servo.workers.aio.websocket_h2 import Channel, H2WebSocket
    from servo.workers.request.admission import Admitted

log = logging.getLogger("servo.error")


class StreamOwner(Protocol):
    """The part of the connection that a channel uses; see `H2Protocol`."""

    server: StreamServer
    common: H2Settings
    template: Scope
    running: int
    waiting: set[Channel]


class H2Channel:
    """The driver of one stream, with one request for the application.

    loop       the worker's event loop
    call       the application's call; None after the response is complete or given up
    websocket  gets the stream's data after the application has accepted a WebSocket; else None
    """

    __slots__ = (
        "_admitted",
        "_body_rate",
        "_drain_waiter",
        "_fed",
        "_full_ns",
        "_lost",
        "_paced_ns",
        "_protocol",
        "_stalled_ns",
        "_stream",
        "_unsent",
        "call",
        "loop",
        "websocket",
    )

    def __init__(
        self,
        protocol: StreamOwner,
        stream: H2Stream,
        admitted: Admitted,
        handshake: Handshake | None,
    ) -> None:
        """
        protocol   the connection
        stream     the request's stream
        admitted   the request
        handshake  the WebSocket's handshake; None for an ordinary request
        """
        server = protocol.server
        self._protocol = protocol
        self._stream = stream
        self.loop = server.loop
        self._admitted = admitted
        self._body_rate: BodyRate | None = None
        self._paced_ns = 0
        self._full_ns = 0
        # Since when the client has taken no bytes, and how many bytes were waiting at that time.
        self._stalled_ns = 0
        self._unsent = 0
        self._lost = False
        # Body bytes that were fed; those of a held request are in its head.
        self._fed = len(admitted.request.body)
        self._drain_waiter: asyncio.Future[None] | None = None
        self.websocket: H2WebSocket | None = None
        self.call: ASGICall | WebSocketCall | None
        template = protocol.template
        if handshake is not None and server.websockets is not None:
            self.call = server.websockets.call(
                server.adapter, template, admitted, handshake, stream, self
            )
        else:
            self.call = ASGICall(
                server.adapter, template, admitted.request, stream, self, admitted.started_ns
            )

    def start(self) -> None:
        """Run the application."""
        protocol = self._protocol
        server = protocol.server
        call = self.call
        assert call is not None
        self._stream.driver = self
        server.heartbeat.request_began(call.started_ns)
        protocol.running += 1
        if call.more_body:
            self._pace_body(0)
        server.begin(call, self._admitted)
        if call.request.upgrade is not None and not self._stream.incoming:
            # END_STREAM came with the head. Like TCP's FIN, it means that the client will send
            # nothing more (RFC 8441 section 5).
            call.end_of_input()

    # --- from the connection --------------------------------------------------------------------

    def feed(self, event: Data) -> None:
        """Pass a part of the body to the application."""
        n = len(event.data)
        self._fed += n
        if self.websocket is not None:
            self.websocket.feed(event)
            return
        call = self.call
        if call is None:
            return
        self._protocol.server.meter.received(n)
        if call.request.upgrade is not None:
            # Before its handshake is answered, a client must not send data. If it ends its side,
            # the stream can't become a WebSocket.
            self.give_up(400 if n else CLIENT_CLOSED)
            self._stream.reset(CANCEL)
            return
        call.feed(event)
        if call.more_body:
            self._pace_body(n)
        else:
            self._paced_ns = 0

    def give_up(self, status: int) -> None:
        """End the request, because the stream has ended before the response was complete.

        status  the status to log if no response has begun
        """
        self._lost = True
        if self.websocket is not None:
            self.websocket.lost()
        call = self._take_call()
        if call is not None:
            self._count(call, status)
            call.disconnect()
        self.wake_drained()

    def end_late_request(self, now: int) -> int:
        """End a request that has run for longer than `request_timeout`. Called once a second.

        now  monotonic nanoseconds

        Returns when the request was admitted, in monotonic nanoseconds; 0 if it is answered.
        """
        call = self.call
        if call is None:
            return 0
        limit_ns = self._protocol.server.request_timeout_ns
        if limit_ns and now - call.started_ns > limit_ns:
            self._on_request_timeout(call)
        return call.started_ns

    def end_late_client(self, now: int) -> None:
        """End the stream if the client takes too long to read or to send bytes.

        Called once a second.

        now  monotonic nanoseconds
        """
        stream = self._stream
        settings = self._protocol.server.settings
        if stream.queued == 0 or stream.queued != self._unsent:
            self._unsent = stream.queued
            self._stalled_ns = now
        elif settings.send_timeout and now - self._stalled_ns > settings.send_timeout * 1e9:
            log.debug("Reset a stream: its client took no bytes within send_timeout")
            self.give_up(CLIENT_CLOSED)
            stream.reset(CANCEL)
            return
        if self._paced_ns and now >= self._paced_ns and self.call is not None:
            stream.refuse(ProtocolError(408, "the body did not come in time"))
            self.give_up(408)

    def _pace_body(self, received: int) -> None:
        """Set the time limit for the next part of the body; none while the app does not read.

        received  bytes of the body that have just arrived
        """
        call = self.call
        now = monotonic_ns()
        if self._body_rate is None:
            settings = self._protocol.server.settings
            self._body_rate = BodyRate(settings.body_timeout, settings.body_min_rate, now)
        if self._full_ns:
            self._body_rate.pause(now - self._full_ns)
        due = self._body_rate.deadline_ns(now, received)
        full = call is not None and call.buffered >= self._protocol.common.limits.window // 2
        self._paced_ns = 0 if full else due
        self._full_ns = now if full else 0

    # --- an ASGITransport ----------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """See ASGITransport."""
        return self._stream.queued <= HIGH_WATER

    def write(self, data: bytes) -> None:
        """See ASGITransport. Does nothing: the call writes into the stream itself."""

    async def drained(self) -> None:
        """See ASGITransport."""
        while not self.writable and not self._lost:
            if self._drain_waiter is None or self._drain_waiter.done():
                self._drain_waiter = self.loop.create_future()
            self._protocol.waiting.add(self)
            await asyncio.shield(self._drain_waiter)
        if self._lost:
            raise ClientDisconnected("the client has reset the stream")

    def wake_drained(self) -> None:
        """See Channel. Lets the application continue if enough bytes were sent."""
        if self.websocket is not None:
            self.websocket.sent()
        waiter = self._drain_waiter
        if waiter is not None and (self._lost or self.writable):
            self._drain_waiter = None
            self._protocol.waiting.discard(self)
            if not waiter.done():
                waiter.set_result(None)

    def resume_reading(self) -> None:
        """See ASGITransport. Enlarges the client's window by the bytes that the app has read."""
        call = self.call
        stream = self._stream
        if call is not None and stream.incoming:
            self.enlarge_window(call.buffered)
            if not self._paced_ns:
                self._pace_body(0)

    def enlarge_window(self, left: int) -> None:
        """See Channel."""
        stream = self._stream
        # One read of the connection may bring many frames. Those after the one that is fed now are
        # not with the application yet.
        stream.read(left + stream.received - self._fed)

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        """See ASGITransport. Reads the file, because sendfile can't put bytes into frames."""
        end = offset + count
        while offset < end and not self._lost:
            size = min(end - offset, HIGH_WATER)
            data = await self.loop.run_in_executor(None, os.pread, fd, size, offset)
            if not data:
                raise ClientDisconnected("the file became shorter while it was sent")
            self._stream.send_data(data)
            offset += len(data)
            await self.drained()

    def response_complete(self) -> None:
        """See ASGITransport."""
        call = self._take_call()
        if call is None:
            return
        stream = self._stream
        if not stream.response_complete:
            stream.abandon()  # reset it, or the client would consider the response complete
        self._count(call, stream.status)

    def call_done(self, call: ASGICall | WebSocketCall) -> None:
        """See ASGITransport."""
        server = self._protocol.server
        self._protocol.running -= 1
        server.calls.discard(call)
        if server.draining:
            server.worker.check_drained()

    def open_websocket(
        self, call: WebSocketCall, headers: Headers, connection: WebSocketConnection
    ) -> H2WebSocket:
        """See HandshakeTransport. Afterwards the stream belongs to the WebSocket (RFC 8441)."""
        from servo.workers.aio.websocket_h2 import H2WebSocket

        server = self._protocol.server
        assert server.websockets is not None
        self._stream.accept_tunnel(headers)
        self._take_call()
        self._count(call, 200)
        self.websocket = H2WebSocket(
            server, server.websockets, call, connection, self._stream, self._protocol.waiting, self
        )
        self.websocket.start(b"", True, self.writable)
        if not self._stream.incoming:
            self.websocket.eof()
        return self.websocket

    def abandon_handshake(self) -> None:
        """See HandshakeTransport."""
        self.give_up(CLIENT_CLOSED)
        self._stream.reset(CANCEL)

    def _on_request_timeout(self, call: ASGICall | WebSocketCall) -> None:
        """End a request after `request_timeout`: with 504 if no byte was sent, else a reset."""
        log.error(
            "%s %a has run for more than %g s (request_timeout): cancelled",
            call.request.method,
            call.request.target.decode("latin-1"),
            self._protocol.server.settings.request_timeout,
        )
        call.cancelled = True
        if call.task is not None:
            call.task.cancel()
        self._stream.refuse(ProtocolError(504, "the application took too long"))
        self.give_up(504)

    # --- counting -------------------------------------------------------------------------------

    def _take_call(self) -> ASGICall | WebSocketCall | None:
        """Remove and return the application's call; None if its response is already complete."""
        call, self.call = self.call, None
        self._paced_ns = 0
        return call

    def _count(self, call: ASGICall | WebSocketCall, status: int) -> None:
        self._protocol.server.ended(self._admitted, call, self._stream, status)
