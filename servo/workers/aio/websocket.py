"""An open WebSocket in the `async` worker: between its application's call and its wire.

`WebSocketSession` knows no socket: over HTTP/1.1 the wire is the connection that the handshake
came on (`WebSocketProtocol`), over HTTP/2 a stream of it. It is not a request in flight: neither
the load gate nor `limit_concurrency` or `request_timeout` sees more of it than the handshake.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from time import monotonic_ns
from typing import TYPE_CHECKING

from servo.http.errors import ClientDisconnected
from servo.http.limits import LINGER_S
from servo.http.websocket import CLOSE_ABNORMAL, CLOSE_INTERNAL_ERROR, CLOSE_RESTARTING, Closed
from servo.net.sockets import end_transport

if TYPE_CHECKING:
    from servo.apps.asgi import ASGICall
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.http.websocket import WebSocketConnection
    from servo.workers.aio.server import StreamServer
    from servo.workers.aio.websocket_handshake import WebSockets

log = logging.getLogger("servo.error")

# How long the client may take to answer a close frame; the `websockets` client waits as long.
CLOSE_TIMEOUT_S = 10.0
# A worker that ends gives a silent client so long for what it may have sent: one turn of the loop
# reads what the kernel holds.
QUIET_S = 0.05
# And an application in the middle of its work at least so long to get to its next `receive`.
BUSY_S = 1.0
# Bytes that are parsed in one go. A few bytes can be a message, and each is an object: this bounds
# what one read can come to before the queue's limit is looked at.
_SLICE = 32768
# While a long message is coming and nothing else: calls into the parser would cost more than its
# work.
_LONG_SLICE = 131072

_OPEN, _CLOSING, _LINGERING, _ENDED = range(4)


class WebSocketSession(ABC):
    """An open WebSocket: the `OpenWebSocket` of its call. Subclasses add the wire.

    deadline_ns  the sweep after this moment acts on a time limit; 0: there is none
    writable     messages can be sent, and the wire's buffer is nearly empty
    """

    __slots__ = (
        "_app",
        "_congested",
        "_connection",
        "_discards",
        "_drain_waiter",
        "_due_ns",
        "_heard",
        "_leaving",
        "_phase",
        "_ping_ns",
        "_pong_ns",
        "_reading",
        "_rest",
        "_server",
        "_settings",
        "_slice",
        "_unsent",
        "deadline_ns",
        "loop",
        "writable",
    )

    def __init__(
        self,
        server: StreamServer,
        settings: WebSockets,
        app: WebSocketCall,
        connection: WebSocketConnection,
    ) -> None:
        self._server = server
        self._settings = settings
        self._app = app
        self._connection = connection
        self.loop = server.loop
        self.writable = True
        self.deadline_ns = 0
        self._phase = _OPEN
        # The wire's buffer is full.
        self._congested = False
        self._reading = True
        # Bytes that were read before the queue was full, and are not parsed.
        self._rest = b""
        self._slice = _SLICE
        # The application has closed: it wants no message any more.
        self._discards = False
        self._leaving = False
        self._drain_waiter: asyncio.Future[None] | None = None
        self._unsent = 0
        # When a close frame has to be answered, or a full buffer to have shrunk.
        self._due_ns = 0
        # When the next ping is due; and an answer to the last (0: none is awaited).
        self._ping_ns = 0
        self._pong_ns = 0
        self._heard = False

    # --- the wire, a subclass's -----------------------------------------------------------------

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send, buffering what the wire doesn't take; `buffer_full` and `buffer_empty` follow."""

    def write_both(self, head: bytes, data: bytes) -> None:
        """Send two pieces that belong together."""
        self.write(head + data)

    @abstractmethod
    def unsent(self) -> int:
        """Bytes in the wire's buffer."""

    @abstractmethod
    def read_on(self, on: bool) -> None:
        """Stop reading, or go on."""

    @abstractmethod
    def hang_up(self, linger: bool) -> None:
        """Close the wire when its buffer is out; `linger`: say so, and wait for the client."""

    @abstractmethod
    def cut(self) -> None:
        """Close the wire at once."""

    # --- reading --------------------------------------------------------------------------------

    def start(self, rest: bytes, reading: bool, writable: bool) -> None:
        """Begin, with what was received behind the handshake."""
        self._server.connections.add(self)
        self._reading = reading
        self.writable = writable
        self._congested = not writable
        if self._settings.interval_ns:
            self._ping_ns = monotonic_ns() + self._settings.interval_ns
        if rest:
            self.received(rest)
        self._update_reading()
        self._schedule()
        if self._server.draining:
            self.drain(QUIET_S, QUIET_S)

    def received(self, data: bytes) -> None:
        """The wire has brought this."""
        self._heard = True
        if self._phase >= _LINGERING:
            return
        if self._rest or len(data) > self._slice:
            self._rest += data
            self._parse_rest()
        else:
            self._parse(data)
        if self._phase < _LINGERING:
            self._update_reading()

    def _parse(self, data: bytes | memoryview) -> None:
        connection = self._connection
        closed = None
        events = connection.receive_data(data)
        self._slice = _SLICE if events else min(2 * self._slice, _LONG_SLICE)
        for event in events:
            if isinstance(event, Closed):
                closed = event
            elif not self._discards:
                self._app.deliver(event)
        answer = connection.data_to_send()
        if answer:
            self.write(answer)
        if closed is not None:
            self._finish(closed)

    def _parse_rest(self) -> None:
        view = memoryview(self._rest)
        done = 0
        while done < len(view) and self._phase < _LINGERING and not self._is_full:
            end = done + self._slice
            self._parse(view[done:end])
            done = end
        self._rest = bytes(view[done:])

    @property
    def _is_full(self) -> bool:
        return self._congested or (self._app.full and not self._discards)

    def _update_reading(self) -> None:
        """Read while the application takes what comes.

        And while the client takes what we send: its pings would fill our buffer with pongs.
        """
        if self._rest and not self._is_full:
            self._parse_rest()
        wanted = self._phase >= _LINGERING or not (self._rest or self._is_full)
        if wanted != self._reading and self._phase != _ENDED:
            self._reading = wanted
            self.read_on(wanted)

    def eof(self) -> None:
        """The wire brings no more."""
        closed = self._connection.receive_eof()
        if closed is not None:
            self._finish(closed)

    def lost(self) -> None:
        """The wire is gone."""
        self._app.end(CLOSE_ABNORMAL, "")
        self._phase = _ENDED
        self.deadline_ns = 0
        self._server.connections.discard(self)
        self._wake_drained()

    def _finish(self, closed: Closed) -> None:
        """Nothing more comes in."""
        self._app.end(closed.code, closed.reason)
        self._rest = b""
        self._end(linger=not closed.clean and closed.code != CLOSE_ABNORMAL)

    def _end(self, linger: bool) -> None:
        if self._phase >= _LINGERING:
            return
        self._phase = _LINGERING
        self.writable = False
        self.deadline_ns = monotonic_ns() + int(LINGER_S * 1e9)
        self._update_reading()
        self.hang_up(linger)
        self._wake_drained()

    # --- an OpenWebSocket -----------------------------------------------------------------------

    def send(self, message: str | bytes) -> None:
        """See OpenWebSocket."""
        if self._phase == _OPEN:
            data = self._connection.send(message)
            if data.__class__ is tuple:
                self.write_both(*data)
            else:
                self.write(data)  # type: ignore[arg-type]

    async def drained(self) -> None:
        """See OpenWebSocket."""
        while self._congested and self._phase < _LINGERING:
            if self._drain_waiter is None or self._drain_waiter.done():
                self._drain_waiter = self.loop.create_future()
            await asyncio.shield(self._drain_waiter)
        if self._phase >= _LINGERING:
            raise ClientDisconnected("the WebSocket is closed")
        if self._phase == _CLOSING:
            # What was to be sent is dropped, and the loop has to get on with the closing.
            await asyncio.sleep(0)

    def close(self, code: int, reason: str) -> None:
        """See OpenWebSocket."""
        self._discards = True
        if self._phase == _OPEN:
            self._say_close(code, reason)
        if self._phase < _LINGERING:
            self._update_reading()

    def _say_close(self, code: int, reason: str) -> None:
        frame = self._connection.close(code, reason)
        self._phase = _CLOSING
        self.writable = False
        self._due_ns = monotonic_ns() + int(CLOSE_TIMEOUT_S * 1e9)
        self._schedule()
        self.write(frame)

    def taken(self) -> None:
        """See OpenWebSocket."""
        if not self._reading:
            self._update_reading()

    def waiting(self) -> None:
        """See OpenWebSocket."""
        if self._leaving:
            self.loop.call_later(QUIET_S, self._leave_if_quiet)

    # --- the wire's buffer ----------------------------------------------------------------------

    def buffer_full(self) -> None:
        """The client doesn't read, or the network is slow."""
        self.writable = False
        self._congested = True
        self._unsent = self.unsent()
        send_timeout = self._server.settings.send_timeout
        if self._phase < _LINGERING:
            self._due_ns = monotonic_ns() + int(send_timeout * 1e9) if send_timeout else 0
            self._update_reading()
            self._schedule()

    def buffer_empty(self) -> None:
        """It has taken what there was."""
        self.writable = self._phase == _OPEN
        self._congested = False
        if self._phase < _LINGERING:
            closing = self._phase == _CLOSING
            self._due_ns = monotonic_ns() + int(CLOSE_TIMEOUT_S * 1e9) if closing else 0
            self._pong_ns = 0
            self._update_reading()
            self._schedule()
        self._wake_drained()

    def _wake_drained(self) -> None:
        waiter = self._drain_waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- the end of the worker ------------------------------------------------------------------

    def drain(self, idle_s: float, fresh_s: float) -> None:
        """Close with 1012 as soon as nothing that the client has sent waits for an answer.

        An application that is busy gets `idle_s` seconds for it, within `graceful_timeout`.
        """
        if self._leaving or self._phase != _OPEN:
            return
        self._leaving = True
        most = min(max(idle_s, BUSY_S), self._server.settings.graceful_timeout / 2)
        self.loop.call_later(most, self._leave)
        if self._app.quiet:
            self.waiting()

    def _leave_if_quiet(self) -> None:
        if self._app.quiet and not self._rest:
            self._leave()

    def _leave(self) -> None:
        if self._phase == _OPEN:
            self._say_close(CLOSE_RESTARTING, "")

    def abort(self) -> None:
        """Cut the connection, saying so as far as the buffer is empty."""
        if self._phase == _OPEN and not self._congested:
            self._say_close(CLOSE_RESTARTING, "")
            self._app.end(CLOSE_RESTARTING, "")
            self._end(linger=False)
        else:
            self.cut()

    # --- time -----------------------------------------------------------------------------------

    def held_bytes(self) -> int:
        """See pressure.Client."""
        return self.unsent() if self._congested else 0

    def progress(self) -> object:
        """See pressure.Client."""
        return self.unsent()

    @property
    def peer_name(self) -> str:
        """See pressure.Client."""
        client = self._app.scope["client"]
        return str(client[0]) if client else ""

    def _schedule(self) -> None:
        """Set the deadline: whatever comes first."""
        due = [self._due_ns]
        if self._phase == _OPEN and not self._congested:
            due += [self._ping_ns, self._pong_ns]
        self.deadline_ns = min((moment for moment in due if moment), default=0)

    def sweep(self, now_ns: int) -> int:
        """See ServedConnection. An open WebSocket is no request in flight."""
        if self.deadline_ns and now_ns >= self.deadline_ns:
            self._on_timeout(now_ns)
        return 0

    def open_calls(self) -> list[ASGICall | WebSocketCall]:
        """See ServedConnection."""
        return []

    def _on_timeout(self, now: int) -> None:
        """The deadline has passed."""
        if self._phase >= _LINGERING:
            self.cut()
        elif self._due_ns and now >= self._due_ns:
            self._on_stalled()
        elif self._phase == _OPEN:
            self._on_heartbeat(now)

    def _on_stalled(self) -> None:
        """The client has not answered a close frame, or takes nothing of what we send."""
        left = self.unsent()
        if self._congested and left < self._unsent:
            self.buffer_full()
        else:
            log.debug("A WebSocket's client does not read, or does not answer its close")
            self._app.end(*self._own_end())
            self.cut()

    def _own_end(self) -> tuple[int, str]:
        return (
            (CLOSE_RESTARTING, "")
            if self._leaving and self._phase == _CLOSING
            else (CLOSE_ABNORMAL, "")
        )

    def _on_heartbeat(self, now: int) -> None:
        """Send a ping, and look whether the last one was answered.

        Anything that comes is an answer: a pong can't overtake a long message. While reading is
        paused nothing can come, and it is not the client's fault.
        """
        settings = self._settings
        if self._pong_ns and self._heard:
            self._pong_ns = 0
        if self._pong_ns and now >= self._pong_ns:
            if self._reading:
                reason = "keepalive ping timeout"
                self.write(self._connection.fail(CLOSE_INTERNAL_ERROR, reason))
                self._app.end(CLOSE_INTERNAL_ERROR, reason)
                self._end(linger=True)
                return
            self._pong_ns = now + settings.timeout_ns
        if now >= self._ping_ns:
            self._ping_ns = now + settings.interval_ns
            if settings.timeout_ns and not self._pong_ns:
                self._pong_ns = now + settings.timeout_ns
                self._heard = False
            self.write(self._connection.ping())
        self._schedule()


