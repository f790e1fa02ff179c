"""WebSockets and event streams that outlive a reload (`drain_websockets`)."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import httpx
import pytest

from integration.h2_client import Client
from integration.server import APPS, DEADLINE_S, Server, alive, wait_for
from integration.test_control import ctl
from integration.test_websocket_h2 import Tunnel
from integration.websocket import CLOSE, TEXT, RawWebSocket

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
APP = f"{APPS / 'streams_app.py'}:app"
LONG = ("--drain-websockets", "600")
RESTARTING = b"\x03\xf4"  # 1012


@pytest.fixture(params=["auto", "asyncio"])
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return (
        APP,
        "-k",
        "async",
        "--loop",
        str(request.param),
        "--http2-cleartext",
        "prior-knowledge",
    )


class Events:
    """An event stream over HTTP/1.1."""

    def __init__(self, port: int, path: str = "/events") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.socket.sendall(b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        self.received = b""

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def receive(self) -> bytes:
        data = self.socket.recv(65536)
        self.received += data
        return data

    def next_event(self) -> None:
        seen = self.received.count(b"data:")
        while self.received.count(b"data:") == seen:
            assert self.receive(), f"ended after {self.received!r}"

    def wait_end(self) -> None:
        """Until the stream has ended as a complete response does."""
        while self.receive():
            pass
        assert self.received.endswith(b"0\r\n\r\n")


def pid_of(server: Server) -> int:
    return int(httpx.get(f"{server.url}/pid", timeout=DEADLINE_S).json())


def echo(websocket: RawWebSocket | Tunnel, text: bytes = b"hello") -> None:
    websocket.send(TEXT, text)
    assert websocket.read_frame() == (TEXT, text)


def wait_lingering(server: Server, old: int) -> None:
    """Until a successor serves, and the old worker lives on."""
    wait_for(lambda: pid_of(server) != old, "a successor that serves")
    server.wait_log(r"keeps its WebSockets and event streams for up to")
    assert alive(old)
    assert old in server.worker_pids()


class Request:
    """A request on a kept connection that is never answered."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
        self.socket.sendall(b"GET /never HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def wait_cut(self) -> None:
        try:
            assert self.socket.recv(1000) == b""
        except ConnectionResetError:
            pass
        finally:
            self.socket.close()


def states(server: Server) -> dict[int, str]:
    """The state of each worker, by pid, as `servoctl workers` shows it."""
    return {row["pid"]: row["state"] for row in ctl(server, "workers")["workers"]}


def test_they_live_on_beside_the_successor(serve: Serve, flags: tuple[str, ...]) -> None:
    server = serve(*flags, *LONG, "--drain-idle", "1", "--graceful-timeout", "3")
    (old,) = server.wait_workers(1)
    request = Request(server.port)
    websocket = RawWebSocket(server.port, "/echo")
    with Events(server.port) as events, Client(server.port) as client:
        tunnel = Tunnel(client)
        stream = client.answers[client.ask("/events")]
        cut = client.answers[client.ask("/never")]
        client.wait(lambda: stream.body, "an event")
        events.next_event()
        server.signal(signal.SIGHUP)
        wait_lingering(server, old)
        server.wait_log("finished after")
        assert states(server)[old] == "draining"

        request.wait_cut()  # graceful_timeout is over
        client.wait(lambda: cut.reset is not None, "a reset of the request")
        for _ in range(3):
            echo(websocket)
            echo(tunnel)
            events.next_event()
            seen = len(stream.body)
            client.wait(lambda seen=seen: len(stream.body) > seen, "another event")
        assert alive(old)

        mark = server.mark()
        server.signal(signal.SIGTERM)
        assert websocket.read_frame() == (CLOSE, RESTARTING)
        websocket.send(CLOSE, RESTARTING)
        assert tunnel.read_frame() == (CLOSE, RESTARTING)
        tunnel.send(CLOSE, RESTARTING)
        events.wait_end()
        client.wait(lambda: stream.ended, "the end of the stream")
        assert server.stop() == 0
        assert "killing" not in server.log()[mark:]
        assert "Traceback" not in server.log()
    websocket.socket.close()


def test_they_end_when_their_time_is_over(serve: Serve, flags: tuple[str, ...]) -> None:
    server = serve(*flags, "--drain-websockets", "2", "--drain-idle", "1")
    (old,) = server.wait_workers(1)
    websocket = RawWebSocket(server.port, "/echo")
    with Events(server.port) as events, Client(server.port) as client:
        tunnel = Tunnel(client)
        stream = client.answers[client.ask("/events")]
        quiet = client.answers[client.ask("/quiet")]
        client.wait(lambda: stream.body and quiet.body, "an event")
        events.next_event()
        server.signal(signal.SIGHUP)
        wait_lingering(server, old)
        assert websocket.read_frame() == (CLOSE, RESTARTING)
        websocket.send(CLOSE, RESTARTING)
        assert tunnel.read_frame() == (CLOSE, RESTARTING)
        tunnel.send(CLOSE, RESTARTING)
        events.wait_end()
        client.wait(lambda: stream.ended and quiet.ended, "the end of the streams")
        wait_for(lambda: not alive(old), "the end of the old worker")
    websocket.socket.close()
    server.wait_log("the stream /events has ended")
    server.wait_log("the stream /quiet was cancelled")
    assert "killing" not in server.log()
    assert "Traceback" not in server.log()


def test_a_worker_without_them_ends_at_once(serve: Serve, flags: tuple[str, ...]) -> None:
    server = serve(*flags, *LONG)
    old = server.wait_workers(1)
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    assert "drain_websockets" not in server.log()


def test_max_requests_and_scaling_down(serve: Serve) -> None:
    server = serve(APP, *LONG, "-w", "2", "--reuse-port", ready=2)
    old = set(server.wait_workers(2))
    websockets = [RawWebSocket(server.port, "/echo") for _ in range(16)]
    server.signal(signal.SIGTTOU)
    server.wait_log(r"scaled down")
    server.wait_log("keeps its WebSockets")
    assert sorted(states(server).values()) == ["draining", "ready"]
    for websocket in websockets:
        echo(websocket)
    assert set(server.worker_pids()) == old
    server.signal(signal.SIGTERM)
    for websocket in websockets:
        assert websocket.read_frame() == (CLOSE, RESTARTING)
        websocket.send(CLOSE, RESTARTING)
        websocket.socket.close()


def test_a_recycled_worker_lets_its_websockets_live(serve: Serve) -> None:
    server = serve(APP, *LONG, "--max-requests", "20", "--max-requests-jitter", "0")
    (old,) = server.wait_workers(1)
    websocket = RawWebSocket(server.port, "/echo")
    wait_for(lambda: pid_of(server) != old, "a successor that serves")
    echo(websocket)
    assert states(server)[old] == "draining"
    websocket.send(CLOSE, b"\x03\xe8")
    assert websocket.read_frame()[0] == CLOSE
    websocket.socket.close()
    wait_for(lambda: not alive(old), "the end of a worker whose last WebSocket is closed")


def test_many_reloads_leave_few_workers(serve: Serve) -> None:
    """The oldest closes its WebSockets early: as many may linger as serve."""
    server = serve(APP, *LONG)
    websockets = []
    for number in range(1, 4):
        websockets.append(RawWebSocket(server.port, "/echo"))
        (serving,) = [pid for pid, state in states(server).items() if state == "ready"]
        mark = server.mark()
        server.signal(signal.SIGHUP)
        server.wait_log("finished after", mark)
        server.wait_log(rf"pid {serving}\) keeps its WebSockets", mark)
        if number > 1:
            oldest = websockets[number - 2]
            assert oldest.read_frame() == (CLOSE, RESTARTING)
            oldest.send(CLOSE, RESTARTING)
            oldest.socket.close()
            server.wait_log("closes its WebSockets early: 2 workers linger, at most 1 may", mark)
    echo(websockets[-1])
    websockets[-1].socket.close()
    server.wait_workers(1)


def test_the_death_of_the_arbiter_ends_them(serve: Serve) -> None:
    server = serve(APP, *LONG, "--graceful-timeout", "10")
    (old,) = server.wait_workers(1)
    websocket = RawWebSocket(server.port, "/echo")
    server.signal(signal.SIGHUP)
    wait_lingering(server, old)
    server.signal(signal.SIGKILL)
    assert websocket.read_frame() == (CLOSE, RESTARTING)
    websocket.send(CLOSE, RESTARTING)
    websocket.socket.close()
    wait_for(lambda: not server.members(), "the end of every process")


def test_an_httpx_client_keeps_its_event_stream(serve: Serve) -> None:
    """Its library drops all streams at a GOAWAY, so the connection gets none."""
    server = serve(APP, *LONG, "--http2-cleartext", "prior-knowledge", "--drain-idle", "1")
    (old,) = server.wait_workers(1)
    with (
        httpx.Client(http1=False, http2=True, timeout=DEADLINE_S) as client,
        client.stream("GET", f"{server.url}/events") as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == f"data: {old}"
        server.signal(signal.SIGHUP)
        wait_lingering(server, old)
        mark = server.mark()
        server.signal(signal.SIGUSR1)
        server.wait_log("reopened", mark)
        for _ in range(600):  # at 10 ms each, past drain_idle and the limits of a drain
            assert next(lines) in ("", f"data: {old}")
        server.signal(signal.SIGTERM)
        for line in lines:
            assert line in ("", f"data: {old}")
