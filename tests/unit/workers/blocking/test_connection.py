"""A connection of the blocking workers over a socket pair: the order of its sends."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servo.errors import AppError
from servo.http.errors import ClientDisconnected, LocalProtocolError
from servo.http.events import Request
from servo.http.forwarded import TrustedPeers
from servo.settings.sources import Settings
from servo.shared_memory.row_layout import ROW_WORDS
from servo.workers.blocking.connection import APP, SEND, Connection, ConnectionFactory
from servo.workers.blocking.output_buffer import OutputBuffer
from servo.workers.request.accounting import Meter
from servo.workers.request.admission import Admission, Admitted
from servo.workers.request.hooks import RequestHooks
from servo.workers.request.preface import ProxyProtocol

Make = Callable[..., "Pair"]


class Pair:
    """A connection with a client that reads when it is told to."""

    def __init__(self, app: Any, **values: Any) -> None:
        settings = Settings({"send_timeout": 0.05, **values}, {})
        trusted = TrustedPeers([], {})
        self.meter = Meter(memoryview(bytearray(8 * ROW_WORDS)).cast("Q"), None, 0, lambda: None)
        hooks = RequestHooks(settings.hooks, None)
        worker: Any = SimpleNamespace(
            settings=settings,
            trusted_proxies=trusted,
            proxy_protocol=ProxyProtocol(settings),
            admission=Admission(settings, self.meter, trusted, hooks),
            context=SimpleNamespace(tls=None),
            multiprocess=False,
            progress=lambda: None,
        )
        ours, self.client = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ours.setblocking(False)
        self.client.setblocking(False)
        self.factory = ConnectionFactory(worker, SimpleNamespace(app=app), multithread=False)  # type: ignore[arg-type]
        self.connection = Connection(self.factory, ours, "", None)
        self.received = b""

    def run(self) -> None:
        connection = self.connection
        request = connection.http.receive_data(b"GET / HTTP/1.0\r\n\r\n")
        assert isinstance(request, Request)
        connection.request, connection.body = request, request.body
        admitted = self.factory.admission.admit(request, connection.peer)
        assert isinstance(admitted, Admitted)
        connection.prepare(admitted)
        connection.phase = APP
        connection.run()
        connection.phase = SEND

    def read(self) -> None:
        while True:
            try:
                data = self.client.recv(65536)
            except BlockingIOError:
                return
            if not data:
                return
            self.received += data

    def flush(self) -> bytes:
        """What the client gets in all."""
        while self.connection.output is not None:
            self.connection.flush()
            self.read()
        self.read()
        return self.received.partition(b"\r\n\r\n")[2]

    def close(self) -> None:
        self.connection.close()
        self.client.close()


@pytest.fixture
def make() -> Iterator[Make]:
    pairs = []

    def made(app: Any, **values: Any) -> Pair:
        pairs.append(Pair(app, **values))
        return pairs[-1]

    yield made
    for pair in pairs:
        pair.close()


BLOCKS = [bytes([number]) * 10_000 for number in range(100)]


def pieces(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    return (block for block in BLOCKS)


def whole(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return BLOCKS


def written(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    write = start_response("200 OK", [])
    for block in BLOCKS:
        write(block)
    return []


@pytest.mark.parametrize("app", [pieces, whole, written])
@pytest.mark.parametrize("memory", [0, 1000, 30_000, 1 << 20])
def test_the_app_is_done_though_nothing_was_read(make: Make, app: Any, memory: int) -> None:
    pair = make(app, response_buffer_size=memory)
    pair.run()
    assert isinstance(pair.connection.output, OutputBuffer)
    assert pair.connection.http.body_sent == 1_000_000
    assert pair.flush() == b"".join(BLOCKS)
    assert pair.connection.output is None


def test_an_ordinary_response_needs_no_buffer(make: Make) -> None:
    def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    pair = make(hello)
    pair.run()
    assert pair.connection.output is None
    assert pair.flush() == b"hello"


@pytest.mark.parametrize("app", [pieces, whole, written])
def test_without_any_room_the_app_is_held_and_then_told(make: Make, app: Any) -> None:
    pair = make(app, response_buffer_size=0, response_spool_limit=0)
    pair.run()
    assert pair.connection.broken  # `send_timeout` has passed
    assert pair.connection.http.close_after or app is whole


def test_what_is_read_makes_room(make: Make) -> None:
    """Blocks that fit the socket as long as the client reads each."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for block in BLOCKS:
            yield block[:1000]
            pair.read()

    pair = make(app, response_buffer_size=0, response_spool_limit=0)
    pair.run()
    assert not pair.connection.broken
    assert pair.flush() == b"".join(block[:1000] for block in BLOCKS)


