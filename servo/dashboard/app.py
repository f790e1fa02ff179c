"""The dashboard's ASGI application: the page, its files, and the API.

GET  /               the page; without a cookie the sign-in page
GET  /?token=…       signs in, and leads to the page
POST /sign-in        signs in with the field `token` of the form
POST /sign-out       removes the cookie
GET  /static/NAME    the page's scripts, styles and pictures
GET  /api/history    the server, and the samples and events that are kept
GET  /api/stream     new samples and events, as server-sent events
GET  /api/stack      the stack of one worker (only with control)
POST /api/control    reload, scale or restart (only with control)
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from servo.control.client import ControlError
from servo.control.stacks import stack_lines
from servo.dashboard.access import FAILURE_S, bearer_token, why_foreign, why_not_control
from servo.dashboard.streams import TooManyStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from servo._types import Receive, Scope, Send
    from servo.dashboard.access import Access
    from servo.dashboard.history import History
    from servo.dashboard.pages import File
    from servo.dashboard.server_link import ServerLink
    from servo.dashboard.streams import Streams

log = logging.getLogger("servo.error")

# The server's limit on bodies is the same.
MOST_BODY_BYTES = 4096
# Long bodies are sent in parts of so many bytes, so that little waits for a slow client.
_PART = 65_536

_SAFE_FIELDS = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        b"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_JSON = "application/json"
_HTML = "text/html; charset=utf-8"
_PLAIN = "text/plain; charset=utf-8"
# What the sign-in page says after a wrong token.
_PROBLEMS = {
    401: b"This is not the token of this server.",
    429: b"Too many wrong tokens were sent. Try again in a second.",
}


@dataclass(frozen=True)
class Response:
    """A whole response.

    status   its status
    type     its media type
    body     its parts
    fields   more fields
    """

    status: int
    type: str = _PLAIN
    body: tuple[bytes, ...] = ()
    fields: tuple[tuple[str, str], ...] = (("cache-control", "no-store"),)


class Request:
    """A request.

    scope    its ASGI scope
    receive  receives its body
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query = _form(scope["query_string"])
        self.client: str = (scope.get("client") or ("a local user",))[0]
        self.fields: dict[str, str] = {}
        for name, value in scope["headers"]:
            text, name = value.decode("latin-1"), name.decode("latin-1")
            joint = "; " if name == "cookie" else ", "
            known = self.fields.get(name)
            self.fields[name] = text if known is None else f"{known}{joint}{text}"
        self.receive = receive

    async def body(self) -> bytes | None:
        """Read the body. Returns None if it is too long, or the client has gone."""
        data, more = b"", True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return None
            data += message.get("body", b"")
            more = message.get("more_body", False)
            if len(data) > MOST_BODY_BYTES:
                return None
        return data


