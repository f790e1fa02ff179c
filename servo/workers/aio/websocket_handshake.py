"""How a request becomes a WebSocket: its handshake, by the settings that all of a worker share.

The library that makes a WebSocket's frames is in an extra, and takes time to import. So it is
imported where the first one is begun.
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
        adapter: ASGIAdapter,
        template: Scope,
        admitted: Admitted,
        handshake: Handshake,
        http: ASGIResponseWriter,
        transport: HandshakeTransport,
    ) -> WebSocketCall:
        """The call of a valid handshake."""
        from servo.apps.asgi_websocket import WebSocketCall
        from servo.workers.aio.allocator import keep_freed_memory

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