def test_a_client_that_is_gone(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield from BLOCKS
        finally:
            closed.append(True)

    pair = make(app, response_buffer_size=0, response_spool_limit=0)
    pair.client.close()
    pair.run()
    assert closed == [True]
    assert pair.connection.broken
    assert caplog.records == []


def test_a_file_waits_without_memory_and_close_is_called(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"".join(BLOCKS))
    file = path.open("rb")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)

    pair = make(app)
    before = pair.factory.output_space._memory
    pair.run()
    assert file.closed
    assert pair.factory.output_space._memory == before
    assert pair.flush() == b"".join(BLOCKS)


def test_closing_in_the_middle_gives_everything_back(make: Make) -> None:
    pair = make(pieces, response_buffer_size=5000)
    space = pair.factory.output_space
    before = space._memory, space._disk, len(os.listdir("/proc/self/fd"))
    pair.run()
    assert (space._memory, space._disk) != before[:2]
    pair.connection.close()
    assert (space._memory, space._disk, len(os.listdir("/proc/self/fd"))) == (
        *before[:2],
        before[2] - 1,
    )


def test_a_closed_connection_needs_no_garbage_collector(make: Make) -> None:
    kept: list[Callable[[], Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write, hints = start_response("200 OK", []), environ["wsgi.early_hints"]
        kept.append(partial(start_response, "200 OK", []))
        kept.append(partial(write, b"more"))
        kept.append(partial(hints, []))
        return [b"ok"]

    pair = make(app)
    pair.run()
    pair.connection.finish_request(pair.meter)
    assert pair.flush() == b"ok"
    other = make(whole).connection
    gc.collect()
    gc.disable()
    try:
        pair.connection.close()
        pair.connection = other
        for late in kept:
            with pytest.raises((ClientDisconnected, AppError, LocalProtocolError)):
                late()
        kept.clear()
        del late
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_an_end_is_told_before_the_socket_is_closed(make: Make) -> None:
    """A child of the app may hold a copy of the socket."""
    pair = make(whole)
    copy = os.dup(pair.connection.fd)
    try:
        pair.connection.close()
        assert pair.client.recv(1) == b""
    finally:
        os.close(copy)


REMOVE = object()


@pytest.mark.parametrize(
    ("value", "recorded"),
    [("192.0.2.1", "192.0.2.1"), (REMOVE, "-"), (None, "-"), (7, "-"), ([7], "-")],
)
def test_the_remote_address_is_recorded_as_an_app_left_it(
    make: Make, value: Any, recorded: str
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        if value is REMOVE:
            environ.clear()
        else:
            environ["REMOTE_ADDR"] = value
        return []

    pair = make(app)
    pair.run()
    lines: list[dict[str, Any]] = []
    access: Any = SimpleNamespace(record=lambda **values: lines.append(values))
    row = memoryview(bytearray(8 * ROW_WORDS)).cast("Q")
    meter = Meter(row, access, 0, lambda: None)
    meter.begin()
    pair.connection.finish_request(meter)
    assert lines[0]["remote"] == recorded
