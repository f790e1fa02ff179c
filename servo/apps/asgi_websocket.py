"""An ASGI 3 application behind a WebSocket (the ASGI WebSocket specification 2.5).

A `WebSocketCall` begins as what its driver takes for an HTTP request: until the application has
accepted or denied the handshake, everything that holds for a request holds for it. From then on it
has a `Channel`, which is the open connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from servo.apps.asgi import (
    ERROR_BODY,
    PIECES_A_TURN,
    AppError,
    Transport,
    is_consequence,
)
from servo.apps.awaitables import READY, Ready
from servo.http.errors import ClientDisconnected, LocalProtocolError
from servo.http.websocket import ABNORMAL, INTERNAL_ERROR, NORMAL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from servo._types import Scope
    from servo.apps.asgi import Exchange
    from servo.apps.asgi_scope import ASGIAdapter
    from servo.http.events import Data, Headers, Request
    from servo.http.websocket import Handshake, WebSocketConnection

    Message = dict[str, Any]

# Bytes of messages that wait for an application that doesn't ask for them; past it reading pauses.
QUEUE_HIGH_WATER = 65536


class Channel(Protocol):
    """What a call needs of an open connection's driver."""

    writable: bool

    def send(self, message: str | bytes) -> None:
        """Send a message, buffering what the socket doesn't take. Dropped once we have closed."""

    async def drained(self) -> None:
        """Wait until the buffer is nearly empty. Raises ClientDisconnected."""

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake. Raises LocalProtocolError for what can't be said."""

    def taken(self) -> None:
        """The application has taken a message."""

    def waiting(self) -> None:
        """The application waits for a message, and none is there."""


class HandshakeTransport(Transport, Protocol):
    """What a call needs of the driver before the handshake is answered."""

    def open_websocket(
        self, call: WebSocketCall, headers: Headers, connection: WebSocketConnection
    ) -> Channel:
        """Accept the handshake with these header fields. Raises LocalProtocolError."""

    def abandon_handshake(self) -> None:
        """The client has left before an answer: account for the request, and close."""


_CONNECTING, _DENYING, _OPEN, _OVER = range(4)


