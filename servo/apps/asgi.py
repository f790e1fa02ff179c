"""An ASGI 3 application behind an HTTP connection (the ASGI HTTP specification 2.5).

A worker has one `ASGIAdapter` (see `asgi_scope`), and each request has an `ASGICall`. The
connection's driver passes body data and disconnects to the call; the call sends through the driver,
which is its `ASGITransport`. To keep requests cheap, this module makes no timer, lock or queue.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

from servo.apps.awaitables import READY, Ready, run_app
from servo.apps.response_writer import ERROR_BODY
from servo.errors import AppError, ServoError
from servo.http.errors import ClientDisconnected, LocalProtocolError
from servo.http.serialise import flat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from servo._types import ASGIMessage, Scope
    from servo.apps.asgi_scope import ASGIAdapter
    from servo.apps.response_writer import ASGIResponseWriter
    from servo.http.events import Data, Request


class ResponseCut(ServoError):  # noqa: N818  it says what happened
    """Raised by `wsgi_in_async` when a response is cut off. The reason is already logged."""


class ASGITransport(Protocol):
    """The part of a connection's driver that an `ASGICall` uses.

    loop  the event loop that runs the driver
    """

    loop: asyncio.AbstractEventLoop

    @property
    def writable(self) -> bool:
        """Whether the application may send more, because few bytes are still unsent."""

    def write(self, data: bytes) -> None:
        """Send bytes, and buffer those that the socket does not take."""

    async def drained(self) -> None:
        """Wait until the buffer is nearly empty. Raises `ClientDisconnected`."""

    def resume_reading(self) -> None:
        """Read more of the body, because the application wants it."""

    async def send_file(self, fd: int, offset: int, count: int) -> None:
        """Send a part of an open file as a part of the body, after all written bytes.

        fd             the file's descriptor
        offset, count  the part, in bytes

        Raises `ClientDisconnected`, and `LocalProtocolError` if the body exceeds Content-Length.
        """

    def response_complete(self) -> None:
        """Note that the last byte of the response was written."""

    def call_done(self, call: Any) -> None:
        """Note that the application has returned."""


_DISCONNECT: ASGIMessage = {"type": "http.disconnect"}
# An application that sends in a loop never waits while the client reads fast, or after it has left.
# So after this many pieces, `send` lets the event loop run: it serves other requests, and notices a
# lost connection.
PIECES_A_TURN: Final = 32

# The phases of a call. `Final` lets mypyc compile the names as numbers.
_EXPECT_START: Final = 0
_EXPECT_BODY: Final = 1
_STREAMING: Final = 2
_TRAILERS: Final = 3
_COMPLETE: Final = 4


class ASGICall:
    """One request and its response, with the application's `receive` and `send`.

    adapter     the application, its logger and its lifespan state
    template    the parts of the scope that all requests of the connection share
    request     the request
    http        turns the response into bytes
    transport   the connection's driver
    started_ns  when the request arrived, in nanoseconds of the driver's clock

    status            the response's status; 0 before the application has sent it
    response_headers  the response's fields, for the access log and hooks
    more_body         whether more of the request's body may arrive
    disconnected      whether the client is gone
    cancelled         whether the driver has cancelled the task (`request_timeout`, or the worker's
                      end)
    task              the task that runs the application
    """

    __slots__ = (
        "_body",
        "_ended",
        "_http",
        "_phase",
        "_pieces",
        "_received",
        "_told",
        "_trailers",
        "_waiter",
        "adapter",
        "cancelled",
        "disconnected",
        "more_body",
        "request",
        "response_headers",
        "scope",
        "started_ns",
        "status",
        "task",
        "transport",
    )

    def __init__(
        self,
        adapter: ASGIAdapter,
        template: Scope,
        request: Request,
        http: ASGIResponseWriter,
        transport: ASGITransport,
        started_ns: int,
    ) -> None:
        self.adapter = adapter
        self._http = http
        self.transport = transport
        self._body = request.body
        self.more_body = request.more_body
        self._received = False
        self._ended = False
        self._told = False
        self._waiter: asyncio.Future[None] | None = None
        self._phase = _EXPECT_START
        self._pieces = 0
        self.response_headers: Any = ()
        self._trailers = False
        self.status: int = 0
        self.request = request
        self.started_ns = started_ns
        self.disconnected = False
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None
        self.scope = adapter.scope(template, request)

    def run(self) -> Coroutine[Any, Any, None]:
        """Make the coroutine that calls the application and ends its response."""
        return run_app(self)

    def returned(self) -> None:
        """Handle the application's return without an error. Called by `run_app`."""
        if self._phase != _COMPLETE and not self.disconnected:
            if self._told:
                self._give_up()
            else:
                self.failed(AppError("the application returned before its response was complete"))

    @property
    def is_long_lived(self) -> bool:
        """Whether the response is an event stream (HTML standard section 9.2) and has begun."""
        if self._phase != _EXPECT_BODY and self._phase != _STREAMING:
            return False
        try:
            for name, value in self.response_headers:
                if bytes(name).lower() == b"content-type":
                    return bytes(value).lower().startswith(b"text/event-stream")
        except (TypeError, ValueError):
            return False  # the fields are invalid; the error is logged when they are sent
        return False

    def end_stream(self) -> None:
        """End a streamed response now, as if it were complete.

        The application gets a disconnect.
        """
        self.transport.write(self._head() + self._http.end_response())
        self.disconnected = True
        self._complete()

    # --- fed by the driver ---------------------------------------------------------------------

    def feed(self, event: Data) -> None:
        """Take another part of the request's body."""
        self._body += event.data
        self.more_body = event.more_body
        self._wake()

    @property
    def buffered(self) -> int:
        """The number of body bytes that the application has not received yet."""
        return len(self._body)

    def disconnect(self) -> None:
        """Note that the client is gone: `receive` returns a disconnect, `send` raises an error."""
        self.disconnected = True
        self._wake()

    def end_of_input(self) -> None:
        """Note the end of the client's data: `receive` returns a disconnect, `send` still works."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- called by the application -------------------------------------------------------------

    def receive(self) -> Coroutine[Any, Any, ASGIMessage]:
        """ASGI's `receive`. If the body is complete, this makes no coroutine."""
        if (
            not self._received
            and not self.more_body
            and not self.disconnected
            and self._phase != _COMPLETE
        ):
            self._received = True
            return Ready({"type": "http.request", "body": self._body, "more_body": False})
        return self._receive()

    async def _receive(self) -> ASGIMessage:
        transport = self.transport
        if self.more_body and not self._http.response_started:
            interim = self._http.send_continue()
            if interim:
                transport.write(interim)
        while True:
            if self.disconnected or self._phase == _COMPLETE:
                # Drop a body that the application has not received (ASGI HTTP specification,
                # "Disconnect").
                return self._disconnect()
            if not self._received and (self._body or not self.more_body):
                body, self._body = self._body, b""
                self._received = not self.more_body
                transport.resume_reading()
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            if self._ended:
                # The client has closed its side, and the body is complete.
                return self._disconnect()
            transport.resume_reading()
            self._waiter = transport.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def _disconnect(self) -> ASGIMessage:
        self._told = True
        return _DISCONNECT

    def send(self, message: ASGIMessage) -> Awaitable[None]:
        """ASGI's `send`.

        The two messages of an ordinary response are handled right here. The result is an awaitable
        that all calls share, so this makes no coroutine and switches no task.
        """
        if self.disconnected:
            raise ClientDisconnected("the client has closed the connection")
        kind = message["type"]
        if kind == "http.response.body":
            if self._phase == _EXPECT_BODY and not message.get("more_body"):
                if self._trailers:
                    return self._send_body(message)
                transport = self.transport
                transport.write(
                    self._http.send_response(
                        self.status, self.response_headers, message.get("body", b"")
                    )
                )
                self._phase = _COMPLETE
                if self._waiter is not None:
                    self._wake()
                transport.response_complete()
                return READY if transport.writable else transport.drained()
            return self._send_body(message)
        if kind == "http.response.start":
            if self._phase != _EXPECT_START:
                raise AppError("http.response.start was sent twice")
            self._phase = _EXPECT_BODY
            self.status = message["status"]
            self.response_headers = message.get("headers", ())
            self._trailers = message.get("trailers", False)
            return READY
        return self._send_other(message)

    def _send_body(self, message: ASGIMessage) -> Awaitable[None]:
        transport = self.transport
        if self._phase not in (_EXPECT_BODY, _STREAMING):
            raise AppError(f"http.response.body was sent {_WHEN[self._phase]}")
        body: Any = message.get("body", b"")
        if not issubclass(type(body), _BYTES):
            raise AppError(f"a response body is made of bytes, not {type(body).__name__}")
        if type(body) is memoryview:
            body = flat(body)
        data = self._head(len(body)) + self._http.send_data(body)
        self._phase = _STREAMING
        if message.get("more_body"):
            transport.write(data)
            self._pieces += 1
            if transport.writable and not self._pieces % PIECES_A_TURN:
                return asyncio.sleep(0)
        elif self._trailers:
            self._phase = _TRAILERS
            transport.write(data)
        else:
            transport.write(data + self._http.end_response())
            self._complete()
        return READY if transport.writable else transport.drained()

    def _head(self, first: int = 0) -> bytes:
        if self._phase != _EXPECT_BODY:
            return b""
        return self._http.start_response(self.status, self.response_headers, first)

    def _send_other(self, message: ASGIMessage) -> Awaitable[None]:
        kind = message["type"]
        transport = self.transport
        if kind == "http.response.trailers" and self._phase == _TRAILERS:
            transport.write(self._http.end_response(message.get("headers", ())))
            self._complete()
            return READY
        if kind == "http.response.early_hint" and self._phase == _EXPECT_START:
            links = [(b"link", link) for link in message.get("links", ())]
            transport.write(self._http.send_informational(103, links))
            return READY
        if kind == "http.response.pathsend" and self._phase == _EXPECT_BODY:
            return self._send_path(message["path"])
        if kind == "http.response.zerocopysend" and self._phase in (_EXPECT_BODY, _STREAMING):
            return self._send_zero_copy(message)
        if kind == "http.response.debug" and self._phase == _EXPECT_START:
            self.adapter.log.debug(
                "%s %a: %r",
                self.request.method,
                self.request.target.decode("latin-1"),
                message["info"],
            )
            return READY
        raise AppError(f"{kind!r} was sent {_WHEN[self._phase]}")

    async def _send_path(self, path: str) -> None:
        # Open the file before sending the head, so that the client gets a 500 if it is missing.
        fd = await self.transport.loop.run_in_executor(None, os.open, path, os.O_RDONLY)
        try:
            await self._send_file(fd, 0, os.fstat(fd).st_size, more_body=False)
        finally:
            os.close(fd)

    async def _send_zero_copy(self, message: ASGIMessage) -> None:
        file, offset = message["file"], message.get("offset")
        fd = file if isinstance(file, int) else file.fileno()
        start = offset
        if start is None:
            start = os.lseek(fd, 0, os.SEEK_CUR) if isinstance(file, int) else file.tell()
        count = message.get("count")
        left = max(os.fstat(fd).st_size - start, 0)
        count = left if count is None else min(count, left)
        await self._send_file(fd, start, count, message.get("more_body", False))
        if offset is None:
            os.lseek(fd, start + count, os.SEEK_SET)

    async def _send_file(self, fd: int, offset: int, count: int, more_body: bool) -> None:
        transport = self.transport
        self._check_connected()
        transport.write(self._head(count))
        self._phase = _STREAMING
        if count and self.request.method != "HEAD":
            await transport.send_file(fd, offset, count)
            self._check_connected()
        if more_body:
            return
        if self._trailers:
            self._phase = _TRAILERS
            return
        transport.write(self._http.end_response())
        self._complete()

    def _complete(self) -> None:
        """Note that the last byte was written, and wake a task that waits in `receive`."""
        self._phase = _COMPLETE
        self._wake()
        self.transport.response_complete()

    # --- errors --------------------------------------------------------------------------------

    def _check_connected(self) -> None:
        """Raise an error if the client has gone meanwhile. `send` calls this after each `await`."""
        if self.disconnected:
            raise ClientDisconnected("the client has closed the connection")

    def failed(self, error: BaseException) -> None:
        """Log an error of the application, and end the response."""
        gone = comes_of_disconnect(error) or self._is_our_cancellation(error)
        if not gone and not isinstance(error, ResponseCut):
            self._log(error)
        if self.disconnected or self.cancelled:
            return
        if self._phase == _COMPLETE:
            self._http.close_after = True
            return
        if not gone and not self._http.response_started:
            self.status = 500
            self.transport.write(
                self._http.send_response(
                    500, [(b"content-type", b"text/plain; charset=utf-8")], ERROR_BODY
                )
            )
            self._complete()
        else:
            self._give_up()

    def _is_our_cancellation(self, error: BaseException) -> bool:
        return isinstance(error, asyncio.CancelledError) and (self.cancelled or self.disconnected)

    def _give_up(self) -> None:
        """Cut the response off by closing the connection, so that the client notices."""
        self._http.close_after = True
        self._complete()

    def _log(self, error: BaseException) -> None:
        what = f"{self.request.method} {self.request.target.decode('latin-1')!a}"
        if isinstance(error, (AppError, LocalProtocolError)):
            self.adapter.log.error("Invalid response to %s: %s", what, error)
        else:
            self.adapter.log.error("Error in the application for %s", what, exc_info=error)


_BYTES: tuple[type, ...] = (bytes, bytearray, memoryview)
_WHEN = {
    _EXPECT_START: "before http.response.start",
    _EXPECT_BODY: "before the body",
    _STREAMING: "in the middle of the body",
    _TRAILERS: "where the trailers were due",
    _COMPLETE: "after the response was complete",
}


def comes_of_disconnect(error: BaseException | None) -> bool:
    """Whether an error is, or was caused by, `ClientDisconnected`: frameworks often wrap it."""
    seen = 0
    while error is not None and seen < 20:
        if isinstance(error, ClientDisconnected):
            return True
        error = error.__cause__ or error.__context__
        seen += 1
    return False
