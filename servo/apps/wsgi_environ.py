"""What a WSGI application is told of a request: its environ (PEP 3333).

What never changes is put together once a worker, what the connection tells once for each of them.
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


# With a minor version, which CGI wants (RFC 3875 section 4.1.16).
_PROTOCOLS = {"1.1": "HTTP/1.1", "1.0": "HTTP/1.0", "2": "HTTP/2.0"}
_KEYS_KEPT = 1024


class WSGIAdapter:
    """One application and the parts of its environ that never change.

    header_map   what becomes of header names with underscores, which can't be told from dashes
                 in an environ: "drop" them, "refuse" the request, or "dangerous" (keep them)
    root_path    the mount point, text or percent-encoded: becomes SCRIPT_NAME, and is cut from the
                 front of PATH_INFO
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
        # As PEP 3333 has text: UTF-8 in the guise of latin-1.
        self._root_path = unquote_to_bytes(root_path.rstrip("/")).decode("latin-1")
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

        `server` is (host, port) or the path of a Unix socket; `client` is None on one. Where
        `is_nameless(server)`, each environ has to go through `name_server`.
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
        elif text == "*":
            text = ""  # OPTIONS about the server as a whole has no path (RFC 3875 section 4.1.5)
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
        if name == b"proxy":
            # Its variable, HTTP_PROXY, is the one that HTTP clients take their proxy from: a
            # request could choose where the application's own requests go (CVE-2016-5385).
            return None
        if name == b"transfer-encoding":
            # RFC 9112 section 7.1.3: decoding removes the coding and gives a length instead.
            return None
        if b"_" in name and self._header_map != "dangerous":
            if self._header_map == "refuse":
                raise ProtocolError(400, "a header name has an underscore")
            return None
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        # Not one with "_": "x_a" and "x-a" share a key, so their values have to be joined, which
        # `with_headers` doesn't look for among names that it knows.
        if len(self._keys) < _KEYS_KEPT and b"_" not in name:
            self._keys[name] = key
        return key


def is_nameless(server: tuple[str, int] | str) -> bool:
    """Whether an address has no name and port: a Unix socket's, or one that a proxy didn't say."""
    return isinstance(server, str) or not server[0]


def name_server(environ: Environ) -> None:
    """Take the server's name and port from Host, for an address that has none.

    PEP 3333 wants both never to be empty. Without a port in Host it is the scheme's; an HTTP/1.0
    client without Host gets "localhost". To be called when scheme and Host are final.
    """
    host: str = environ.get("HTTP_HOST", "")
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, ""
    environ["SERVER_NAME"] = name or "localhost"
    environ["SERVER_PORT"] = port or ("443" if environ["wsgi.url_scheme"] == "https" else "80")


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


_EMPTY_INPUT = EmptyInput()
