"""Warns if an application needs WebSockets but the `websockets` library is not installed.

It recognises frameworks by the modules that the application has imported, and imports none itself.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import Any

log = logging.getLogger("servo.error")

INSTALL = "pip install 'servo-server[websocket]'"
# How many levels of wrappers around an application, and of routes within routes, to search.
_DEPTH = 20


def has_websockets() -> bool:
    """Whether the `websockets` package can be imported."""
    try:
        return importlib.util.find_spec("websockets") is not None
    except ImportError:  # some import finders raise this
        return False


class MissingWebSockets:
    """Warns once about the missing package.

    It warns at the start if the application has WebSocket routes, and otherwise when the first
    client asks for a WebSocket.

    app   the application
    logs  whether this worker logs the warning at the start; only one of several workers does
    """

    def __init__(self, app: Any, *, logs: bool) -> None:
        self._is_warned = uses_websockets(app)
        if self._is_warned and logs:
            log.warning(
                "The application has WebSocket routes, and the package websockets is not installed:"
                " requests for them are served as plain HTTP. To serve them: %s",
                INSTALL,
            )

    def on_request(self) -> None:
        """Warn, because a client has asked for a WebSocket."""
        if not self._is_warned:
            self._is_warned = True
            log.warning(
                "A client has asked for a WebSocket, and the package websockets is not installed:"
                " the request is served as plain HTTP. To serve WebSockets: %s",
                INSTALL,
            )


def uses_websockets(app: Any) -> bool:
    """Whether an application has WebSocket routes of Starlette (FastAPI) or Django Channels."""
    route = getattr(sys.modules.get("starlette.routing"), "WebSocketRoute", None)
    by_protocol = getattr(sys.modules.get("channels.routing"), "ProtocolTypeRouter", None)
    kinds = tuple(kind for kind in (route, by_protocol) if isinstance(kind, type))
    try:
        return bool(kinds) and _has(app, kinds, _DEPTH)
    except Exception:
        # The search may run properties of the application. Their errors must not stop the start.
        log.debug("Can't search the application's routes for WebSockets", exc_info=True)
        return False


def _has(app: Any, kinds: tuple[type, ...], depth: int) -> bool:
    if isinstance(app, kinds):
        mapping = getattr(app, "application_mapping", None)
        return mapping is None or "websocket" in mapping
    if not depth:
        return False
    parts = list(getattr(app, "routes", None) or ())
    # Middleware keeps the wrapped application in `app`. Starlette's Mount has `app` and `routes`.
    parts += [part for part in (getattr(app, "app", None),) if part is not None and not parts]
    return any(_has(part, kinds, depth - 1) for part in parts)
