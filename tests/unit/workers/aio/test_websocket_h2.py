"""A WebSocket on an HTTP/2 stream (RFC 8441)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from h2frames import CANCEL, GET, data, head, reset
from unit.workers.fakes import (
    PEER,
    AsyncServer,
    H2Client,
    H2WebSocketClient,
    ws_close,
    ws_frame,
)
from websockets.frames import Opcode

Make = Callable[..., AsyncServer]
TEXT, BINARY, PING, PONG = Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.PONG


class Echo:
    """Answers each message with itself; `told` is all that it has received."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.go_on: asyncio.Future[None] | None = None
        self.waits = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"plain"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        if self.waits:
            self.go_on = asyncio.get_running_loop().create_future()
            await self.go_on
        while True:
            message = await receive()
            self.told.append(message)
            if message["type"] == "websocket.disconnect":
                return
            await send({**message, "type": "websocket.send"})

    @property
    def close_code(self) -> int | None:
        return self.told[-1].get("code") if self.told else None


@pytest.fixture
def app() -> Echo:
    return Echo()


@pytest.fixture
def make(make_async: Make, app: Echo) -> Make:
    def made(other: Any = None, **values: Any) -> AsyncServer:
        defaults = {"http2_cleartext": "prior-knowledge", "forwarded_allow_ips": PEER[0]}
        return make_async(other or app, **{**defaults, **values})

    return made


def connect(server: AsyncServer) -> H2WebSocketClient:
    client = H2WebSocketClient(H2Client(server.connect()))
    assert client.status == 200
    return client


def test_messages_come_back_beside_other_streams(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(ws_frame(TEXT, b"hello"))
    client.client.send(head(3, GET))
    client.send(ws_frame(BINARY, b"\0"))
    assert client.reader.messages == ["hello", b"\0"]
    assert client.client.results(3) == [(200, b"plain")]
    assert server.world.in_flight == 0


def test_messages_byte_by_byte(make: Make) -> None:
    server = make()
    client = connect(server)
    sent = ws_frame(TEXT, b"one") + ws_frame(PING, b"p") + ws_frame(TEXT, b"two")
    for at in range(len(sent)):
        client.send(sent[at : at + 1])
    assert client.reader.messages == ["one", "two"]
    assert client.reader.count(PONG) == 1


def test_the_client_closes(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    client.send(ws_close(1001))
    assert app.close_code == 1001
    assert client.reader.close_code == 1001
    assert client.answer.ended
    assert not client.connection.ended
    client.send(b"", end=True)
    assert not server.server.calls


def test_an_end_of_the_stream_without_a_close_is_1006(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    client.send(b"", end=True)
    assert app.close_code == 1006
    assert client.answer.ended


def test_a_reset_is_1006(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    client.client.send(reset(1))
    assert app.close_code == 1006
    client.client.send(head(3, GET))
    assert client.client.results(3) == [(200, b"plain")]


def test_a_lost_connection_is_1006(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    client.connection.lose()
    assert app.close_code == 1006
    assert not server.server.connections


def test_a_denied_handshake(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close"})

    server = make(app)
    client = H2WebSocketClient(H2Client(server.connect()))
    assert client.status == 403


def test_a_handshake_with_a_wrong_version(make: Make) -> None:
    server = make()
    client = H2Client(server.connect())
    fields = [(":method", "CONNECT"), *GET[1:], (":protocol", "websocket")]
    client.send(head(1, [*fields, ("sec-websocket-version", "12")], end=False))
    assert client.answer(1).status == 426
    assert server.world.in_flight == 0


def test_data_before_the_answer_is_refused(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.get_running_loop().create_future()

    server = make(app)
    client = H2WebSocketClient(H2Client(server.connect()))
    client.send(ws_frame(TEXT, b"early"))
    assert client.answer.reset == CANCEL
    assert server.world.statuses == {400: 1}


def test_an_end_before_the_answer_is_a_client_that_has_left(make: Make) -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        told.append(await receive())

    server = make(app)
    client = H2WebSocketClient(H2Client(server.connect()))
    client.send(b"", end=True)
    assert [message["type"] for message in told] == ["websocket.disconnect"]
    assert server.world.in_flight == 0


def test_a_window_that_stays_shut_holds_the_application_up(make: Make) -> None:
    server = make(send_timeout=0)
    client = connect(server)
    frame = ws_frame(BINARY, b"x" * 40_000)
    for _ in range(5):
        client.send(frame[:16384])
        client.send(frame[16384:32768])
        client.send(frame[32768:])
    before = len(client.reader.messages)
    assert before == 1
    while len(client.reader.messages) < 5:
        client.give(50_000)
    assert client.reader.messages == [b"x" * 40_000] * 5


def test_a_client_that_takes_nothing_loses_its_stream_after_send_timeout(
    make: Make, app: Echo
) -> None:
    server = make(send_timeout=10)
    client = connect(server)
    frame = ws_frame(BINARY, b"x" * 40_000)
    for _ in range(4):
        for at in range(0, len(frame), 16384):
            client.send(frame[at : at + 16384])
    server.after(22)
    assert client.answer.reset == CANCEL
    assert not client.connection.closed
    server.turn(5)
    assert not server.server.calls


def test_messages_that_nobody_takes_keep_the_window_shut(make: Make, app: Echo) -> None:
    app.waits = True
    server = make(websocket_max_queue=2, http2_initial_window_size=65536)
    client = connect(server)
    for _ in range(3):
        client.send(ws_frame(BINARY, b"x" * 16_000))

    def opened() -> int:
        return sum(n for stream, n in client.client.reader.windows if stream == 1)

    before = opened()
    assert before <= 32_000
    assert app.go_on is not None
    app.go_on.set_result(None)
    server.turn(6)
    assert len(app.told) == 3
    assert opened() > before


def test_frames_not_handled_yet_do_not_open_the_window(make: Make, app: Echo) -> None:
    """One read brings all four. The second fills the queue, so the others stay unread."""
    app.waits = True
    server = make(websocket_max_queue=2, http2_initial_window_size=65536)
    client = connect(server)
    client.client.send(b"".join(data(1, ws_frame(BINARY, b"x" * 16_000)) for _ in range(4)))
    assert sum(n for stream, n in client.client.reader.windows if stream == 1) <= 32_008
    assert app.go_on is not None
    app.go_on.set_result(None)
    server.turn(6)
    assert len(app.told) == 4


def test_a_ping_that_is_not_answered_closes_with_1011(make: Make, app: Echo) -> None:
    server = make(websocket_ping_interval=20, websocket_ping_timeout=10, keepalive=100)
    client = connect(server)
    server.after(21)
    assert client.reader.count(PING) == 1
    server.after(11)
    assert client.reader.close_code == 1011
    assert client.answer.ended
    server.after(3)
    assert client.answer.reset == CANCEL
    assert app.close_code == 1011


def test_a_drain_closes_with_1012(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    server.drain(idle_s=0.05)
    server.after(0.2)
    assert client.reader.close_code == 1012
    client.send(ws_close(1012), end=True)
    assert app.close_code == 1012
    server.after(1)
    assert client.connection.ended