class WebSocketCall:
    """One WebSocket, from its handshake to the application's return.

    max_queue         messages that may wait for the application
    max_message_size  bytes of one message, see WebSocketConnection

    disconnected  the connection was lost before the handshake was answered
    """

    # A handshake has no body.
    more_body = False
    buffered = 0

    __slots__ = (
        "_adapter",
        "_channel",
        "_end",
        "_half_closed",
        "_handshake",
        "_http",
        "_inbox",
        "_max_message_size",
        "_max_queue",
        "_phase",
        "_pieces",
        "_transport",
        "_waiter",
        "_waiting_bytes",
        "cancelled",
        "disconnected",
        "request",
        "response_headers",
        "scope",
        "started_ns",
        "status",
        "task",
    )

    def __init__(
        self,
        adapter: ASGIAdapter,
        template: Scope,
        request: Request,
        handshake: Handshake,
        http: Exchange,
        transport: HandshakeTransport,
        started_ns: int,
        *,
        max_queue: int,
        max_message_size: int,
    ) -> None:
        self._adapter = adapter
        self._handshake = handshake
        self._http = http
        self._transport = transport
        self._max_queue = max_queue
        self._max_message_size = max_message_size
        self._phase = _CONNECTING
        self._pieces = 0
        self._channel: Channel | None = None
        self._inbox: deque[Message] = deque([{"type": "websocket.connect"}])
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._end: tuple[int, str] | None = None
        self._half_closed = False
        self.request = request
        self.response_headers: Any = ()
        self.started_ns = started_ns
        self.status = 0
        self.disconnected = False
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None
        self.scope = _scope(adapter.scope(template, request), handshake)

    async def run(self) -> None:
        """Call the application and see the connection through to an end, whatever it does."""
        # Not before: a trusted proxy's word for the scheme comes after the scope was made.
        self.scope["scheme"] = _SCHEMES.get(self.scope["scheme"], self.scope["scheme"])
        code = INTERNAL_ERROR
        try:
            await self._adapter.app(self.scope, self.receive, self.send)
            code = NORMAL
        except BaseException as error:  # noqa: BLE001  logged, with its traceback
            self._failed(error)  # see awaitables.see_through
        else:
            self._returned()
        finally:
            if self._phase == _OPEN and self._channel is not None:
                self._phase = _OVER
                self._channel.close(code, "")
            elif self._phase in (_CONNECTING, _DENYING) and self._half_closed:
                self._abandon()
            self._transport.call_done(self)

    # --- fed by the driver ----------------------------------------------------------------------

    def feed(self, event: Data) -> None:
        """Never called: a handshake has no body."""
        raise AssertionError(event)

    def disconnect(self) -> None:
        """The client is gone before the handshake was answered."""
        self.disconnected = True
        self.end(ABNORMAL, "")

    def end_of_input(self) -> None:
        """The client has closed its side.

        No WebSocket is half-closed (RFC 6455 section 7.1.5), so an application that waits for the
        client is told of a disconnect. One that answers without asking may do so: frames may have
        come with the handshake, and the end is the open connection's then.
        """
        self._half_closed = True
        self._wake()

    def deliver(self, message: str | bytes) -> None:
        """A message has come."""
        kind = "text" if message.__class__ is str else "bytes"
        self._inbox.append({"type": "websocket.receive", kind: message})
        self._waiting_bytes += len(message)
        self._wake()

    @property
    def full(self) -> bool:
        """Enough is waiting for the application."""
        return len(self._inbox) >= self._max_queue or self._waiting_bytes >= QUEUE_HIGH_WATER

    @property
    def quiet(self) -> bool:
        """The application waits for a message, and none is there."""
        return self._waiter is not None and not self._inbox and not self._waiter.done()

    def end(self, code: int, reason: str) -> None:
        """The connection is over. The application gets what has come before that."""
        if self._end is None:
            self._end = code, reason
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- called by the application --------------------------------------------------------------

    def receive(self) -> Coroutine[Any, Any, Message]:
        """ASGI's `receive`."""
        if self._inbox:
            return Ready(self._next())
        return self._receive()

    def _next(self) -> Message:
        message = self._inbox.popleft()
        if self._channel is not None:
            self._waiting_bytes -= len(message.get("text") or message.get("bytes") or "")
            self._channel.taken()
        return message

    async def _receive(self) -> Message:
        while not self._inbox:
            if self._half_closed and self._phase == _CONNECTING:
                self._abandon()
            if self._half_closed and self._phase == _DENYING:
                return {"type": "websocket.disconnect", "code": ABNORMAL, "reason": ""}
            if self._end is not None:
                code, reason = self._end
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._waiter = self._transport.loop.create_future()
            if self._channel is not None:
                self._channel.waiting()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._next()

    def send(self, message: Message) -> Awaitable[None]:
        """ASGI's `send`."""
        if message["type"] != "websocket.send":
            return self._send_other(message)
        channel = self._channel
        if self._phase != _OPEN or channel is None:
            raise AppError(f"websocket.send was sent {_WHEN[self._phase]}")
        if self._end is not None:
            raise ClientDisconnected("the WebSocket is closed")
        data = message.get("bytes")
        if data is None:
            data = message.get("text")
            if not isinstance(data, str):
                raise AppError("websocket.send with neither bytes nor text")
        channel.send(data)
        if not channel.writable:
            return channel.drained()
        self._pieces += 1
        return READY if self._pieces % PIECES_A_TURN else asyncio.sleep(0)

    def _send_other(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        phase = self._phase
        if phase == _OVER:
            raise AppError(f"{kind} was sent {_WHEN[phase]}")
        if self.disconnected:
            raise ClientDisconnected("the client has closed the connection")
        if kind == "websocket.close" and phase == _OPEN:
            self._close(message)
        elif kind == "websocket.accept" and phase == _CONNECTING:
            self._accept(message)
        elif kind == "websocket.close" and phase == _CONNECTING:
            self._deny(403, [], b"")
        elif kind == "websocket.http.response.start" and phase == _CONNECTING:
            self._phase = _DENYING
            self.status = message["status"]
            self.response_headers = list(message.get("headers", ()))
        elif kind == "websocket.http.response.body" and phase == _DENYING:
            return self._send_body(message)
        else:
            raise AppError(f"{kind} was sent {_WHEN[phase]}")
        return READY

    def _accept(self, message: Message) -> None:
        given = [(name, value) for name, value in message.get("headers", ())]
        headers = self._handshake.fields(message.get("subprotocol"), given)
        connection = self._handshake.connection(self._max_message_size)
        self.response_headers = headers
        # Open from here on: what came with the handshake is delivered before this returns.
        self._channel = self._transport.open_websocket(self, headers, connection)
        self._phase = _OPEN

    def _close(self, message: Message) -> None:
        assert self._channel is not None
        # A client that is gone already has closed in its own way: there is nothing to add.
        if self._end is None:
            code = message.get("code", NORMAL)
            reason = message.get("reason") or ""
            self._channel.close(code, reason)
            self.end(code, reason)
        self._phase = _OVER

    # --- denying --------------------------------------------------------------------------------

    def _deny(self, status: int, headers: Headers, body: bytes) -> None:
        """Answer the handshake with a whole response."""
        self._phase = _OVER
        self.status = status
        self.response_headers = headers
        self._transport.write(self._http.send_response(status, [*headers, _CLOSE], body))
        self._denied()

    def _send_body(self, message: Message) -> Awaitable[None]:
        """The body of a denial (the extension `websocket.http.response`)."""
        transport = self._transport
        body = message.get("body", b"")
        http = self._http
        if not http.response_started and not message.get("more_body"):
            self._deny(self.status, self.response_headers, body)
            return READY
        head = b""
        if not http.response_started:
            head = http.start_response(self.status, [*self.response_headers, _CLOSE])
        data = head + http.send_data(body)
        if message.get("more_body"):
            transport.write(data)
        else:
            transport.write(data + http.end_response())
            self._denied()
        return READY if transport.writable else transport.drained()

    def _denied(self) -> None:
        self._phase = _OVER
        self._transport.response_complete()
        self.end(ABNORMAL, "")

    # --- errors ---------------------------------------------------------------------------------

    def _abandon(self) -> None:
        """Let a client go that has closed its side before the handshake was answered."""
        if not self.disconnected and not self.cancelled:
            self._transport.abandon_handshake()

    def _returned(self) -> None:
        gone = self.disconnected or self._half_closed
        if self._phase in (_CONNECTING, _DENYING) and not gone:
            self._failed(AppError("the application returned before it answered the handshake"))

    def _failed(self, error: BaseException) -> None:
        if self.disconnected or self.cancelled or self._half_closed or self._end is not None:
            if not is_consequence(error) and not isinstance(error, asyncio.CancelledError):
                self._log(error)
            return
        self._log(error)
        if self._phase not in (_CONNECTING, _DENYING):
            return
        if self._http.response_started:
            self._http.close_after = True
            self._denied()
        else:
            self._deny(500, [(b"content-type", b"text/plain; charset=utf-8")], ERROR_BODY)

    def _log(self, error: BaseException) -> None:
        what = f"the WebSocket {self.request.target.decode('latin-1')!a}"
        if isinstance(error, (AppError, LocalProtocolError)):
            self._adapter.log.error("Invalid use of %s: %s", what, error)
        else:
            self._adapter.log.error("Error in the application for %s", what, exc_info=error)


# A client may have sent frames already, which are no next request.
_CLOSE = (b"connection", b"close")
_SCHEMES = {"http": "ws", "https": "wss"}
_WHEN = {
    _CONNECTING: "before websocket.accept",
    _DENYING: "in the middle of a denial",
    _OPEN: "after websocket.accept",
    _OVER: "after the end",
}


def _scope(scope: Scope, handshake: Handshake) -> Scope:
    """The scope of a WebSocket, made of one for HTTP."""
    del scope["method"]
    scope["type"] = "websocket"
    scope["subprotocols"] = handshake.subprotocols
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    if "tls" in scope["extensions"]:
        extensions["tls"] = scope["extensions"]["tls"]
    scope["extensions"] = extensions
    return scope
