"""HTTP/1.1 in the `async` worker on a fake transport: requests, responses and their ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from authority import Authority
from unit.workers.fakes import GET, SECOND, AsyncServer, Connection, shaken

from servo.http.proxy_protocol import ProxyHeader
from servo.net.tls import TLS
from servo.shared_memory import row_layout

Make = Callable[..., AsyncServer]

POST = b"POST /form HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
)


async def read_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return body
        body += message["body"]
        if not message["more_body"]:
            return body


async def respond(send: Any, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = await read_body(receive)
    await respond(send, scope["method"].encode() + scope["path"].encode() + body)


class Held:
    """An application that answers when it is told to."""

    def __init__(self, body: bytes = b"done") -> None:
        self.scopes: list[Any] = []
        self.go_on: asyncio.Future[None] | None = None
        self.body = body
        self.error: BaseException | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.go_on = asyncio.get_running_loop().create_future()
        try:
            await self.go_on
            await respond(send, self.body)
        except BaseException as error:
            self.error = error
            raise

    def release(self) -> None:
        assert self.go_on is not None
        self.go_on.set_result(None)


@pytest.fixture
def make(make_async: Make) -> Make:
    return lambda app=echo, **values: make_async(app, **values)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [(GET, b"GET/"), (POST, b"POST/formabcde"), (CHUNKED, b"POST/abcde")],
    ids=["get", "post", "chunked"],
)
def test_a_request_in_one_piece_and_byte_by_byte(
    make: Make, request_bytes: bytes, body: bytes
) -> None:
    server = make()
    connection = server.connect()
    connection.send(request_bytes)
    assert connection.responses == [(200, body)]
    for at in range(len(request_bytes)):
        assert len(connection.responses) == 1, at
        connection.send(request_bytes[at : at + 1])
    assert connection.responses == [(200, body)] * 2
    assert not connection.ended
    assert server.world.requests == 2
    assert server.world.in_flight == 0


def test_a_request_cut_at_every_position(make: Make) -> None:
    server = make()
    for at in range(1, len(POST)):
        connection = server.connect()
        connection.send(POST[:at])
        connection.send(POST[at:])
        assert connection.responses == [(200, b"POST/formabcde")], at
    assert server.world.count(row_layout.BYTES_IN) == 5 * (len(POST) - 1)


def test_pipelined_requests_are_answered_in_order_one_at_a_time(make: Make) -> None:
    app = Held()
    server = make(app)
    connection = server.connect()
    connection.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(3)))
    for number in range(3):
        assert [scope["path"] for scope in app.scopes] == [f"/{n}" for n in range(number + 1)]
        assert server.world.in_flight == 1
        app.release()
        server.turn(4)
    assert connection.responses == [(200, b"done")] * 3


def numbered(count: int) -> bytes:
    return b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(count))


def test_answers_to_pipelined_requests_leave_together(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(numbered(16), turns=80)
    assert [body for _, body in connection.responses] == [b"GET/%d" % n for n in range(16)]
    # The first one leaves before it is known that the others are answered as quickly.
    assert connection.transport.writes == 2


def test_an_answer_does_not_wait_for_a_slow_one(make: Make) -> None:
    slow = Held()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (slow if scope["path"] == "/3" else echo)(scope, receive, send)

    server = make(app)
    connection = server.connect()
    connection.send(numbered(5), turns=40)
    assert [body for _, body in connection.responses] == [b"GET/0", b"GET/1", b"GET/2"]
    slow.release()
    server.turn(10)
    assert [body for _, body in connection.responses][3:] == [b"done", b"GET/4"]


def test_an_answer_does_not_wait_for_the_rest_of_a_request(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(GET * 2 + POST[:-2], turns=40)
    assert len(connection.responses) == 2
    connection.send(POST[-2:] + GET + POST[:20], turns=40)
    assert [body for _, body in connection.responses][2:] == [b"POST/formabcde", b"GET/"]


@pytest.mark.parametrize(
    "last", [b"GET / HTTP/1.1\r\n\r\n", GET[:-2] + b"Connection: close\r\n\r\n"]
)
def test_answers_leave_before_the_connection_ends(make: Make, last: bytes) -> None:
    server = make()
    connection = server.connect()
    connection.send(GET * 3 + last, turns=40)
    assert [status for status, _ in connection.responses] == [
        *[200] * 3,
        400 if b"Host" not in last else 200,
    ]
    assert connection.ended


def test_large_answers_do_not_collect(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(40_000))

    server = make(app)
    connection = server.connect()
    connection.send(GET * 7, turns=60)
    assert [len(body) for _, body in connection.responses] == [40_000] * 7
    assert connection.transport.writes >= 4


def test_a_client_that_leaves_takes_its_answers_with_it(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(GET * 8, turns=3)
    connection.transport.abort()
    server.turn(40)
    assert server.world.in_flight == 0
    assert connection.protocol._held == []


def test_a_slow_reader_pauses_pipelined_requests(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(40_000))

    server = make(app)
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET * 8, turns=60)
    assert server.world.requests < 8
    for _ in range(8):
        connection.transport.take()
        server.turn(20)
    assert [len(body) for _, body in connection.responses] == [40_000] * 8


def test_reading_pauses_while_enough_is_pipelined(make: Make) -> None:
    app = Held()
    server = make(app, limit_pipeline=2)
    connection = server.connect()
    while connection.transport.reading:
        connection.send(GET)
    app.release()
    server.turn(6)
    while not connection.transport.reading:
        app.release()
        server.turn(6)
    assert len(connection.responses) >= 1


def test_a_body_that_nobody_asks_for_pauses_the_reading(make: Make) -> None:
    app = Held()
    server = make(app)
    connection = server.connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n")
    sent = 0
    while connection.transport.reading:
        connection.send(b"x" * 10_000)
        sent += 10_000
    assert 65536 <= sent <= 80_000
    # The client is not to blame for the pause.
    server.after(1000)
    assert server.world.in_flight == 1
    app.release()
    server.turn(4)
    assert connection.responses == [(200, b"done")]
    assert connection.ended  # the rest of the body is no next request


def test_an_application_that_reads_slowly_gets_all_of_the_body(make: Make) -> None:
    sizes: list[int] = []
    step: list[asyncio.Future[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            step.append(asyncio.get_running_loop().create_future())
            await step[-1]
            message = await receive()
            more = message["more_body"]
            sizes.append(len(message["body"]))
        await respond(send, b"%d" % sum(sizes))

    server = make(app)
    connection = server.connect()
    connection.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 300000\r\n\r\n")
    left = 300_000
    while not connection.received:
        while left and connection.transport.reading:
            connection.send(b"x" * 10_000)
            left -= 10_000
        step[-1].set_result(None)
        server.turn(3)
    assert connection.responses == [(200, b"300000")]


def test_100_continue_is_sent_when_the_application_asks_for_the_body(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")[:-5])
    assert connection.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.send(b"abcde")
    assert connection.responses[1:] == [(200, b"POST/formabcde")]


def test_an_answer_without_the_body_closes_behind_it(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"no", 403)

    server = make(app)
    connection = server.connect()
    connection.send(POST[:-3])
    assert connection.responses == [(403, b"no")]
    assert connection.transport.ended  # lingering: the rest is thrown away
    assert not connection.closed
    connection.send(b"cde")
    connection.send_eof()
    assert connection.closed


# --- the client's end -----------------------------------------------------------------------------


def test_an_end_before_any_request_closes_the_connection(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send_eof()
    assert connection.closed
    assert connection.received == b""
    assert server.world.requests == 0
    assert server.world.count(row_layout.CONNECTIONS) == 0


def test_an_end_in_a_head_is_refused(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(GET[:-2])
    connection.send_eof()
    assert [status for status, _ in connection.responses] == [400]
    assert connection.ended


def test_an_end_in_a_body_is_refused_and_the_application_told(make: Make) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            told.append(message["type"])
            if message["type"] == "http.disconnect":
                return

    server = make(app)
    connection = server.connect()
    connection.send(POST[:-2])
    connection.send_eof()
    assert [status for status, _ in connection.responses] == [400]
    assert told == ["http.request", "http.disconnect"]
    assert server.world.statuses == {400: 1}


def test_a_client_that_closes_its_side_behind_its_request_is_answered(make: Make) -> None:
    app = Held()
    server = make(app)
    connection = server.connect()
    connection.send(GET * 2)
    connection.send_eof()
    for _ in range(2):
        assert not connection.closed
        app.release()
        server.turn(5)
    assert connection.responses == [(200, b"done")] * 2
    assert connection.closed


def test_a_client_that_closes_its_side_is_a_disconnect_to_who_asks(make: Make) -> None:
    told: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            message = await receive()
            told.append(message["type"])
        await respond(send, b"all the same")

    server = make(app)
    connection = server.connect()
    connection.send(GET)
    assert told == ["http.request"]
    connection.send_eof()
    assert told == ["http.request", "http.disconnect"]
    assert connection.responses == [(200, b"all the same")]
    assert connection.closed


def test_a_client_that_leaves_before_the_response(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = Held()
    server = make(app)
    connection = server.connect()
    connection.send(GET)
    connection.lose()
    assert connection.closed
    assert server.world.in_flight == 0
    assert len(server.server.calls) == 1
    app.release()
    server.turn(3)
    assert type(app.error).__name__ == "ClientDisconnected"
    assert not server.server.calls
    assert caplog.records == []


def test_a_client_that_leaves_in_the_middle_of_the_response(make: Make) -> None:
    errors: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
        except OSError as error:
            errors.append(error)

    server = make(app)
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET)
    assert server.world.in_flight == 1
    connection.lose()
    assert [type(error).__name__ for error in errors] == ["ClientDisconnected"]
    assert server.world.statuses == {200: 1}
    assert server.world.in_flight == 0


# --- refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n", 414),
        (POST.replace(b": 5", b": x"), 400),
        (POST.replace(b": 5", b": 50"), 413),
    ],
)
def test_what_the_parser_refuses_is_answered_counted_and_closed(
    make: Make, sent: bytes, status: int
) -> None:
    server = make(limit_request_body=10)
    connection = server.connect()
    connection.send(sent)
    assert [found for found, _ in connection.responses] == [status]
    assert connection.transport.ended
    assert not connection.closed
    connection.send(b"more")  # thrown away
    connection.send_eof()
    assert connection.closed
    assert server.world.statuses == {status: 1}
    assert server.world.in_flight == 0


def test_a_refused_client_that_never_ends_is_cut(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(b"nonsense\r\n\r\n")
    server.after(1)
    assert not connection.closed
    server.after(1.5)
    assert connection.closed
    assert connection.transport.aborted


def test_a_bad_chunk_in_the_middle_of_a_body(make: Make) -> None:
    app = Held()
    server = make(app)
    connection = server.connect()
    connection.send(CHUNKED[:-15])
    connection.send(b"\r\nxyz\r\n")
    assert [status for status, _ in connection.responses] == [400]
    assert server.world.statuses == {400: 1}


def test_limit_concurrency_answers_503(make: Make) -> None:
    app = Held()
    server = make(app, limit_concurrency=1)
    first, second = server.connect(), server.connect()
    first.send(GET)
    second.send(GET)
    assert [status for status, _ in second.responses] == [503]
    assert b"Retry-After: 1\r\n" in second.received
    app.release()
    server.turn(3)
    assert first.responses == [(200, b"done")]
    assert server.world.count(row_layout.SHED) == 1


# --- errors of the application --------------------------------------------------------------------


def test_an_error_before_the_head_is_a_500(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("broken")

    server = make(app)
    connection = server.connect()
    connection.send(GET)
    assert [status for status, _ in connection.responses] == [500]
    assert "broken" in caplog.text
    assert server.world.statuses == {500: 1}


def test_an_error_after_the_head_breaks_the_response_off(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError("broken")

    server = make(app)
    connection = server.connect()
    connection.send(GET)
    assert connection.received.endswith(b"begun\r\n")  # its end is missing
    assert connection.ended
    assert "broken" in caplog.text
    assert server.world.in_flight == 0


@pytest.mark.parametrize("sends", [0, 1])
def test_an_application_that_returns_too_early(
    make: Make, caplog: pytest.LogCaptureFixture, sends: int
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(sends):
            await send({"type": "http.response.start", "status": 200, "headers": []})

    server = make(app)
    connection = server.connect()
    connection.send(GET)
    assert [status for status, _ in connection.responses] == [500]
    assert "before its response was complete" in caplog.text


# --- a slow reader --------------------------------------------------------------------------------


def test_a_client_that_does_not_read_holds_its_application_up(make: Make) -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(10):
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            sent.append(number)
        await send({"type": "http.response.body", "body": b""})

    server = make(app)
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET, turns=20)
    assert len(sent) == 1
    while connection.transport.buffer:
        connection.transport.blocked = True
        connection.transport.take()
        server.turn(5)
    assert sent == list(range(10))
    assert connection.responses == [(200, b"x" * 500_000)]


def test_a_client_that_has_stopped_reading_is_cut_after_send_timeout(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"x" * 200_000)

    server = make(app, send_timeout=10)
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET)
    server.after(9)
    connection.transport.take(10_000)  # not enough to go on writing, but a sign of life
    server.after(2)
    assert not connection.closed
    server.after(8)
    assert not connection.closed
    server.after(2)
    assert connection.closed
    assert connection.transport.aborted


def test_the_next_request_waits_until_the_client_reads(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"x" * 200_000)

    server = make(app)
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET * 2)
    assert server.world.requests == 1
    assert not connection.transport.reading
    assert connection.protocol.held_bytes() > 200_000
    connection.transport.take()
    server.turn(5)
    assert [len(body) for _, body in connection.responses] == [200_000] * 2
    assert connection.transport.reading
    assert connection.protocol.held_bytes() == 0


# --- time limits ----------------------------------------------------------------------------------


def test_a_connection_that_asks_for_nothing_is_closed(make: Make) -> None:
    server = make(header_timeout=20)
    connection = server.connect()
    server.after(19)
    assert not connection.closed
    server.after(2)
    assert connection.closed
    assert connection.received == b""


def test_a_head_that_trickles_in_has_one_limit_for_all_of_it(make: Make) -> None:
    server = make(header_timeout=20)
    connection = server.connect()
    connection.send(GET)
    server.after(15)
    for at in range(10):  # the limit begins with the first byte
        connection.send(GET[at : at + 1])
        server.after(1.9)
    assert len(connection.responses) == 1
    server.after(2)
    assert [status for status, _ in connection.responses] == [200, 408]


def test_a_body_that_pauses_too_long(make: Make) -> None:
    server = make(body_timeout=20, body_min_rate=0)
    connection = server.connect()
    connection.send(POST[:-4])
    for at in (-4, -3):
        server.after(15)
        connection.send(POST[at : at + 1])
    server.after(19)
    assert not connection.received
    server.after(2)
    assert [status for status, _ in connection.responses] == [408]
    assert server.world.statuses == {408: 1}
    assert server.world.in_flight == 0


def test_a_body_that_is_too_slow_on_the_whole(make: Make) -> None:
    server = make(body_timeout=20, body_min_rate=10)
    connection = server.connect()
    connection.send(POST.replace(b": 5", b": 100"))
    for _ in range(20):
        connection.send(b"x")
        server.after(1)
        assert not connection.received
    server.after(3)  # 25 bytes have bought 2.5 s more
    assert [status for status, _ in connection.responses] == [408]


def test_an_idle_connection_is_closed_after_keepalive(make: Make) -> None:
    server = make(keepalive=5)
    connection = server.connect()
    for _ in range(2):
        connection.send(GET)
        server.after(4)
        assert not connection.closed
    server.after(1.5)
    assert connection.closed
    assert not connection.transport.aborted


@pytest.mark.parametrize("draining", [False, True])
def test_a_request_that_came_in_time_is_answered_after_a_standstill(
    make: Make, draining: bool
) -> None:
    """After SIGSTOP, for example, the timers can run before the loop reads."""
    server = make(keepalive=5)
    connection = server.connect()
    connection.send(GET)
    if draining:
        server.drain(idle_s=0.05)
    connection.theirs.send(GET)
    server.after(6)
    assert not connection.closed
    connection.send(connection.transport.sock.recv(1000))
    assert connection.responses == [(200, b"GET/")] * 2
    server.after(6)
    assert connection.closed


def test_request_timeout_answers_504_and_cancels_the_application(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    app = Held()
    server = make(app, request_timeout=30)
    connection = server.connect()
    connection.send(GET)
    server.after(29)
    assert not connection.received
    assert server.world.count(row_layout.OLDEST_START_NS) == server.clock.ns - 29 * SECOND
    server.after(2)
    assert [status for status, _ in connection.responses] == [504]
    assert isinstance(app.error, asyncio.CancelledError)
    assert server.world.statuses == {504: 1}
    assert "request_timeout" in caplog.text


def test_request_timeout_after_the_head_breaks_the_response_off(make: Make) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await asyncio.get_running_loop().create_future()

    server = make(app, request_timeout=30)
    connection = server.connect()
    connection.send(GET)
    server.after(31)
    assert connection.received.endswith(b"begun\r\n")
    assert connection.ended
    assert server.world.in_flight == 0


def test_without_keepalive_each_response_ends_its_connection(make: Make) -> None:
    server = make(keepalive=0)
    connection = server.connect()
    connection.send(GET)
    assert b"Connection: close\r\n" in connection.received
    assert connection.closed


def test_keepalive_requests_ends_the_connection_even_with_more_pipelined(make: Make) -> None:
    server = make(keepalive_requests=2)
    connection = server.connect()
    connection.send(GET * 3, turns=6)
    assert len(connection.responses) == 2
    assert connection.ended


# --- the end of the worker ------------------------------------------------------------------------


def test_a_drain_closes_idle_connections_after_a_moment(make: Make) -> None:
    server = make()
    used, fresh = server.connect(), server.connect()
    used.send(GET)
    server.drain(idle_s=0.05, fresh_s=1.0)
    server.turn(2)
    assert not used.closed
    server.after(0.1)
    assert used.closed
    assert not fresh.closed
    server.after(1)
    assert fresh.closed


@pytest.mark.parametrize("drains", [True, False])
def test_a_client_that_still_reads_is_not_idle(make: Make, drains: bool) -> None:
    server = make(keepalive=3, drain_idle=3)
    slow, stuck = server.connect(), server.connect()
    for connection in (slow, stuck):
        connection.send(GET)
        # The fake transport sends nothing itself. Its socket is a pair, which the client reads.
        connection.transport.sock.send(bytes(1000))
    if drains:
        server.drain(idle_s=3.0)
    for _ in range(5):
        server.after(1)
    assert not slow.closed
    assert not stuck.closed
    slow.theirs.recv(1000)
    for _ in range(2):
        server.after(1)
    assert stuck.closed
    assert not slow.closed
    slow.send(GET)
    assert len(slow.responses) == 2
    assert slow.ended == drains
    for _ in range(5):
        server.after(1)
    assert slow.closed


def test_a_request_during_a_drain_is_the_last_of_its_connection(make: Make) -> None:
    server = make()
    connection = server.connect()
    server.drain()
    connection.send(GET)
    assert connection.responses == [(200, b"GET/")]
    assert b"Connection: close\r\n" in connection.received
    assert connection.closed


def test_a_drain_lets_a_request_that_runs_come_to_its_end(make: Make) -> None:
    app = Held()
    server = make(app)
    connection = server.connect()
    connection.send(GET)
    server.drain()
    server.after(10)
    assert not connection.closed
    app.release()
    server.turn(3)
    assert connection.responses == [(200, b"done")]
    assert b"Connection: close\r\n" in connection.received
    assert connection.closed


def test_a_connection_that_comes_to_a_draining_worker(make: Make) -> None:
    server = make()
    server.server.draining = True
    silent, asking = server.connect(), server.connect()
    asking.send(GET)
    assert asking.responses == [(200, b"GET/")]
    server.after(1.1)
    assert silent.closed


def test_an_abort_cuts_the_connection(make: Make) -> None:
    app = Held()
    server = make(app)
    connection = server.connect()
    connection.send(GET)
    connection.protocol.abort()
    server.turn(2)
    assert connection.closed
    assert server.world.in_flight == 0


# --- files ----------------------------------------------------------------------------------------


def send_path(path: str, size: int | None = None) -> Callable[..., Any]:
    """An application that sends this file; `size` is for a Content-Length."""
    headers = [] if size is None else [(b"content-length", b"%d" % size)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": path})

    return app


def test_a_file_goes_out_by_sendfile(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content" * 100)
    server = make(send_path(str(path), 700))
    connection = server.connect()
    connection.send(GET, turns=8)
    # The head goes through the transport, the file around it.
    assert connection.received.endswith(b"\r\n\r\n")
    assert connection.theirs.recv(1000) == b"content" * 100
    assert server.world.count(row_layout.BYTES_OUT) == 700


def test_a_file_waits_until_the_head_is_out(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    server = make(send_path(str(path), 7))
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET, turns=8)
    with pytest.raises(BlockingIOError):
        connection.theirs.recv(1)
    connection.transport.take()
    server.turn(5)
    assert connection.theirs.recv(100) == b"content"


def test_a_file_that_has_to_be_framed_is_read_in_blocks(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 600_000)
    server = make(send_path(str(path)))
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET, turns=8)
    assert 200_000 < len(connection.transport.buffer) < 300_000  # one block
    while not server.world.requests:
        connection.transport.take()
        server.turn()
    assert [len(body) for _, body in connection.responses] == [600_000]


def test_a_file_that_is_shorter_than_announced_cuts_the_connection(
    make: Make, tmp_path: Any
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    server = make(send_path(str(path), 700))
    connection = server.connect()
    connection.send(GET, turns=8)
    assert connection.ended
    assert server.world.in_flight == 0


@pytest.mark.parametrize("size", [None, 7], ids=["framed", "sendfile"])
def test_a_client_that_leaves_before_its_file(make: Make, tmp_path: Any, size: int | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    server = make(send_path(str(path), size))
    connection = server.connect()
    connection.transport.blocked = True
    connection.send(GET, turns=8)
    connection.lose()
    assert server.world.in_flight == 0
    assert not server.server.calls


# --- TLS, and other protocols ---------------------------------------------------------------------


def proxied(sent: bytes) -> bytes:
    return b"PROXY TCP4 198.51.100.7 203.0.113.1 4000 443\r\n" + sent


async def tell_client(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, f"{scope['client']} {scope['server']} {scope['scheme']}".encode())


def test_a_proxy_header_names_the_client_at_every_split(make: Make) -> None:
    server = make(tell_client, proxy_protocol="v1", proxy_allow_ips="192.0.2.1")
    sent = proxied(GET)
    expected = b"('198.51.100.7', 4000) ('203.0.113.1', 443) http"
    for at in range(1, len(sent)):
        connection = server.connect()
        connection.send(sent[:at])
        connection.send(sent[at:])
        assert connection.responses == [(200, expected)], at


def test_a_connection_that_goes_around_the_proxy_is_refused(make: Make) -> None:
    server = make(tell_client, proxy_protocol="v1", proxy_allow_ips="")
    connection = server.connect()
    connection.send(proxied(GET))
    assert [status for status, _ in connection.responses] == [403]
    assert server.world.statuses == {403: 1}


def test_forwarded_fields_of_a_trusted_peer_name_the_client(make: Make) -> None:
    server = make(tell_client, forwarded_allow_ips="192.0.2.1")
    request = GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n")
    trusted, other = server.connect(), server.connect(("192.0.2.2", 1))
    trusted.send(request)
    other.send(request)
    assert b"203.0.113.9" in trusted.received
    assert b"203.0.113.9" not in other.received


def test_an_upgrade_that_nobody_knows_is_an_ordinary_request(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(
        GET.replace(b"\r\n\r\n", b"\r\nUpgrade: nothing/1\r\nConnection: upgrade\r\n\r\n")
    )
    assert connection.responses == [(200, b"GET/")]


async def tell_tls(scope: Any, receive: Any, send: Any) -> None:
    version = scope["extensions"]["tls"]["tls_version"]
    await respond(send, f"{scope['scheme']} {version:#x}".encode())


def test_tls_is_told_to_the_application_and_ends_without_half_closing(
    make: Make, tls: TLS, authority: Authority
) -> None:
    server = make(tell_tls, tls=tls, keepalive=5)
    connection = server.connect(ssl_object=shaken(tls, authority.client_context()))
    connection.send(GET)
    assert connection.responses == [(200, b"https 0x304")]
    server.after(6)
    assert connection.closed
    assert not connection.transport.ended


def test_a_refusal_over_tls_is_waited_for_as_long_as_the_client_takes_it(
    make: Make, tls: TLS, authority: Authority
) -> None:
    server = make(tell_tls, tls=tls, send_timeout=30)
    connection = server.connect(ssl_object=shaken(tls, authority.client_context()))
    connection.transport.blocked = True
    connection.send(b"nonsense\r\n\r\n")
    assert connection.transport.is_closing()
    server.after(20)
    assert not connection.transport.aborted
    connection.transport.take(10)
    server.after(20)
    assert not connection.transport.aborted
    server.after(31)
    assert connection.transport.aborted


def test_a_tls_client_that_closes_its_side_gets_no_more(
    make: Make, tls: TLS, authority: Authority
) -> None:
    app = Held()
    server = make(app, tls=tls)
    connection = server.connect(ssl_object=shaken(tls, authority.client_context()))
    connection.send(GET)
    connection.send_eof()
    assert connection.closed
    assert server.world.in_flight == 0


def test_a_proxy_header_from_before_the_handshake(
    make: Make, tls: TLS, authority: Authority
) -> None:
    header = ProxyHeader(("198.51.100.7", 4000), ("203.0.113.1", 443))
    server = make(tell_client, tls=tls)
    ssl_object = shaken(tls, authority.client_context())
    connection = server.connect(ssl_object=ssl_object, header=header)
    connection.send(GET)
    assert connection.responses == [
        (200, b"('198.51.100.7', 4000) ('203.0.113.1', 443) https"),
    ]


def test_the_first_write_needs_a_connection(make: Make) -> None:
    """`connection_made` is never called where a TLS handshake fails."""
    server = make()
    connection = server.connect()
    fresh = type(connection.first)(server.server, connection.transport.sock, None)
    assert not fresh.connected
    with pytest.raises(OSError, match="no connection yet"):
        fresh.write(b"x")
    assert connection.first.connected


def test_clients_that_misbehave_are_not_logged_above_debug(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "servo.error")
    server = make()
    for sent in (b"nonsense\r\n\r\n", POST[:-1], GET[:3]):
        connection: Connection = server.connect()
        connection.send(sent)
        connection.lose()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_an_idle_connection_forgets_its_client(make: Make) -> None:
    server = make(forwarded_allow_ips="*")
    client = server.connect()
    client.send(GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"))
    peer = client.protocol.peer
    assert peer.client.address == ("203.0.113.9", 0)
    assert peer.fields is not None
    server.after(1.0)
    assert (peer.fields, peer.client) == (None, None)
