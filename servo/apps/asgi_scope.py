"""What an ASGI application is told of a request: its scope (the ASGI HTTP specification 2.5).

What never changes is put together once a worker, what the connection tells once for each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    import logging

    from servo._types import ASGIApp, Scope
    from servo.http.events import Request

# The extension in which a worker tells `wsgi_in_async` (no application sees it) the TLS variables.
TLS_ENVIRON = "servo.tls.environ"


class ASGIAdapter:
    """One application and what its scopes have in common.

    root_path  the mount point; per the specification `path` begins with it
    state      the lifespan's state: each request gets a shallow copy; None where there is none
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        log: logging.Logger,
        root_path: str = "",
        state: dict[str, Any] | None = None,
    ) -> None:
        self.app = app
        self.log = log
        self.state = state
        self._root_path = root_path.rstrip("/")
        self._root_bytes = self._root_path.encode()

    def template(
        self,
        server: tuple[str, int] | tuple[str, None] | None,
        client: tuple[str, int] | None,
        scheme: str,
    ) -> Scope:
        """The scope parts of one connection; copied for each of its requests."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "server": server,
            "client": client,
            "scheme": scheme,
            "root_path": self._root_path,
            "extensions": {
                "http.response.trailers": {},
                "http.response.early_hint": {},
                "http.response.pathsend": {},
                "http.response.zerocopysend": {},
                "http.response.debug": {},
            },
        }

    def scope(self, template: Scope, request: Request) -> Scope:
        """The scope of one request."""
        scope = template.copy()
        path = request.path
        if self._root_path:
            path = _mounted(path, self._root_bytes)
        scope["method"] = request.method
        scope["http_version"] = request.version
        scope["raw_path"] = path
        scope["path"] = unquote(path.decode("ascii")) if b"%" in path else path.decode("ascii")
        scope["query_string"] = request.query
        scope["headers"] = request.headers
        if self.state is not None:
            scope["state"] = self.state.copy()
        return scope

    def mount(self, scope: Scope, prefix: str) -> None:
        """Put the application, for one request, under a path that a proxy has mounted it at."""
        root = prefix + self._root_path
        path = _mounted(scope["raw_path"], prefix.encode())
        scope["root_path"] = root
        scope["raw_path"] = path
        scope["path"] = unquote(path.decode("ascii"))


def _mounted(path: bytes, root: bytes) -> bytes:
    """The path as the specification wants it: beginning with the root path."""
    return path if (path + b"/").startswith(root + b"/") else root + path
