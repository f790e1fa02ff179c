"""Sends raw bytes to a server and reads the response, for requests that no client library sends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from integration.server import DEADLINE_S, Server


def connect(server: Server, receive_buffer: int = 0) -> socket.socket:
    """A connection; receive_buffer: bytes that the kernel takes in while nobody reads."""
    client = socket.socket()
    client.settimeout(DEADLINE_S)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", server.port))
    return client


def read_all(client: socket.socket) -> bytes:
    """Until the server closes. A reset raises ConnectionResetError."""
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def talk(server: Server, data: bytes, end: bool = False) -> bytes:
    """Send these bytes (and half-close with `end`); all that comes back until the server closes."""
    with connect(server) as client:
        client.sendall(data)
        if end:
            client.shutdown(socket.SHUT_WR)
        return read_all(client)


def status(response: bytes) -> int:
    assert response.startswith(b"HTTP/1.1 "), response[:200]
    return int(response[9:12])


def request(
    target: str = "/", *fields: str, method: str = "GET", body: bytes = b"", close: bool = True
) -> bytes:
    """A request for `target`, with a Content-Length where there is a body."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body


@contextlib.contextmanager
def many(server: Server, count: int, receive_buffer: int = 0) -> Iterator[list[socket.socket]]:
    """So many open connections."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect(server, receive_buffer)) for _ in range(count)]


def reset(client: socket.socket) -> None:
    """Close by RST instead of FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
