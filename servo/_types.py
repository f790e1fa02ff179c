"""Type aliases for WSGI, ASGI, headers and addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Protocol

# --- WSGI (PEP 3333) --------------------------------------------------------------------------

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType]
WSGIWrite = Callable[[bytes], object]


class StartResponse(Protocol):
    """The `start_response` that a WSGI application is called with."""

    def __call__(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
        /,
    ) -> WSGIWrite: ...


WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

# --- ASGI 3 (and the double callable of ASGI 2) ------------------------------------------------

Scope = dict[str, Any]
ASGIMessage = dict[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
ASGI2App = Callable[[Scope], Callable[[Receive, Send], Awaitable[None]]]

# --- HTTP and addresses ------------------------------------------------------------------------

RawHeaders = list[tuple[bytes, bytes]]

# The address of the peer of a connection: (host, port), or None for a Unix socket.
PeerAddress = tuple[str, int] | None
