"""The pages of the metrics process, and the small server below them, hostile clients included."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading

import pytest

from servo.accept_errors import MOST_LOST
from servo.http.events import Request
from servo.metrics import arbiter_facts as facts_module
from servo.metrics import exporter, http_server
from servo.metrics.arbiter_facts import Facts
from servo.metrics.exporter import ExporterSetup, Pages, export
from servo.metrics.families import Reader
from servo.metrics.http_server import MAX_CLIENTS, Answer, SmallServer
from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import count_response
from servo.shared_memory.scoreboard import Scoreboard

# Linux gives no process a number past this.
NO_PID = 1 << 22


@pytest.fixture
def table():
    table = Scoreboard(4)
    yield table
    table.close()


@pytest.fixture
def reader(table):
    facts = Facts(table.arbiter_words, ["asked"])
    facts.begin(os.getpid())
    facts.publish(facts_module.SERVING, 1, 1, False)
    return Reader(table, facts, [])


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def request(target: bytes, method: str = "GET", **fields: str) -> Request:
    headers = [(name.encode(), value.encode()) for name, value in fields.items()]
    path, _, query = target.partition(b"?")
    return Request(method, target, path, query, "1.1", headers, True)


# --- pages --------------------------------------------------------------------------------------


def test_probes(table, reader):
    pages = Pages(reader, None)
    assert pages.answer(request(b"/-/live")).status == 200
    assert pages.answer(request(b"/-/ready")) == Answer(
        503, "text/plain; charset=utf-8", b"no worker is ready\n"
    )
    table.row(table.allocate(1, 1, 1))[row_layout.STATE] = row_layout.STATE_READY
    assert pages.answer(request(b"/-/ready?from=kubelet")).status == 200
    reader.facts.publish(facts_module.LEAVING, 1, 1, False)
    answer = pages.answer(request(b"/-/ready"))
    assert (answer.status, answer.body) == (503, b"the server is leaving\n")
    assert pages.answer(request(b"/-/live")).status == 200


def test_other_targets_and_methods(reader):
    pages = Pages(reader, None)
    unknown = pages.answer(request(b"/etc/passwd"))
    assert unknown.status == 404
    assert b"/-/ready" in unknown.body
    assert pages.answer(request(b"/metrics", "POST")).status == 405
    assert pages.answer(request(b"/status.json", "HEAD")).status == 200


def test_scrapes_in_a_row_are_rendered_once(table, reader):
    clock = Clock()
    pages = Pages(reader, None, clock)
    row = table.row(table.allocate(1, 1, 1))
    first = pages.answer(request(b"/metrics"))
    count_response(row, "GET", 200)
    assert pages.answer(request(b"/metrics")) is first
    other = pages.answer(request(b"/metrics", Accept="application/openmetrics-text"))
    assert other.body.endswith(b"# EOF\n")
    clock.now += exporter.CACHE_S
    assert b'servo_requests_total{method="GET",status="2xx"} 1.0' in (
        pages.answer(request(b"/metrics")).body
    )


def test_a_bug_in_a_page_ends_no_probe(reader, monkeypatch):
    pages = Pages(reader, None)
    monkeypatch.setattr(reader, "read", lambda: 1 / 0)
    assert pages.answer(request(b"/metrics")).status == 500
    assert pages.answer(request(b"/-/live")).status == 200


def test_what_only_the_living_have_goes_with_a_worker(table, reader, tmp_path):
    first, second, unseen, own = NO_PID + 1, NO_PID + 2, NO_PID + 3, os.getpid()

    def begin(*pids: int) -> None:
        for pid in pids:
            for kind in ("gauge_livesum", "gauge_all", "counter"):
                (tmp_path / f"{kind}_{pid}.db").touch()

    def left() -> set[int]:
        names = [path.stem for path in tmp_path.iterdir() if "live" in path.name]
        return {int(name.rpartition("_")[2]) for name in names}

    pages = Pages(reader, str(tmp_path))
    begin(first, second, own)
    for serial, pid in ((1, first), (2, second)):
        table.row(table.allocate(serial, serial, 1))[row_layout.PID] = pid
    begin(unseen)  # it has come and gone between two looks
    pages.tick()
    assert left() == {first, second, own}  # `own` is no worker, but alive
    table.release(0)
    pages.tick()
    assert left() == {second, own}
    assert len([*tmp_path.iterdir()]) == 10  # counters and the rest stay


def test_an_apps_broken_file_costs_only_the_apps_metrics(reader, tmp_path):
    (tmp_path / "counter_1.db").write_bytes(
        b"\x00\x04\x00\x00\x00\x00\x00\x00" + b"\x20\x00\x00\x00" + b"\xff" * 4096
    )
    body = Pages(reader, str(tmp_path)).answer(request(b"/metrics")).body
    assert b"servo_app_metrics_readable 0.0" in body
    assert b"servo_ready" in body


# --- the server ---------------------------------------------------------------------------------


class World:
    """A SmallServer that answers with its targets; `turns` until there is nothing to do."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.clock = Clock()
        self.body = b""
        self.server = SmallServer([self.listener], self.answer, self.clock)
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
def test_what_is_not_a_plain_get_is_refused_and_closed(world, data, status):
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


def test_a_crowd_pushes_out_the_most_silent_and_a_probe_gets_through(world):
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
    assert 0 < got.count(b"200 OK") <= http_server._PIPELINED


def test_a_half_closed_client_gets_its_answer(world):
    client = world.connect(b"GET /1" + HEAD)
    client.shutdown(socket.SHUT_WR)
    world.turns()
    assert client.recv(65536).endswith(b"/1")
    assert client.recv(1) == b""
    assert world.clients == 0


# --- the process --------------------------------------------------------------------------------


def test_it_ends_when_it_is_told_to(reader):
    here, there = os.pipe()
    codes: list[int] = []
    setup = ExporterSetup([], reader, here, os.getpid())
    thread = threading.Thread(target=lambda: codes.append(export(setup)))
    thread.start()
    os.close(there)
    thread.join(30)
    assert codes == [0]
    os.close(here)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EPERM])
def test_an_error_of_accept_that_lasts_makes_it_wait(monkeypatch, code):
    """The listener is readable all the time; asking it again at once would spin."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        server = SmallServer([listener], lambda _request: Answer(200, "text/plain", b"yes"))
        with socket.create_connection(listener.getsockname()) as client:
            client.settimeout(30)
            client.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")

            def fail(_listener):
                raise OSError(code, "not now")

            with monkeypatch.context() as patch:
                patch.setattr(socket.socket, "accept", fail)
                for _ in range(2):
                    for _ in range(MOST_LOST):
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