class WebSocketProtocol(WebSocketSession, asyncio.Protocol):
    """A WebSocket on a connection of its own, which came from an HTTP/1.1 protocol object."""

    __slots__ = ("_transport",)

    def __init__(
        self,
        server: StreamServer,
        settings: WebSockets,
        app: WebSocketCall,
        connection: WebSocketConnection,
        transport: asyncio.Transport,
    ) -> None:
        super().__init__(server, settings, app, connection)
        self._transport = transport

    def write(self, data: bytes) -> None:
        """See WebSocketSession."""
        self._transport.write(data)

    def write_both(self, head: bytes, data: bytes) -> None:
        """See WebSocketSession."""
        self._transport.writelines((head, data))

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.received(data)

    def eof_received(self) -> bool:
        """See asyncio.Protocol. There is no half-closed WebSocket."""
        self.eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        end_transport(self._transport)
        self.lost()
        self._server.worker.connection_closed()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.buffer_full()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self.buffer_empty()

    def unsent(self) -> int:
        """See WebSocketSession."""
        return self._transport.get_write_buffer_size()

    def read_on(self, on: bool) -> None:
        """See WebSocketSession."""
        if self._transport.is_closing():
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def hang_up(self, linger: bool) -> None:
        """See WebSocketSession."""
        transport = self._transport
        if not linger or not transport.can_write_eof():
            transport.close()  # over TLS the loop lingers by itself
        elif not transport.is_closing():
            transport.write_eof()

    def cut(self) -> None:
        """See WebSocketSession."""
        self._transport.abort()
