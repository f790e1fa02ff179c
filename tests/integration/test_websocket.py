"""WebSockets over the network: the `websockets` client and raw frames."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from authority import Authority
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from integration.server import APPS, REPOSITORY, Server, wait_for
from integration.websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    RawWebSocket,
    frame,
    handshake,
    keep_through,
)

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
APP = f"{APPS / 'websocket_app.py'}:app"
MB = 1 << 20


@pytest.fixture
def server(serve: Serve) -> Server:
    return serve(APP, "-w", "1")


def url(server: Server, path: str) -> str:
    return f"ws://127.0.0.1:{server.port}{path}"


def counts(server: Server) -> dict[str, int]:
    return dict(requests.get(f"{server.url}/counts", timeout=30).json())


def memory_mb(pid: int) -> float:
    """Resident memory of a process, without what it shares."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"^Private_\w+:\s+(\d+)", text, re.MULTILINE)) / 1024


# --- ordinary use ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--loop", "asyncio"), ("--http-parser", "h11")])
def test_the_websockets_client(serve: Serve, options: tuple[str, ...]) -> None:
    server = serve(APP, "-w", "1", *options)
    with connect(url(server, "/echo"), max_size=None, subprotocols=["a", "b"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "b"
        for message in ("grüße", b"\x00\xff", "", "x" * 70_000, b"y" * (4 * MB), "z" * MB):
            client.send(message)
            assert client.recv(30) == message
        client.send(["in ", "three ", "parts"])
        assert client.recv(30) == "in three parts"
        assert client.ping().wait(30)
        client.close(4321, "bye")
        assert (client.close_code, client.close_reason) == (4321, "bye")
    server.wait_log("disconnect 4321 'bye'")
    assert "Traceback" not in server.log()


def test_many_at_once(server: Server) -> None:
    async def one(number: int) -> None:
        async with connect_async(url(server, "/echo?s=0.001")) as client:
            for n in range(20):
                await client.send(f"{number}:{n}")
            for n in range(20):
                assert await client.recv() == f"{number}:{n}"

    async def main() -> None:
        await asyncio.gather(*map(one, range(50)))

    asyncio.run(asyncio.wait_for(main(), 60))
    assert counts(server)["received"] == 1000


def test_starlette(serve: Serve) -> None:
    server = serve(f"{APPS / 'websocket_starlette.py'}:app", "-w", "1")
    with connect(url(server, "/shout")) as client:
        client.send("hello")
        assert client.recv(30) == "HELLO"
        client.close(1001)
    server.wait_log("endpoint: 1001")
    with connect(url(server, "/add"), subprotocols=["sum"]) as client:  # type: ignore[list-item]
        assert client.response is not None
        assert client.response.headers["x-adds"] == "yes"
        client.send("[1, 2, 39]")
        assert json.loads(client.recv(30)) == 42
        client.close(4000, "enough")
    server.wait_log("function: 4000 enough")
    with pytest.raises(InvalidStatus) as caught:
        connect(url(server, "/guarded"))
    assert caught.value.response.status_code == 401
    assert b"who are you?" in (caught.value.response.body or b"")
    with pytest.raises(InvalidStatus) as caught:
        connect(url(server, "/nowhere"))
    assert caught.value.response.status_code == 403


def test_what_is_said_of_a_connection(serve: Serve) -> None:
    server = serve(APP, "-w", "1", "--access-logfile", "-")
    forwarded = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "203.0.113.9",
        # Not believed, as a client chooses them behind most proxies.
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "host=evil.example",
    }
    with connect(url(server, "/describe?x"), additional_headers=forwarded) as client:
        told = json.loads(client.recv(30))
        # In the log as soon as it is open: it may be so for days.
        server.wait_log(r'^203\.0\.113\.9 .*"GET /describe\?x HTTP/1\.1" 101 ')
    assert told["type"] == "websocket"
    assert told["scheme"] == "wss"
    assert told["client"] == ["203.0.113.9", 0]
    assert (told["host"], told["root_path"]) == (f"127.0.0.1:{server.port}", "")
    assert told["http_version"] == "1.1"
    with connect(url(server, "/describe")) as client:
        told = json.loads(client.recv(30))
    assert told["scheme"] == "ws"
    assert told["client"][0] == "127.0.0.1"


def test_frames_that_come_with_the_handshake(server: Server) -> None:
    data = handshake() + frame(TEXT, b"early") + frame(BINARY, b"bird")
    for cut in (0, 10, len(handshake()) - 1, len(handshake()), len(handshake()) + 3, len(data) - 1):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(data[:cut])
            client.sendall(data[cut:])
            answer = b""
            while not answer.endswith(b"\x81\x05early\x82\x04bird"):
                piece = client.recv(65536)
                assert piece, answer
                answer += piece
            assert answer.startswith(b"HTTP/1.1 101 ")


# --- the handshake --------------------------------------------------------------------------------


def test_denials(server: Server) -> None:
    def status(path: str) -> tuple[int, Any]:
        with pytest.raises(InvalidStatus) as caught:
            connect(url(server, path))
        return caught.value.response.status_code, caught.value.response

    assert status("/refuse")[0] == 403
    assert status("/fail")[0] == 500
    server.wait_log("RuntimeError: the app failed on purpose")
    code, response = status("/deny")
    assert code == 429
    assert response.headers["x-reason"] == "tired"
    assert response.body == b"not now"


def test_handshakes_that_are_refused(server: Server) -> None:
    def answer(old: str, new: str) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(handshake().replace(old.encode(), new.encode()))
            return b"".join(iter(lambda: client.recv(65536), b""))

    version = answer("Version: 13", "Version: 7")
    assert version.startswith(b"HTTP/1.1 426 ")
    assert b"Sec-WebSocket-Version: 13\r\n" in version
    assert answer("Version: 13", "Version:").startswith(b"HTTP/1.1 400 ")
    assert answer("Key: d", "Key: ").startswith(b"HTTP/1.1 400 ")
    assert answer("Host: localhost\r\n", "").startswith(b"HTTP/1.1 400 ")
    # What asks for no WebSocket is an ordinary request.
    closing = "Connection: close"
    assert answer("Connection: Upgrade", closing).endswith(b"plain HTTP")
    assert answer("Connection: Upgrade", closing).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "args",
    [
        pytest.param((f"{APPS / 'wsgi_app.py'}:app", "-k", "async"), id="WSGI"),
        pytest.param((f"{APPS / 'wsgi_app.py'}:app", "-k", "sync"), id="sync"),
        pytest.param((APP, "--no-websocket"), id="turned off"),
    ],
)
def test_where_there_are_no_websockets_an_upgrade_is_ignored(
    serve: Serve, args: tuple[str, ...]
) -> None:
    server = serve(*args, "-w", "1")
    with pytest.raises(InvalidStatus) as caught:
        connect(url(server, "/"))
    assert caught.value.response.status_code == 200


