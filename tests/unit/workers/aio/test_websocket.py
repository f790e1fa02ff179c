"""An open WebSocket on a fake transport: messages, closing, heartbeats and slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from unit.workers.fakes import WEBSOCKET, AsyncServer, WebSocketClient, ws_close, ws_frame
from websockets.frames import Opcode

from servo.shared_memory import row_layout

Make = Callable[..., AsyncServer]

TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE


class Echo:
    """Answers each message with itself; `told` is all that it has received."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "websocket"
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            self.told.append(message)
            if message["type"] == "websocket.disconnect":
                return
            await send({**message, "type": "websocket.send"})

    @property
    def close_code(self) -> int | None:
        last = self.told[-1] if self.told else {}
        return last.get("code")


class Stuck(Echo):
    """Accepts, and takes no message until it is released; `sends` may send meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on: asyncio.Future[None] | None = None
        self.send: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.send = send
        self.go_on = asyncio.get_running_loop().create_future()
        await self.go_on
        while True:
            message = await receive()
            self.told.append(message)
            if message["type"] == "websocket.disconnect":
                return

    def release(self) -> None:
        assert self.go_on is not None
        self.go_on.set_result(None)


@pytest.fixture
def app() -> Echo:
    return Echo()


@pytest.fixture
def make(make_async: Make, app: Echo) -> Make:
    return lambda other=None, **values: make_async(other or app, **values)


def connect(server: AsyncServer, extra: bytes = b"") -> WebSocketClient:
    client = WebSocketClient(server.connect(), extra)
    assert client.status == 101
    return client


# --- messages -------------------------------------------------------------------------------------


def test_messages_come_back(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(ws_frame(TEXT, "hé".encode()) + ws_frame(BINARY, b"\0\1"))
    assert client.reader.messages == ["hé", b"\0\1"]
    assert server.world.in_flight == 0  # an open WebSocket is no request in flight
    assert server.world.statuses == {101: 1}


def test_handshake_and_messages_byte_by_byte(make: Make) -> None:
    server = make()
    connection = server.connect()
    sent = WEBSOCKET + ws_frame(TEXT, b"one") + ws_frame(TEXT, b"tw", fin=False)
    sent += ws_frame(CONT, b"o")
    for at in range(len(WEBSOCKET)):
        connection.send(sent[at : at + 1], turns=1)
    server.turn(3)
    for at in range(len(WEBSOCKET), len(sent)):
        connection.send(sent[at : at + 1])
    assert connection.received.startswith(b"HTTP/1.1 101 ")
    assert connection.received.endswith(b"\x81\x03one\x81\x03two")


def hold(app: Any) -> tuple[list[asyncio.Future[None]], Any]:
    """An application that begins when the future is done."""
    held: list[asyncio.Future[None]] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        held.append(asyncio.get_running_loop().create_future())
        await held[0]
        await app(scope, receive, send)

    return held, slow


def test_a_few_bytes_before_the_answer_are_kept(make: Make, app: Echo) -> None:
    held, slow = hold(app)
    server = make(slow)
    connection = server.connect()
    connection.send(WEBSOCKET)
    connection.send(ws_frame(TEXT, b"early"))
    assert not connection.received
    held[0].set_result(None)
    server.turn(4)
    assert connection.received.endswith(b"\x81\x05early")


def test_many_bytes_before_the_answer_are_refused(make: Make, app: Echo) -> None:
    """RFC 6455 section 4.1: the client must wait."""
    _, slow = hold(app)
    server = make(slow)
    connection = server.connect()
    connection.send(WEBSOCKET)
    for _ in range(10):
        if not connection.received:
            connection.send(ws_frame(BINARY, b"x" * 30_000))
    assert [status for status, _ in connection.responses] == [400]
    assert server.world.statuses == {400: 1}
    assert server.world.in_flight == 0


def test_a_long_message_in_pieces_of_the_network(make: Make) -> None:
    server = make()
    client = connect(server)
    frame = ws_frame(BINARY, b"x" * 300_000)
    for at in range(0, len(frame), 60_000):
        client.send(frame[at : at + 60_000])
    assert client.reader.messages == [b"x" * 300_000]


def test_a_ping_is_answered(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(ws_frame(PING, b"payload"))
    assert client.reader.frames == [(PONG, b"payload")]


def test_a_message_that_is_too_large_closes_with_1009(make: Make, app: Echo) -> None:
    server = make(websocket_max_message_size=1000)
    client = connect(server)
    client.send(ws_frame(TEXT, b"x" * 1001))
    assert client.reader.close_code == 1009
    assert app.close_code == 1009
    assert client.connection.transport.ended  # the client may be sending still
    assert not client.connection.closed
    client.connection.send_eof()
    assert client.connection.closed


def test_a_frame_that_is_no_frame_closes_with_1002(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    client.send(b"\xff\xff\xff")
    assert client.reader.close_code == 1002
    server.after(3)
    assert client.connection.closed


# --- closing --------------------------------------------------------------------------------------


def test_the_client_closes(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    client.send(ws_close(1001, "bye"))
    assert app.told == [{"type": "websocket.disconnect", "code": 1001, "reason": "bye"}]
    assert client.reader.close_code == 1001
    assert client.connection.closed
    assert not server.server.calls


def test_the_application_closes_and_the_client_answers(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})

    server = make(app)
    client = connect(server)
    assert client.reader.close_code == 4000
    assert not client.connection.closed
    client.send(ws_frame(TEXT, b"dropped") + ws_close(4000))
    assert client.connection.closed


def test_a_client_that_does_not_answer_a_close_is_cut(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    server = make(app)
    client = connect(server)
    assert client.reader.close_code == 1000
    server.after(9)
    assert not client.connection.closed
    server.after(2)
    assert client.connection.closed
    assert client.connection.transport.aborted


def test_an_error_of_the_application_closes_with_1011(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise ValueError("broken")

    server = make(app)
    client = connect(server)
    assert client.reader.close_code == 1011
    assert "broken" in caplog.text


@pytest.mark.parametrize("how", ["eof", "lost"])
def test_a_client_that_leaves_without_a_close_is_1006(make: Make, app: Echo, how: str) -> None:
    server = make()
    client = connect(server)
    if how == "eof":
        client.connection.send_eof()
    else:
        client.connection.lose()
    assert app.close_code == 1006
    assert client.connection.closed
    assert not server.server.calls
    assert server.world.count(row_layout.CONNECTIONS) == 0


def test_an_end_that_comes_with_the_handshake(make: Make) -> None:
    app = Stuck()
    server = make(app)
    connection = server.connect()
    connection.send(WEBSOCKET + ws_frame(TEXT, b"one"), turns=0)
    connection.send_eof()
    app.release()
    server.turn(4)
    assert [message["type"] for message in app.told] == [
        "websocket.receive",
        "websocket.disconnect",
    ]
    assert connection.closed


def test_a_client_that_leaves_before_the_answer(make: Make) -> None:
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        told.append(await receive())

    server = make(app)
    connection = server.connect()
    connection.send(WEBSOCKET)
    connection.lose()
    assert told == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]
    assert server.world.requests == 1
    assert server.world.in_flight == 0


# --- a slow reader, and a slow application --------------------------------------------------------


def test_a_client_that_does_not_read_holds_its_application_up(make: Make) -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        for number in range(6):
            await send({"type": "websocket.send", "bytes": b"x" * 50_000})
            sent.append(number)

    server = make(app)
    client = connect(server)
    client.connection.transport.blocked = True
    client.send(ws_frame(TEXT, b"go"), turns=20)
    assert len(sent) == 1
    # Its pings would fill our buffer with pongs.
    assert not client.connection.transport.reading
    while len(sent) < 6:
        client.connection.transport.take()
        server.turn(5)
    client.connection.transport.take()
    server.turn(3)
    assert client.reader.messages == [b"x" * 50_000] * 6
    assert client.connection.transport.reading


def test_a_client_that_has_stopped_reading_is_cut_after_send_timeout(make: Make) -> None:
    app = Stuck()
    server = make(app, send_timeout=10, websocket_ping_interval=0)
    client = connect(server)
    client.connection.transport.blocked = True
    server.loop.create_task(app.send({"type": "websocket.send", "bytes": b"x" * 100_000}))
    server.turn(3)
    server.after(9)
    client.connection.transport.take(1000)
    server.after(8)
    assert not client.connection.closed
    server.after(3)
    assert client.connection.transport.aborted
    app.release()
    server.turn(3)
    assert app.close_code == 1006


def test_messages_that_nobody_takes_pause_the_reading(make: Make) -> None:
    app = Stuck()
    server = make(app, websocket_max_queue=4)
    client = connect(server)
    for number in range(4):
        client.send(ws_frame(TEXT, b"%d" % number))
    assert not client.connection.transport.reading
    app.release()
    server.turn(3)
    assert client.connection.transport.reading
    assert [message["text"] for message in app.told] == ["0", "1", "2", "3"]


def test_one_read_of_many_messages_is_parsed_as_the_application_takes_them(make: Make) -> None:
    app = Stuck()
    server = make(app, websocket_max_queue=4)
    client = connect(server)
    client.send(b"".join(ws_frame(TEXT, b"%0100d" % number) for number in range(600)))
    assert not client.connection.transport.reading
    app.release()
    server.turn(3)
    while len(app.told) < 600:
        server.turn(1)
    assert [int(message["text"]) for message in app.told] == list(range(600))
    assert client.connection.transport.reading


def test_a_close_behind_a_full_queue_is_seen_when_the_queue_is_taken(make: Make) -> None:
    app = Stuck()
    server = make(app, websocket_max_queue=2)
    client = connect(server)
    frames = ws_frame(TEXT, b"x" * 40_000) * 3 + ws_close(1001)
    client.send(frames)
    app.release()
    server.turn(6)
    assert len(app.told) == 4
    assert app.close_code == 1001
    assert client.connection.closed


# --- heartbeats -----------------------------------------------------------------------------------


def test_pings_that_are_answered_keep_the_connection(make: Make) -> None:
    server = make(websocket_ping_interval=20, websocket_ping_timeout=10)
    client = connect(server)
    for number in range(1, 4):
        server.after(20)
        assert client.reader.count(PING) == number
        client.send(ws_frame(PONG))
    assert not client.connection.closed


def test_a_ping_that_is_not_answered_closes_with_1011(make: Make, app: Echo) -> None:
    server = make(websocket_ping_interval=20, websocket_ping_timeout=10)
    client = connect(server)
    server.after(21)
    assert client.reader.count(PING) == 1
    server.after(8)
    assert client.reader.close_code is None
    server.after(3)
    assert client.reader.close_code == 1011
    assert app.told[-1]["reason"] == "keepalive ping timeout"
    server.after(3)
    assert client.connection.closed


def test_whatever_comes_answers_a_ping(make: Make) -> None:
    server = make(websocket_ping_interval=20, websocket_ping_timeout=10)
    client = connect(server)
    server.after(21)
    client.send(ws_frame(TEXT, b"part", fin=False))
    server.after(15)
    assert client.reader.close_code is None


def test_while_we_do_not_read_the_client_is_not_to_blame(make: Make) -> None:
    app = Stuck()
    server = make(app, websocket_max_queue=1, websocket_ping_interval=20, websocket_ping_timeout=10)
    client = connect(server)
    client.send(ws_frame(TEXT, b"one"))
    assert not client.connection.transport.reading
    server.after(60)
    assert client.reader.close_code is None
    app.release()
    server.turn(3)
    server.after(12)
    assert client.reader.close_code == 1011


# --- the end of the worker ------------------------------------------------------------------------


def test_a_drain_closes_a_quiet_connection_with_1012(make: Make, app: Echo) -> None:
    server = make()
    client = connect(server)
    server.drain(idle_s=0.05)
    server.turn(2)
    assert client.reader.close_code is None
    server.after(0.1)
    assert client.reader.close_code == 1012
    client.send(ws_close(1012))
    assert app.close_code == 1012
    assert client.connection.closed


def test_what_a_client_has_just_sent_is_answered_before_the_drain_closes(make: Make) -> None:
    server = make()
    client = connect(server)
    server.drain(idle_s=0.05)
    client.send(ws_frame(TEXT, b"just now"))
    server.after(0.1)
    assert client.reader.messages == ["just now"]
    assert client.reader.close_code == 1012


def test_a_busy_application_is_waited_for_but_not_for_long(make: Make) -> None:
    app = Stuck()
    server = make(app)
    client = connect(server)
    server.drain(idle_s=0.05)
    server.after(0.5)
    assert client.reader.close_code is None
    server.after(1)
    assert client.reader.close_code == 1012


def test_a_client_that_does_not_answer_the_drain_is_told_to_the_application_as_1012(
    make: Make, app: Echo
) -> None:
    server = make()
    client = connect(server)
    server.drain(idle_s=0.05)
    server.after(0.1)
    server.after(11)
    assert client.connection.closed
    assert app.close_code == 1012


def test_a_handshake_that_a_draining_worker_accepts_is_closed_soon(make: Make) -> None:
    server = make()
    server.server.draining = True
    client = connect(server)
    server.after(0.1)
    assert client.reader.close_code == 1012


def test_an_abort_says_so_where_there_is_room(make: Make, app: Echo) -> None:
    server = make()
    client, slow = connect(server), connect(server)
    slow.connection.transport.blocked = True
    slow.send(ws_frame(BINARY, b"x" * 100_000))
    for connection in list(server.server.connections):
        connection.abort()
    server.turn(3)
    assert client.reader.close_code == 1012
    assert client.connection.closed
    assert slow.connection.transport.aborted
    assert not server.server.calls


def test_held_bytes_are_those_of_a_full_buffer(make: Make) -> None:
    server = make()
    client = connect(server)
    assert client.connection.protocol.held_bytes() == 0
    client.connection.transport.blocked = True
    client.send(ws_frame(BINARY, b"x" * 100_000))
    assert client.connection.protocol.held_bytes() > 100_000
    assert client.connection.protocol.peer_name == "192.0.2.1"
