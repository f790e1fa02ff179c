"""WebSockets on streams of an HTTP/2 connection (RFC 8441), frame by frame."""

from __future__ import annotations

import json
import re
import signal
import struct
from collections.abc import Callable

import pytest
from h2frames import DATA, data, reset

from integration.h2_client import Client
from integration.server import APPS, Server, wait_for
from integration.test_websocket import counts, memory_mb, steady
from integration.websocket import BINARY, CLOSE, TEXT, frame

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
APP = f"{APPS / 'websocket_app.py'}:app"
ENABLE_CONNECT_PROTOCOL = 8


class Tunnel:
    """A stream that asks for a WebSocket."""

    def __init__(self, client: Client, path: str = "/echo", *more: tuple[str, str]) -> None:
        client.wait(lambda: client.settings, "settings")
        assert client.settings[ENABLE_CONNECT_PROTOCOL] == 1
        self.client = client
        fields = [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", path),
            ("sec-websocket-version", "13"),
            *more,
        ]
        self.number = client.ask_with(fields, end=False)
        self.answer = client.answers[self.number]
        client.wait(lambda: self.answer.status, "an answer")
        self.taken = 0

    def send(self, opcode: int, payload: bytes = b"", end: bool = False) -> None:
        wire = frame(opcode, payload)
        while len(wire) > 16384:
            self.client.send(data(self.number, wire[:16384]))
            wire = wire[16384:]
        self.client.send(data(self.number, wire, end=end))

    def window(self) -> int:
        """How much may have been sent on this stream by now."""
        opened = {0: 65535, self.number: self.client.settings.get(4, 65535)}
        for stream, n in self.client.windows:
            if stream in opened:
                opened[stream] += n
        return min(opened.values())

    def read(self, size: int) -> bytes:
        wanted = self.taken + size
        self.client.wait(lambda: len(self.answer.body) >= wanted, "more of the WebSocket")
        piece = self.answer.body[self.taken : wanted]
        self.taken = wanted
        return piece

    def read_frame(self) -> tuple[int, bytes]:
        first, length = self.read(2)
        if length == 126:
            (length,) = struct.unpack("!H", self.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.read(8))
        return first & 15, self.read(length)


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(APP, "-w", "1", "--http2-cleartext", "prior-knowledge", "--access-logfile", "-")


def test_echoes_beside_each_other_and_beside_requests(server: Server) -> None:
    with Client(server.port) as client:
        one = Tunnel(client, "/echo", ("sec-websocket-protocol", "a, b"))
        assert one.answer.status == 200
        assert one.answer.headers["sec-websocket-protocol"] == "b"
        assert "sec-websocket-accept" not in one.answer.headers
        two = Tunnel(client, "/describe")
        told = json.loads(two.read_frame()[1])
        assert (told["type"], told["scheme"], told["http_version"]) == ("websocket", "ws", "2")
        for payload in (b"hello", b"", b"x" * 1000, b"y" * 60_000):
            one.send(BINARY, payload)
            assert one.read_frame() == (BINARY, payload)
        assert client.get("/").body == b"plain HTTP"
        one.send(CLOSE, (4000).to_bytes(2, "big") + b"bye")
        assert one.read_frame() == (CLOSE, (4000).to_bytes(2, "big") + b"bye")
        client.wait(lambda: one.answer.ended, "the end of the stream")
        server.wait_log("disconnect 4000 'bye'")
        two.send(TEXT, b"the other is open still")
        two.send(CLOSE)
        assert two.read_frame() == (CLOSE, b"")
    server.wait_log('"GET /echo HTTP/2[^"]*" 200 |"CONNECT /echo HTTP/2[^"]*" 200 ')
    assert "Traceback" not in server.log()


def test_frames_in_many_pieces(server: Server) -> None:
    with Client(server.port) as client:
        tunnel = Tunnel(client)
        wire = frame(TEXT, "snow☃man".encode())
        for position in range(len(wire)):
            client.send(data(tunnel.number, wire[position : position + 1]))
        assert tunnel.read_frame() == (TEXT, "snow☃man".encode())


