"""An open WebSocket in the `async` worker, between the application's call and the wire.

`WebSocketSession` uses an abstract *wire*, which a subclass provides. Over HTTP/1.1 the wire is the
connection on which the handshake came (`WebSocketProtocol`), over HTTP/2 a stream (`H2WebSocket`).

An open WebSocket does not count as a request in flight. The load gate, `limit_concurrency` and
`request_timeout` apply to its handshake only.

**Back-pressure.** The session stops reading while the application's queue is full. It also stops
while its own send buffer is full: a client that sends pings and reads nothing would otherwise fill
that buffer with pongs.

**Closing.** Each side sends a close frame (RFC 6455 section 7). The phases are: open; closing (our
close frame is sent, and the client has `CLOSE_TIMEOUT_S` to answer); lingering (both close frames
are sent, the wire is being closed, and further input is dropped); ended.

**A worker that stops** closes its WebSockets with code 1012 (service restart), so that clients
connect again. It first waits until the application has answered all messages from the client.
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

# Seconds that a client has to answer a close frame. The `websockets` library waits for the same
# time.
CLOSE_TIMEOUT_S = 10.0
# A stopping worker considers a WebSocket idle after this many seconds without a message. This is
# ample: one turn of the event loop reads all bytes that the kernel holds.
QUIET_S = 0.05
# A stopping worker gives a busy application at least this many seconds to reach its next `receive`.
BUSY_S = 1.0
# How many bytes are parsed in one call. Even a message of a few bytes becomes an object, so this
# limits the number of objects that are made before the queue's limit is checked.
_SLICE = 32768
# The same while the parts of one long message arrive. Smaller slices would cost more in calls than
# in parsing.
_LONG_SLICE = 131072

_OPEN, _CLOSING, _LINGERING, _ENDED = range(4)


class WebSocketSession(ABC):
    """An open WebSocket. The application's call uses it as its `OpenWebSocket`.

    A subclass adds the wire.

    loop         the worker's event loop
    deadline_ns  when the sweep has to act, in monotonic nanoseconds; 0: never
    writable     whether messages can be sent, and the wire's buffer is nearly empty
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
        # Whether the wire's buffer is full.
        self._congested = False
        self._reading = True
        # Bytes that were read, but not parsed, because the queue was full.
        self._rest = b""
        self._slice = _SLICE
        # Whether to drop further messages, because the application has closed the WebSocket.
        self._discards = False
        self._leaving = False
        self._drain_waiter: asyncio.Future[None] | None = None
        self._unsent = 0
        # The deadline for the client to answer a close frame, or to take bytes of a full buffer.
        self._due_ns = 0
        # When to send the next ping, and when the last one must be answered (0: it was answered).
        self._ping_ns = 0
        self._pong_ns = 0
        self._heard = False

    # --- the wire, in a subclass ----------------------------------------------------------------

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send bytes, and buffer those that can't be sent at once.

        The subclass calls `buffer_full` when its buffer is full, and `buffer_empty` when the buffer
        is nearly empty again.
        """

    def write_both(self, head: bytes, data: bytes) -> None:
        """Send a frame's head and payload. A subclass may override this to avoid joining them."""
        self.write(head + data)

    @abstractmethod
    def unsent(self) -> int:
        """Bytes in the wire's buffer."""

    @abstractmethod
    def read_on(self, on: bool) -> None:
        """Stop or resume reading.

        on  whether to read
        """

    @abstractmethod
    def hang_up(self, linger: bool) -> None:
        """Close the wire after its buffer is sent.

        linger  whether to close only our side, and wait for the client to close the other
        """

    @abstractmethod
    def cut(self) -> None:
        """Close the wire at once."""

    # --- reading --------------------------------------------------------------------------------

    def start(self, rest: bytes, reading: bool, writable: bool) -> None:
        """Begin.

        rest      the bytes received after the handshake
        reading   whether the wire is being read
        writable  whether the wire's buffer has room
        """
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
        """Handle data from the client."""
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
        """Read only while neither the queue nor the wire's buffer is full."""
        if self._rest and not self._is_full:
            self._parse_rest()
        wanted = self._phase >= _LINGERING or not (self._rest or self._is_full)
        if wanted != self._reading and self._phase != _ENDED:
            self._reading = wanted
            self.read_on(wanted)

    def eof(self) -> None:
        """Handle the end of the client's data."""
        closed = self._connection.receive_eof()
        if closed is not None:
            self._finish(closed)

    def lost(self) -> None:
        """End the WebSocket, because the wire is closed."""
        self._app.end(CLOSE_ABNORMAL, "")
        self._phase = _ENDED
        self.deadline_ns = 0
        self._server.connections.discard(self)
        self._wake_drained()

    def _finish(self, closed: Closed) -> None:
        """Close the WebSocket, because the client has closed it or has broken the protocol."""
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
            # `send` now drops messages without waiting. So if the application sends in a loop, only
            # this `sleep` lets the event loop close the WebSocket.
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
        """Stop reading and sending, because the client or the network is slow."""
        self.writable = False
        self._congested = True
        self._unsent = self.unsent()
        send_timeout = self._server.settings.send_timeout
        if self._phase < _LINGERING:
            self._due_ns = monotonic_ns() + int(send_timeout * 1e9) if send_timeout else 0
            self._update_reading()
            self._schedule()

    def buffer_empty(self) -> None:
        """Resume, because the client has taken nearly all of the buffer."""
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
        """Close with code 1012 as soon as the application has answered all messages.

        idle_s   seconds that a busy application gets, at most half of `graceful_timeout`
        fresh_s  not used: the client has already sent its first request, the handshake
        """
        if self._leaving or self._phase != _OPEN or self._server.lingers:
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

    def cut_requests(self, kept: list[ASGICall | WebSocketCall]) -> None:
        """See ServedConnection."""
        if self._phase != _OPEN:
            self.cut()

    def abort(self) -> None:
        """Close the connection at once, with a close frame if there is room for one."""
        if self._phase == _OPEN and not self._congested:
            self._say_close(CLOSE_RESTARTING, "")
            self._app.end(CLOSE_RESTARTING, "")
            self._end(linger=False)
        else:
            self.cut()

    # --- time -----------------------------------------------------------------------------------

    def held_bytes(self) -> int:
        """See memory_pressure.Client."""
        return self.unsent() if self._congested else 0

    def progress(self) -> object:
        """See memory_pressure.Client."""
        return self.unsent()

    @property
    def peer_name(self) -> str:
        """See memory_pressure.Client."""
        client = self._app.scope["client"]
        return str(client[0]) if client else ""

    def _schedule(self) -> None:
        """Set the deadline to the limit that comes first."""
        due = [self._due_ns]
        if self._phase == _OPEN and not self._congested:
            due += [self._ping_ns, self._pong_ns]
        self.deadline_ns = min((moment for moment in due if moment), default=0)

    def sweep(self, now_ns: int) -> int:
        """See ServedConnection. An open WebSocket does not count as a request in flight."""
        if self.deadline_ns and now_ns >= self.deadline_ns:
            self._on_timeout(now_ns)
        return 0

    def open_calls(self) -> list[ASGICall | WebSocketCall]:
        """See ServedConnection."""
        return []

    def _on_timeout(self, now: int) -> None:
        """Handle the deadline that has passed.

        now  monotonic nanoseconds
        """
        if self._phase >= _LINGERING:
            self.cut()
        elif self._due_ns and now >= self._due_ns:
            self._on_stalled()
        elif self._phase == _OPEN:
            self._on_heartbeat(now)

    def _on_stalled(self) -> None:
        """Cut the wire, because the client has not answered a close frame, or takes no bytes."""
        left = self.unsent()
        if self._congested and left < self._unsent:
            self.buffer_full()
        else:
            log.debug(
                "Cut the WebSocket of %s: its client neither reads nor answers the close frame",
                self.peer_name or "a client",
            )
            restarts = self._leaving and self._phase == _CLOSING
            self._app.end(CLOSE_RESTARTING if restarts else CLOSE_ABNORMAL, "")
            self.cut()

    def _on_heartbeat(self, now: int) -> None:
        """Send a ping if one is due, and close if the last one was not answered in time.

        now  monotonic nanoseconds

        Any data from the client counts as an answer, because its pong can't overtake a long
        message. While we don't read, no answer can reach us, so the client gets more time.
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
    """A WebSocket that has a whole connection to itself, after a handshake over HTTP/1.1."""

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
        """See asyncio.Protocol. False: a WebSocket can't be half closed."""
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
            transport.close()  # over TLS the event loop lingers by itself
        elif not transport.is_closing():
            transport.write_eof()

    def cut(self) -> None:
        """See WebSocketSession."""
        self._transport.abort()
