"""The ASGI side of a WebSocket behind a real HTTP connection, without a socket."""

from __future__ import annotations

import asyncio
import logging

import pytest

from servo.apps.asgi_scope import ASGIAdapter
from servo.apps.asgi_websocket import QUEUE_HIGH_WATER, WebSocketCall
from servo.http.errors import ClientDisconnected
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits
from servo.http.websocket import read_handshake

log = logging.getLogger("test")
HANDSHAKE = (
    b"GET /room%20one?x=1 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: chat, superchat\r\n\r\n"
)


class Wire:
    """The transport of a handshake and the open connection after it. Both keep what they get."""

    def __init__(self, http):
        self.loop = asyncio.get_running_loop()
        self.http = http
        self.writable = True
        self.written = b""
        self.sent = []
        self.closed = None
        self.abandoned = self.complete = self.done = self.taken_count = self.waits = 0
        self.waits_now = asyncio.Event()
        self.released = asyncio.Event()

    # The transport
    def write(self, data):
        self.written += data

    def resume_reading(self):
        raise AssertionError("a handshake has no body")

    def response_complete(self):
        self.complete += 1

    def call_done(self, call):
        self.done += 1

    def abandon_handshake(self):
        self.abandoned += 1
        self.call.disconnect()

    def open_websocket(self, call, headers, connection):
        self.written += self.http.upgrade(b"websocket", headers)
        self.connection = connection
        return self

    # The channel
    def send(self, message):
        self.sent.append(message)

    async def drained(self):
        await self.released.wait()

    def close(self, code, reason):
        self.connection.close(code, reason)
        self.closed = code, reason

    def taken(self):
        self.taken_count += 1

    def waiting(self):
        self.waits += 1
        self.waits_now.set()


class Exchange:
    """One WebSocket on its way through an application; `script` plays the client."""

    def __init__(self, app, script=None, max_queue=4, **options):
        http = H1Connection(Limits())
        request = http.receive_data(HANDSHAKE)
        self.wire = Wire(http)
        self.script = script
        adapter = ASGIAdapter(app, log=log, **options)
        template = adapter.template(("127.0.0.1", 80), ("127.0.0.2", 5000), "http")
        handshake = read_handshake(request.headers)
        self.call = self.wire.call = WebSocketCall(
            adapter,
            template,
            request,
            handshake,
            http,
            self.wire,
            0,
            max_queue=max_queue,
            max_message_size=1000,
        )

    async def run(self):
        running = asyncio.ensure_future(self.call.run())
        if self.script is not None:
            await asyncio.wait_for(self.script(self.call, self.wire), 5)
        await asyncio.wait_for(running, 5)
        return self


def exchange(app, script=None, **options):
    async def main():
        return await Exchange(app, script, **options).run()

    return asyncio.run(main())


ACCEPT = {"type": "websocket.accept"}


def text(data):
    return {"type": "websocket.send", "text": data}


async def echo(scope, receive, send):
    await receive()
    await send(ACCEPT)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def opened(wire):
    """Let the application run until it waits for a message."""
    await wire.waits_now.wait()
    wire.waits_now.clear()


def test_an_application_that_keeps_sending_yields_to_the_loop():
    """The client is gone, and the call learns that only if the loop gets a turn."""

    async def app(scope, receive, send):
        await send(ACCEPT)
        for _ in range(10_000):
            await send(text("x"))

    async def script(call, wire):
        while not wire.sent:
            await asyncio.sleep(0)
        call.end(1006, "")

    assert 0 < len(exchange(app, script).wire.sent) < 100


def test_the_scope():
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope)
        seen["first"] = await receive()
        await send({"type": "websocket.close"})

    exchange(app, state={"a": 1}, root_path="/api")
    assert seen["type"] == "websocket"
    assert "method" not in seen
    assert seen["scheme"] == "ws"
    assert seen["http_version"] == "1.1"
    assert seen["path"] == "/api/room one"
    assert seen["raw_path"] == b"/api/room%20one"
    assert seen["query_string"] == b"x=1"
    assert seen["subprotocols"] == ["chat", "superchat"]
    assert seen["client"] == ("127.0.0.2", 5000)
    assert seen["server"] == ("127.0.0.1", 80)
    assert seen["state"] == {"a": 1}
    assert seen["extensions"] == {"websocket.http.response": {}}
    assert (b"sec-websocket-version", b"13") in seen["headers"]
    assert seen["first"] == {"type": "websocket.connect"}


