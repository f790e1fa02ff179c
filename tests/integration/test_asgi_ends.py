"""The ends of requests and WebSockets, as ASGI applications get them."""

from __future__ import annotations

import re
import socket
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from h2frames import POST, data, reset

from integration import raw
from integration.h2_client import Client
from integration.server import Server, wait_for
from integration.websocket import TEXT, frame, handshake

if TYPE_CHECKING:
    from integration.conftest import Serve

pytestmark = pytest.mark.slow

APP = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await HANDLERS[scope["path"]](scope, receive, send)

def told(scope, *messages):
    print(scope["path"], *(f"{m['type']} {m.get('code', '')}" for m in messages), flush=True)

async def answer(send):
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})

async def unread(scope, receive, send):
    await answer(send)
    told(scope, await receive(), await receive())

async def read(scope, receive, send):
    while (await receive())["more_body"]:
        pass
    await answer(send)
    told(scope, await receive(), await receive())

async def waits(scope, receive, send):
    while (await receive())["more_body"]:
        pass
    waiting = [asyncio.create_task(receive())]
    await asyncio.sleep(0)
    await answer(send)
    told(scope, *[await each for each in waiting])

async def first(scope, receive):
    message = await receive()
    print("begun", flush=True)
    return message

async def silent(scope, receive, send):
    messages = [await first(scope, receive), await receive()]
    if scope["path"] == "/again":
        messages += [await receive(), await receive()]
    told(scope, *messages)

async def raises(scope, receive, send):
    told(scope, await first(scope, receive), await receive())
    raise RuntimeError("gone")

async def late(scope, receive, send):
    told(scope, await first(scope, receive), await receive())
    try:
        await send({"type": "websocket.accept"})
    except OSError as error:
        print("/late", type(error).__name__, flush=True)

async def denies(scope, receive, send):
    await receive()
    await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
    await send({"type": "websocket.http.response.body", "body": b"no", "more_body": True})
    told(scope, await receive())

async def begins_to_deny(scope, receive, send):
    await receive()
    await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
    told(scope, await receive())

async def stays(scope, receive, send):
    told(scope, await first(scope, receive), await receive())
    await asyncio.sleep(3600)

HANDLERS = {
    "/unread": unread, "/read": read, "/waits": waits, "/silent": silent, "/again": silent,
    "/raises": raises, "/late": late, "/denies": denies, "/begins": begins_to_deny,
    "/stays": stays,
}
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request: pytest.FixtureRequest, serve: Serve, tmp_path: Path) -> Server:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    # Short: a stop waits for nothing here but for the application that never ends.
    options = ("--graceful-timeout", "1", "--access-logfile", "-", "--http2-cleartext", "both")
    return serve("app:app", "-k", "async", "-w", "1", "--loop", request.param, *options)


# --- receive() after the response ---------------------------------------------------------------

AFTER = {
    "/unread": "http.disconnect  http.disconnect",
    "/read": "http.disconnect  http.disconnect",
    "/waits": "http.disconnect",
}
BODIES = (b"", b"some", b"x" * 300_000)


