"""How an HTTP/1.1 connection becomes a WebSocket, or an HTTP/2 one.

The library that makes a WebSocket's frames is in an extra, so it is imported where one is begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from servo.http.negotiate import upgrade_settings
from servo.workers.aio.h1_connection import StreamConnection

if TYPE_CHECKING:
    from servo._types import Scope
    from servo.apps.asgi import Exchange
    from servo.apps.asgi_websocket import HandshakeTransport, WebSocketCall
    from servo.http.events import Headers, Request
    from servo.http.websocket import Handshake, WebSocketConnection
    from servo.settings.sources import Settings
    from servo.workers.aio.h2 import HTTP2, H2Protocol
    from servo.workers.aio.server import StreamServer
    from servo.workers.aio.websocket import WebSocketProtocol
    from servo.workers.request.admission import Admitted


class WebSockets:
    """What the WebSockets of one worker have in common: the settings."""

    def __init__(self, settings: Settings) -> None:
        self.interval_ns = int(settings.websocket_ping_interval * 1e9)
        self.timeout_ns = int(settings.websocket_ping_timeout * 1e9)
        self.deflate: bool = settings.websocket_per_message_deflate
        self.max_queue: int = settings.websocket_max_queue
        self.max_message_size: int = settings.websocket_max_message_size

    def handshake(self, request: Request, *, key: bool = True) -> Handshake:
        """Judge a request for a WebSocket; see `read_handshake`. Raises ProtocolError."""
        from servo.http.websocket import read_handshake

        return read_handshake(request.headers, deflate=self.deflate, key=key)

    def call(
        self,
        server: StreamServer,
        template: Scope,
        admitted: Admitted,
        handshake: Handshake,
        http: Exchange,
        transport: HandshakeTransport,
    ) -> WebSocketCall:
        """The call of a valid handshake."""
        from servo.apps.asgi_websocket import WebSocketCall
        from servo.workers.aio.allocator import keep_freed_memory

        keep_freed_memory()
        return WebSocketCall(
            server.adapter,
            template,
            admitted.request,
            handshake,
            http,
            transport,
            admitted.started_ns,
            max_queue=self.max_queue,
            max_message_size=self.max_message_size,
        )


class StreamUpgrade(StreamConnection):
    """The part of `StreamProtocol` that hands the connection over to another protocol."""

    __slots__ = ()

    def _websocket_call(self, admitted: Admitted, handshake: Handshake) -> WebSocketCall:
        common = self._server.websockets
        assert common is not None
        transport = cast("HandshakeTransport", self)  # what StreamProtocol is
        return common.call(self._server, self._template, admitted, handshake, self._http, transport)

    def open_websocket(
        self, call: WebSocketCall, headers: Headers, connection: WebSocketConnection
    ) -> WebSocketProtocol:
        """See asgi_websocket.HandshakeTransport. The connection is another protocol's then."""
        from servo.workers.aio.websocket import WebSocketProtocol

        server = self._server
        http = self._http
        assert server.websockets is not None
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
        # This may be within `data_received`, where a task begins at once (Python 3.12): what is
        # left of that must not pause a transport that is the session's.
        self._paused = True
        if self._eof:
            session.eof()
        return session

    def _make_h2(self, common: HTTP2) -> H2Protocol:
        """The protocol object that takes this one's place."""
        server = self._server
        server.connections.discard(self)
        return common.protocol(server, common, self._transport, self._template, self.peer)

    def _upgrades_to_h2(self, request: Request) -> bool:
        """Go over to HTTP/2, if the request asks for it (RFC 7540 section 3.2), and may."""
        common = self._server.http2
        if request.upgrade != b"h2c" or common is None or not common.upgrade:
            return False
        settings = upgrade_settings(request)
        if settings is None or self._facts is not None:
            return False
        if not (self.peer.trusted or self._header is not None):
            return False
        http = self._http
        self._transport.write(http.upgrade(b"h2c", []))
        self._lingering = True  # this object is done
        self._make_h2(common).start_upgraded(request, settings, http.take_over())
        return True
