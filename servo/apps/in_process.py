"""Requests that Servo itself makes to the application, without a connection.

They are GET requests from 127.0.0.1 for the host `localhost`. They are not counted or logged, and
call no hooks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.http.events import Request

if TYPE_CHECKING:
    from servo._types import ASGIMessage
    from servo.apps.asgi_scope import ASGIAdapter
    from servo.apps.wsgi_environ import WSGIAdapter

_SERVER = ("localhost", 80)
_CLIENT = ("127.0.0.1", 0)
_HEADERS = [(b"host", b"localhost"), (b"user-agent", b"servo"), (b"accept", b"*/*")]


def get_wsgi(adapter: WSGIAdapter, target: str, scheme: str = "http") -> int:
    """Request a target of a WSGI application. Returns the status of its response.

    adapter  the application
    target   path and query in ASCII, such as "/healthz?full=1"
    scheme   "http" or "https"

    Raises the application's exceptions, and RuntimeError if it sends no response.
    """
    started: list[str] = []

    def start_response(status: str, _headers: Any, _exc_info: Any = None) -> Any:
        started.append(status)
        return lambda _data: None

    template = adapter.template(_SERVER, _CLIENT, scheme)
    environ = adapter.environ(template, _request(target), None, 0)
    result = adapter.app(environ, start_response)
    try:
        for _ in result:
            pass
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    if not started:
        raise RuntimeError("the application returned without calling start_response")
    return int(started[-1][:3])


async def get_asgi(adapter: ASGIAdapter, target: str, scheme: str = "http") -> int:
    """Request a target of an ASGI application; see `get_wsgi`."""
    import asyncio  # imported here, because workers of WSGI applications don't need it

    statuses: list[int] = []
    complete = asyncio.Event()
    received = False

    async def receive() -> ASGIMessage:
        nonlocal received
        if not received:
            received = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await complete.wait()
        return {"type": "http.disconnect"}

    async def send(message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            complete.set()

    scope = adapter.scope(adapter.template(_SERVER, _CLIENT, scheme), _request(target))
    scope["extensions"] = {}  # the `send` below supports none
    await adapter.app(scope, receive, send)
    if not statuses:
        raise RuntimeError("the application returned without a response")
    return statuses[-1]


def _request(target: str) -> Request:
    raw = target.encode("ascii")
    path, _, query = raw.partition(b"?")
    return Request("GET", raw, path, query, "1.1", list(_HEADERS), True)
