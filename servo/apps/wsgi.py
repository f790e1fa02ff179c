"""A WSGI application behind an HTTP connection (PEP 3333).

A worker has one `WSGIAdapter` (see `wsgi_environ`), and each connection has a `WSGIResponder`. Its
method `run` calls the application, and returns the bytes of the response. If the response comes in
pieces, `run` sends them through the driver, a `WSGITransport`.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from servo.apps.response_writer import ERROR_BODY
from servo.apps.wsgi_file import FileRegion, FileWrapper, bounded, plain_file
from servo.errors import AppError
from servo.http.errors import ClientDisconnected, LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from servo._types import Environ, StartResponse
    from servo.apps.response_writer import WSGIResponseWriter
    from servo.apps.wsgi_environ import WSGIAdapter


class WSGITransport(Protocol):
    """The part of a connection's driver that a responder uses.

    The methods raise `ClientDisconnected`.
    """

    def send_all(self, data: bytes) -> None:
        """Send bytes, or buffer them. Waits for a slow client only if the buffer is full."""

    def finish(self, rest: bytes | FileRegion) -> None:
        """Send the end of a response, before the application's `close` is called.

        rest  the last bytes, or a head with a part of a file
        """


class _ClosedTransport:
    """The transport of a responder whose connection is closed."""

    def send_all(self, data: bytes) -> None:
        """See WSGITransport."""
        raise ClientDisconnected("the connection is closed")

    def finish(self, rest: bytes | FileRegion) -> None:
        """See WSGITransport."""
        raise ClientDisconnected("the connection is closed")


_CLOSED_TRANSPORT: Final = _ClosedTransport()
_LIST_ITERATOR: type = type(iter([]))


class WSGIResponder:
    """Calls the application for the requests of one connection, one after another.

    adapter    the application and its settings
    http       frames the responses
    transport  the connection's driver

    status, headers  those of the current response, for the access log and hooks
    start_response   the application's argument of the same name
    """

    __slots__ = (
        "_adapter",
        "_app",
        "_http",
        "_started",
        "_transport",
        "headers",
        "start_response",
        "status",
    )

    def __init__(
        self, adapter: WSGIAdapter, http: WSGIResponseWriter, transport: WSGITransport
    ) -> None:
        self._adapter = adapter
        self._app = adapter.app
        self._http = http
        self._transport: WSGITransport = transport
        self._started = False
        self.status: str | None = None
        self.headers: Any = ()
        # Look it up only once: each look-up would make a new bound-method object.
        self.start_response: StartResponse = self._start_response

    def release(self) -> None:
        """Break the reference cycles of this object, because its connection is closed.

        If the application has kept a function of ours, such as `write`, it raises
        ClientDisconnected from now on.
        """
        self._transport = _CLOSED_TRANSPORT
        self.start_response = _start_after_close

    def run(self, environ: Environ) -> bytes | FileRegion:
        """Call the application.

        environ  the request's environ

        Returns the part of the response that the driver has to send. If the response has a `close`
        method, the driver gets this part earlier, through `WSGITransport.finish`.

        Errors of the application are logged with their traceback. If no byte was sent, the client
        gets a 500. Otherwise the connection is closed, which shows the client that the response is
        incomplete (RFC 9112 section 8).
        """
        self.status = None
        self.headers = ()  # don't keep the previous request's headers if the app fails
        self._started = False
        try:
            result: Any = self._app(environ, self.start_response)
            if self._adapter.forked:
                _end_child(None)
            kind = type(result)
            if (kind is list or kind is tuple) and not self._started:
                return self._whole(result)
        except ClientDisconnected:
            self._http.close_after = True
            return b""
        except BaseException:  # noqa: BLE001  logged, with its traceback
            # Catch SystemExit, CancelledError and the like, too: an application must not end the
            # worker or a thread.
            return self._failed(environ)
        return self._deliver(result, environ)

    def _deliver(self, result: Any, environ: Environ) -> bytes | FileRegion:
        """Send the parts of the response, and then let the application clean up.

        The response is sent, or passed to the driver, before `close` is called. `close` may take
        long (some run jobs in it) or fail, and neither should affect the client.
        """
        rest: bytes | FileRegion = b""
        close: Any = None
        try:
            close = getattr(result, "close", None)
            rest = self._stream(result)
        except ClientDisconnected:
            self._http.close_after = True
        except BaseException:  # noqa: BLE001  as in `run`
            rest = self._failed(environ)
        if close is None:
            return rest
        try:
            self._transport.finish(rest)
        except ClientDisconnected:
            self._http.close_after = True
        try:
            close()
        except BaseException as error:
            if self._adapter.forked:
                _end_child(error)
            self._adapter.log.error(
                "Error in close() of the response to %s", _shown(environ), exc_info=error
            )
        if self._adapter.forked:
            _end_child(None)
        return b""

    def _start_response(
        self, status: Any, headers: Any, exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # avoids a reference cycle with the frames (PEP 3333)
        elif self.status is not None:
            raise AppError("start_response was called twice without exc_info")
        if type(status) is not str or len(status) < 3:
            raise AppError(f"status is not a string like '200 OK': {status!r}")
        self.status = status
        self.headers = headers
        return self._write

    def _write(self, data: Any) -> None:
        """The `write` callable of PEP 3333."""
        self._transport.send_all(self._frame(data))

    def early_hints(self, headers: Any) -> None:
        """`wsgi.early_hints`: send 103 Early Hints (RFC 8297) before the response.

        headers  usually `("Link", "</style.css>; rel=preload; as=style")` and the like

        An HTTP/1.0 client gets nothing. Raises `AppError` if the response has begun, and
        `ClientDisconnected`.
        """
        if self._started:
            raise AppError("wsgi.early_hints was called after the response had begun")
        data = self._http.send_informational(103, headers)
        if data:
            self._transport.send_all(data)

    def _frame(self, data: Any) -> bytes:
        if not isinstance(data, bytes):
            raise AppError(f"a response body is made of bytes, not {type(data).__name__}")
        http = self._http
        if self._started:
            if http.response_complete:
                raise LocalProtocolError("more body than Content-Length says")
            return http.send_data(data)
        status = self._status_given()
        if ("Content-Length", str(len(data))) in self.headers:
            # Most frameworks return an iterator of one block, the whole body.
            framed = http.send_response(status, self.headers, data)
        else:
            framed = http.start_response(status, self.headers, len(data)) + http.send_data(data)
        self._started = True
        return framed

    def _whole(self, blocks: Any) -> bytes:
        status = self._status_given()
        body = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        if type(body) is not bytes:
            raise AppError(f"a response body is made of bytes, not {type(body).__name__}")
        return self._http.send_response(status, self.headers, body)

    def _stream(self, result: Iterable[Any]) -> bytes | FileRegion:
        if type(result) is FileWrapper and not self._started:
            region = self._file_region(result)
            if region is not None:
                return region
        blocks = bounded(result, self.headers) if type(result) is FileWrapper else iter(result)
        if type(blocks) is _LIST_ITERATOR and not self._started:
            # All blocks already exist, as in Django's responses. So they can be sent together.
            return self._whole(list(blocks))
        for block in blocks:
            if self._adapter.forked:
                _end_child(None)
            if block:
                # Send it at once: PEP 3333 forbids delaying a block while the application makes the
                # next one.
                self._transport.send_all(self._frame(block))
        if self._adapter.forked:
            _end_child(None)
        if not self._started:
            return self._http.send_response(self._status_given(), self.headers, b"")
        return b"" if self._http.response_complete else self._http.end_response()

    def _status_given(self) -> str:
        if self.status is None:
            raise AppError("the application returned without calling start_response")
        return self.status

    def _file_region(self, wrapper: FileWrapper) -> FileRegion | None:
        """The rest of the wrapped file, if sendfile can send it; else None."""
        if not self._adapter.sendfile or self.status is None:
            return None
        plain = plain_file(wrapper.filelike)
        if plain is None:
            return None
        fd, offset, size = plain
        count = size - offset
        headers = self.headers
        declared = [value for name, value in headers if name.lower() == "content-length"]
        if not declared:
            headers = [*headers, ("Content-Length", str(count))]
        elif len(declared) == 1 and declared[0].isdecimal():
            count = min(count, int(declared[0]))
        head = self._http.start_response(self.status, headers)
        self._started = True
        if not self._http.raw_body:
            return FileRegion(head + self._http.end_response(), os.dup(fd), 0, 0)
        self._http.account(count)
        return FileRegion(head + self._http.end_response(), os.dup(fd), offset, count)

    def _failed(self, environ: Environ) -> bytes:
        error = sys.exc_info()[1]
        if self._adapter.forked:
            _end_child(error)
        what = _shown(environ)
        if isinstance(error, (AppError, LocalProtocolError)):
            self._adapter.log.error("Invalid response to %s: %s", what, error)
        else:
            self._adapter.log.error("Error in the application for %s", what, exc_info=error)
        if self._http.response_started:
            self._http.close_after = True
            return b""
        # The access log and hooks must show the 500 that was sent, not the app's own response.
        self.status = "500 Internal Server Error"
        self.headers = [("Content-Type", "text/plain; charset=utf-8")]
        return self._http.send_response(self.status, self.headers, ERROR_BODY)


def _start_after_close(status: Any, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
    raise ClientDisconnected("the connection is closed")


def _shown(environ: Environ) -> str:
    return f"{environ['REQUEST_METHOD']} {environ['RAW_URI']!a}"


def _end_child(error: BaseException | None) -> NoReturn:
    """End a child process that the application has forked, and that has returned from the app."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
