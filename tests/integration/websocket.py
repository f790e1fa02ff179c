"""WebSocket clients for tests: one sends given frames, and answers nothing by itself; many others
stay connected until the end of their worker.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
TIMEOUT_S = 30.0


def handshake(path: str = "/echo", *more: str) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
        *more,
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def frame(opcode: int, data: bytes = b"", fin: bool = True) -> bytes:
    """A client's frame; its mask is zero, which is a mask like any other."""
    head = bytes([(0x80 if fin else 0) | opcode])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 65536:
        head += struct.pack("!BH", 0xFE, len(data))
    else:
        head += struct.pack("!BQ", 0xFF, len(data))
    return head + b"\0\0\0\0" + data


class RawWebSocket:
    """`answer` is the head of the response to the handshake, with what follows if it is no 101."""

    def __init__(self, port: int, path: str = "/echo", *more: str, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(("127.0.0.1", port))
        self.buffer = b""
        self.socket.sendall(handshake(path, *more))
        self.answer = self.read_head()

    def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.receive()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    def receive(self) -> bytes:
        data = self.socket.recv(1 << 18)
        if not data:
            raise EOFError
        return data

    def send(self, opcode: int, data: bytes = b"", fin: bool = True) -> None:
        self.socket.sendall(frame(opcode, data, fin))

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self.buffer += self.receive()
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def read_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame. Raises EOFError."""
        first, length = self.read(2)
        assert first & 0x70 == 0, "no extension was asked for"
        assert first & 0x80, "the server sends whole messages"
        if length == 126:
            (length,) = struct.unpack("!H", self.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.read(8))
        return first & 15, self.read(length)

    def read_close(self) -> tuple[int, str]:
        """The code of the next frame, which is to be a close frame, and its reason."""
        opcode, data = self.read_frame()
        assert opcode == CLOSE, (opcode, data[:100])
        return (struct.unpack("!H", data[:2])[0] if data else 0), data[2:].decode()

    def ended(self) -> bool:
        """Whether the server has closed the connection; waits for more or that."""
        try:
            self.buffer += self.receive()
        except (EOFError, ConnectionResetError):
            return True
        return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawWebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


async def keep_through(port: int, connections: int, end: Callable[[], None]) -> list[int]:
    """So many connections, to the app of `websocket_app.py`; `end` is called when all of them have
    just sent their messages. The pids of the workers that they were connected to again.
    """
    opened = [asyncio.Event() for _ in range(connections)]
    go = asyncio.Event()
    tasks = [
        asyncio.create_task(_kept(port, number, event, go)) for number, event in enumerate(opened)
    ]
    # Whatever fails first is raised at once, not after a wait for what can't come any more.
    ready = asyncio.gather(*(event.wait() for event in opened))
    await asyncio.wait([ready, *tasks], return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        ready.cancel()
        await asyncio.gather(*tasks)
    go.set()
    for _ in range(10):
        await asyncio.sleep(0)
    end()
    return await asyncio.wait_for(asyncio.gather(*tasks), 120)


async def _kept(port: int, number: int, opened: asyncio.Event, go: asyncio.Event) -> int:
    """Open a connection, and when told send five messages; the pid behind the one after it.

    All five are answered before the server says 1012, and the next connection is there at once.
    """
    url = f"ws://127.0.0.1:{port}"
    async with connect(f"{url}/echo", open_timeout=60, ping_interval=None) as client:
        await client.send("hello")
        assert await client.recv() == "hello"
        opened.set()
        await go.wait()
        for n in range(5):
            await client.send(f"{number}:{n}")
        for n in range(5):
            assert await client.recv() == f"{number}:{n}"
        try:
            raise AssertionError(await client.recv())
        except ConnectionClosed:
            assert client.close_code == 1012
    async with connect(f"{url}/describe", open_timeout=60, ping_interval=None) as client:
        return int(json.loads(await client.recv())["pid"])
