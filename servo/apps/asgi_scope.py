"""Builds the ASGI scope of a request (the ASGI HTTP specification 2.5).

Constant parts are built once per worker, and the connection's parts once per connection. So each
request needs only a copy and a few entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import logging

    from servo._types import ASGIApp, Scope
    from servo.http.events import Request

# The scope's extension with the TLS variables for `wsgi_in_async`. Applications never see it.
TLS_ENVIRON = "servo.tls.environ"


class ASGIAdapter:
    """One application, and the parts that its scopes have in common.

    app        the application
    log        the logger for its errors
    root_path  the mount point, as text or percent-encoded. As the specification requires, it is the
               beginning of each scope's `path`
    state      the lifespan's state, or None. Each request gets a shallow copy
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
        """The parts of the scope that the requests of one connection share.

        server  host and port, or the path of a Unix socket and None; None if unknown
        client  host and port of the client; None on a Unix socket
        scheme  "http" or "https"
        """
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
        """Build the scope of one request from its connection's template."""
        scope = template.copy()
        # Copy these, because an app may change them, and later requests on the connection must not
        # see the changes: behind a proxy, these requests may come from other users.
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
        """Mount the application, for one request, at the path that a proxy names.

        scope   the request's scope, which this changes
        prefix  the path, decoded, without a slash at its end
        """
        scope["root_path"] = prefix + self._root_path
        if not _is_under(scope["path"], prefix):
            scope["path"] = prefix + scope["path"]
            scope["raw_path"] = _encoded(prefix) + scope["raw_path"]


def remote_of(scope: Scope) -> str:
    """The client's host for logs; "" without one. The application may have changed the scope."""
    client = scope.get("client")
    host = client[0] if client and (type(client) is tuple or type(client) is list) else ""
    return host if type(host) is str else ""


def _is_under(path: str, root: str) -> bool:
    """Whether a decoded path is the root path or lies below it."""
    return (path + "/").startswith(root + "/")


def _encoded(root: str) -> bytes:
    # The characters that need no escape in a path (RFC 3986 section 3.3).
    return quote(root, safe="/!$&'()*+,;=:@~").encode("ascii")
