"""A WSGI application in the `async` worker: an ASGI application that calls it in a thread.

In this way, a WSGI application can be served over protocols of the `async` worker, such as HTTP/2.
The module `wsgi` applies the rules of PEP 3333, as in other workers, but instead of a connection
and its driver, it uses a `_Bridge`.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any

from servo.apps.asgi import ResponseCut
from servo.apps.asgi_scope import TLS_ENVIRON
from servo.apps.body_spool import discard, refusal
from servo.apps.wsgi import WSGIResponder
from servo.apps.wsgi_environ import is_nameless, name_server
from servo.http.errors import LocalProtocolError
from servo.http.events import Request
from servo.http.serialise import status_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from servo._types import Receive, Scope, Send
    from servo.apps.pool_meter import PooledCall, PoolMeter
    from servo.apps.wsgi_environ import WSGIAdapter
    from servo.http.errors import ProtocolError
    from servo.http.serialise import Body, HeaderItem, Status


class WSGIInAsync:
    """An ASGI application that calls a WSGI application.

    adapter           the WSGI application
    meter             counts the requests that run; it has the number of threads
    body_buffer_size  bytes of a request's body to keep in memory; a larger body is put into a file
    directory         the directory for such files; None for the system's default
    """

    def __init__(
        self, adapter: WSGIAdapter, meter: PoolMeter, body_buffer_size: int, directory: str | None
    ) -> None:
        self._adapter = adapter
        self._meter = meter
        self._pool = ThreadPoolExecutor(meter.threads, thread_name_prefix="servo")
        self._body_buffer_size = body_buffer_size
        self._directory = directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(
            scope["method"],
            scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b""),
            scope["raw_path"],
            scope["query_string"],
            scope["http_version"],
            scope["headers"],
            True,
        )
        body = SpooledTemporaryFile(max_size=self._body_buffer_size, dir=self._directory)  # noqa: SIM115  discarded below
        try:
            try:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body.write(message["body"])
                    if not message["more_body"]:
                        break
                length = body.tell()
                body.seek(0)
            except OSError as error:
                await _refuse(refusal(error), send)
                return
            address, port = scope["server"] or ("", 0)
            server = address if port is None else (address, port)
            template = self._adapter.template(server, scope["client"], scope["scheme"])
            template.update(scope["extensions"].get(TLS_ENVIRON, {}))
            environ = self._adapter.environ(template, request, body if length else None, length)
            if is_nameless(server):
                name_server(environ)
            loop = asyncio.get_running_loop()
            bridge = _Bridge(loop, send)
            responder = WSGIResponder(self._adapter, bridge, bridge)
            environ["wsgi.early_hints"] = responder.early_hints
            await self._run(loop, partial(responder.run, environ))
            if bridge.finishing is not None:
                await asyncio.wrap_future(bridge.finishing)
            for message in bridge.whole:
                await send(message)
            if bridge.close_after and not bridge.response_complete:
                raise ResponseCut("the WSGI application failed in the middle of its response")
        finally:
            discard(body)

    async def _run(self, loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
        """Call the function in a thread of the pool."""
        call = self._meter.enter()
        future = self._pool.submit(call.run, function)
        try:
            await asyncio.wrap_future(future)
        finally:
            if future.done():
                self._meter.leave(call)
            else:
                # The request was cancelled, but its thread still runs.
                future.add_done_callback(partial(self._end_later, loop, call))

    def _end_later(
        self, loop: asyncio.AbstractEventLoop, call: PooledCall, _future: object
    ) -> None:
        # If the loop is closed, the worker has ended, and nobody counts any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._meter.leave, call)


class _Bridge:
    """The response writer and the transport of a `WSGIResponder` that runs in a thread.

    The thread waits until the event loop has sent each part of a response, so the application runs
    at the client's speed. A whole response is kept in `whole`. The event loop sends it after the
    thread is done, so the thread need not wait for the loop.
    """

    raw_body = False

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        self._loop = loop
        self._send = send
        self.response_started = False
        self.response_complete = False
        self.close_after = False
        self.whole: tuple[dict[str, Any], ...] = ()
        self.finishing: Future[None] | None = None

    def send_response(self, status: Status, headers: Iterable[HeaderItem], body: Body) -> bytes:
        """Keep a whole response. See `H1Connection` for this and the following methods."""
        self.whole = (
            _start(status, headers),
            {"type": "http.response.body", "body": body, "more_body": False},
        )
        self.response_started = self.response_complete = True
        return b""

    def start_response(
        self, status: Status, headers: Iterable[HeaderItem], first: int = 0
    ) -> bytes:
        """Send the head of a response."""
        self._post(_start(status, headers))
        self.response_started = True
        return b""

    def send_informational(self, status: int, headers: Iterable[HeaderItem]) -> bytes:
        """Send an early hint. In ASGI it can have only Link fields."""
        links = [value.encode("latin-1") for name, value in headers if name.lower() == "link"]
        self._post({"type": "http.response.early_hint", "links": links})
        return b""

    def send_data(self, data: Body) -> bytes:
        """Send a part of the body."""
        self._post({"type": "http.response.body", "body": data, "more_body": True})
        return b""

    def account(self, n: int) -> None:
        """Always raises `LocalProtocolError`: `raw_body` is False, so no driver may call this."""
        raise LocalProtocolError("body bytes past the framing of the response")

    def end_response(self) -> bytes:
        """Send the end of the body."""
        self._post({"type": "http.response.body", "body": b"", "more_body": False})
        self.response_complete = True
        return b""

    def send_all(self, data: bytes) -> None:
        """Send the whole response, if one is kept. (`send_data` sends its data at once.)

        data  not used
        """
        whole, self.whole = self.whole, ()
        for message in whole:
            self._post(message)

    def finish(self, rest: object) -> None:
        """Start to send the whole response. Don't wait: the app's `close`, called next, may block.

        rest  not used
        """
        whole, self.whole = self.whole, ()
        if whole:
            self.finishing = asyncio.run_coroutine_threadsafe(self._deliver(*whole), self._loop)

    def _post(self, message: dict[str, Any]) -> None:
        asyncio.run_coroutine_threadsafe(self._deliver(message), self._loop).result()

    async def _deliver(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self._send(message)


async def _refuse(error: ProtocolError, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{error.reason}\n".encode()})


def _start(status: Status, headers: Iterable[HeaderItem]) -> dict[str, Any]:
    # In ASGI a status is a number, so check the text here.
    code, _ = status_line(status)
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return {"type": "http.response.start", "status": code, "headers": encoded}
