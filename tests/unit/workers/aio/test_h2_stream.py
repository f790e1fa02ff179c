"""One HTTP/2 stream between its application and its connection: bodies, back-pressure, files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from h2frames import GET, POST, data, head, reset, window
from unit.workers.fakes import PEER, AsyncServer, H2Client

from servo.shared_memory import row_layout

Make = Callable[..., AsyncServer]
WINDOW = 65536


@pytest.fixture
def make(make_async: Make) -> Make:
    def made(app: Any, **values: Any) -> AsyncServer:
        defaults = {
            "http2_cleartext": "prior-knowledge",
            "http2_initial_window_size": WINDOW,
            "forwarded_allow_ips": PEER[0],
        }
        return make_async(app, **{**defaults, **values})

    return made


def connect(server: AsyncServer) -> H2Client:
    return H2Client(server.connect())


async def respond(send: Any, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Reader:
    """An application that receives a message when it is told to, and then answers."""

    def __init__(self) -> None:
        self.step: asyncio.Future[None] | None = None
        self.received = b""
        self.told: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            self.step = asyncio.get_running_loop().create_future()
            await self.step
            message = await receive()
            self.told.append(message["type"])
            self.received += message.get("body", b"")
            more = message.get("more_body", False)
        await respond(send, b"%d" % len(self.received))

    def read(self) -> None:
        assert self.step is not None
        if not self.step.done():
            self.step.set_result(None)


# --- bodies ---------------------------------------------------------------------------------------


def test_the_window_opens_as_the_application_reads(make: Make) -> None:
    app = Reader()
    server = make(app)
    client = connect(server)
    client.send(head(1, POST, end=False))
    for _ in range(4):
        client.send(data(1, b"x" * 16384))
    opened = sum(n for stream, n in client.reader.windows if stream == 1)
    assert opened < 16384 * 2  # the application has taken nothing
    app.read()
    server.turn(4)
    opened = sum(n for stream, n in client.reader.windows if stream == 1)
    assert opened >= WINDOW // 2
    client.send(data(1, b"y" * 1000, end=True))
    app.read()
    server.turn(4)
    assert client.results(1) == [(200, b"%d" % (WINDOW + 1000))]
    assert server.world.count(row_layout.BYTES_IN) == WINDOW + 1000


def test_an_application_that_does_not_read_stops_the_body_clock(make: Make) -> None:
    app = Reader()
    server = make(app, body_timeout=10, body_min_rate=0)
    client = connect(server)
    client.send(head(1, POST, end=False))
    for _ in range(3):
        client.send(data(1, b"x" * 16384))
    server.after(30)  # full: it is not the client that is slow
    assert not client.answer(1).heads
    app.read()
    server.turn(3)
    server.after(9)
    assert not client.answer(1).heads
    server.after(2)
    assert client.answer(1).status == 408


def test_an_empty_end_completes_the_body(make: Make) -> None:
    app = Reader()
    server = make(app)
    client = connect(server)
    client.send(head(1, POST, end=False) + data(1, b"ab"))
    app.read()
    server.turn(3)
    client.send(data(1, b"", end=True))
    app.read()
    server.turn(3)
    assert client.results(1) == [(200, b"2")]


def test_an_answer_without_the_body_resets_the_rest_of_it(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"no", 403)

    server = make(app)
    client = connect(server)
    client.send(head(1, POST, end=False))
    assert client.results(1) == [(403, b"no")]
    assert client.answer(1).reset == 0
    client.send(data(1, b"late") + head(3))
    assert client.results(3) == [(403, b"no")]


def test_more_than_the_content_length_is_refused(make: Make) -> None:
    app = Reader()
    server = make(app)
    client = connect(server)
    client.send(head(1, [*POST, ("content-length", "3")], end=False))
    client.send(data(1, b"four", end=True))
    app.read()
    server.turn(3)
    assert client.answer(1).reset is not None or client.answer(1).status == 400
    assert server.world.in_flight == 0


def test_a_body_past_the_limit_is_refused(make: Make) -> None:
    app = Reader()
    server = make(app, limit_request_body=3)
    client = connect(server)
    client.send(head(1, POST, end=False))
    client.send(data(1, b"four"))
    assert client.answer(1).status == 413
    assert server.world.statuses == {413: 1}
    app.read()
    server.turn(3)
    assert app.told == ["http.disconnect"]


# --- the application ------------------------------------------------------------------------------


def test_an_error_before_the_head_is_a_500(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    server = make(app)
    client = connect(server)
    client.send(head(1))
    assert client.answer(1).status == 500
    assert "broken" in caplog.text


def test_an_error_after_the_head_resets_the_stream_alone(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        if scope["path"] == "/broken":
            raise ValueError("broken")
        await send({"type": "http.response.body", "body": b" and done"})

    server = make(app)
    client = connect(server)
    client.send(head(1, [*GET[:3], (":path", "/broken")]) + head(3))
    assert client.answer(1).reset is not None
    assert not client.answer(1).ended
    assert client.results(3) == [(200, b"begun and done")]
    assert "broken" in caplog.text
    assert server.world.in_flight == 0


def test_work_after_the_response_is_no_request_in_flight(make: Make) -> None:
    later: list[asyncio.Future[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"done")
        later.append(asyncio.get_running_loop().create_future())
        await later[0]

    server = make(app)
    client = connect(server)
    client.send(head(1))
    assert client.results(1) == [(200, b"done")]
    assert server.world.in_flight == 0
    assert len(server.server.calls) == 1
    later[0].set_result(None)
    server.turn(2)
    assert not server.server.calls


def test_operators_see_each_request_once(make: Make) -> None:
    app = Reader()
    server = make(app)
    client = connect(server)
    client.send(head(1) + head(3, POST, end=False))
    shown = server.worker.open_requests()
    assert sorted((method, target) for _, method, target, _ in shown) == [
        ("GET", b"/"),
        ("POST", b"/"),
    ]


# --- a slow reader --------------------------------------------------------------------------------


class Sender:
    """An application that sends pieces, and notes how far it is."""

    def __init__(self, pieces: int, size: int) -> None:
        self.pieces, self.size = pieces, size
        self.sent = 0
        self.errors: list[BaseException] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for number in range(self.pieces):
                more = number + 1 < self.pieces
                message = {"body": b"x" * self.size, "more_body": more}
                await send({"type": "http.response.body", **message})
                self.sent += 1
        except BaseException as error:
            self.errors.append(error)
            raise


def test_an_application_waits_until_little_is_left_to_send(make: Make) -> None:
    app = Sender(10, 50_000)
    server = make(app)
    client = connect(server)
    client.send(head(1), turns=10)
    before = app.sent
    assert before < 4
    server.turn(20)
    assert app.sent == before
    client.send(window(1, 50_000) + window(0, 50_000), turns=10)
    assert app.sent > before
    while not client.answer(1).ended:
        client.send(window(1, 60_000) + window(0, 60_000), turns=10)
    assert client.results(1) == [(200, b"x" * 500_000)]
    assert server.world.count(row_layout.BYTES_OUT) == 500_000


@pytest.mark.parametrize("how", ["reset", "lost"])
def test_a_client_that_leaves_ends_the_wait(make: Make, how: str) -> None:
    app = Sender(10, 50_000)
    server = make(app)
    client = connect(server)
    client.send(head(1), turns=10)
    if how == "reset":
        client.send(reset(1))
    else:
        client.connection.lose()
    server.turn(3)
    assert [type(error).__name__ for error in app.errors] == ["ClientDisconnected"]
    assert server.world.in_flight == 0
    assert not server.server.calls


# --- files ----------------------------------------------------------------------------------------


def test_a_file_is_sent_in_parts_as_the_client_takes_them(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 300_000)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": str(path)})

    server = make(app)
    client = connect(server)
    client.send(head(1), turns=12)
    assert len(client.answer(1).body) == 65535
    assert client.connection.protocol.held_bytes() < 200_000
    while not client.answer(1).ended:
        client.send(window(1, 60_000) + window(0, 60_000), turns=12)
    assert client.results(1) == [(200, b"f" * 300_000)]


def test_a_client_that_leaves_amid_a_file(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 300_000)
    errors: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await send({"type": "http.response.pathsend", "path": str(path)})
        except OSError as error:
            errors.append(error)

    server = make(app)
    client = connect(server)
    client.send(head(1), turns=12)
    client.send(reset(1), turns=5)
    assert [type(error).__name__ for error in errors] == ["ClientDisconnected"]


def test_a_file_that_became_shorter_resets_the_stream(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * 300_000)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.pathsend", "path": str(path)})

    server = make(app)
    client = connect(server)
    client.send(head(1), turns=12)
    path.write_bytes(b"short")
    for _ in range(5):
        client.send(window(1, 60_000) + window(0, 60_000), turns=12)
    assert client.answer(1).reset is not None
    assert not client.answer(1).ended
    assert server.world.in_flight == 0
