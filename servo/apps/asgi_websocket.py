"""An ASGI 3 application behind a WebSocket (the ASGI WebSocket specification 2.5).

A `WebSocketCall` begins like an `ASGICall`: the handshake is an HTTP request until the application
accepts or denies it. After that, the call uses an `OpenWebSocket`, the driver of the open
connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from servo.apps.asgi import PIECES_A_TURN, ASGITransport, comes_of_disconnect
from servo.apps.awaitables import READY, Ready
from servo.apps.response_writer import ERROR_BODY
from servo.errors import AppError
from servo.http.errors import ClientDisconnected, LocalProtocolError
from servo.http.websocket import CLOSE_ABNORMAL, CLOSE_INTERNAL_ERROR, CLOSE_NORMAL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from servo._types import ASGIMessage, Scope
    from servo.apps.asgi_scope import ASGIAdapter
    from servo.apps.response_writer import ASGIResponseWriter
    from servo.http.events import Data, Headers, Request
    from servo.http.websocket import Handshake, WebSocketConnection

# How many bytes of messages may wait for the application. Above this, reading pauses.
QUEUE_HIGH_WATER = 65536


class OpenWebSocket(Protocol):
    """The part of an open connection's driver that a call uses.

    writable  False while too many bytes are buffered, so that the application must wait
    """

    writable: bool

    def send(self, message: str | bytes) -> None:
        """Send a message, or buffer it. After a close frame, messages are dropped."""

    async def drained(self) -> None:
        """Wait until the buffer is nearly empty. Raises `ClientDisconnected`."""

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake. Raises `LocalProtocolError` for an invalid argument."""

    def taken(self) -> None:
        """Note that the application has taken a message."""

    def waiting(self) -> None:
        """Note that the application waits for a message."""


class HandshakeTransport(ASGITransport, Protocol):
    """The part of the driver that a call uses before the handshake is answered."""

    def open_websocket(
        self, call: WebSocketCall, headers: Headers, connection: WebSocketConnection
    ) -> OpenWebSocket:
        """Accept the handshake, and return the driver of the open connection.

        call        the call that gets the messages
        headers     the fields of the response
        connection  frames and parses the messages

        Raises `LocalProtocolError` for fields that can't be sent.
        """

    def abandon_handshake(self) -> None:
        """Count the request and close the connection: the client has left before the response."""


_CONNECTING, _DENYING, _OPEN, _OVER = range(4)


