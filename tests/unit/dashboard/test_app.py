"""The application, called as a server calls it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, cast

import pytest

from servo.control.client import NoAnswer, RequestFailed
from servo.dashboard import app as module
from servo.dashboard.access import FAILURES, Access, Rules
from servo.dashboard.app import Dashboard
from servo.dashboard.history import History
from servo.dashboard.pages import File
from servo.dashboard.server_link import ServerLink
from servo.dashboard.streams import MOST_STREAMS, Streams

TOKEN = "0123456789abcdef"
BEARER = {"authorization": f"Bearer {TOKEN}"}
CONTROL = {**BEARER, "x-servo-control": "1", "content-type": "application/json"}
FILES = {
    "index.html": File("text/html", b"the page", '"1"'),
    "sign_in.html": File("text/html", b"the form<!-- problem -->", '"2"'),
    "static/app.js": File("text/javascript", b"script", '"3"'),
}


class Link:
    """Notes the commands, and gives each the same answer."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.result: dict[str, Any] = {}
        self.error: Exception | None = None
        self.calls: list[str] = []

    async def command(self, name: str, args: dict[str, Any]) -> dict[str, Any]:
        self.sent.append((name, args))
        if self.error is not None:
            raise self.error
        return self.result

    async def start(self) -> None:
        self.calls.append("start")

    async def first_answer(self) -> None:
        self.calls.append("first_answer")

    def close(self) -> None:
        self.calls.append("close")