def test_an_open_one_is_no_request_in_flight(serve: Serve) -> None:
    """Not for limit_concurrency, nor for request_timeout; its handshake is."""
    server = serve(APP, "-w", "1", "--limit-concurrency", "1", "--request-timeout", "1")
    with connect(url(server, "/echo")) as client:
        assert requests.get(f"{server.url}/", timeout=30).status_code == 200
        with pytest.raises(InvalidStatus) as caught:
            connect(url(server, "/never"))
        assert caught.value.response.status_code == 504
        # That took longer than request_timeout, and this one is still open.
        client.send("still here")
        assert client.recv(30) == "still here"


# --- failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(frame(TEXT, b"\xff"), 1007, id="bad UTF-8"),
        pytest.param(frame(TEXT, b"a", fin=False) + frame(0, b"\xc0"), 1007, id="in a fragment"),
        pytest.param(b"\x83\x80\0\0\0\0", 1002, id="unknown opcode"),
        pytest.param(b"\x81\x02hi", 1002, id="no mask"),
        pytest.param(frame(BINARY, bytes(MB + 1)), 1009, id="too big"),
        pytest.param(frame(BINARY, bytes(MB), fin=False) + frame(0, b"."), 1009, id="in fragments"),
    ],
)
def test_a_client_that_breaks_the_rules(serve: Serve, data: bytes, code: int) -> None:
    server = serve(APP, "-w", "1", "--websocket-max-message-size", "1M")
    with RawWebSocket(server.port) as client:
        # It hears why, even while it is sending more.
        sender = threading.Thread(target=send_quietly, args=(client.socket, data + bytes(4 * MB)))
        sender.start()
        assert client.read_close()[0] == code
        assert client.ended()
        sender.join(30)
    server.wait_log(f"disconnect {code} ")
    assert "Traceback" not in server.log()