def test_a_secure_scheme_stays_secure():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["scheme"])
        await send({"type": "websocket.close"})

    async def main():
        one = Exchange(app)
        one.call.scope["scheme"] = "https"
        await one.run()

    asyncio.run(main())
    assert seen == ["wss"]


def test_accepting_with_a_subprotocol_and_headers():
    async def app(scope, receive, send):
        headers = [(b"x-room", b"7"), [b"set-cookie", b"a=b"]]
        await send({**ACCEPT, "subprotocol": "superchat", "headers": headers})

    head = exchange(app).wire.written
    assert head.startswith(b"HTTP/1.1 101 ")
    for line in (b"sec-websocket-protocol: superchat", b"x-room: 7", b"set-cookie: a=b"):
        assert b"\r\n" + line + b"\r\n" in head


def test_echo_of_text_and_bytes():
    async def script(call, wire):
        await opened(wire)
        call.deliver("text")
        call.deliver(b"bytes")
        await opened(wire)
        call.end(1000, "bye")

    result = exchange(echo, script)
    assert result.wire.sent == ["text", b"bytes"]
    assert result.wire.taken_count == 2
    assert result.wire.done == 1


def test_what_came_before_the_end_is_received_before_it():
    seen = []

    async def app(scope, receive, send):
        await receive()
        await send(ACCEPT)
        while True:
            seen.append(await receive())
            if seen[-1]["type"] == "websocket.disconnect":
                seen.append(await receive())
                return

    async def script(call, wire):
        await opened(wire)
        for message in ("one", b"two", ""):
            call.deliver(message)
        call.end(4000, "later")

    exchange(app, script)
    over = {"type": "websocket.disconnect", "code": 4000, "reason": "later"}
    assert seen == [
        {"type": "websocket.receive", "text": "one"},
        {"type": "websocket.receive", "bytes": b"two"},
        {"type": "websocket.receive", "text": ""},
        over,
        over,
    ]


def test_the_queue_is_bounded_by_number_and_by_size():
    async def app(scope, receive, send):
        await send(ACCEPT)
        await receive()  # the connect
        for _ in range(4):
            await receive()

    async def script(call, wire):
        await opened(wire)
        call.deliver("a" * QUEUE_HIGH_WATER)
        assert call.full
        await opened(wire)
        assert not call.full
        for number in range(4):
            assert not call.full
            call.deliver(str(number))
        assert call.full

    exchange(app, script)


def test_send_waits_while_the_buffer_is_full():
    steps = []

    async def app(scope, receive, send):
        await send(ACCEPT)
        await receive()
        await send(text("one"))
        steps.append("sent one")
        await receive()
        await send(text("two"))
        steps.append("sent two")

    async def script(call, wire):
        await opened(wire)
        wire.writable = False
        call.deliver("go on")
        for _ in range(5):
            await asyncio.sleep(0)
        assert wire.sent == ["one", "two"]
        assert steps == ["sent one"]
        wire.released.set()

    exchange(app, script)
    assert steps == ["sent one", "sent two"]


def test_the_application_closes():
    seen = []

    async def app(scope, receive, send):
        await send(ACCEPT)
        await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
        await receive()
        seen.append(await receive())

    result = exchange(app)
    assert result.wire.closed == (4001, "enough")
    assert seen == [{"type": "websocket.disconnect", "code": 4001, "reason": "enough"}]


@pytest.mark.parametrize(
    ("after_accept", "code"), [("return", 1000), ("raise", 1011), ("exit", 1011)]
)
def test_the_application_ends_without_closing(after_accept, code, caplog):
    async def app(scope, receive, send):
        await send(ACCEPT)
        if after_accept == "raise":
            raise ValueError("a bug")
        if after_accept == "exit":
            raise SystemExit(3)

    result = exchange(app)
    assert result.wire.closed == (code, "")
    assert result.wire.done == 1
    assert bool(caplog.records) == (code == 1011)