class Dashboard:
    """The application.

    access    who may use it
    files     the files of the page, by path: "index.html", "static/app.js", …
    history   the samples and events
    streams   the connections that follow them
    link      the connection to the server
    """

    def __init__(
        self,
        access: Access,
        files: dict[str, File],
        history: History,
        streams: Streams,
        link: ServerLink,
    ) -> None:
        self._access = access
        self._files = files
        self._history = history
        self._streams = streams
        self._link = link
        # path -> method, and the function for signed-in clients
        self._api: dict[str, tuple[str, Callable[[Request], Coroutine[Any, Any, Response]]]] = {
            "/api/history": ("GET", self._answer_history),
            "/api/stack": ("GET", self._stack),
            "/api/control": ("POST", self._control),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        request = Request(scope, receive)
        if self._access.refuses_host(request.fields):
            text = "the Host field must be localhost, 127.0.0.1 or [::1]"
            await _send(send, request, _error(421, text))
        elif request.path == "/api/stream":
            await self._stream(request, send)
        else:
            await _send(send, request, await self._respond(request))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._link.start()
                # A page that comes first would find a server without a name.
                await self._link.first_answer()
                await send({"type": "lifespan.startup.complete"})
            else:
                self._link.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _respond(self, request: Request) -> Response:
        file = self._files.get(request.path[1:])
        if request.path.startswith("/static/") and file is not None:
            return _static(request, file)
        if request.path == "/":
            return await self._page(request)
        if request.path == "/sign-in":
            return await self._sign_in(request)
        if request.path == "/sign-out":
            return self._sign_out(request)
        if request.path not in self._api:
            return Response(404, _PLAIN, (b"Not found\n",))
        refusal = await self._refusal(request)
        if refusal is not None:
            return refusal
        method, answer = self._api[request.path]
        return await answer(request) if request.method == method else _wrong_method(method)

    async def _refusal(self, request: Request) -> Response | None:
        """The response for a client that may not use the API; None for one that may."""
        if self._access.is_signed_in(request.fields, time.time()):
            return None
        token = bearer_token(request.fields)
        if token is None:
            return _error(401, "sign in, or send the token: Authorization: Bearer TOKEN")
        return await self._check(token)

    async def _check(self, token: str) -> Response | None:
        """Check a token. Returns None if it is right, otherwise a response, after a delay."""
        if self._access.is_busy:
            refusal = _error(429, "too many wrong tokens; try again in a second")
            return Response(
                429, _JSON, refusal.body, (("cache-control", "no-store"), ("retry-after", "1"))
            )
        if self._access.accepts(token):
            return None
        self._access.begin_failure()
        try:
            await asyncio.sleep(FAILURE_S)
        finally:
            self._access.end_failure()
        return _error(401, "this is not the token of this server")

    # --- pages ------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            return _wrong_method("GET")
        tokens = request.query.get("token")
        if tokens and self._access.asks_token:
            return await self._admit(request, tokens[0])
        signed_in = self._access.is_signed_in(request.fields, time.time())
        return self._html(200, "index.html" if signed_in else "sign_in.html")

    async def _sign_in(self, request: Request) -> Response:
        if request.method != "POST":
            return _wrong_method("POST")
        if why := why_foreign(request.fields):
            return Response(403, _PLAIN, (f"This request is refused: {why}\n".encode(),))
        body = await request.body()
        if body is None:
            return Response(413, _PLAIN, (b"The form is too long\n",))
        return await self._admit(request, _form(body).get("token", [""])[0].strip())

    async def _admit(self, request: Request, token: str) -> Response:
        refusal = await self._check(token) if self._access.asks_token else None
        if refusal is None:
            cookie = self._access.cookie(time.time())
            return _redirect(("set-cookie", cookie))
        log.warning("dashboard: %s has sent a wrong token", request.client)
        return self._html(refusal.status, "sign_in.html", _PROBLEMS[refusal.status])

    def _sign_out(self, request: Request) -> Response:
        if request.method != "POST":
            return _wrong_method("POST")
        if why := why_foreign(request.fields):
            return Response(403, _PLAIN, (f"This request is refused: {why}\n".encode(),))
        return _redirect(("set-cookie", self._access.no_cookie()))

    def _html(self, status: int, name: str, problem: bytes = b"") -> Response:
        data = self._files[name].data
        if problem:
            data = data.replace(
                b"<!-- problem -->", b'<p class="problem" role="alert">%s</p>' % problem
            )
        return Response(status, _HTML, (data,))

    # --- the API ----------------------------------------------------------------------------------

    async def _answer_history(self, _request: Request) -> Response:
        history = self._history
        parts = [b'{"server":', history.server.data]
        for name, lines in (("samples", history.samples), ("events", history.events)):
            parts.append(b',"%s":[' % name.encode())
            for line in lines:
                parts += (line, b",")
            if lines:
                parts.pop()
            parts.append(b"]")
        return Response(200, _JSON, (*parts, b"}"))

    async def _stream(self, request: Request, send: Send) -> None:
        refusal = await self._refusal(request)
        if refusal is None and request.method != "GET":
            refusal = _wrong_method("GET")
        if refusal is not None:
            await _send(send, request, refusal)
            return
        given = request.fields.get("last-event-id", "")
        last = int(given) if given.isdecimal() and len(given) < 16 else None
        try:
            with self._streams.opened() as stream:
                fields = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
                start = {"type": "http.response.start", "status": 200}
                await send({**start, "headers": [*fields, *_SAFE_FIELDS]})
                await stream.run(request.receive, send, last)
        except TooManyStreams:
            await _send(send, request, _error(503, "too many pages are open"))

    async def _stack(self, request: Request) -> Response:
        if not self._access.control:
            return _no_control()
        slot = request.query.get("slot", [""])[0]
        if not slot.isdecimal() or len(slot) > 9:
            return _error(400, "slot is not a number")
        try:
            result = await self._link.command("stack", {"slot": int(slot)})
        except ControlError as error:
            return _error(409, str(error))
        return _json(200, {"text": "\n".join(stack_lines(result))})

    async def _control(self, request: Request) -> Response:
        if not self._access.control:
            return _no_control()
        if why := why_not_control(request.fields):
            return _error(403, f"this request is refused: {why}")
        body = await request.body()
        if body is None:
            return _error(413, "the body is too long")
        try:
            name, args = _command_of(json.loads(body))
        except (ValueError, RecursionError) as error:
            return _error(400, str(error))
        # The arbiter logs the command, and this line says who has sent it.
        log.info("dashboard: %s sends the command %s", request.client, json.dumps([name, args]))
        try:
            result = await self._link.command(name, args)
        except ControlError as error:
            return _json(409, {"ok": False, "error": str(error)})
        return _json(200, {"ok": True, "text": _RESULTS[name](result)})


def _form(data: bytes) -> dict[str, list[str]]:
    """The values of a form or a query by name; {} if there are too many."""
    with suppress(ValueError):
        return parse_qs(data.decode("utf-8", "replace"), max_num_fields=8)
    return {}


def _command_of(value: Any) -> tuple[str, dict[str, Any]]:
    """The command in the arbiter's protocol that a JSON value asks for. Raises ValueError."""
    forms = 'expected {"command": "reload"}, {"command": "scale", "workers": N} or '
    forms += '{"command": "restart", "slot": N}'
    if not isinstance(value, dict):
        raise ValueError(forms)
    numbers = {
        name: value[name]
        for name in ("workers", "slot")
        if type(value.get(name)) is int and 0 < value[name] < 1_000_000
    }
    match value.get("command"):
        case "reload":
            return "reload", {"wait": False}
        case "scale" if "workers" in numbers:
            return "scale", {"to": str(numbers["workers"])}
        case "restart" if "slot" in numbers:
            return "restart-worker", {"slot": numbers["slot"], "wait": False}
    raise ValueError(forms)


def _scaled(result: dict[str, Any]) -> str:
    if "most" in result:
        return f"At least {result['workers']} workers, at most {result['most']}"
    return f"{result['workers']} workers, {result['before']} before"


_RESULTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "reload": lambda result: f"The reload to generation {result['generation']} has started",
    "scale": _scaled,
    "restart-worker": lambda result: f"Worker {result['slot']} will be replaced",
}