def send_quietly(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError as error:
        print(f"the server has closed: {error}")


def test_applications_that_end(server: Server) -> None:
    with connect(url(server, "/close?code=4444&reason=why")) as client:
        with pytest.raises(ConnectionClosed):
            client.recv(30)
        assert (client.close_code, client.close_reason) == (4444, "why")
    with connect(url(server, "/leave")) as client:
        assert client.recv(30) == "that was all"
        with pytest.raises(ConnectionClosed):
            client.recv(30)
        assert client.close_code == 1000
    with connect(url(server, "/fail?late=1")) as client:
        with pytest.raises(ConnectionClosed):
            client.recv(30)
        assert client.close_code == 1011
    server.wait_log("RuntimeError: the app failed on purpose")


def test_clients_that_are_gone(server: Server) -> None:
    client = RawWebSocket(server.port)
    client.close()
    server.wait_log("disconnect 1006 ''")
    with RawWebSocket(server.port) as client:
        client.send(CLOSE)
        assert client.read_frame() == (CLOSE, b"")
        assert client.ended()
    server.wait_log("disconnect 1005 ''")


def test_pings(serve: Serve) -> None:
    options = ("--websocket-ping-interval", "0.1", "--websocket-ping-timeout", "0.1")
    server = serve(APP, "-w", "1", *options)
    with RawWebSocket(server.port) as silent, RawWebSocket(server.port) as lively:
        assert silent.read_frame() == (PING, b"")
        for _ in range(3):
            opcode, data = lively.read_frame()
            assert opcode == PING
            lively.send(PONG, data)
        code, reason = silent.read_close()
        assert (code, reason) == (1011, "keepalive ping timeout")
        assert silent.ended()
        server.wait_log("disconnect 1011 'keepalive ping timeout'")
        lively.send(TEXT, b"here")
        while (answer := lively.read_frame())[0] == PING:
            lively.send(PONG, answer[1])
        assert answer == (TEXT, b"here")


def test_no_pings(serve: Serve) -> None:
    server = serve(APP, "-w", "1", "--websocket-ping-interval", "0")
    with RawWebSocket(server.port) as client, RawWebSocket(server.port, "/echo?s=2.5") as slow:
        slow.send(TEXT, b"after two sweeps")
        assert slow.read_frame() == (TEXT, b"after two sweeps")
        client.send(PING, b"mine")
        assert client.read_frame() == (PONG, b"mine")


# --- compression ----------------------------------------------------------------------------------


def test_compression(serve: Serve) -> None:
    server = serve(APP, "-w", "1")
    text = "the same words again and again, " * 10_000
    with connect(url(server, "/echo")) as client:
        assert client.response is not None
        agreed = client.response.headers["Sec-WebSocket-Extensions"]
        assert agreed.startswith("permessage-deflate; server_max_window_bits=12")
        for message in (text, b"\x00" * 100_000, "short"):
            client.send(message)
            assert client.recv(30) == message
        client.send([text[:100], text[100:]])
        assert client.recv(30) == text
    with connect(url(server, "/echo"), compression=None) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers
        client.send(text)
        assert client.recv(30) == text


def test_compression_turned_off(serve: Serve) -> None:
    server = serve(APP, "-w", "1", "--no-websocket-per-message-deflate")
    with connect(url(server, "/echo")) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


# --- TLS ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_over_tls(serve: Serve, tmp_path: Path, loop: str) -> None:
    files = Authority(tmp_path).issue("server")
    context = ssl.create_default_context(cafile=str(tmp_path / "Test-ca.pem"))
    options = ("--loop", loop, "--websocket-max-message-size", "2M")
    server = serve(APP, "-w", "1", *files.flags, *options)
    secure = f"wss://127.0.0.1:{server.port}"
    with connect(f"{secure}/describe", ssl=context) as client:
        assert json.loads(client.recv(30))["scheme"] == "wss"
    with connect(f"{secure}/echo", ssl=context, max_size=None) as client:
        for message in ("hello", b"y" * MB, "z" * MB):
            client.send(message)
            assert client.recv(30) == message
        client.send(bytes(3 * MB))
        with pytest.raises(ConnectionClosed):
            client.recv(30)
        assert client.close_code == 1009
    with connect(f"{secure}/echo", ssl=context) as client:
        client.send("before the end")
        assert client.recv(30) == "before the end"
        server.signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed):
            client.recv(30)
        assert client.close_code == 1012
    assert server.wait_exit() == 0
    assert "Traceback" not in server.log()
    assert "eof_received" not in server.log()


