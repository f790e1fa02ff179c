"""A WSGI application in the `async` worker: an ASGI application that calls it in a thread.

So a WSGI application can be served over what only the `async` worker speaks. The rules of PEP 3333
stay where they are, in `wsgi`: this only stands in for the connection that they talk to.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any

from servo.apps.asgi import ResponseCut
from servo.apps.asgi_scope import TLS_ENVIRON
from servo.apps.body_spool import discard, refusal
from servo.apps.wsgi import WSGIResponder
from servo.apps.wsgi_environ import is_nameless, name_server
from servo.http.events import Request
from servo.http.serialise import status_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from servo._types import Receive, Scope, Send
    from servo.apps.wsgi_environ import WSGIAdapter
    from servo.http.errors import ProtocolError


class WSGIInAsync:
    """The ASGI face of a WSGI application.

    threads    how many requests may run at a time
    body_buffer_size, directory   where a request body waits: memory up to that size, then a file
    """

    def __init__(
        self, adapter: WSGIAdapter, threads: int, body_buffer_size: int, directory: str | None
    ) -> None:
        self._adapter = adapter
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="servo")
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
            await loop.run_in_executor(self._pool, responder.run, environ)
            if bridge.finishing is not None:
                await asyncio.wrap_future(bridge.finishing)
            for message in bridge.whole:
                await send(message)
            if bridge.close_after and not bridge.response_complete:
                raise ResponseCut("the WSGI application failed in the middle of its response")
        finally:
            discard(body)


class _Bridge:
    """What a WSGIResponder sees as its connection and its transport, in a thread.

    A part of a response waits until the event loop has taken it: that is the back-pressure. A whole
    response is left in `whole`, and costs no trip from the thread to the loop.
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

    def send_response(
        self, status: int | str, headers: Sequence[tuple[str, str]], body: bytes
    ) -> bytes:
        """The whole response."""
        self.whole = (
            _start(status, headers),
            {"type": "http.response.body", "body": body, "more_body": False},
        )
        self.response_started = self.response_complete = True
        return b""

    def start_response(
        self, status: int | str, headers: Sequence[tuple[str, str]], first: int = 0
    ) -> bytes:
        """The head alone."""
        self._post(_start(status, headers))
        self.response_started = True
        return b""

    def send_informational(self, status: int, headers: Sequence[tuple[str, str]]) -> bytes:
        """An early hint. ASGI has no other fields in it than Link."""
        links = [value.encode("latin-1") for name, value in headers if name.lower() == "link"]
        self._post({"type": "http.response.early_hint", "links": links})
        return b""

    def send_data(self, data: bytes) -> bytes:
        """A part of the body."""
        self._post({"type": "http.response.body", "body": data, "more_body": True})
        return b""

    def account(self, n: int) -> None:
        """Never called: no `raw_body`."""
        raise NotImplementedError

    def end_response(self) -> bytes:
        """The end of the body."""
        self._post({"type": "http.response.body", "body": b"", "more_body": False})
        self.response_complete = True
        return b""

    def send_all(self, data: bytes) -> None:
        """Nothing is left to send, `send_data` has waited for it; but for a whole response."""
        whole, self.whole = self.whole, ()
        for message in whole:
            self._post(message)

    def finish(self, rest: object) -> None:
        """Have a whole response sent, without waiting for it: the application may go on for long
        in its `close`. Of any other nothing is left."""
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


def _start(status: int | str, headers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    # ASGI carries a number: what is wrong with the text is found here.
    code, _ = status_line(status)
    encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return {"type": "http.response.start", "status": code, "headers": encoded}
