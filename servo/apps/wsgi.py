"""A WSGI application behind an HTTP connection (PEP 3333).

`WSGIAdapter` is made once a worker, `WSGIResponder` once a connection. `responder.run` calls the
application and gives back what is still to be sent; only a response that is produced in pieces is
sent from inside it. Nothing here knows a socket: the driver is a `Transport`.
"""

from __future__ import annotations

import io
import os
import stat
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import unquote_to_bytes

from servo import __version__
from servo.errors import ServoError
from servo.http.errors import ClientDisconnected, LocalProtocolError, ProtocolError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable, Iterator

    from servo._types import WSGIApp
    from servo.http.events import Request

    Environ = dict[str, Any]


class Transport(Protocol):
    """What a responder needs of the connection's driver."""

    def send_all(self, data: bytes) -> None:
        """Send all of it, waiting for a slow client. Raises ClientDisconnected."""

    def send_some(self, data: bytes) -> bytes | memoryview:
        """Send what the socket takes at once; the rest is returned."""


class Exchange(Protocol):
    """Where a response goes: an `H1Connection`, or what stands for one.

    Its methods return what is to be written; see `servo.http.h1_response.ResponseSide`.
    """

    close_after: bool

    @property
    def response_started(self) -> bool: ...

    @property
    def response_complete(self) -> bool: ...

    @property
    def raw_body(self) -> bool: ...

    def send_response(self, status: Any, headers: Any, body: bytes) -> bytes: ...

    def start_response(self, status: Any, headers: Any, first: int = 0) -> bytes: ...

    def send_data(self, data: bytes) -> bytes: ...

    def end_response(self) -> bytes: ...

    def send_informational(self, status: int, headers: Any) -> bytes: ...

    def account(self, n: int) -> None: ...


class FileRegion:
    """A part of a file that the driver sends (by sendfile) after the head, and then closes.

    `fd` is a descriptor of our own, so that the application may close its file at any time.
    """

    __slots__ = ("count", "fd", "head", "offset")

    def __init__(self, head: bytes, fd: int, offset: int, count: int) -> None:
        self.head = head
        self.fd = fd
        self.offset = offset
        self.count = count

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class FileWrapper:
    """`wsgi.file_wrapper`: an iterator over a file, sent by sendfile where that is possible."""

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.block_size)
        if not data:
            raise StopIteration
        return data


