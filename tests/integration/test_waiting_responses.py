"""HTTP/1.1 and WebSocket clients that read nothing, while the app sends big pieces."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from integration.conftest import Serve
from integration.server import APPS, DEADLINE_S, memory, wait_for

pytestmark = pytest.mark.slow

APP = f"{APPS / 'pieces_app.py'}:app"
MB = 1 << 20
HTTP1 = b"GET /?mb=%d HTTP/1.1\r\nHost: h\r\n\r\n"
WEBSOCKET = (
    b"GET /?mb=%d HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def ask(port: int, request: bytes) -> socket.socket:
    """A client that reads nothing, and whose kernel takes little."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.settimeout(DEADLINE_S)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


def still(pid: int) -> Callable[[], bool]:
    sizes: list[int] = []

    def looks_still() -> bool:
        sizes.append(memory(pid))
        return len(sizes) > 20 and max(sizes[-20:]) - min(sizes[-20:]) < MB

    return looks_still


@pytest.mark.parametrize("extra", [b"", b"Sec-WebSocket-Extensions: permessage-deflate\r\n"])
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_websocket_app_waits_for_its_client(serve: Serve, loop: str, extra: bytes) -> None:
    """It would send 8 MB after 8 MB."""
    server = serve(APP, "--loop", loop, "--websocket-ping-interval", "0")
    [pid] = server.worker_pids()
    request = WEBSOCKET % 8
    with ask(server.port, request.replace(b"Host:", extra + b"Host:")) as client:
        at_rest = memory(pid)
        client.settimeout(0.2)
        wait_for(still(pid), "memory that stays")
        assert memory(pid) - at_rest < 60 * MB


@pytest.mark.parametrize("request_head", [HTTP1, WEBSOCKET], ids=["HTTP/1.1", "WebSocket"])
def test_clients_that_take_nothing_are_cut_when_memory_is_short(
    serve: Serve, request_head: bytes
) -> None:
    server = serve(APP)
    [pid] = server.worker_pids()
    at_rest = memory(pid)
    with ExitStack() as stack:
        for _ in range(24):
            stack.enter_context(ask(server.port, request_head % 12))
        server.wait_log("MB of responses wait for clients: cut 127.0.0.1")
        # One that comes now is served.
        with ask(server.port, b"GET / HTTP/1.0\r\n\r\n") as other:
            assert other.recv(100).startswith(b"HTTP/1.1 200")
        wait_for(lambda: memory(pid) - at_rest < 400 * MB, "less memory")
    assert server.worker_pids() == [pid]
    assert "Traceback" not in server.log()
