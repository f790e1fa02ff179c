"""The server of the metrics process: kept connections, limits, and hostile clients."""

from __future__ import annotations

import contextlib
import errno
import select
import socket

import pytest

from servo.accept_errors import MAX_LOST_IN_A_ROW
from servo.http.events import Request
from servo.metrics import http_server
from servo.metrics.http_server import MAX_CLIENTS, Answer, MetricsHTTPServer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A MetricsHTTPServer that answers each request with its target, and its clients."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.clock = Clock()
        self.body = b""
        self.server = MetricsHTTPServer([self.listener], self.answer, self.clock)
        self.opened: list[socket.socket] = []

    def answer(self, request: Request) -> Answer:
        return Answer(200, "text/plain", self.body or request.target)

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=10)
        self.opened.append(client)
        client.sendall(data)
        return client

    def turns(self, count: int = 6) -> None:
        for _ in range(count):
            self.server.turn(0.01)

    @property
    def clients(self) -> int:
        return len(self.server._clients)

    def close(self) -> None:
        for client in self.opened:
            client.close()
        self.server.close()
        self.listener.close()


@pytest.fixture
def world():
    world = World()
    yield world
    world.close()


HEAD = b" HTTP/1.1\r\nHost: x\r\n\r\n"


def test_kept_connections_and_pipelining(world):
    client = world.connect(b"GET /1" + HEAD + b"GET /2" + HEAD)
    world.turns()
    data = client.recv(65536)
    assert data.count(b"HTTP/1.1 200 OK") == 2
    assert data.endswith(b"/2")
    client.sendall(b"HEAD /3" + HEAD)
    world.turns()
    head = client.recv(65536)
    assert b"Content-Length: 2" in head
    assert head.endswith(b"\r\n\r\n")
    assert world.clients == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 5000 + HEAD, b"414"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 20000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"413"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"413"),
    ],
)
def test_requests_with_a_body_or_errors_are_refused_and_closed(world, data, status):
    client = world.connect(data)
    world.turns()
    assert client.recv(65536).split(b" ")[1] == status
    assert client.recv(1) == b""
    client.sendall(b"more")
    world.turns()
    world.clock.now += http_server.LINGER_S
    world.server.sweep()
    assert world.clients == 0


def test_a_client_that_sends_half_a_head_or_nothing_is_dropped(world):
    silent, slow = world.connect(), world.connect(b"GET / HT")
    world.turns()
    assert world.clients == 2
    world.clock.now += http_server.HEAD_S - 1
    slow.sendall(b"TP/1.1\r\nA: ")  # the limit is for the whole head
    world.turns()
    world.clock.now += 1
    world.server.sweep()
    assert world.clients == 0
    for client in (silent, slow):
        assert client.recv(1) == b""


def test_a_second_head_has_a_limit_of_its_own(world):
    client = world.connect(b"GET /1" + HEAD)
    world.turns()
    world.clock.now += http_server.IDLE_S - 1
    client.sendall(b"GET ")
    world.turns()
    world.clock.now += http_server.HEAD_S
    world.server.sweep()
    assert world.clients == 0


def test_a_client_that_does_not_read_is_dropped(world):
    world.body = b"x" * 8_000_000
    world.connect(b"GET /" + HEAD)
    world.turns()
    assert world.clients == 1
    world.clock.now += http_server.SEND_S
    world.server.sweep()
    assert world.clients == 0


def test_a_large_answer_comes_whole(world):
    world.body = b"0123456789" * 400_000
    client = world.connect(b"GET /" + HEAD)
    got = b""
    while len(got.partition(b"\r\n\r\n")[2]) < len(world.body):
        world.server.turn(0.01)
        if select.select([client], [], [], 0)[0]:
            got += client.recv(1 << 20)
    assert got.partition(b"\r\n\r\n")[2] == world.body


def test_a_crowd_of_idle_clients_can_not_keep_a_probe_out(world):
    crowd = [world.connect() for _ in range(MAX_CLIENTS * 2)]
    world.turns(10)
    assert world.clients == MAX_CLIENTS
    probe = world.connect(b"GET /-/ready" + HEAD)
    world.turns()
    assert probe.recv(65536).endswith(b"/-/ready")
    assert world.clients == MAX_CLIENTS
    assert crowd[0].recv(1) == b""


def test_an_endless_pipeline_is_cut(world):
    client = world.connect((b"GET /1" + HEAD) * 1000)
    world.turns()
    assert world.clients == 0
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            got += data
    assert 0 < got.count(b"200 OK") <= http_server._MAX_PIPELINED


def test_a_half_closed_client_gets_its_answer(world):
    client = world.connect(b"GET /1" + HEAD)
    client.shutdown(socket.SHUT_WR)
    world.turns()
    assert client.recv(65536).endswith(b"/1")
    assert client.recv(1) == b""
    assert world.clients == 0


def test_at_the_end_accepted_clients_are_answered_and_others_wait(world):
    slow, kept = world.connect(), world.connect(b"GET /kept" + HEAD)
    world.turns()
    kept.recv(1000)
    slow.sendall(b"GET /slow" + HEAD)
    late = world.connect(b"GET /late" + HEAD)
    world.server.finish(10.0)
    world.server.close()
    assert slow.recv(1000).endswith(b"/slow")
    assert kept.recv(1000) == b""
    # The next process answers it.
    world.server = MetricsHTTPServer([world.listener], world.answer, world.clock)
    world.turns()
    assert late.recv(1000).endswith(b"/late")


def test_at_the_end_a_silent_client_is_not_waited_for(world):
    silent = world.connect()
    world.turns()
    world.server.finish(0.0)
    world.server.close()
    assert silent.recv(1000) == b""
    world.server = MetricsHTTPServer([], world.answer, world.clock)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EPERM])
def test_a_lasting_error_of_accept_pauses_the_listeners(monkeypatch, code):
    """The listener stays readable, so a server that accepts again at once would burn a CPU."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        server = MetricsHTTPServer([listener], lambda _request: Answer(200, "text/plain", b"yes"))
        with socket.create_connection(listener.getsockname()) as client:
            client.settimeout(30)
            client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

            def fail(_listener):
                raise OSError(code, "not now")

            with monkeypatch.context() as patch:
                patch.setattr(socket.socket, "accept", fail)
                for _ in range(2):
                    for _ in range(MAX_LOST_IN_A_ROW):
                        server.turn(0)
                    assert server.selector.select(0) == []
                    server.sweep()
            server.sweep()
            while server.selector.select(0) and not readable(client):
                server.turn(0)
            assert client.recv(9) == b"HTTP/1.1 "
        server.close()


def readable(sock):
    return bool(select.select([sock], [], [], 0)[0])