class EmptyInput:
    """`wsgi.input` of a request without a body. It has no state, so all requests share one."""

    def read(self, size: int | None = -1) -> bytes:
        """Nothing."""
        return b""

    def readline(self, size: int | None = -1) -> bytes:
        """Nothing."""
        return b""

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """No lines."""
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Nothing to close."""


_LIST_ITERATOR: type = type(iter([]))
# With a minor version, which CGI wants (RFC 3875 section 4.1.16).
_PROTOCOLS = {"1.1": "HTTP/1.1", "1.0": "HTTP/1.0", "2": "HTTP/2.0"}
_EMPTY_INPUT = EmptyInput()
_KEYS_KEPT = 1024


class WSGIAdapter:
    """One application and the parts of its environ that never change.

    header_map   what becomes of header names with underscores, which can't be told from dashes
                 in an environ: "drop" them, "refuse" the request, or "dangerous" (keep them)
    root_path    the mount point: becomes SCRIPT_NAME, and is cut from the front of PATH_INFO
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        log: logging.Logger,
        multithread: bool,
        multiprocess: bool,
        root_path: str = "",
        header_map: str = "drop",
        sendfile: bool = True,
    ) -> None:
        self.app = app
        self.log = log
        self.sendfile = sendfile
        self.forked = False
        self._root_path = root_path.rstrip("/")
        self._header_map = header_map
        # Header name (lower case) -> environ key. Bounded: clients choose names.
        self._keys = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"}
        self._base: Environ = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": multithread,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
            "SERVER_SOFTWARE": f"servo/{__version__}",
            "SCRIPT_NAME": self._root_path,
        }

    def watch_forks(self) -> None:
        """Have processes end that the application forks and lets run on into the worker's code.

        For workers: it can't be undone.
        """
        os.register_at_fork(after_in_child=self._note_fork)

    def _note_fork(self) -> None:
        self.forked = True

    def template(
        self, server: tuple[str, int] | str, client: tuple[str, int] | None, scheme: str
    ) -> Environ:
        """The environ parts of one connection; copied for each of its requests.

        `server` is (host, port) or the path of a Unix socket; `client` is None on one.
        """
        environ = self._base.copy()
        environ["wsgi.url_scheme"] = scheme
        if isinstance(server, str):
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server, ""
        else:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server[0], str(server[1])
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = (
            (client[0], str(client[1])) if client else ("", "")
        )
        return environ

    def environ(self, template: Environ, request: Request, body: Any, length: int) -> Environ:
        """The environ of a request whose body (`length` bytes) is `body`, or None for none.

        Raises ProtocolError for a name that `header_map` refuses.
        """
        return self.fill(self.with_headers(template, request), request, body, length)

    def with_headers(self, template: Environ, request: Request) -> Environ:
        """The template with a request's header fields and version, which the next may share."""
        environ = template.copy()
        environ["SERVER_PROTOCOL"] = _PROTOCOLS[request.version]
        named = request.named
        if len(named) == len(request.headers):
            # The ordinary case: no name comes twice, each has been seen before.
            keys = self._keys
            try:
                for name, value in request.headers:
                    environ[keys[name]] = value.decode("latin-1")
            except KeyError:
                self._add_headers(environ, request)
        else:
            self._add_headers(environ, request)
        return environ

    def fill(self, environ: Environ, request: Request, body: Any, length: int) -> Environ:
        """What is left of an environ that has the header fields."""
        environ["REQUEST_METHOD"] = request.method
        path = request.path
        target = request.target
        if b"%" in path:
            text = unquote_to_bytes(path).decode("latin-1")
            uri = target.decode("latin-1")
        else:
            text = path.decode("latin-1")
            # Of the same length: the target is the path, and nothing else.
            uri = text if len(target) == len(path) else target.decode("latin-1")
        if self._root_path and (text + "/").startswith(self._root_path + "/"):
            text = text[len(self._root_path) :]
        environ["PATH_INFO"] = text
        environ["QUERY_STRING"] = request.query.decode("latin-1")
        environ["RAW_URI"] = environ["REQUEST_URI"] = uri
        environ["wsgi.input"] = _EMPTY_INPUT if body is None else body
        if request.content_length is None and body is not None:
            environ["CONTENT_LENGTH"] = str(length)
        return environ

    def _add_headers(self, environ: Environ, request: Request) -> None:
        """Any headers, one by one: new names, repeated ones, ones that are left out."""
        seen: Environ = {}
        for name, value in request.headers:
            key = self._keys.get(name) or self._learn(name)
            if key is None:
                continue
            if key in seen:
                glue = "; " if key == "HTTP_COOKIE" else ","
                seen[key] += glue + value.decode("latin-1")
            else:
                seen[key] = value.decode("latin-1")
        environ.update(seen)

    def _learn(self, name: bytes) -> str | None:
        if name == b"transfer-encoding":
            # RFC 9112 section 7.1.3: decoding removes the coding and gives a length instead.
            return None
        if b"_" in name and self._header_map != "dangerous":
            if self._header_map == "refuse":
                raise ProtocolError(400, "a header name has an underscore")
            return None
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        if len(self._keys) < _KEYS_KEPT:
            self._keys[name] = key
        return key


