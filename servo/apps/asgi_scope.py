"""What an ASGI application is told of a request: its scope (the ASGI HTTP specification 2.5).

What never changes is put together once a worker, what the connection tells once for each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import logging

    from servo._types import ASGIApp, Scope
    from servo.http.events import Request

# The extension in which a worker tells `wsgi_in_async` (no application sees it) the TLS variables.
TLS_ENVIRON = "servo.tls.environ"


class ASGIAdapter:
    """One application and what its scopes have in common.

    root_path  the mount point, text or percent-encoded; per the specification `path` begins with it
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
        self._root_path = unquote(root_path.rstrip("/"))
        self._root_bytes = _encoded(self._root_path)

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
        # What an app adds to these must not show in the connection's next requests, which may be
        # other users', behind a proxy.
        scope["asgi"] = template["asgi"].copy()
        scope["extensions"] = template["extensions"].copy()
        raw = request.path
        path = unquote(raw.decode("ascii")) if b"%" in raw else raw.decode("ascii")
        root = self._root_path
        if root and not _is_under(path, root):
            path = root + path
            raw = self._root_bytes + raw
        scope["method"] = request.method
        scope["http_version"] = request.version
        scope["raw_path"] = raw
        scope["path"] = path
        scope["query_string"] = request.query
        scope["headers"] = request.headers
        if self.state is not None:
            scope["state"] = self.state.copy()
        return scope

    def mount(self, scope: Scope, prefix: str) -> None:
        """Put the application, for one request, under a path that a proxy has mounted it at."""
        scope["root_path"] = prefix + self._root_path
        if not _is_under(scope["path"], prefix):
            scope["path"] = prefix + scope["path"]
            scope["raw_path"] = _encoded(prefix) + scope["raw_path"]


def remote_of(scope: Scope) -> str:
    """The client's address for logs, as the application left it; "" where it left none."""
    client = scope.get("client")
    host = client[0] if client and (type(client) is tuple or type(client) is list) else ""
    return host if type(host) is str else ""


def _is_under(path: str, root: str) -> bool:
    """Whether a decoded path begins with the root path, as the specification wants it to."""
    return (path + "/").startswith(root + "/")


def _encoded(root: str) -> bytes:
    # What a path segment may hold unescaped (RFC 3986 section 3.3).
    return quote(root, safe="/!$&'()*+,;=:@~").encode("ascii")
