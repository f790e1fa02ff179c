"""The poller of the blocking workers, one turn of its loop at a time: reading, writing and closing.

Each test runs a script between the turns; see `fakes.BlockingServer`.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from unit.workers.fakes import GET, SECOND, BlockingServer, Client, responses

from servo.ipc.messages import Draining, ReplaceMe, Retire, Stop
from servo.shared_memory import row_layout

Make = Callable[..., BlockingServer]
Script = Iterator[None]

POST = b"POST /form HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nabcde"
CHUNKED = (
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
)


@pytest.fixture
def make(make_blocking: Make) -> Make:
    return lambda app=None, **values: make_blocking(app or echo, **values)


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    body = environ["wsgi.input"].read()
    return [environ["REQUEST_METHOD"].encode() + environ["PATH_INFO"].encode() + body]


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

    def script() -> Script:
        client = server.connect()
        client.send(request_bytes)
        yield
        yield
        assert responses(client.read()) == [(200, body)]
        for at in range(len(request_bytes)):
            assert not client.read(), at
            client.send(request_bytes[at : at + 1])
            yield
        yield
        assert responses(client.read()) == [(200, body)]
        assert not client.gone

    server.run(script())
    assert server.world.requests == 2
    assert server.world.in_flight == 0


def test_a_request_that_is_there_when_its_connection_is_accepted_costs_no_turn(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        assert responses(client.read()) == [(200, b"GET/")]

    server.run(script())


def test_pipelined_requests_are_answered_in_order_and_others_have_their_turn(make: Make) -> None:
    order: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        order.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    server = make(app)

    def script() -> Script:
        first, second = server.connect(), server.connect()
        yield
        yield
        first.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n" % n for n in range(3)))
        second.send(b"GET /other HTTP/1.1\r\nHost: h\r\n\r\n")
        for _ in range(4):
            yield
        assert responses(first.read()) == [(200, b"/0"), (200, b"/1"), (200, b"/2")]
        assert responses(second.read()) == [(200, b"/other")]

    server.run(script())
    assert order.index("/other") < order.index("/2")


class Recorded:
    """A connection's socket that notes how bytes are sent."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self.sent: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, data: bytes, flags: int = 0) -> int:
        self.sent.append("more follows" if flags & socket.MSG_MORE else "sent")
        return int(self._sock.send(data))

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option, value) == (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent.append("pushed")


@pytest.mark.parametrize(
    ("rest", "sent"),
    [
        (GET * 3, ["more follows", "more follows", "sent"]),
        (GET * 2 + POST[:-1], ["more follows", "more follows", "pushed"]),
        (GET * 2 + b"GET / HT", ["more follows", "sent"]),
        (GET + b"GET / HTTP/1.1\r\n\r\n", ["more follows", "sent"]),  # refused
    ],
    ids=["all", "a part of a body", "a part of a head", "a refusal"],
)
def test_responses_that_are_ready_together_leave_together(
    make: Make, rest: bytes, sent: list[str]
) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        [connection] = server.worker.connections.values()
        recorded = connection.sock = Recorded(connection.sock)
        client.send(rest)
        for _ in range(5):
            yield
        assert recorded.sent == sent

    server.run(script())


def test_a_response_does_not_wait_for_an_app_that_is_not_quick(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        [connection] = server.worker.connections.values()
        recorded = connection.sock = Recorded(connection.sock)
        connection.started_ns = 0
        connection.http.receive_data(GET * 2)
        assert not connection._may_cork()
        connection.started_ns = time.monotonic_ns() + 10**9
        assert connection._may_cork()
        connection._is_tcp = False
        assert not connection._may_cork()
        assert recorded.sent == []

    server.run(script())


def test_the_poller_does_not_sleep_while_a_pipelined_request_waits(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(GET * 3)
        yield
        assert len(responses(client.read())) == 2
        assert server.wait_s == 0
        yield
        assert len(responses(client.read())) == 1
        assert server.wait_s == 1.0

    server.run(script())


def test_100_continue_is_sent_before_the_body_comes(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")[:-5])
        yield
        yield
        assert client.read() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abcde")
        yield
        assert responses(client.read()) == [(200, b"POST/formabcde")]

    server.run(script())


def test_a_client_that_is_gone_before_its_100_continue(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")[:-5])
        client.close()
        yield
        yield
        assert not server.worker.connections

    server.run(script())
    assert server.world.requests == 0


def test_a_body_is_counted(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(POST[:-3])
        yield
        yield
        client.send(POST[-3:])
        yield
        assert responses(client.read()) == [(200, b"POST/formabcde")]

    server.run(script())
    assert server.world.count(row_layout.BYTES_IN) == 5


def test_a_body_that_the_disk_has_no_room_for_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        def close(self) -> None:
            pass

    server = make()
    monkeypatch.setattr("tempfile.SpooledTemporaryFile", lambda **_: Full())

    def script() -> Script:
        client = server.connect()
        client.send(POST[:-3])
        yield
        yield
        assert [status for status, _ in responses(client.read())] == [507]
        assert client.gone

    server.run(script())
    assert server.world.statuses.get(200) is None
    assert server.world.requests == 1


# --- the client's end -----------------------------------------------------------------------------


def test_an_end_before_any_request_closes_the_connection(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        yield
        yield
        client.send_eof()
        yield
        assert client.gone
        assert not client.reset

    server.run(script())
    assert server.world.requests == 0
    assert server.world.count(row_layout.CONNECTIONS) == 0


@pytest.mark.parametrize("sent", [GET[:-2], POST[:-2]], ids=["head", "body"])
def test_an_end_in_the_middle_of_a_request_is_refused(make: Make, sent: bytes) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(sent)
        client.send_eof()
        for _ in range(3):
            yield
        assert [status for status, _ in responses(client.read())] == [400]
        assert client.gone

    server.run(script())
    assert server.world.in_flight == 0


def test_a_client_that_closes_its_side_behind_its_request_is_answered(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        client.send_eof()
        for _ in range(3):
            yield
        assert responses(client.read()) == [(200, b"GET/")]
        assert client.gone

    server.run(script())


@pytest.mark.parametrize("sent", [b"", GET[:9], POST[:-2]], ids=["idle", "head", "body"])
def test_a_client_that_is_gone_is_dropped(make: Make, sent: bytes) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        if sent:
            client.send(sent)
        yield
        yield
        assert len(server.worker.connections) == 1
        client.close()
        yield
        yield
        assert not server.worker.connections

    server.run(script())
    assert server.world.count(row_layout.CONNECTIONS) == 0


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

    def script() -> Script:
        client = server.connect()
        client.send(sent)
        yield
        yield
        assert [found for found, _ in responses(client.read())] == [status]
        assert client.gone
        # The rest of what it sends is thrown away, and the end closes the connection.
        assert len(server.worker.connections) == 1
        client.send(b"more")
        yield
        client.send_eof()
        yield
        assert not server.worker.connections

    server.run(script())
    assert server.world.statuses == {status: 1}
    assert server.world.in_flight == 0


def test_a_refused_client_that_never_ends_is_cut(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(b"nonsense\r\n\r\n")
        yield
        yield
        assert client.gone
        yield from server.after(1.0)
        assert len(server.worker.connections) == 1
        yield from server.after(1.5)
        assert not server.worker.connections

    server.run(script())


def test_limit_concurrency_answers_503_and_keeps_the_count(make: Make) -> None:
    server = make(limit_concurrency=1)

    def script() -> Script:
        server.world.row[row_layout.IN_FLIGHT] = 1
        client = server.connect()
        client.send(GET)
        yield
        yield
        data = client.read()
        assert [status for status, _ in responses(data)] == [503]
        assert b"Retry-After: 1\r\n" in data
        server.world.row[row_layout.IN_FLIGHT] = 0

    server.run(script())
    assert server.world.count(row_layout.SHED) == 1


def test_a_field_name_with_an_underscore_is_refused_if_so_set(make: Make) -> None:
    server = make(header_map="refuse")

    def script() -> Script:
        client = server.connect()
        client.send(GET.replace(b"\r\n\r\n", b"\r\nX_A: 1\r\n\r\n"))
        yield
        yield
        assert [status for status, _ in responses(client.read())] == [400]

    server.run(script())
    assert server.world.in_flight == 0


# --- the application ------------------------------------------------------------------------------


def test_an_error_before_the_head_is_a_500(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ValueError("broken")

    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert [status for status, _ in responses(client.read())] == [500]

    server.run(script())
    assert server.world.statuses == {500: 1}
    assert "broken" in caplog.text


def test_an_error_after_the_head_breaks_the_response_off(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"begun"
        raise ValueError("broken")

    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        data = client.read()
        assert data.startswith(b"HTTP/1.1 200 OK\r\n")
        # Its end is missing, and the connection's end says so.
        assert data.endswith(b"begun\r\n")
        assert client.gone

    server.run(script())
    assert "broken" in caplog.text
    assert server.world.in_flight == 0


def test_a_client_that_leaves_while_the_application_runs(make: Make) -> None:
    clients: list[Client] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"x"
        clients[0].close()
        yield b"x" * 100_000

    server = make(app)

    def script() -> Script:
        clients.append(server.connect())
        clients[0].send(GET)
        yield
        yield
        assert not server.worker.connections

    server.run(script())
    assert server.world.requests == 1
    assert server.world.in_flight == 0


def test_the_poller_shows_operators_the_request_that_runs(make: Make) -> None:
    shown: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        shown.extend(server.worker.open_requests())
        return echo(environ, start_response)

    server = make(app)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert client.read()

    server.run(script())
    assert shown == [(server.clock.ns, "GET", b"/", "192.0.2.1")]
    assert server.worker.open_requests() == []


# --- a slow reader --------------------------------------------------------------------------------


def large(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "1000000")])
    return [b"x" * 1_000_000]


def test_a_slow_reader_holds_nobody_up(make: Make) -> None:
    server = make(large, keepalive=5)

    def script() -> Script:
        slow, quick = server.connect(buffer=4096), server.connect()
        slow.send(GET * 2)
        yield
        yield
        quick.send(GET)
        yield
        while len(quick.received) < 1_000_000:
            quick.read()
            yield
        while len(slow.received) < 2_000_000:
            # Its second request waits until the first response is out.
            slow.read(50_000)
            yield
        slow.read()
        assert [len(body) for _, body in responses(slow.received)] == [1_000_000] * 2

    server.run(script())
    assert server.world.requests == 3


def test_a_reader_that_has_stopped_is_cut_after_send_timeout(make: Make) -> None:
    server = make(large, send_timeout=10)

    def script() -> Script:
        client = server.connect(buffer=4096)
        client.send(GET)
        yield
        yield
        yield from server.after(9)
        client.read(100_000)  # some progress: the limit begins anew
        yield
        yield from server.after(9)
        assert len(server.worker.connections) == 1
        yield from server.after(2)
        assert not server.worker.connections
        assert client.gone

    server.run(script())


# --- time limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", None), (GET[:9], 408), (POST[:-2], 408)],
    ids=["none", "head", "body"],
)
def test_a_request_that_does_not_come_in_time(make: Make, sent: bytes, status: int | None) -> None:
    server = make(header_timeout=20, body_timeout=20)

    def script() -> Script:
        client = server.connect()
        if sent:
            client.send(sent)
        yield
        yield
        yield from server.after(19)
        assert not client.gone
        yield from server.after(2)
        assert [found for found, _ in responses(client.read())] == ([status] if status else [])
        assert client.gone

    server.run(script())
    assert server.world.statuses == ({status: 1} if status else {})


def test_a_head_that_trickles_in_has_one_limit_for_all_of_it(make: Make) -> None:
    server = make(header_timeout=20)

    def script() -> Script:
        client = server.connect()
        client.send(GET[:5])
        yield
        yield
        for at in range(5, 15):
            yield from server.after(1.9)
            client.send(GET[at : at + 1])
            yield
        yield from server.after(1.9)
        assert [status for status, _ in responses(client.read())] == [408]

    server.run(script())


def test_an_idle_connection_is_closed_after_keepalive(make: Make) -> None:
    server = make(keepalive=5)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert client.read()
        yield from server.after(4)
        assert not client.gone
        yield from server.after(1.5)
        assert client.gone
        assert not client.reset
        assert not server.worker.connections

    server.run(script())


def test_a_request_that_comes_during_a_slow_one_is_answered(make: Make) -> None:
    """Its keep-alive time ends before the worker reads it."""
    clients: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            server.clock.advance(4)
            clients[0].send(GET)
            server.clock.advance(4)
        start_response("200 OK", [])
        return [b"done"]

    server = make(app, keepalive=5)

    def script() -> Script:
        idle, silent, slow = (server.connect() for _ in range(3))
        clients.append(idle)
        for client in (idle, silent):
            client.send(GET)
        for _ in range(4):
            yield
        idle.read()
        silent.read()
        slow.send(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        for _ in range(3):
            yield
        assert responses(slow.read()) == [(200, b"done")]
        assert responses(idle.read()) == [(200, b"done")]
        assert silent.gone

    server.run(script())


def test_a_request_begins_the_keepalive_anew(make: Make) -> None:
    server = make(keepalive=5)

    def script() -> Script:
        client = server.connect()
        for _ in range(3):
            client.send(GET)
            yield
            yield
            assert responses(client.read()) == [(200, b"GET/")]
            yield from server.after(4)
        assert not client.gone

    server.run(script())


def test_without_keepalive_each_response_ends_its_connection(make: Make) -> None:
    server = make(keepalive=0)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert b"Connection: close\r\n" in client.read()
        assert client.gone

    server.run(script())


def test_keepalive_requests_ends_the_connection_even_with_more_pipelined(make: Make) -> None:
    server = make(keepalive_requests=2)

    def script() -> Script:
        client = server.connect()
        client.send(GET * 3)
        for _ in range(4):
            yield
        assert len(responses(client.read())) == 2
        assert client.gone

    server.run(script())
    assert server.world.requests == 2


def test_idle_connections_are_swept_and_the_clock_is_set(make: Make) -> None:
    server = make()

    def script() -> Script:
        server.connect()
        yield
        yield
        before = server.world.count(row_layout.BEAT_NS)
        yield from server.sweep()
        yield
        assert server.world.count(row_layout.BEAT_NS) == before + SECOND
        assert server.wait_s == 1.0

    server.run(script())


# --- accepting ------------------------------------------------------------------------------------


def test_connections_are_counted(make: Make) -> None:
    server = make()

    def script() -> Script:
        clients = [server.connect() for _ in range(3)]
        for _ in range(4):
            yield
        assert server.world.count(row_layout.CONNECTIONS) == 3
        clients[0].close()
        yield
        yield
        assert server.world.count(row_layout.CONNECTIONS) == 2

    server.run(script())
    assert server.world.count(row_layout.ACCEPTED) == 3
    assert server.world.count(row_layout.CONNECTIONS) == 0


def test_a_full_worker_leaves_connections_in_the_queue(make: Make) -> None:
    server = make(worker_connections=1)

    def script() -> Script:
        first, second = server.connect(), server.connect()
        first.send(GET)
        second.send(GET)
        for _ in range(4):
            yield
        assert first.read()
        assert not second.read()
        first.close()
        for _ in range(3):
            yield
        assert responses(second.read()) == [(200, b"GET/")]

    server.run(script())


def test_out_of_descriptors_the_worker_pauses_and_goes_on(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server = make()

    def script() -> Script:
        server.world.listener.push(OSError(errno.EMFILE, "too many open files"))
        client = server.connect()
        client.send(GET)
        for _ in range(3):
            yield
        assert not client.read()
        assert 0 < server.wait_s <= 0.1
        server.clock.advance(0.2)
        for _ in range(3):
            yield
        assert responses(client.read()) == [(200, b"GET/")]

    server.run(script())
    assert "Can't accept a connection" in caplog.text


# --- the arbiter, and the end ---------------------------------------------------------------------


def test_a_retired_worker_ends_idle_connections_and_then_itself(make: Make) -> None:
    server = make(drain_idle=3, keepalive=60)

    def script() -> Script:
        idle, busy = server.connect(), server.connect()
        idle.send(GET)
        busy.send(GET[:9])
        for _ in range(4):
            yield
        assert idle.read()
        server.world.tell(Retire("reload"))
        yield
        yield
        assert server.world.listener.closed
        yield from server.after(2)
        assert not idle.gone
        yield from server.after(1.5)
        assert idle.gone
        busy.send(GET[9:])
        yield
        assert b"Connection: close\r\n" in busy.read()
        assert busy.gone
        assert not server.worker.connections

    server.run(script())
    assert not server.worker.finished  # it has ended by itself
    assert any(isinstance(message, Draining) for message in server.world.told())


def test_a_retired_worker_waits_for_clients_that_still_read(make: Make) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(50_000)]

    server = make(app, drain_idle=3, keepalive=60)

    def script() -> Script:
        slow, stuck = server.connect(), server.connect()
        slow.send(GET)
        stuck.send(GET)
        for _ in range(4):
            yield
        server.world.tell(Retire("reload"))
        yield
        yield
        yield from server.after(5)
        assert len(server.worker.connections) == 2  # `gone` would read
        assert len(slow.read()) > 50_000
        yield from server.after(2)
        assert len(server.worker.connections) == 2
        yield from server.after(2)
        assert len(server.worker.connections) == 1
        assert not slow.gone
        assert stuck.gone
        slow.send(GET)
        yield
        assert b"Connection: close\r\n" in slow.read()

    server.run(script())


def test_a_stopped_worker_answers_what_has_come_and_drops_the_idle(make: Make) -> None:
    server = make(keepalive=60)

    def script() -> Script:
        idle, asking = server.connect(), server.connect()
        for client in (idle, asking):
            client.send(GET)
        for _ in range(4):
            yield
        idle.read()
        asking.read()
        server.world.tell(Stop(quick=False))
        queued = server.connect()  # behind the stop, but in the queue before it is read
        queued.send(GET)
        asking.send(GET)
        yield
        assert idle.gone
        assert b"Connection: close" in asking.read()
        assert responses(queued.read()) == [(200, b"GET/")]

    server.run(script())
    assert server.world.requests == 4


def test_a_new_connection_of_a_stopped_worker_gets_a_moment_for_its_request(make: Make) -> None:
    server = make()

    def script() -> Script:
        fresh, silent = server.connect(), server.connect()
        for _ in range(4):
            yield
        server.world.tell(Stop(quick=False))
        yield
        yield
        assert not fresh.gone
        fresh.send(GET)
        yield
        assert fresh.read()
        assert not silent.gone
        yield from server.after(1.5)
        assert silent.gone

    server.run(script())
    assert server.world.requests == 1


def test_a_quick_stop_cuts_everything(make: Make) -> None:
    server = make(large)

    def script() -> Script:
        client = server.connect(buffer=4096)
        client.send(GET)
        yield
        yield
        assert client.read(10)
        server.world.tell(Stop(quick=True))
        yield
        assert server.worker.finished
        assert client.gone

    server.run(script())
    assert not server.worker.connections


def test_a_worker_without_an_arbiter_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alarms: list[float] = []
    monkeypatch.setattr("signal.setitimer", lambda _which, seconds: alarms.append(seconds))
    server = make(graceful_timeout=7)
    before = signal.getsignal(signal.SIGALRM)

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert client.read()
        server.world.lose_arbiter()
        yield
        yield
        assert client.gone

    try:
        server.run(script())
    finally:
        signal.signal(signal.SIGALRM, before)
    assert alarms == [7]
    assert not server.worker.finished
    assert "The arbiter is gone" in caplog.text


def test_sigterm_asks_the_arbiter_for_a_successor(make: Make) -> None:
    server = make()

    def script() -> Script:
        yield
        os.kill(os.getpid(), signal.SIGTERM)
        yield
        yield

    server.run(script())
    asked = [each for each in server.world.told() if isinstance(each, ReplaceMe)]
    assert [each.reason for each in asked] == ["terminated"]


def test_sigusr1_reopens_the_access_log(make: Make, tmp_path: Any) -> None:
    path = tmp_path / "access.log"
    server = make(accesslog=str(path))

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        server.clock.advance(0.2)
        yield
        yield
        assert "GET / HTTP/1.1" in path.read_text()
        path.rename(tmp_path / "old.log")
        os.kill(os.getpid(), signal.SIGUSR1)
        yield
        yield
        assert path.read_text() == ""

    server.run(script())
    server.worker.access.close()


def test_max_requests_asks_for_a_successor_once(make: Make) -> None:
    server = make(max_requests=2, max_requests_jitter=0)

    def script() -> Script:
        client = server.connect()
        client.send(GET * 4)
        for _ in range(6):
            yield
        assert len(responses(client.read())) == 4

    server.run(script())
    asked = [each for each in server.world.told() if isinstance(each, ReplaceMe)]
    assert [each.reason for each in asked] == ["recycled"]


# --- PROXY protocol -------------------------------------------------------------------------------


def test_a_proxy_header_names_the_client_even_byte_by_byte(make: Make) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["REMOTE_ADDR"].encode()]

    server = make(app, proxy_protocol="v1", proxy_allow_ips="192.0.2.1")
    sent = b"PROXY TCP4 198.51.100.7 203.0.113.1 4000 443\r\n" + GET

    def script() -> Script:
        whole, trickled = server.connect(), server.connect()
        whole.send(sent)
        yield
        yield
        assert responses(whole.read()) == [(200, b"198.51.100.7")]
        for at in range(len(sent)):
            trickled.send(sent[at : at + 1])
            yield
        yield
        assert responses(trickled.read()) == [(200, b"198.51.100.7")]

    server.run(script())


@pytest.mark.parametrize(
    ("allowed", "sent", "status"), [("", GET, 403), ("192.0.2.1", GET, 400)], ids=["peer", "bytes"]
)
def test_a_connection_that_goes_around_the_proxy(
    make: Make, allowed: str, sent: bytes, status: int
) -> None:
    server = make(proxy_protocol="v1", proxy_allow_ips=allowed)

    def script() -> Script:
        client = server.connect()
        client.send(sent)
        yield
        yield
        assert [found for found, _ in responses(client.read())] == [status]

    server.run(script())


# --- what epoll is told ---------------------------------------------------------------------------


def test_a_connection_is_watched_for_what_it_waits_for(make: Make) -> None:
    server = make(large)

    def script() -> Script:
        client = server.connect(buffer=4096)
        yield
        yield
        (connection,) = server.worker.connections.values()
        assert connection.watched & select.EPOLLIN
        client.send(GET)
        yield
        assert connection.watched == select.EPOLLOUT
        while len(client.received) < 1_000_000:
            client.read()
            yield
        client.read()
        yield
        assert connection.watched & select.EPOLLIN

    server.run(script())


def test_nothing_is_logged_above_debug_for_clients_that_misbehave(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "servo.error")
    server = make()

    def script() -> Script:
        for sent in (b"nonsense\r\n\r\n", POST[:-1], GET[:3]):
            client = server.connect()
            client.send(sent)
            yield
            yield
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            yield
            yield

    server.run(script())
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_an_idle_connection_forgets_its_client(make: Make) -> None:
    server = make(forwarded_allow_ips="*")

    def script() -> Script:
        client = server.connect()
        client.send(GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"))
        yield
        yield
        (connection,) = server.worker.connections.values()
        assert connection.peer.client.address == ("203.0.113.9", 0)
        assert connection.peer.fields is not None
        yield from server.sweep()
        yield
        assert (connection.peer.fields, connection.peer.client) == (None, None)

    server.run(script())
