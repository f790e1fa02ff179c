"""Turns a request into a WebSocket: checks its handshake, and makes the application's call.

The library that frames WebSocket messages is an optional dependency, and takes time to import. So
this module imports it with the first handshake, not when the worker starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from servo._types import Scope
    from servo.apps.asgi_scope import ASGIAdapter
    from servo.apps.asgi_websocket import HandshakeTransport, WebSocketCall
    from servo.apps.response_writer import ASGIResponseWriter
    from servo.http.events import Request
    from servo.http.websocket import Handshake
    from servo.settings.sources import Settings
    from servo.workers.request.admission import Admitted


class WebSockets:
    """The settings that the WebSockets of one worker share.

    interval_ns       nanoseconds between two pings; 0: no pings
    timeout_ns        nanoseconds that a client has to answer a ping; 0: no limit
    deflate           whether to accept the permessage-deflate extension
    max_queue         messages that may wait for the application
    max_message_size  bytes of one message
    """

    def __init__(self, settings: Settings) -> None:
        self.interval_ns = int(settings.websocket_ping_interval * 1e9)
        self.timeout_ns = int(settings.websocket_ping_timeout * 1e9)
        self.deflate: bool = settings.websocket_per_message_deflate
        self.max_queue: int = settings.websocket_max_queue
        self.max_message_size: int = settings.websocket_max_message_size

    def handshake(self, request: Request, *, key: bool = True) -> Handshake:
        """Check the handshake of a request for a WebSocket; see `read_handshake`.

        request  the request with the handshake's fields
        key      whether Sec-WebSocket-Key is required; over HTTP/2 this field does not exist

        Raises ProtocolError if the handshake is not valid.
        """
        from servo.http.websocket import read_handshake

        return read_handshake(request.headers, deflate=self.deflate, key=key)

    def call(
        self,
        adapter: ASGIAdapter,
        template: Scope,
        admitted: Admitted,
        handshake: Handshake,
        http: ASGIResponseWriter,
        transport: HandshakeTransport,
    ) -> WebSocketCall:
        """Make the object that calls the application for a WebSocket.

        adapter    the application
        template   the parts of the ASGI scope that all requests of the connection share
        admitted   the admitted request that asks for the WebSocket
        handshake  the result of `handshake` for this request
        http       writes the response to the handshake
        transport  the driver of the connection or HTTP/2 stream
        """
        from servo.apps.asgi_websocket import WebSocketCall
        from servo.workers.allocator import keep_freed_memory

        keep_freed_memory()
        return WebSocketCall(
            adapter,
            template,
            admitted.request,
            handshake,
            http,
            transport,
            admitted.started_ns,
            max_queue=self.max_queue,
            max_message_size=self.max_message_size,
        )