def test_a_cancelled_application_closes():
    async def app(scope, receive, send):
        await send(ACCEPT)
        await receive()
        raise asyncio.CancelledError

    async def main():
        return await Exchange(app).run()

    assert asyncio.run(main()).wire.closed == (1011, "")


# --- no WebSocket after all -----------------------------------------------------------------------


def test_closing_instead_of_accepting_is_403():
    seen = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.close"})
        seen.append(await receive())

    result = exchange(app)
    assert result.wire.written.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"Connection: close\r\n" in result.wire.written
    assert result.wire.complete == 1
    assert seen == [{"type": "websocket.disconnect", "code": 1006, "reason": ""}]


def test_a_denial_in_one_piece():
    async def app(scope, receive, send):
        headers = [(b"content-type", b"application/json")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"{}"})

    result = exchange(app)
    head, _, body = result.wire.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\n")
    assert b"Content-Length: 2" in head
    assert b"Connection: close" in head
    assert body == b"{}"
    assert (result.wire.complete, result.wire.done) == (1, 1)


def test_a_denial_in_pieces():
    async def app(scope, receive, send):
        await send({"type": "websocket.http.response.start", "status": 429})
        await send({"type": "websocket.http.response.body", "body": b"slow", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b" down"})

    written = exchange(app).wire.written
    assert written.startswith(b"HTTP/1.1 429 ")
    assert written.endswith(b"4\r\nslow\r\n5\r\n down\r\n0\r\n\r\n")


@pytest.mark.parametrize("how", ["raise", "return", "start only"])
def test_an_application_that_does_not_answer_is_a_500(how, caplog):
    async def app(scope, receive, send):
        await receive()
        if how == "raise":
            raise ValueError("a bug")
        if how == "start only":
            await send({"type": "websocket.http.response.start", "status": 404})

    result = exchange(app)
    assert result.wire.written.startswith(b"HTTP/1.1 500 ")
    assert result.wire.complete == 1
    assert len(caplog.records) == 1


def test_a_denial_that_breaks_off_is_cut(caplog):
    async def app(scope, receive, send):
        await send({"type": "websocket.http.response.start", "status": 404})
        await send({"type": "websocket.http.response.body", "body": b"half", "more_body": True})

    result = exchange(app)
    assert result.wire.written.endswith(b"4\r\nhalf\r\n")
    assert result.wire.http.close_after
    assert result.wire.complete == 1


@pytest.mark.parametrize(
    ("messages", "answer"),
    [
        ([text("too early")], b"HTTP/1.1 500 "),
        ([{**ACCEPT, "subprotocol": "unknown"}], b"HTTP/1.1 500 "),
        ([{**ACCEPT, "headers": [(b"x", b"a\r\nb: c")]}], b"HTTP/1.1 500 "),
        ([{**ACCEPT, "headers": [(b"sec-websocket-protocol", b"chat")]}], b"HTTP/1.1 500 "),
        ([{"type": "websocket.http.response.body"}], b"HTTP/1.1 500 "),
        ([{"type": "http.response.start", "status": 200}], b"HTTP/1.1 500 "),
        ([ACCEPT, ACCEPT], b"HTTP/1.1 101 "),
        ([ACCEPT, {"type": "websocket.send"}], b"HTTP/1.1 101 "),
        ([ACCEPT, {"type": "websocket.send", "text": b"bytes"}], b"HTTP/1.1 101 "),
        ([ACCEPT, {"type": "websocket.close", "code": 1006}], b"HTTP/1.1 101 "),
        ([ACCEPT, {"type": "websocket.close", "reason": "x" * 200}], b"HTTP/1.1 101 "),
        ([ACCEPT, {"type": "websocket.close"}, text("too late")], b"HTTP/1.1 101 "),
        ([ACCEPT, {"type": "websocket.close"}, {"type": "websocket.close"}], b"HTTP/1.1 101 "),
    ],
)
def test_violations_of_the_specification_raise_an_error(messages, answer, caplog):
    raised = []

    async def app(scope, receive, send):
        for message in messages[:-1]:
            await send(message)
        try:
            await send(messages[-1])
        except Exception as error:
            raised.append(error)
            raise

    result = exchange(app)
    assert len(raised) == 1
    assert result.wire.written.startswith(answer)
    if answer.endswith(b"101 "):
        assert result.wire.closed is not None