class Answer:
    """What the application has sent."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.status: int = sent[0]["status"]
        self.fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        self.body = b"".join(each["body"] for each in sent[1:])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Site:
    """The application with its parts. It asks for a token, and may control, unless told so."""

    def __init__(self, *, asks_token: bool = True, control: bool = True) -> None:
        digest = hashlib.sha256(TOKEN.encode()).digest() if asks_token else b""
        self.access = Access(Rules(digest, b"k" * 32, 9000, secure=False, control=control))
        self.history = History()
        self.streams = Streams(self.history)
        self.link = Link()
        self.app = Dashboard(
            self.access, FILES, self.history, self.streams, cast("ServerLink", self.link)
        )

    def call(self, method: str, target: str, body: bytes = b"", **more: Any) -> Answer:
        return Answer(asyncio.run(self.answer(method, target, body, **more)))

    async def answer(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        fields: dict[str, str] | None = None,
        on_sent: Callable[[list[dict[str, Any]]], bool] = lambda _sent: False,
    ) -> list[dict[str, Any]]:
        """What the application sends. The client leaves when `on_sent` says so."""
        path, _, query = target.partition("?")
        given = {"host": "127.0.0.1:9000", **(fields or {})}
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "client": ("192.0.2.1", 5),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }
        sent: list[dict[str, Any]] = []
        gone = asyncio.Event()
        bodies = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if bodies:
                return bodies.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if on_sent(sent):
                gone.set()

        await self.app(scope, receive, send)
        return sent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAILURE_S", 0.0)


# --- signing in -----------------------------------------------------------------------------------


def test_without_a_cookie_the_page_asks_for_the_token() -> None:
    answer = Site().call("GET", "/")
    assert (answer.status, answer.body) == (200, b"the form<!-- problem -->")


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [("GET", f"/?token={TOKEN}", b""), ("POST", "/sign-in", f"token={TOKEN}".encode())],
)
def test_the_token_signs_in(method: str, target: str, body: bytes) -> None:
    site = Site()
    answer = site.call(method, target, body)
    assert (answer.status, answer.fields["location"]) == (303, "/")
    cookie = {"cookie": answer.fields["set-cookie"].partition(";")[0]}
    assert site.call("GET", "/", fields=cookie).body == b"the page"
    assert site.call("GET", "/api/history", fields=cookie).status == 200
    gone = site.call("POST", "/sign-out", fields=cookie)
    assert gone.status == 303
    assert "Max-Age=0" in gone.fields["set-cookie"]


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        *(("GET", "/?token=wrong", b""), ("POST", "/sign-in", b"token=wrong")),
        *(("POST", "/sign-in", b""), ("POST", "/sign-in", b"\xff\xfe=%")),
        ("POST", "/sign-in", b"x=1&" * 20 + f"token={TOKEN}".encode()),
    ],
)
def test_another_token_does_not(
    method: str, target: str, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    answer = Site().call(method, target, body)
    assert answer.status == 401
    problem = b"This is not the token of this server."
    assert answer.body == b'the form<p class="problem" role="alert">%s</p>' % problem
    assert "set-cookie" not in answer.fields
    assert "192.0.2.1 has sent a wrong token" in caplog.text
    assert "wrong token" in caplog.text


def test_a_form_of_another_site_does_not_sign_in_or_out() -> None:
    site, foreign = Site(), {"sec-fetch-site": "cross-site"}
    for target in ("/sign-in", "/sign-out"):
        answer = site.call("POST", target, f"token={TOKEN}".encode(), fields=foreign)
        assert answer.status == 403
        assert "set-cookie" not in answer.fields


def test_many_values_in_a_query_are_ignored() -> None:
    answer = Site().call("GET", "/?" + "token=x&" * 20)
    assert (answer.status, answer.body[:8]) == (200, b"the form")


def test_a_long_form_is_refused() -> None:
    assert Site().call("POST", "/sign-in", b"token=" + b"x" * 5000).status == 413


def test_many_wrong_tokens_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAILURE_S", 0.01)
    site = Site()

    async def try_many() -> list[int]:
        calls = (site.answer("GET", "/?token=wrong") for _ in range(FAILURES + 3))
        return [sent[0]["status"] for sent in await asyncio.gather(*calls)]

    assert sorted(asyncio.run(try_many())) == [401] * FAILURES + [429] * 3
    assert not site.access.is_busy
    assert site.call("GET", f"/?token={TOKEN}").status == 303


# --- the API --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/history", "/api/stream", "/api/stack", "/api/control"])
def test_the_api_needs_the_token(path: str) -> None:
    site = Site()
    assert site.call("GET", path).status == 401
    wrong = site.call("GET", path, fields={"authorization": "Bearer wrong"})
    assert wrong.status == 401
    assert wrong.json["error"]


def test_the_history_is_one_document() -> None:
    site = Site()
    assert site.call("GET", "/api/history", fields=BEARER).json == {
        "server": {},
        "samples": [],
        "events": [],
    }
    site.history.set_server({"name": "shop"})
    for number in (1, 2):
        site.history.add_sample({"n": number})
        site.history.add_event({"name": "ready", "text": str(number)})
    answer = site.call("GET", "/api/history", fields=BEARER)
    assert answer.json == {
        "server": {"name": "shop"},
        "samples": [{"n": 1}, {"n": 2}],
        "events": [{"name": "ready", "text": "1"}, {"name": "ready", "text": "2"}],
    }
    assert int(answer.fields["content-length"]) == len(answer.body)
    assert answer.fields["cache-control"] == "no-store"


def test_a_long_history_is_sent_in_parts() -> None:
    site = Site()
    for number in range(1, 101):
        site.history.add_sample({"n": number, "workers": "x" * 5000})
    sent = asyncio.run(site.answer("GET", "/api/history", fields=BEARER))
    assert len(sent) > 5
    assert [each.get("more_body", False) for each in sent[1:]] == [True] * (len(sent) - 2) + [False]
    assert len(Answer(sent).json["samples"]) == 100


def test_a_stream_sends_what_is_new() -> None:
    site = Site()
    site.history.set_server({"name": "shop"})
    site.history.add_sample({"n": 1})
    site.history.add_sample({"n": 2})
    fields = {**BEARER, "last-event-id": "1"}
    sent = asyncio.run(
        site.answer("GET", "/api/stream", fields=fields, on_sent=lambda sent: len(sent) == 3)
    )
    answer = Answer(sent)
    assert answer.fields["content-type"] == "text/event-stream"
    assert b'event: server\ndata: {"name":"shop"}\n\n' in answer.body
    assert answer.body.endswith(b'id: 2\nevent: sample\ndata: {"n":2}\n\n')
    assert not site.streams


def test_too_many_streams_are_refused() -> None:
    site = Site()
    with ExitStack() as opened:
        for _ in range(MOST_STREAMS):
            opened.enter_context(site.streams.opened())
        answer = site.call("GET", "/api/stream", fields=BEARER)
    assert answer.status == 503


# --- control --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sent", "result", "text"),
    [
        (
            {"command": "reload"},
            ("reload", {"wait": False}),
            {"generation": 3, "workers": 2},
            "The reload to generation 3 has started",
        ),
        (
            {"command": "scale", "workers": 4},
            ("scale", {"to": "4"}),
            {"workers": 4, "before": 2},
            "4 workers, 2 before",
        ),
        (
            {"command": "scale", "workers": 4},
            ("scale", {"to": "4"}),
            {"workers": 4, "before": 2, "most": 8, "now": 4},
            "At least 4 workers, at most 8",
        ),
        (
            {"command": "restart", "slot": 2},
            ("restart-worker", {"slot": 2, "wait": False}),
            {"slot": 2, "serial": 5, "pid": 7},
            "Worker 2 will be replaced",
        ),
    ],
)
def test_commands_are_those_of_servoctl(
    body: dict[str, Any],
    sent: tuple[str, dict[str, Any]],
    result: dict[str, Any],
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "servo.error")
    site = Site()
    site.link.result = result
    answer = site.call("POST", "/api/control", json.dumps(body).encode(), fields=CONTROL)
    assert (answer.status, answer.json) == (200, {"ok": True, "text": text})
    assert site.link.sent == [sent]
    assert f'192.0.2.1 sends the command ["{sent[0]}"' in caplog.text


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b"1", b"[" * 4000, b'{"command":"stop"}', b'{"command":["reload"]}'),
        *(b'{"command":"scale"}', b'{"command":"scale","workers":"4"}'),
        *(b'{"command":"scale","workers":true}', b'{"command":"scale","workers":0}'),
        *(b'{"command":"restart","slot":1e3}', b'{"command":"restart","slot":-1}'),
    ],
)
def test_other_bodies_are_refused(body: bytes) -> None:
    site = Site()
    answer = site.call("POST", "/api/control", body, fields=CONTROL)
    assert answer.status == 400
    assert not site.link.sent


def test_a_refusal_of_the_server_is_a_conflict() -> None:
    site = Site()
    for error in (RequestFailed("refused", "the server is stopping"), NoAnswer("it is stopped")):
        site.link.error = error
        answer = site.call("POST", "/api/control", b'{"command":"reload"}', fields=CONTROL)
        assert (answer.status, answer.json) == (409, {"ok": False, "error": str(error)})


def test_a_foreign_page_can_not_control() -> None:
    site = Site()
    fields = {**CONTROL, "origin": "http://evil.example"}
    answer = site.call("POST", "/api/control", b'{"command":"reload"}', fields=fields)
    assert answer.status == 403
    assert "Origin" in answer.json["error"]
    assert not site.link.sent


def test_without_the_setting_nothing_is_controlled() -> None:
    site = Site(control=False)
    answer = site.call("POST", "/api/control", b'{"command":"reload"}', fields=CONTROL)
    assert answer.status == 403
    assert "--dashboard-control" in answer.json["error"]
    assert site.call("GET", "/api/stack?slot=1", fields=BEARER).status == 403
    assert not site.link.sent


def test_a_stack_is_text() -> None:
    site = Site()
    site.link.result = {
        "slot": 1,
        "pid": 7,
        "state": "ready",
        "tasks": [],
        "left_out": 0,
        "threads": [{"name": "MainThread", "stack": '  File "shop.py", line 3, in f\n'}],
    }
    answer = site.call("GET", "/api/stack?slot=1", fields=BEARER)
    assert answer.status == 200
    assert "thread MainThread" in answer.json["text"]
    assert site.link.sent == [("stack", {"slot": 1})]
    site.link.error = RequestFailed("refused", "there is no worker 9")
    assert site.call("GET", "/api/stack?slot=9", fields=BEARER).status == 409
    for slot in ("", "x", "1" * 10, "-1"):
        assert site.call("GET", f"/api/stack?slot={slot}", fields=BEARER).status == 400


# --- files and other requests ---------------------------------------------------------------------


def test_files_need_no_token_and_are_cached_by_their_tag() -> None:
    site = Site()
    answer = site.call("GET", "/static/app.js")
    assert (answer.status, answer.body) == (200, b"script")
    cached = site.call("GET", "/static/app.js", fields={"if-none-match": answer.fields["etag"]})
    assert (cached.status, cached.body) == (304, b"")
    head = site.call("HEAD", "/static/app.js")
    assert (head.status, head.body, head.fields["content-length"]) == (200, b"", "6")


@pytest.mark.parametrize(
    "path", ["/index.html", "/static/index.html", "/static/../x", "/api", "/x", "//", "/static/"]
)
def test_nothing_else_is_served(path: str) -> None:
    assert Site().call("GET", path, fields=BEARER).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *(("POST", "/", "GET"), ("GET", "/sign-in", "POST"), ("GET", "/sign-out", "POST")),
        *(("POST", "/static/app.js", "GET"), ("POST", "/api/history", "GET")),
        *(("GET", "/api/control", "POST"), ("POST", "/api/stream", "GET")),
    ],
)
def test_other_methods_are_refused(method: str, path: str, allowed: str) -> None:
    answer = Site().call(method, path, fields=BEARER)
    assert (answer.status, answer.fields["allow"]) == (405, allowed)


def test_each_response_has_the_safe_fields() -> None:
    site = Site()
    for target in ("/", "/static/app.js", "/api/history", "/nothing"):
        fields = site.call("GET", target).fields
        assert fields["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in fields["content-security-policy"]
        assert fields["x-content-type-options"] == "nosniff"
        assert fields["referrer-policy"] == "no-referrer"


def test_a_unix_socket_serves_this_machine_alone() -> None:
    site = Site(asks_token=False)
    assert site.call("GET", "/").body == b"the page"
    assert site.call("GET", "/api/history").status == 200
    rebound = site.call("GET", "/api/history", fields={"host": "evil.example"})
    assert rebound.status == 421
    assert site.call("GET", "/?token=x").body == b"the page"


def test_the_lifespan_starts_and_ends_the_link() -> None:
    site = Site()
    messages = [{"type": "lifespan.shutdown"}, {"type": "lifespan.startup"}]
    sent: list[str] = []

    async def receive() -> dict[str, Any]:
        return messages.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    asyncio.run(site.app({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert site.link.calls == ["start", "first_answer", "close"]