class WebSocketCall:
    """One WebSocket, from its handshake to the application's return.

    adapter           the application, its logger and its lifespan state
    template          the parts of the scope that all requests of the connection share
    request           the request for the WebSocket
    handshake         the validated fields of the handshake
    http              turns a response that denies the handshake into bytes
    transport         the connection's driver
    started_ns        when the request arrived, in nanoseconds of the driver's clock
    max_queue         messages that may wait for the application
    max_message_size  the maximum size of one message, in bytes, see `WebSocketConnection`

    disconnected  whether the connection was lost before the response to the handshake
    """

    # A handshake has no body.
    more_body = False
    buffered = 0

    __slots__ = (
        "_adapter",
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
        "_websocket",
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
        http: ASGIResponseWriter,
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
        self._websocket: OpenWebSocket | None = None
        self._inbox: deque[ASGIMessage] = deque([{"type": "websocket.connect"}])
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
        """Call the application, and then end the connection, even after an error."""
        # Not earlier: a trusted proxy's scheme is put into the scope only after the scope is made.
        self.scope["scheme"] = _SCHEMES.get(self.scope["scheme"], self.scope["scheme"])
        code = CLOSE_INTERNAL_ERROR
        try:
            await self._adapter.app(self.scope, self.receive, self.send)
            code = CLOSE_NORMAL
        except BaseException as error:  # noqa: BLE001  logged, with its traceback
            self._failed(error)  # see awaitables.run_app
        else:
            self._returned()
        finally:
            if self._phase == _OPEN and self._websocket is not None:
                self._phase = _OVER
                self._websocket.close(code, "")
            elif self._phase in (_CONNECTING, _DENYING) and self._half_closed:
                self._abandon()
            self._transport.call_done(self)

    @property
    def is_long_lived(self) -> bool:
        """Whether the WebSocket is open."""
        return self._phase == _OPEN and self._end is None

    # --- fed by the driver ----------------------------------------------------------------------

    def feed(self, event: Data) -> None:
        """Raise an error: a handshake has no body, so no driver calls this."""
        raise AssertionError(event)

    def disconnect(self) -> None:
        """Note that the client has gone before the response to the handshake."""
        self.disconnected = True
        self.end(CLOSE_ABNORMAL, "")

    def end_of_input(self) -> None:
        """Note that the client has closed its side before the response to the handshake.

        A WebSocket can't be half-closed (RFC 6455 section 7.1.5), so an application that waits in
        `receive` gets a disconnect. If the application accepts without waiting, it first gets the
        frames that came with the handshake, and then the disconnect.
        """
        self._half_closed = True
        self._wake()

    def deliver(self, message: str | bytes) -> None:
        """Queue a received message for the application."""
        kind = "text" if message.__class__ is str else "bytes"
        self._inbox.append({"type": "websocket.receive", kind: message})
        self._waiting_bytes += len(message)
        self._wake()

    @property
    def full(self) -> bool:
        """Whether reading should pause, because many messages wait for the application."""
        return len(self._inbox) >= self._max_queue or self._waiting_bytes >= QUEUE_HIGH_WATER

    @property
    def quiet(self) -> bool:
        """Whether the application waits for a message, and none is queued."""
        return self._waiter is not None and not self._inbox and not self._waiter.done()

    def end(self, code: int, reason: str) -> None:
        """Note the end of the connection. The application still gets the earlier messages.

        code    the close frame's code; 1006 if there was no close frame
        reason  the close frame's reason
        """
        if self._end is None:
            self._end = code, reason
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- called by the application --------------------------------------------------------------

    def receive(self) -> Coroutine[Any, Any, ASGIMessage]:
        """ASGI's `receive`. If a message is waiting, this makes no coroutine."""
        if self._inbox:
            return Ready(self._next())
        return self._receive()

    def _next(self) -> ASGIMessage:
        message = self._inbox.popleft()
        if self._websocket is not None:
            self._waiting_bytes -= len(message.get("text") or message.get("bytes") or "")
            self._websocket.taken()
        return message

    async def _receive(self) -> ASGIMessage:
        while not self._inbox:
            if self._half_closed and self._phase == _CONNECTING:
                self._abandon()
            if self._half_closed and self._phase == _DENYING:
                return {"type": "websocket.disconnect", "code": CLOSE_ABNORMAL, "reason": ""}
            if self._end is not None:
                code, reason = self._end
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._waiter = self._transport.loop.create_future()
            if self._websocket is not None:
                self._websocket.waiting()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._next()

    def send(self, message: ASGIMessage) -> Awaitable[None]:
        """ASGI's `send`."""
        if message["type"] != "websocket.send":
            return self._send_other(message)
        websocket = self._websocket
        if self._phase != _OPEN or websocket is None:
            raise AppError(f"websocket.send was sent {_WHEN[self._phase]}")
        if self._end is not None:
            raise ClientDisconnected("the WebSocket is closed")
        data = message.get("bytes")
        if data is None:
            data = message.get("text")
            if not isinstance(data, str):
                raise AppError("websocket.send with neither bytes nor text")
        websocket.send(data)
        if not websocket.writable:
            return websocket.drained()
        self._pieces += 1
        return READY if self._pieces % PIECES_A_TURN else asyncio.sleep(0)

    def _send_other(self, message: ASGIMessage) -> Awaitable[None]:
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

    def _accept(self, message: ASGIMessage) -> None:
        given = [(name, value) for name, value in message.get("headers", ())]
        headers = self._handshake.fields(message.get("subprotocol"), given)
        connection = self._handshake.connection(self._max_message_size)
        self.response_headers = headers
        # This also delivers the messages that came with the handshake.
        self._websocket = self._transport.open_websocket(self, headers, connection)
        self._phase = _OPEN

    def _close(self, message: ASGIMessage) -> None:
        assert self._websocket is not None
        # If the client has already closed the connection, there is nothing to send.
        if self._end is None:
            code = message.get("code", CLOSE_NORMAL)
            reason = message.get("reason") or ""
            self._websocket.close(code, reason)
            self.end(code, reason)
        self._phase = _OVER

    # --- denying --------------------------------------------------------------------------------

    def _deny(self, status: int, headers: Headers, body: bytes) -> None:
        """Deny the handshake with a whole response."""
        self._phase = _OVER
        self.status = status
        self.response_headers = headers
        self._transport.write(self._http.send_response(status, [*headers, _CLOSE], body))
        self._denied()

    def _send_body(self, message: ASGIMessage) -> Awaitable[None]:
        """Send a part of a denial's body (the extension `websocket.http.response`)."""
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
        self.end(CLOSE_ABNORMAL, "")

    # --- errors ---------------------------------------------------------------------------------

    def _abandon(self) -> None:
        """Give up on a client that closed its side before the response to the handshake."""
        if not self.disconnected and not self.cancelled:
            self._transport.abandon_handshake()

    def _returned(self) -> None:
        gone = self.disconnected or self._half_closed
        if self._phase in (_CONNECTING, _DENYING) and not gone:
            self._failed(AppError("the application returned before it answered the handshake"))

    def _failed(self, error: BaseException) -> None:
        if self.disconnected or self.cancelled or self._half_closed or self._end is not None:
            if not comes_of_disconnect(error) and not isinstance(error, asyncio.CancelledError):
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


# After a denial, close the connection: the client may already have sent frames, which must not be
# parsed as a request.
_CLOSE = (b"connection", b"close")
_SCHEMES = {"http": "ws", "https": "wss"}
_WHEN = {
    _CONNECTING: "before websocket.accept",
    _DENYING: "in the middle of a denial",
    _OPEN: "after websocket.accept",
    _OVER: "after the end",
}


def _scope(scope: Scope, handshake: Handshake) -> Scope:
    """Turn a scope for HTTP into one for a WebSocket."""
    del scope["method"]
    scope["type"] = "websocket"
    scope["subprotocols"] = handshake.subprotocols
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    if "tls" in scope["extensions"]:
        extensions["tls"] = scope["extensions"]["tls"]
    scope["extensions"] = extensions
    return scope