async def _send(send: Send, request: Request, response: Response) -> None:
    length = sum(map(len, response.body))
    own = [("content-type", response.type), ("content-length", str(length)), *response.fields]
    fields = [(name.encode(), value.encode("latin-1")) for name, value in own]
    start = {"type": "http.response.start", "status": response.status}
    await send({**start, "headers": [*fields, *_SAFE_FIELDS]})
    parts: list[bytes] = []
    waiting = 0
    for part in () if request.method == "HEAD" else response.body:
        parts.append(part)
        waiting += len(part)
        if waiting >= _PART:
            body = b"".join(parts)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            parts, waiting = [], 0
    await send({"type": "http.response.body", "body": b"".join(parts)})


def _static(request: Request, file: File) -> Response:
    if request.method not in ("GET", "HEAD"):
        return _wrong_method("GET")
    fields = (("cache-control", "no-cache"), ("etag", file.etag))
    if request.fields.get("if-none-match") == file.etag:
        return Response(304, file.type, (), fields)
    return Response(200, file.type, (file.data,), fields)


def _json(status: int, value: dict[str, Any]) -> Response:
    return Response(status, _JSON, (json.dumps(value).encode(),))


def _error(status: int, text: str) -> Response:
    return _json(status, {"ok": False, "error": text})


def _no_control() -> Response:
    return _error(403, "this dashboard only shows: start the server with --dashboard-control")


def _wrong_method(allowed: str) -> Response:
    response = _error(405, f"only {allowed} is allowed here")
    fields = (("cache-control", "no-store"), ("allow", allowed))
    return Response(405, _JSON, response.body, fields)


def _redirect(*fields: tuple[str, str]) -> Response:
    return Response(303, _PLAIN, (), (("cache-control", "no-store"), ("location", "/"), *fields))
