"""Builds the WSGI environ of a request (PEP 3333).

Constant parts are built once per worker, and the connection's parts once per connection. So each
request needs only a copy and its own entries.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from servo import __version__
from servo.apps.wsgi_file import FileWrapper
from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from servo._types import Environ, WSGIApp
    from servo.http.events import Request


# SERVER_PROTOCOL must have a minor version (RFC 3875 section 4.1.16).
_PROTOCOLS = {"1.1": "HTTP/1.1", "1.0": "HTTP/1.0", "2": "HTTP/2.0"}
# How many names have cached environ keys. Without a bound, clients could fill the memory.
_KEYS_BOUND = 1024


class WSGIAdapter:
    """One application, and the parts of its environ that never change.

    app           the application
    log           the logger for its errors
    multithread   whether several threads of this process may call the application at the same time
    multiprocess  whether several processes may call it at the same time
    root_path     the mount point, as text or percent-encoded. It becomes SCRIPT_NAME, and is
                  removed from the front of PATH_INFO
    header_map    how to treat header names with underscores, which get the same environ keys as
                  names with dashes: "drop" them, "refuse" the request, or "dangerous" (keep them)
    sendfile      whether files may be sent by sendfile

    forked  whether this process was forked by the application; see `watch_forks`
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
        # PEP 3333 requires text to be encoded in UTF-8 and decoded as latin-1.
        self._root_path = unquote_to_bytes(root_path.rstrip("/")).decode("latin-1")
        self._header_map = header_map
        # Header name (lower case) -> environ key.
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
        """Notice forks of this process, so that a child that returns from the app can be ended.

        If it were not ended, it would run as a second worker on the same sockets. Only workers call
        this, because it can't be undone.
        """
        os.register_at_fork(after_in_child=self._note_fork)

    def _note_fork(self) -> None:
        self.forked = True

    def template(
        self, server: tuple[str, int] | str, client: tuple[str, int] | None, scheme: str
    ) -> Environ:
        """The parts of the environ that the requests of one connection share.

        server  host and port, or the path of a Unix socket
        client  host and port of the client; None on a Unix socket
        scheme  "http" or "https"

        If `is_nameless(server)`, each environ must be passed to `name_server`.
        """
        environ = self._base.copy()
        environ["wsgi.url_scheme"] = scheme
        if is_nameless(server):
            name_server(environ)
        else:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server[0], str(server[1])
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = (
            (client[0], str(client[1])) if client else ("", "")
        )
        return environ

    def environ(self, template: Environ, request: Request, body: Any, length: int) -> Environ:
        """Build the environ of one request.

        template  the connection's template
        request   the request
        body      a file object with the body, or None if there is none
        length    bytes of the body

        Raises `ProtocolError` for a header name that `header_map` refuses.
        """
        return self.fill(self.with_headers(template, request), request, body, length)

    def with_headers(self, template: Environ, request: Request) -> Environ:
        """Copy the template and add the headers and the version of a request.

        The result may be kept and used for the next request with the same headers.
        """
        environ = template.copy()
        environ["SERVER_PROTOCOL"] = _PROTOCOLS[request.version]
        named = request.named
        if len(named) == len(request.headers):
            # The common case: no name is repeated, and each name has a cached key.
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
        """Add the rest of a request to an environ that has its headers; return the environ.

        The arguments are as in `environ`.
        """
        environ["REQUEST_METHOD"] = request.method
        path = request.path
        target = request.target
        if b"%" in path:
            text = unquote_to_bytes(path).decode("latin-1")
            uri = target.decode("latin-1")
        else:
            text = path.decode("latin-1")
            # If the lengths are equal, the target is the path, which is decoded already.
            uri = text if len(target) == len(path) else target.decode("latin-1")
        if self._root_path and (text + "/").startswith(self._root_path + "/"):
            text = text[len(self._root_path) :]
        elif text == "*":
            text = ""  # "OPTIONS *" is about the whole server and has no path (RFC 3875 4.1.5)
        environ["PATH_INFO"] = text
        environ["QUERY_STRING"] = request.query.decode("latin-1")
        environ["RAW_URI"] = environ["REQUEST_URI"] = uri
        environ["wsgi.input"] = _EMPTY_INPUT if body is None else body
        if request.content_length is None and body is not None:
            environ["CONTENT_LENGTH"] = str(length)
        return environ

    def _add_headers(self, environ: Environ, request: Request) -> None:
        """Add headers one by one: they may have new, repeated or forbidden names."""
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
        if name == b"proxy":
            # The key of Proxy would be HTTP_PROXY. HTTP clients take their proxy from the variable
            # of this name, so a client could redirect the application's own requests
            # (CVE-2016-5385, "httpoxy").
            return None
        if name == b"transfer-encoding":
            # The application gets the decoded body, with CONTENT_LENGTH (RFC 9112 section 7.1.3).
            return None
        if b"_" in name and self._header_map != "dangerous":
            if self._header_map == "refuse":
                raise ProtocolError(400, "a header name has an underscore")
            return None
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        # Don't cache names with "_". "x_a" and "x-a" have the same key, so their values must be
        # joined, but the fast path of `with_headers` would not do this.
        if len(self._keys) < _KEYS_BOUND and b"_" not in name:
            self._keys[name] = key
        return key


def is_nameless(server: tuple[str, int] | str) -> bool:
    """Whether the server's address has no host: it is a Unix socket, or the proxy sent none."""
    return isinstance(server, str) or not server[0]


def name_server(environ: Environ) -> None:
    """Set the server's name and port from the Host header, for an address without a host.

    environ  the environ; the scheme and Host from a trusted proxy must already be in it

    PEP 3333 forbids empty values. Without a port in Host, the port is the scheme's default. Without
    Host, as in HTTP/1.0, the name is "localhost".
    """
    host: str = environ.get("HTTP_HOST", "")
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    environ["SERVER_NAME"] = name or "localhost"
    environ["SERVER_PORT"] = port or ("443" if environ["wsgi.url_scheme"] == "https" else "80")


class EmptyInput:
    """`wsgi.input` of a request without a body. It has no state, so all requests share one object.

    `size` and `hint` are ignored.
    """

    def read(self, size: int | None = -1) -> bytes:
        """No bytes."""
        return b""

    def readline(self, size: int | None = -1) -> bytes:
        """No bytes."""
        return b""

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """No lines."""
        return []

    def __iter__(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Do nothing."""


_EMPTY_INPUT = EmptyInput()
