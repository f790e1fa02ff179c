"""A WebSocket on a stream of an HTTP/2 connection (RFC 8441)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from servo.http.h2.frames import CANCEL
from servo.workers.aio.h2_settings import HIGH_WATER
from servo.workers.aio.websocket import WebSocketSession

if TYPE_CHECKING:
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.http.events import Data
    from servo.http.h2.stream import H2Stream
    from servo.http.websocket import WebSocketConnection
    from servo.workers.aio.server import StreamServer
    from servo.workers.aio.websocket_handshake import WebSockets

# HIGH_WATER unsent bytes stop the application. It continues when this many are left: a quarter, as
# in asyncio's transports.
_LOW_WATER = HIGH_WATER // 4


class Channel(Protocol):
    """What the connection and a WebSocket use of an `H2Channel`."""

    def wake_drained(self) -> None:
        """Continue if enough bytes are sent. Called after the connection has sent some."""

    def enlarge_window(self, left: int) -> None:
        """Let the client send as many bytes as the application has read.

        left  the number of bytes that were fed and that the application has not read
        """


class H2WebSocket(WebSocketSession):
    """A WebSocket whose wire is a stream. END_STREAM corresponds to TCP's FIN (RFC 8441, 5)."""

    __slots__ = ("_channel", "_hung_up", "_listening", "_stream", "_waiting")

    def __init__(
        self,
        server: StreamServer,
        settings: WebSockets,
        app: WebSocketCall,
        connection: WebSocketConnection,
        stream: H2Stream,
        waiting: set[Channel],
        channel: Channel,
    ) -> None:
        """
        server      the connection's server
        settings    the settings of all WebSockets of the worker
        app         the application's call
        connection  the sans-I/O WebSocket, which frames and parses messages
        stream      the wire
        waiting     the channels that the connection wakes after it has sent bytes
        channel     the stream's channel; it is in `waiting` while the stream's buffer is full
        """
        super().__init__(server, settings, app, connection)
        self._stream = stream
        self._waiting = waiting
        self._channel = channel
        self._listening = True
        self._hung_up = False

    def feed(self, event: Data) -> None:
        """Handle data from the client."""
        if event.data:
            self.received(event.data)
        if self._listening:
            self._channel.enlarge_window(0)
        if not event.more_body:
            self.eof()
            if self._hung_up:
                self.lost()

    def sent(self) -> None:
        """Resume if the stream's buffer is nearly empty. Called after the connection has sent."""
        if self._congested and self._stream.queued <= _LOW_WATER:
            self._waiting.discard(self._channel)
            self.buffer_empty()

    def write(self, data: bytes) -> None:
        """See WebSocketSession."""
        self._stream.send_data(data)
        if not self._congested and self._stream.queued > HIGH_WATER:
            self._waiting.add(self._channel)
            self.buffer_full()

    def unsent(self) -> int:
        """See WebSocketSession."""
        return self._stream.queued

    def held_bytes(self) -> int:
        """See memory_pressure.Client. Always 0: the HTTP/2 connection counts these bytes."""
        return 0

    def read_on(self, on: bool) -> None:
        """See WebSocketSession. Without WINDOW_UPDATE the client stops when its window is full."""
        self._listening = on
        if on:
            self._channel.enlarge_window(0)

    def hang_up(self, linger: bool) -> None:
        """See WebSocketSession."""
        if not self._hung_up:
            self._hung_up = True
            self._stream.end_response()
            if not self._stream.incoming:
                self.lost()

    def cut(self) -> None:
        """See WebSocketSession."""
        self._stream.reset(CANCEL)
        self.lost()

    def lost(self) -> None:
        """See WebSocketSession."""
        self._waiting.discard(self._channel)
        super().lost()