def test_receive_after_the_response(server: Server) -> None:
    for path, told in AFTER.items():
        for body in BODIES:
            mark = server.mark()
            with raw.connect(server) as client:
                method = "POST" if body else "GET"
                client.sendall(raw.request(path, method=method, body=body, close=False))
                server.wait_log(f"^{path} {told} *$", mark)
                assert raw.status(client.recv(4096)) == 200
    mark = server.mark()
    with raw.connect(server) as client:
        client.sendall(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab")
        server.wait_log(f"^/unread {AFTER['/unread']} *$", mark)


def test_receive_when_the_client_is_gone(server: Server) -> None:
    with raw.connect(server) as client:
        client.sendall(b"POST /again HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde")
        server.wait_log("^begun$")
    server.wait_log("^/again http.request  http.disconnect  http.disconnect  http.disconnect *$")


def test_receive_after_the_response_over_http_2(server: Server) -> None:
    with Client(server.port) as client:
        for path, told in AFTER.items():
            for body in BODIES[:2]:
                mark = server.mark()
                number = client.ask_with([*POST[:3], (":path", path)], end=not body)
                if body:
                    client.send(data(number, body, end=True))
                assert client.answer(number).status == 200
                server.wait_log(f"^{path} {told} *$", mark)


# --- a WebSocket whose client leaves before it is accepted --------------------------------------

GONE = "websocket.connect  websocket.disconnect 1006"
PATHS = ("/silent", "/raises", "/late", "/stays")


def close_waits(server: Server) -> int:
    """Sockets of the server's port whose client has closed, and the server has not."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    port = f":{server.port:04X}"
    return sum(line.split()[1].endswith(port) and line.split()[3] == "08" for line in lines)


def wait_closed(client: socket.socket) -> bytes:
    """Until the server closes; what it has sent."""
    try:
        return raw.read_all(client)
    except ConnectionResetError:
        return b""


def test_websocket_clients_that_half_close(server: Server) -> None:
    for path in PATHS:
        for more in (b"", frame(TEXT, b"early")):
            mark = server.mark()
            with raw.connect(server) as client:
                client.sendall(handshake(path) + more)
                client.shutdown(socket.SHUT_WR)
                server.wait_log(f"^{path} {GONE} *$", mark)
                assert wait_closed(client) == b""
            server.wait_log(f'"GET {path} HTTP/1.1" 499', mark)
    wait_for(lambda: not close_waits(server), "closed sockets")
    server.wait_log("^/late ClientDisconnected")
    assert "Invalid use" not in server.log()


def test_websocket_clients_that_reset(server: Server) -> None:
    for path in PATHS:
        client = raw.connect(server)
        client.sendall(handshake(path))
        raw.reset(client)
        server.wait_log(f"^{path} {GONE} *$")


def test_websocket_clients_that_are_told_no_and_leave(server: Server) -> None:
    for path, answer in (("/denies", b"HTTP/1.1 403"), ("/begins", b"")):
        with raw.connect(server) as client:
            client.sendall(handshake(path))
            client.shutdown(socket.SHUT_WR)
            server.wait_log(f"^{path} websocket.disconnect 1006 *$")
            assert wait_closed(client)[:12] == answer
    wait_for(lambda: not close_waits(server), "closed sockets")


def test_a_websocket_client_that_floods_before_it_leaves(server: Server) -> None:
    with raw.connect(server) as client:
        client.sendall(handshake("/silent") + frame(TEXT, b"x" * 100) * 1000)
        server.wait_log(f"^/silent {GONE} *$")
        assert raw.status(wait_closed(client)) == 400


def test_many_websocket_clients_that_leave(server: Server) -> None:
    clients = [raw.connect(server) for _ in range(20)]
    for client in clients:
        client.sendall(handshake("/silent"))
        client.close()
    wait_for(lambda: len(re.findall(GONE, server.log())) == 20, "20 disconnects")
    wait_for(lambda: not close_waits(server), "closed sockets")


@pytest.mark.parametrize("how", ["end_stream", "reset", "head_alone", "connection"])
def test_websocket_streams_that_end(server: Server, how: str) -> None:
    for path in PATHS:
        mark = server.mark()
        with Client(server.port) as client:
            client.wait(lambda client=client: client.settings, "settings")
            fields = [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":authority", "localhost"),
                (":path", path),
                ("sec-websocket-version", "13"),
            ]
            number = client.ask_with(fields, end=how == "head_alone")
            # Taken back in the same breath, no application would hear of it.
            server.wait_log("^begun$", mark)
            if how == "end_stream":
                client.send(data(number, b"", end=True))
            elif how == "reset":
                client.send(reset(number))
            elif how == "connection":
                client.socket.shutdown(socket.SHUT_WR)
            server.wait_log(f"^{path} {GONE} *$", mark)
            if how in ("end_stream", "head_alone"):
                assert client.answer(number).reset is not None
