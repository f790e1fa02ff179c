"""HTTP/2 in the `async` worker on a fake transport: streams, their limits, and their ends."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import h2frames
import pytest
from authority import Authority
from h2frames import CANCEL, GET, POST, data, head, hello, ping, reset, window
from unit.workers.fakes import PEER, AsyncServer, H2Client, responses, shaken

from servo.net.tls import TLS
from servo.shared_memory import row_layout

Make = Callable[..., AsyncServer]

# As Python's h2 library begins: it spells out what is the default anyway.
CHROMIUM = {1: 65536, 2: 0, 4: 6 << 20, 6: 256 << 10}
SPELLED_OUT = {1: 4096, 2: 0, 3: 100, 4: 65535, 5: 16384, 6: 65536}


async def respond(send: Any, body: bytes, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        body += message.get("body", b"")
    await respond(send, scope["method"].encode() + scope["path"].encode() + body)


class Held:
    """An application that answers each request when it is told to."""

    def __init__(self, body: bytes = b"done") -> None:
        self.body = body
        self.waiting: list[asyncio.Future[None]] = []
        self.errors: list[BaseException] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.waiting.append(asyncio.get_running_loop().create_future())
        try:
            await self.waiting[-1]
            await respond(send, self.body)
        except BaseException as error:
            self.errors.append(error)
            raise

    def release(self) -> None:
        self.waiting.pop(0).set_result(None)


@pytest.fixture
def make(make_async: Make) -> Make:
    def made(app: Any = echo, **values: Any) -> AsyncServer:
        defaults = {"http2_cleartext": "both", "forwarded_allow_ips": PEER[0]}
        return make_async(app, **{**defaults, **values})

    return made


def connect(server: AsyncServer, values: dict[int, int] | None = None) -> H2Client:
    return H2Client(server.connect(), values)


# --- the beginning --------------------------------------------------------------------------------


def test_a_request_in_one_piece(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(head(1))
    assert client.results(1) == [(200, b"GET/")]
    assert server.world.requests == 1
    assert server.world.in_flight == 0


def test_a_connection_byte_by_byte(make: Make) -> None:
    server = make()
    connection = server.connect()
    sent = hello() + head(1, POST, end=False) + data(1, b"ab") + data(1, b"cde", end=True)
    for at in range(len(sent)):
        connection.send(sent[at : at + 1])
    reader = h2frames.Reader().feed(connection.received)
    assert (reader.answers[1].status, reader.answers[1].body) == (200, b"POST/abcde")


def test_a_connection_cut_at_every_position(make: Make) -> None:
    server = make()
    sent = hello() + head(1)
    for at in range(1, len(sent)):
        connection = server.connect()
        connection.send(sent[:at], turns=0)
        connection.send(sent[at:])
        reader = h2frames.Reader().feed(connection.received)
        assert reader.answers[1].status == 200, at


def test_a_peer_that_is_not_trusted_speaks_http1(make: Make) -> None:
    server = make(forwarded_allow_ips="")
    connection = server.connect()
    connection.send(hello())
    assert connection.received.startswith(b"HTTP/1.1 505 ")


def test_alpn_chooses_the_protocol(make: Make, tls: TLS, authority: Authority) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, f"{scope['http_version']} {scope['scheme']}".encode())

    server = make(app, tls=tls)
    context = authority.client_context()
    context.set_alpn_protocols(["h2"])
    client = H2Client(server.connect(ssl_object=shaken(tls, context)))
    client.send(head(1))
    assert client.results(1) == [(200, b"2 https")]


def test_an_upgrade_from_http1_answers_its_request_as_stream_1(make: Make) -> None:
    server = make()
    connection = server.connect()
    connection.send(
        b"GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: \r\n\r\n" + hello()
    )
    answer, _, rest = connection.received.partition(b"\r\n\r\n")
    assert responses(answer + b"\r\n\r\n") == [(101, b"")]
    reader = h2frames.Reader().feed(rest)
    assert (reader.answers[1].status, reader.answers[1].body) == (200, b"GET/up")


def test_an_upgrade_of_a_peer_that_is_not_trusted_is_an_ordinary_request(make: Make) -> None:
    server = make(forwarded_allow_ips="")
    connection = server.connect()
    connection.send(
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: \r\n\r\n"
    )
    assert connection.responses == [(200, b"GET/")]


# --- streams --------------------------------------------------------------------------------------


def test_streams_run_at_the_same_time_and_end_in_any_order(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1) + head(3) + head(5))
    assert server.world.in_flight == 3
    app.waiting[2].set_result(None)
    server.turn(3)
    assert client.results(5) == [(200, b"done")]
    assert not client.answer(1).heads
    app.release()
    app.release()
    server.turn(3)
    assert client.results(1, 3) == [(200, b"done")] * 2
    assert server.world.in_flight == 0


def test_a_reset_disconnects_the_application_of_that_stream_alone(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1) + head(3))
    client.send(reset(1))
    assert server.world.in_flight == 1
    app.release()
    app.release()
    server.turn(3)
    assert [type(error).__name__ for error in app.errors] == ["ClientDisconnected"]
    assert client.results(3) == [(200, b"done")]
    assert not client.answer(1).heads


def test_a_request_taken_back_at_once_is_seen_by_no_application(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1) + reset(1))
    assert app.waiting == []
    assert server.world.requests == 1
    assert server.world.in_flight == 0


def test_applications_that_work_on_for_lost_clients_are_bounded(make: Make) -> None:
    app = Held()
    server = make(app, http2_max_concurrent_streams=2)
    client = connect(server)
    for number in range(1, 11, 2):
        client.send(head(number))
        client.send(reset(number))
    assert len(app.waiting) == 4
    assert client.answer(9).reset is not None


def test_limit_concurrency_refuses_a_stream(make: Make) -> None:
    app = Held()
    server = make(app, limit_concurrency=1)
    client = connect(server)
    client.send(head(1) + head(3))
    assert client.answer(3).status == 503
    assert client.answer(3).headers["retry-after"] == "1"
    assert server.world.count(row_layout.SHED) == 1


def test_a_malformed_request_is_refused_alone(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(head(1, [*GET, ("host", "other")]) + head(3))
    assert client.answer(1).status == 400 or client.answer(1).reset is not None
    assert client.results(3) == [(200, b"GET/")]
    assert server.world.in_flight == 0


def test_an_extended_connect_to_an_unknown_protocol_is_501(make: Make) -> None:
    server = make()
    client = connect(server)
    fields = [(":method", "CONNECT"), *GET[1:], (":protocol", "connect-udp")]
    client.send(head(1, fields, end=False))
    assert client.answer(1).status == 501


# --- faults of the connection ---------------------------------------------------------------------


def test_a_fault_ends_the_connection_and_all_of_its_applications(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1))
    client.send(data(0, b"of no stream"))
    assert client.reader.goaways
    assert client.reader.goaways[0][1] != 0
    assert client.connection.transport.ended
    assert server.world.in_flight == 0
    client.connection.send_eof()
    assert client.connection.closed


def test_a_client_after_a_fault_that_stays_is_cut(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(data(0, b"of no stream"))
    client.send(head(1))  # nobody listens
    server.after(2.5)
    assert client.connection.transport.aborted


def test_an_end_of_the_client_gives_everything_up(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1) + head(3))
    client.connection.send_eof()
    assert server.world.in_flight == 0
    assert client.connection.closed
    assert server.world.count(row_layout.CONNECTIONS) == 0


def test_a_lost_connection_gives_everything_up(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1))
    client.connection.lose()
    assert server.world.in_flight == 0
    app.release()
    server.turn(3)
    assert not server.server.calls


def test_an_abort_cuts_the_connection(make: Make) -> None:
    server = make(Held())
    client = connect(server)
    client.send(head(1))
    client.connection.protocol.abort()
    server.turn(2)
    assert client.connection.closed
    assert server.world.in_flight == 0


# --- frames take turns ----------------------------------------------------------------------------


def test_many_small_requests_leave_turns_to_others(make: Make) -> None:
    server = make()
    client = connect(server)
    client.connection.protocol.data_received(b"".join(head(n) for n in range(1, 101, 2)))
    assert server.world.count(row_layout.IN_FLIGHT) < 50
    server.turn(60)
    assert client.results(*range(1, 101, 2)) == [(200, b"GET/")] * 50


def test_a_backlog_of_frames_pauses_the_reading(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(head(1, POST, end=False))
    client.connection.protocol.data_received(b"".join(ping() for _ in range(10_000)))
    assert not client.connection.transport.reading
    for _ in range(200):
        server.clock.advance(0.01)
        server.turn(30)
        if client.connection.transport.reading or client.reader.goaways:
            break
    assert client.connection.transport.reading or client.reader.goaways


# --- a slow reader --------------------------------------------------------------------------------


def test_what_a_window_does_not_let_out_waits(make: Make) -> None:
    sent: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(5):
            await send({"type": "http.response.body", "body": b"x" * 50_000, "more_body": True})
            sent.append(number)
        await send({"type": "http.response.body", "body": b""})

    server = make(app)
    client = connect(server)
    client.send(head(1), turns=10)
    assert len(client.answer(1).body) == 65535
    assert len(sent) < 4
    while not client.answer(1).ended:
        client.send(window(1, 60_000) + window(0, 60_000), turns=10)
    assert client.results(1) == [(200, b"x" * 250_000)]


def test_a_full_transport_stops_the_writing(make: Make) -> None:
    server = make(Held(b"x" * 60_000))
    client = connect(server)
    client.connection.transport.blocked = True
    for number in (1, 3, 5):
        client.send(window(0, 100_000) + head(number))
    app = server.worker.asgi_app
    for _ in range(3):
        app.release()
    server.turn(10)
    assert client.connection.protocol.held_bytes() > 60_000
    client.connection.transport.take()
    server.turn(10)
    assert client.results(1, 3, 5) == [(200, b"x" * 60_000)] * 3
    assert client.connection.protocol.held_bytes() == 0


def test_a_client_that_takes_nothing_is_cut_after_send_timeout(make: Make) -> None:
    app = Held(b"x" * 60_000)
    server = make(app, send_timeout=10)
    client = connect(server)
    client.connection.transport.blocked = True
    for number in (1, 3):
        client.send(window(0, 100_000) + head(number))
        app.release()
        server.turn(5)
    server.after(9)
    client.connection.transport.take(1000)
    server.after(2)  # some of it has gone: once more
    assert not client.connection.closed
    server.after(11)
    assert client.connection.transport.aborted


def test_a_stream_whose_window_stays_shut_is_reset_after_send_timeout(make: Make) -> None:
    app = Held(b"x" * 100_000)
    server = make(app, send_timeout=10)
    client = connect(server)
    client.send(head(1))
    app.release()
    server.turn(5)
    for _ in range(3):
        server.after(5)
    assert client.answer(1).reset == CANCEL
    assert not client.connection.closed
    assert server.world.in_flight == 0


# --- time limits ----------------------------------------------------------------------------------


def test_a_connection_that_asks_for_nothing_ends_after_header_timeout(make: Make) -> None:
    server = make(header_timeout=20)
    client = connect(server)
    server.after(19)
    assert not client.reader.goaways
    server.after(2)
    assert client.reader.goaways
    assert client.connection.ended


def test_an_idle_connection_ends_after_keepalive(make: Make) -> None:
    server = make(keepalive=5)
    client = connect(server)
    for number in (1, 3):
        client.send(head(number))
        server.after(4)
    assert not client.reader.goaways
    server.after(4)
    assert client.reader.goaways == [(3, 0)]


def test_a_request_that_came_in_time_is_answered_after_a_standstill(make: Make) -> None:
    """After SIGSTOP, for example, the timers can run before the loop reads."""
    server = make(keepalive=5)
    client = connect(server)
    client.send(head(1))
    client.connection.theirs.send(b"x")
    server.after(8)
    assert not client.reader.goaways
    client.connection.transport.sock.recv(1)
    client.send(head(3))
    assert client.results(3) == [(200, b"GET/")]
    server.after(8)
    assert client.reader.goaways == [(3, 0)]


def test_a_first_request_that_came_in_time_is_answered_in_a_drain(make: Make) -> None:
    server = make()
    client = connect(server, SPELLED_OUT)
    server.drain()
    client.connection.theirs.send(b"x")
    server.after(8)
    assert not client.reader.goaways
    client.connection.transport.sock.recv(1)
    client.send(head(1))
    assert client.results(1) == [(200, b"GET/")]


def test_a_frame_that_does_not_come_to_its_end(make: Make) -> None:
    server = make(header_timeout=20)
    client = connect(server)
    client.send(head(1)[:-3])
    server.after(19)
    assert not client.reader.goaways
    server.after(2)
    assert client.reader.goaways
    assert client.connection.ended


def test_a_body_that_pauses_too_long(make: Make) -> None:
    server = make(body_timeout=20, body_min_rate=0)
    client = connect(server)
    client.send(head(1, POST, end=False) + data(1, b"ab"))
    server.after(15)
    client.send(data(1, b"c"))
    server.after(15)
    assert not client.answer(1).heads
    server.after(6)
    assert client.answer(1).status == 408
    assert server.world.statuses == {408: 1}
    client.send(head(3))
    assert client.results(3) == [(200, b"GET/")]


def test_a_body_that_is_too_slow_on_the_whole(make: Make) -> None:
    server = make(body_timeout=20, body_min_rate=10)
    client = connect(server)
    client.send(head(1, POST, end=False))
    for _ in range(20):
        client.send(data(1, b"x"))
        server.after(1)
        assert not client.answer(1).heads
    server.after(3)  # 20 bytes have bought 2 s more
    assert client.answer(1).status == 408


def test_request_timeout_answers_504(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    app = Held()
    server = make(app, request_timeout=30)
    client = connect(server)
    client.send(head(1))
    server.after(31)
    assert client.answer(1).status == 504
    assert isinstance(app.errors[0], asyncio.CancelledError)
    assert "request_timeout" in caplog.text
    assert server.world.statuses == {504: 1}


# --- the end --------------------------------------------------------------------------------------


def test_a_drain_of_an_idle_connection_of_a_proxy(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(head(1))
    server.drain(idle_s=0.05)
    server.turn(3)
    assert client.reader.goaways == [((1 << 31) - 1, 0)]
    server.after(0.1)
    assert client.reader.goaways[1:] == [(1, 0)]
    assert client.connection.ended


def test_a_drain_answers_what_runs_and_what_comes_before_the_client_knows(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1))
    server.drain(idle_s=0.05)
    client.send(head(3))
    server.after(0.1)
    assert client.reader.goaways[-1] == (3, 0)
    client.send(head(5))  # too late: the client sends it again elsewhere
    app.release()
    app.release()
    server.turn(5)
    assert client.results(1, 3) == [(200, b"done")] * 2
    assert not client.answer(5).heads
    assert client.connection.ended


@pytest.mark.parametrize("settings", [SPELLED_OUT, CHROMIUM])
def test_a_strict_client_gets_its_goaway_when_nothing_is_open(
    make: Make, settings: dict[int, int]
) -> None:
    app = Held()
    server = make(app)
    client = connect(server, settings)
    client.send(head(1))
    server.drain(idle_s=0.05)
    server.after(0.1)
    client.send(head(3))  # held, unseen by the application
    assert len(app.waiting) == 1
    assert not client.reader.goaways
    app.release()
    server.turn(3)
    assert client.results(1) == [(200, b"done")]
    for _ in range(100):
        server.clock.advance(0.02)
        server.turn(2)
        for payload in client.reader.pings:
            client.send(ping(payload, ack=True), turns=2)
        client.reader.pings.clear()
        if client.reader.goaways:
            break
    assert client.reader.goaways == [(1, 0)]
    assert client.connection.ended
    assert app.waiting == []
    assert server.world.in_flight == 0


@pytest.mark.parametrize("settings", [SPELLED_OUT, CHROMIUM])
def test_a_strict_client_whose_request_lasts_is_served_further(
    make: Make, settings: dict[int, int]
) -> None:
    app = Held()
    server = make(app)
    client = connect(server, settings)
    client.send(head(1))
    server.drain(idle_s=0.05)
    client.send(head(3) + head(5))
    assert len(app.waiting) == 1
    for _ in range(60):
        server.clock.advance(0.05)
        server.turn(2)
    assert len(app.waiting) == 3
    for _ in range(3):
        app.release()
    server.turn(5)
    assert client.results(1, 3, 5) == [(200, b"done")] * 3


def test_held_requests_are_given_up_with_their_client(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server, SPELLED_OUT)
    client.send(head(1))
    server.drain(idle_s=0.05)
    client.send(head(3) + head(5, POST, end=False) + head(7, POST, end=False))
    client.send(data(5, b"ab"))
    client.send(reset(3))
    client.connection.lose()
    assert server.world.in_flight == 0
    assert server.world.requests == 4
    assert server.world.count(row_layout.BYTES_IN) == 2


def test_keepalive_requests_drains_the_connection(make: Make) -> None:
    server = make(keepalive_requests=2)
    client = connect(server)
    client.send(head(1))
    assert not client.reader.goaways
    client.send(head(3))
    server.after(1.5)
    assert client.results(1, 3) == [(200, b"GET/")] * 2
    assert client.reader.goaways[-1] == (3, 0)
    assert client.connection.ended


def test_a_connection_that_comes_to_a_draining_worker(make: Make) -> None:
    server = make()
    server.server.draining = True
    client = connect(server)
    client.send(head(1))
    assert client.results(1) == [(200, b"GET/")]
    server.after(1.1)
    assert client.connection.ended


def test_a_goaway_of_the_client_ends_the_connection_when_all_is_answered(make: Make) -> None:
    app = Held()
    server = make(app)
    client = connect(server)
    client.send(head(1))
    client.send(h2frames.goaway())
    app.release()
    server.turn(5)
    assert client.results(1) == [(200, b"done")]
    assert client.connection.ended


def test_an_unknown_frame_is_skipped(make: Make) -> None:
    server = make()
    client = connect(server)
    client.send(struct.pack(">HBBBL", 0, 3, 200, 0, 0) + b"abc" + head(1))
    assert client.results(1) == [(200, b"GET/")]