# --- back-pressure --------------------------------------------------------------------------------


def steady(measure: Callable[[], int]) -> int:
    """What `measure` comes to when it has not changed for a while."""
    seen = [measure()]

    def settled() -> bool:
        seen.append(measure())
        return len(seen) > 10 and len(set(seen[-10:])) == 1

    wait_for(settled, "an end of the growth", every_s=0.05)
    return seen[-1]


def test_a_client_that_does_not_read_stops_the_application(server: Server) -> None:
    pid = server.worker_pids()[0]
    before = memory_mb(pid)
    with RawWebSocket(server.port, "/push?size=65536", receive_buffer=65536) as client:
        sent = steady(lambda: counts(server)["sent"])
        assert 0 < sent < 200  # what the kernel and 64 KiB of ours hold, not a million
        assert memory_mb(pid) - before < 20
        for _ in range(sent + 200):
            assert client.read_frame() == (BINARY, b"." * 65536)
        assert counts(server)["sent"] >= sent + 200
    server.wait_log("push has ended")


def test_a_client_that_never_reads_is_cut(serve: Serve) -> None:
    server = serve(APP, "-w", "1", "--send-timeout", "1")
    with RawWebSocket(server.port, "/push?size=65536", receive_buffer=65536):
        server.wait_log("push has ended")