# --- clients that go ------------------------------------------------------------------------------


def test_sending_to_a_lost_client_raises_an_oserror_and_logs_nothing(caplog):
    errors = []

    async def app(scope, receive, send):
        await receive()
        await send(ACCEPT)
        await receive()
        try:
            await send(text("anybody?"))
        except OSError as error:
            errors.append(error)
            raise

    async def script(call, wire):
        await opened(wire)
        call.end(1006, "")

    exchange(app, script)
    assert isinstance(errors[0], ClientDisconnected)
    assert caplog.records == []


def test_closing_after_the_client_does_nothing():
    async def app(scope, receive, send):
        await receive()
        await send(ACCEPT)
        await receive()
        await send({"type": "websocket.close", "code": 1000})

    async def script(call, wire):
        await opened(wire)
        call.end(1001, "")

    assert exchange(app, script).wire.closed is None


def test_a_client_that_goes_before_the_answer(caplog):
    seen = []

    async def app(scope, receive, send):
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])
        await send(ACCEPT)

    async def script(call, wire):
        await asyncio.sleep(0)
        call.disconnect()

    result = exchange(app, script)
    assert seen == ["websocket.connect", "websocket.disconnect"]
    assert result.wire.written == b""
    assert caplog.records == []


def test_send_and_receive_give_coroutines_that_tasks_can_run():
    async def app(scope, receive, send):
        assert (await asyncio.create_task(receive()))["type"] == "websocket.connect"
        await asyncio.create_task(send(ACCEPT))
        await asyncio.create_task(send(text("hi")))

    assert exchange(app).wire.sent == ["hi"]


# --- a client that closes its side before the handshake is answered -------------------------------


async def half_closes(call, wire):
    call.end_of_input()


def test_a_half_closed_client_is_a_disconnect_to_an_application_that_waits():
    seen = []

    async def app(scope, receive, send):
        seen.extend([await receive(), await receive(), await receive()])

    result = exchange(app, half_closes)
    gone = {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert seen == [{"type": "websocket.connect"}, gone, gone]
    assert (result.wire.abandoned, result.wire.done, result.wire.written) == (1, 1, b"")


def test_the_disconnect_comes_while_it_waits():
    seen = []

    async def app(scope, receive, send):
        await receive()
        seen.append(await receive())

    async def later(call, wire):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.end_of_input()

    assert exchange(app, later).wire.abandoned == 1
    assert seen[0]["code"] == 1006


@pytest.mark.parametrize("error", [None, RuntimeError("gone")])
def test_an_application_that_ends_without_receive_drops_a_half_closed_client(error, caplog):
    async def app(scope, receive, send):
        await asyncio.sleep(0)
        if error is not None:
            raise error

    assert exchange(app, half_closes).wire.abandoned == 1
    assert "Invalid use" not in caplog.text


def test_an_application_can_not_accept_after_the_disconnect():
    async def app(scope, receive, send):
        await receive()
        await receive()
        with pytest.raises(ClientDisconnected):
            await send({"type": "websocket.accept"})

    assert b"101" not in exchange(app, half_closes).wire.written


def test_an_application_that_accepts_without_receive_gets_early_frames():
    seen = []

    async def app(scope, receive, send):
        await asyncio.sleep(0)
        await receive()
        await send({"type": "websocket.accept"})
        seen.extend([await receive(), await receive()])

    async def script(call, wire):
        call.end_of_input()
        while not wire.written:
            await asyncio.sleep(0)
        call.deliver("early")
        call.end(1000, "bye")

    assert exchange(app, script).wire.abandoned == 0
    assert [message["type"] for message in seen] == ["websocket.receive", "websocket.disconnect"]
    assert seen[1]["code"] == 1000


def test_a_denial_that_has_begun_goes_on_to_a_half_closed_client():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        assert (await receive())["code"] == 1006
        await send({"type": "websocket.http.response.body", "body": b"no"})

    result = exchange(app, half_closes)
    assert result.wire.written.startswith(b"HTTP/1.1 403")
    assert (result.wire.abandoned, result.wire.complete) == (0, 1)
