"""The shared state of an `async` worker's connections."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest
from authority import Authority
from unit.workers.fakes import GET, PEER, SECOND, AsyncServer, shaken

from servo.net.tls import TLS
from servo.shared_memory import row_layout

Make = Callable[..., AsyncServer]


async def tell(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what the scope says of the client."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    parts = [scope["client"], scope["scheme"], hosts, scope["path"], scope["root_path"]]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr(parts).encode()})


async def wait(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.get_running_loop().create_future()


def test_what_a_trusted_proxy_says_stands_in_the_scope(make_async: Make) -> None:
    server = make_async(
        tell,
        forwarded_allow_ips=PEER[0],
        forwarded_fields=["for", "proto", "host", "prefix"],
    )
    connection = server.connect()
    fields = (
        b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n"
        b"X-Forwarded-Host: outside.example\r\nX-Forwarded-Prefix: /mount\r\n"
    )
    connection.send(GET.replace(b"\r\n\r\n", b"\r\n" + fields + b"\r\n"))
    ((status, body),) = connection.responses
    assert status == 200
    assert b"'203.0.113.9'" in body
    assert b"'https', [b'outside.example'], '/mount/', '/mount'" in body


def test_hooks_see_each_request_and_its_response(make_async: Make) -> None:
    calls: list[Any] = []
    hooks = {
        "pre_request": lambda worker, req: calls.append((req.method, req.remote_addr)),
        "post_request": lambda worker, req, environ, resp: calls.append(
            (environ["type"], resp.status, resp.sent)
        ),
    }
    server = make_async(tell, hooks=hooks)
    connection = server.connect()
    connection.send(GET)
    size = len(connection.responses[0][1])
    assert calls == [("GET", "192.0.2.1"), ("http", "200 OK", size)]
    connection.send(b"nonsense\r\n\r\n")
    assert len(calls) == 2


def test_a_client_that_leaves_is_a_response_of_nothing_to_the_hook(make_async: Make) -> None:
    calls: list[Any] = []
    hooks = {
        "pre_request": lambda worker, req: None,
        "post_request": lambda worker, req, environ, resp: calls.append(resp.sent),
    }
    server = make_async(wait, hooks=hooks)
    connection = server.connect()
    connection.send(GET)
    connection.lose()
    assert calls == [0]


def test_each_request_has_a_context_of_its_own(make_async: Make) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(variable.get())
        variable.set(1)
        await tell(scope, receive, send)

    server = make_async(app)
    server.connect().send(GET * 3, turns=8)
    assert seen == [0, 0, 0]


def test_the_sweep_notes_the_oldest_request(make_async: Make) -> None:
    server = make_async(wait, request_timeout=0)
    first, second = server.connect(), server.connect()
    start = server.clock.ns
    first.send(GET)
    server.after(2)
    second.send(GET)
    server.after(2)
    assert server.world.count(row_layout.OLDEST_START_NS) == start
    first.lose()
    server.after(1)
    assert server.world.count(row_layout.OLDEST_START_NS) == start + 2 * SECOND
    second.lose()
    server.after(1)
    assert server.world.count(row_layout.OLDEST_START_NS) == 0


def test_a_wsgi_application_gets_mod_ssls_variables(
    make_async: Make, tls: TLS, authority: Authority
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["SSL_PROTOCOL"].encode(), environ["wsgi.url_scheme"].encode()]

    server = make_async(app, interface="wsgi", tls=tls)
    connection = server.connect(ssl_object=shaken(tls, authority.client_context()))
    connection.send(GET)
    while not connection.received:
        server.turn()
    server.turn(3)
    assert connection.responses == [(200, b"TLSv1.3https")]


def test_missing_websockets_are_told_of(
    make_async: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("servo.workers.aio.server.has_websockets", lambda: False)
    server = make_async(tell)
    assert server.server.websockets is None
    connection = server.connect()
    connection.send(
        GET.replace(b"\r\n\r\n", b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
    )
    assert connection.responses[0][0] == 200
    assert "websockets" in caplog.text
