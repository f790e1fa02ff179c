"""WebSockets without the library that makes their frames: who needs it, and what to say.

Frameworks are recognised by modules that the application has imported already. None is imported
here.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from typing import Any

log = logging.getLogger("servo.error")

INSTALL = "pip install 'servo-server[websocket]'"
# Wrappers around an application, and routes within routes.
_DEPTH = 20


def has_websockets() -> bool:
    """Whether the `websockets` package can be imported."""
    try:
        return importlib.util.find_spec("websockets") is not None
    except ImportError:  # of a finder that says no in this way
        return False


class MissingWebSockets:
    """Warns once of the missing package: at the start, if the application is known to need it, or
    else when the first client asks for a WebSocket.

    tells  whether this worker says so at the start: one of several is enough
    """

    def __init__(self, app: Any, *, tells: bool) -> None:
        self._said = uses_websockets(app)
        if self._said and tells:
            log.warning(
                "The application has WebSocket routes, and the package websockets is not installed:"
                " requests for them are served as plain HTTP. To serve them: %s",
                INSTALL,
            )

    def asked(self) -> None:
        """A client asks for a WebSocket."""
        if not self._said:
            self._said = True
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
        # A property of the application's own: looking must not cost its start.
        log.debug("The application's routes can't be looked at", exc_info=True)
        return False


def _has(app: Any, kinds: tuple[type, ...], depth: int) -> bool:
    if isinstance(app, kinds):
        mapping = getattr(app, "application_mapping", None)
        return mapping is None or "websocket" in mapping
    if not depth:
        return False
    parts = list(getattr(app, "routes", None) or ())
    # Middleware calls what it wraps `app`; Starlette's Mount has its routes as well.
    parts += [part for part in (getattr(app, "app", None),) if part is not None and not parts]
    return any(_has(part, kinds, depth - 1) for part in parts)