def test_compression(server: Server) -> None:
    with Client(server.port) as client:
        tunnel = Tunnel(client, "/echo", ("sec-websocket-extensions", "permessage-deflate"))
        agreed = tunnel.answer.headers["sec-websocket-extensions"]
        assert agreed.startswith("permessage-deflate")
        tunnel.send(TEXT, b"again and again and again and again and again")
        first, length = tunnel.read(2)
        assert first == 0xC1
        assert length < 40


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("/refuse", (), 403),
        ("/deny", (), 429),
        ("/fail", (), 500),
        ("/echo", (("sec-websocket-protocol", "not a token"),), 400),
    ],
)
def test_denials(server: Server, path: str, more: tuple[tuple[str, str], ...], status: int) -> None:
    with Client(server.port) as client:
        tunnel = Tunnel(client, path, *more)
        assert tunnel.answer.status == status
        client.wait(lambda: tunnel.answer.ended or tunnel.answer.reset is not None, "its end")
        if path == "/deny":
            assert tunnel.answer.body == b"not now"
        assert client.get("/").body == b"plain HTTP"


def test_failures_end_the_stream_alone(server: Server) -> None:
    with Client(server.port) as client:
        bad, good = Tunnel(client), Tunnel(client)
        bad.send(TEXT, b"\xff")
        opcode, payload = bad.read_frame()
        assert (opcode, payload[:2]) == (CLOSE, (1007).to_bytes(2, "big"))
        client.wait(lambda: bad.answer.ended, "the end of the stream")
        good.send(TEXT, b"still here")
        assert good.read_frame() == (TEXT, b"still here")


def test_clients_that_are_gone(server: Server) -> None:
    with Client(server.port) as client:
        tunnel = Tunnel(client)
        client.send(reset(tunnel.number))
        server.wait_log("disconnect 1006 ''")
        since = server.mark()
        half = Tunnel(client)
        client.send(data(half.number, b"", end=True))
        server.wait_log("disconnect 1006 ''", since)
        since = server.mark()
        Tunnel(client)
    server.wait_log("disconnect 1006 ''", since)


def test_a_client_that_does_not_read_stops_the_application(server: Server) -> None:
    """Its window is 64 KiB, and it opens it no further; another stream goes on."""
    pid = server.worker_pids()[0]
    before = memory_mb(pid)
    with Client(server.port, {4: 65535}) as client:
        tunnel = Tunnel(client, "/push?size=10000")
        other = Tunnel(client)
        sent = steady(lambda: counts(server)["sent"])
        assert 0 < sent < 100
        assert memory_mb(pid) - before < 20
        other.send(TEXT, b"and I?")
        assert other.read_frame() == (TEXT, b"and I?")
        assert len(tunnel.answer.body) <= 65535


def test_an_application_that_does_not_receive_stops_the_client(server: Server) -> None:
    """It may send its window and what the queue takes, and no more until the app receives."""
    with Client(server.port) as client:
        tunnel = Tunnel(client, "/wait")
        wire = frame(BINARY, bytes(8000))
        sent = 0

        def push() -> int:
            nonlocal sent
            client.receive(0.02)
            while sent + len(wire) <= tunnel.window():
                client.send(data(tunnel.number, wire))
                sent += len(wire)
            return sent

        most = steady(push)
        assert most <= client.settings.get(4, 65535) + 65536 + 2 * len(wire)
        assert client.get("/go-on").status == 200
        wait_for(lambda: push() > 2 * most, "more window")


def test_the_end_of_the_worker(server: Server) -> None:
    with Client(server.port) as client:
        tunnel = Tunnel(client)
        tunnel.send(TEXT, b"just before")
        wait_for(lambda: counts(server)["received"], "the message in the app")
        server.signal(signal.SIGTERM)
        assert tunnel.read_frame() == (TEXT, b"just before")
        assert tunnel.read_frame() == (CLOSE, (1012).to_bytes(2, "big"))
        tunnel.send(CLOSE, (1012).to_bytes(2, "big"), end=True)
        client.wait_closed()
        assert DATA in client.frames
    assert server.wait_exit() == 0
    assert re.search("^disconnect 1012 ''", server.log(), re.MULTILINE)


def test_where_there_are_no_websockets_they_are_not_offered(serve: Serve) -> None:
    server = serve(APP, "-w", "1", "--http2-cleartext", "prior-knowledge", "--no-websocket")
    with Client(server.port) as client:
        client.wait(lambda: client.settings, "settings")
        assert not client.settings.get(ENABLE_CONNECT_PROTOCOL)
        number = client.ask_with(
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "localhost"),
                (":path", "/echo"),
                ("sec-websocket-version", "13"),
            ],
            end=False,
        )
        answer = client.answers[number]
        client.wait(lambda: answer.reset is not None or answer.status >= 400, "a refusal")