class WSGIResponder:
    """Calls the application for the requests of one connection, one after the other."""

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

    def __init__(self, adapter: WSGIAdapter, http: Exchange, transport: Transport) -> None:
        self._adapter = adapter
        self._app = adapter.app
        self._http = http
        self._transport = transport
        self._started = False
        self.status: str | None = None
        self.headers: Any = []
        # Bound once: a bound method a request would be an allocation a request.
        self.start_response = self._start_response

    def run(self, environ: Environ) -> bytes | memoryview | FileRegion:
        """Call the application; returns what the driver has yet to send of the response.

        An error of the application is logged with its traceback and answered with a 500 where
        nothing was sent; otherwise the connection is marked to be closed, so that the client sees
        that the response is not whole (RFC 9112 section 8).
        """
        self.status = None
        self._started = False
        try:
            result: Any = self._app(environ, self.start_response)
            if self._adapter.forked:
                _end_child(None)
            kind = type(result)
            if (kind is list or kind is tuple) and not self._started:
                return self._whole(result)
            try:
                return self._stream(result)
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except ClientDisconnected:
            self._http.close_after = True
            return b""
        except BaseException:  # noqa: BLE001  logged, with its traceback
            # SystemExit, CancelledError, …: neither a worker nor a thread is the application's to
            # end.
            return self._failed(environ)

    def _start_response(
        self, status: Any, headers: Any, exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a reference cycle with the traceback's frames (PEP 3333)
        elif self.status is not None:
            raise AppError("start_response was called twice without exc_info")
        if type(status) is not str or len(status) < 3:
            raise AppError(f"status is not a string like '200 OK': {status!r}")
        self.status = status
        self.headers = headers
        return self._write

    def _write(self, data: Any) -> None:
        """PEP 3333's imperative `write`."""
        self._transport.send_all(self._frame(data))

    def early_hints(self, headers: Any) -> None:
        """`wsgi.early_hints`: send 103 Early Hints (RFC 8297) before the response.

        headers  usually `("Link", "</style.css>; rel=preload; as=style")` and the like

        An HTTP/1.0 client gets nothing. Raises AppError once the response has begun, and
        ClientDisconnected.
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
            # As most frameworks answer: an iterator of one block, which is all of the body.
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

    def _stream(self, result: Iterable[Any]) -> bytes | memoryview | FileRegion:
        if type(result) is FileWrapper and not self._started:
            region = self._file_region(result)
            if region is not None:
                return region
        blocks = _bounded(result, self.headers) if type(result) is FileWrapper else iter(result)
        if type(blocks) is _LIST_ITERATOR and not self._started:
            # Django's responses: all blocks are there, the application has none to make meanwhile.
            return self._whole(list(blocks))
        rest: bytes | memoryview = b""
        for block in blocks:
            if not block:
                continue
            if rest:
                self._transport.send_all(bytes(rest))
                rest = b""
            framed = self._frame(block)
            # What the socket takes goes out now: PEP 3333 forbids to hold a block back while the
            # application makes the next. What it doesn't take may stay with the driver, if this
            # was the last one; then a slow client costs no thread.
            rest = self._transport.send_some(framed)
            while len(rest) > _HELD_BACK:
                part, rest = rest[:-_HELD_BACK], rest[-_HELD_BACK:]
                self._transport.send_all(bytes(part))
        if not self._started:
            return self._http.send_response(self._status_given(), self.headers, b"")
        if self._http.response_complete:
            return rest
        end = self._http.end_response()
        return bytes(rest) + end if end and rest else (end or rest)

    def _status_given(self) -> str:
        if self.status is None:
            raise AppError("the application returned without calling start_response")
        return self.status

    def _file_region(self, wrapper: FileWrapper) -> FileRegion | None:
        """The file behind the wrapper, if the rest of it can be sent by sendfile."""
        if not self._adapter.sendfile or self.status is None:
            return None
        try:
            fd = wrapper.filelike.fileno()
            offset = wrapper.filelike.tell()
            facts = os.fstat(fd)
        except (AttributeError, OSError, io.UnsupportedOperation):
            return None
        if not stat.S_ISREG(facts.st_mode) or offset > facts.st_size:
            return None
        count = facts.st_size - offset
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
        what = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']!a}"
        if isinstance(error, (AppError, LocalProtocolError)):
            self._adapter.log.error("Invalid response to %s: %s", what, error)
        else:
            self._adapter.log.error("Error in the application for %s", what, exc_info=error)
        self._http.close_after = True
        if self._http.response_started:
            return b""
        return self._http.send_response(
            500, [("Content-Type", "text/plain; charset=utf-8")], b"Internal Server Error\n"
        )


def _end_child(error: BaseException | None) -> NoReturn:
    """The application has forked, and the child has come back out of it: its work is done."""
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _bounded(wrapper: FileWrapper, headers: Any) -> Iterator[bytes]:
    """A file up to its end or to Content-Length, whichever comes first (PEP 3333)."""
    left = None
    for name, value in headers:
        if name.lower() == "content-length" and value.isdecimal():
            left = int(value)
    for block in wrapper:
        if left is None:
            yield block
            continue
        yield block[:left]
        left -= min(len(block), left)
        if not left:
            return


# More than this of a finished block is not left with the driver while the application goes on.
_HELD_BACK = 1 << 20


class AppError(ServoError):
    """The application broke PEP 3333."""