def test_an_application_that_does_not_receive_stops_the_client(server: Server) -> None:
    pid = server.worker_pids()[0]
    before = memory_mb(pid)
    with RawWebSocket(server.port, "/wait") as client:
        client.socket.setblocking(False)
        sent = 0
        data = frame(BINARY, bytes(4096)) * 16

        def push() -> int:
            nonlocal sent
            try:
                while True:
                    # A part of a frame may go; the rest of it is what is sent next.
                    sent += client.socket.send(data[sent % len(data) :])
            except BlockingIOError:
                return sent

        assert steady(push) < 32 * MB
        assert memory_mb(pid) - before < 20
        client.socket.settimeout(30)
        requests.get(f"{server.url}/go-on", timeout=30)
        client.socket.sendall(data[sent % len(data) :])
        frames = -(-sent // len(data)) * 16
        client.send(TEXT, b"how much?")
        assert client.read_frame() == (TEXT, str(frames * 4096 + len("how much?")).encode())


@pytest.mark.parametrize("message", [frame(TEXT, b""), frame(PING, b"x" * 125)])
def test_floods_of_small_frames(server: Server, message: bytes) -> None:
    """Messages that nobody takes, and pings whose answers nobody reads: both end in a full pipe."""
    pid = server.worker_pids()[0]
    before = memory_mb(pid)
    with RawWebSocket(server.port, "/wait", receive_buffer=4096) as client:
        client.socket.setblocking(False)
        data = message * 1000
        sent = 0

        def push() -> int:
            nonlocal sent
            try:
                while True:
                    sent += client.socket.send(data[sent % len(data) :])
            except BlockingIOError:
                return sent

        assert steady(push) < 64 * MB
        assert memory_mb(pid) - before < 30
        assert requests.get(f"{server.url}/go-on", timeout=30).text == "plain HTTP"


# --- the end of a worker --------------------------------------------------------------------------


def test_a_rolling_reload(serve: Serve) -> None:
    server = serve(APP, "-w", "2", ready=2)
    old = server.worker_pids()
    pids = asyncio.run(keep_through(server.port, 100, lambda: server.signal(signal.SIGHUP)))
    new = server.wait_replaced(old)
    # Those that came back while the second worker was being replaced may have met it still.
    assert set(pids) <= {*new, *old}
    assert set(pids) & {*new}
    assert "Traceback" not in server.log()
    assert "killing" not in server.log()


def test_what_a_busy_application_has_begun_is_answered_before_the_end(server: Server) -> None:
    with connect(url(server, "/echo?s=0.5")) as client:
        client.send("one")
        wait_for(lambda: counts(server)["received"], "the message in the app")
        client.send("two")
        server.signal(signal.SIGTERM)
        assert client.recv(30) == "one"
        rest = []
        with contextlib.suppress(ConnectionClosed):
            rest += client
        assert rest in ([], ["two"])
        assert client.close_code == 1012
    assert server.wait_exit() == 0
    # By its next `receive`, or by its answer to "two", if the client's end came before that.
    server.wait_log("disconnect 1012 ''|echo has ended")


def test_an_application_that_only_sends_is_ended_too(server: Server) -> None:
    with RawWebSocket(server.port, "/push?size=1000") as client:
        assert client.read_frame() == (BINARY, b"." * 1000)
        server.signal(signal.SIGTERM)
        while (last := client.read_frame())[0] == BINARY:
            pass
        assert last == (CLOSE, (1012).to_bytes(2, "big"))
        client.send(*last)
        assert client.ended()
    assert server.wait_exit() == 0
    assert "push has ended" in server.log()


def test_a_client_that_does_not_answer_the_close_is_not_waited_for_long(serve: Serve) -> None:
    server = serve(APP, "-w", "1", "--graceful-timeout", "3")
    with RawWebSocket(server.port) as client:
        client.send(TEXT, b"hi")
        assert client.read_frame() == (TEXT, b"hi")
        server.signal(signal.SIGTERM)
        assert client.read_close()[0] == 1012
        assert server.wait_exit() == 0


def test_messages_that_cross_the_close_still_reach_the_application(server: Server) -> None:
    # Not an echo: once both frames have come its send would raise, and it would end with that.
    with RawWebSocket(server.port, "/describe") as client:
        assert client.read_frame()[0] == TEXT
        server.signal(signal.SIGTERM)
        assert client.read_close()[0] == 1012
        client.send(TEXT, b"crossing")
        client.send(CLOSE, (1012).to_bytes(2, "big"))
        assert client.ended()
    assert server.wait_exit() == 0
    received = re.search(r"^disconnect 1012 '' after (\d+)$", server.log(), re.MULTILINE)
    assert received is not None
    assert received[1] == "1"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_stop_says_so(server: Server, signum: int) -> None:
    with RawWebSocket(server.port) as client:
        server.signal(signum)
        assert client.read_close()[0] == 1012
        assert client.ended()
    assert server.wait_exit() == 0


HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "websockets":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Hidden())
"""


@pytest.mark.parametrize("routes", [True, False])
def test_without_the_library_it_is_said_once(serve: Serve, tmp_path: Path, routes: bool) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDDEN)
    app = APPS / ("websocket_starlette.py" if routes else "asgi_app.py")
    env: dict[str, str | None] = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    server = serve(f"{app}:app", "-w", "2", env=env, ready=2)
    install = r"package websockets is not installed.*pip install 'servo-server\[websocket\]'"
    if routes:
        server.wait_log(f"has WebSocket routes.*{install}")
    with pytest.raises(InvalidStatus):
        connect(url(server, "/echo"))
    server.wait_log(install)
    assert server.log().count("pip install") == 1
