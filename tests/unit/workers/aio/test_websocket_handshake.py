"""WebSocket handshakes in the `async` worker, valid and invalid."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from unit.workers.fakes import WEBSOCKET, AsyncServer, make_request

from servo.http.errors import ProtocolError
from servo.settings.sources import Settings
from servo.workers.aio.websocket_handshake import WebSockets

Make = Callable[..., AsyncServer]


async def deny(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.close"})


async def plain(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["type"].encode()})


def test_the_settings_that_all_connections_share() -> None:
    values = {
        "websocket_ping_interval": 1.5,
        "websocket_ping_timeout": 0.5,
        "websocket_per_message_deflate": False,
        "websocket_max_queue": 7,
        "websocket_max_message_size": 1234,
    }
    common = WebSockets(Settings(values, {}))
    assert (common.interval_ns, common.timeout_ns) == (1_500_000_000, 500_000_000)
    assert (common.max_queue, common.max_message_size) == (7, 1234)
    offer = WEBSOCKET.replace(
        b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    names = [name for name, _ in common.handshake(make_request(offer)).fields(None, [])]
    assert names == [b"sec-websocket-accept"]
    common = WebSockets(Settings({}, {}))
    names = [name for name, _ in common.handshake(make_request(offer)).fields(None, [])]
    assert names == [b"sec-websocket-accept", b"sec-websocket-extensions"]


def test_a_key_is_asked_for_unless_the_stream_is_of_http2() -> None:
    common = WebSockets(Settings({}, {}))
    request = make_request(WEBSOCKET)
    request.headers = [item for item in request.headers if item[0] != b"sec-websocket-key"]
    with pytest.raises(ProtocolError):
        common.handshake(request)
    assert common.handshake(request, key=False).fields(None, []) == []


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (b"Version: 13", b"Version: 8", 426),
        (b"Sec-WebSocket-Key", b"X-Other", 400),
        (b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ=", 400),
    ],
)
def test_a_bad_handshake_is_refused_like_a_bad_request_line(
    make_async: Make, old: bytes, new: bytes, status: int
) -> None:
    server = make_async(deny)
    connection = server.connect()
    connection.send(WEBSOCKET.replace(old, new))
    assert [found for found, _ in connection.responses] == [status]
    assert server.world.requests == 1
    assert server.world.in_flight == 0


def test_a_denial_is_a_403_and_ends_the_connection(make_async: Make) -> None:
    server = make_async(deny)
    connection = server.connect()
    connection.send(WEBSOCKET)
    assert [status for status, _ in connection.responses] == [403]
    assert connection.ended
    assert server.world.statuses == {403: 1}


def test_a_denial_with_a_response_of_the_applications_own(make_async: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 404, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"thing"})

    server = make_async(app)
    connection = server.connect()
    connection.send(WEBSOCKET)
    assert connection.responses == [(404, b"nothing")]
    assert connection.ended


def test_an_error_before_the_answer_is_a_500(
    make_async: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    server = make_async(app)
    connection = server.connect()
    connection.send(WEBSOCKET)
    assert [status for status, _ in connection.responses] == [500]
    assert "broken" in caplog.text
    assert server.world.in_flight == 0


def test_a_subprotocol_and_fields_of_the_applications_own(make_async: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["subprotocols"] == ["a", "b"]
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"x-a", b"1")]})
        await asyncio.get_running_loop().create_future()

    server = make_async(app)
    connection = server.connect()
    connection.send(WEBSOCKET.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Protocol: a, b\r\n\r\n"))
    assert connection.received.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    lines = connection.received.lower().split(b"\r\n")
    assert b"sec-websocket-protocol: b" in lines
    assert b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in lines
    assert b"x-a: 1" in lines


def test_a_body_in_a_handshake_makes_it_an_ordinary_request_or_none(make_async: Make) -> None:
    server = make_async(plain)
    connection = server.connect()
    connection.send(WEBSOCKET.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nab"))
    assert connection.responses[0][0] in (200, 400)
    assert server.world.in_flight == 0


def test_without_websockets_the_upgrade_is_an_ordinary_request(make_async: Make) -> None:
    server = make_async(plain, websocket=False)
    connection = server.connect()
    connection.send(WEBSOCKET)
    assert connection.responses == [(200, b"http")]


def test_a_wsgi_application_is_asked_an_ordinary_request(make_async: Make) -> None:
    server = make_async(lambda environ, start_response: [], interface="wsgi")
    assert server.server.websockets is None
    assert server.server.missing_websockets is None


def test_a_handshake_that_lasts_too_long_is_a_504(
    make_async: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.get_running_loop().create_future()

    server = make_async(app, request_timeout=30)
    connection = server.connect()
    connection.send(WEBSOCKET)
    server.after(31)
    assert [status for status, _ in connection.responses] == [504]
    assert "request_timeout" in caplog.text


def test_a_client_that_half_closes_before_the_answer_is_given_up(make_async: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    server = make_async(app)
    connection = server.connect()
    connection.send(WEBSOCKET)
    connection.send_eof()
    assert connection.closed
    assert connection.received == b""
    assert server.world.in_flight == 0
    assert server.world.requests == 1
