"""The `async` worker's steps around the TLS of the event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.workers.fakes import Clock, Loop

from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.proxy_protocol import ProxyHeader, ProxyProtocolReader
from servo.workers.aio.tls import ends, loop_options, read_proxy_header, send_blocks

HEADER = b"PROXY TCP4 198.51.100.7 203.0.113.1 4000 443\r\n"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_options_of_the_loop(loop: Loop) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    options = loop_options(context, loop, 7.0)
    assert options["ssl"] is context
    assert options["ssl_handshake_timeout"] == 7.0
    # The loop would take 0 for an error; and its own limit for a close would cut slow readers.
    assert loop_options(context, loop, 0)["ssl_handshake_timeout"] >= 3600
    if sys.version_info >= (3, 11):
        assert options["ssl_shutdown_timeout"] >= 3600


def test_the_ends_of_a_unix_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    assert ends(pair[0], "", None, None) == (("", None), None)


def test_the_ends_of_a_tcp_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        peer: Any = ("192.0.2.1", 5, 0, 0)
        assert ends(listener, peer, None, None) == (address, ("192.0.2.1", 5))
        known = ("192.0.2.9", 80, 0, 0)
        assert ends(listener, peer, known, None) == (known[:2], ("192.0.2.1", 5))


def test_the_ends_that_a_proxy_tells_of(pair: tuple[socket.socket, socket.socket]) -> None:
    source, destination = ("198.51.100.7", 4000), ("203.0.113.1", 443)
    assert ends(pair[0], "", None, ProxyHeader(source, destination)) == (destination, source)
    assert ends(pair[0], "", None, ProxyHeader(None, None)) == (("", None), None)


def read(loop: Loop, sock: socket.socket, limit_s: float = 0.0) -> asyncio.Task[ProxyHeader]:
    return loop.create_task(read_proxy_header(loop, sock, ProxyProtocolReader("v1"), limit_s))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_no_byte_behind_the_header_is_read(
    loop: Loop, pair: tuple[socket.socket, socket.socket], size: int
) -> None:
    ours, theirs = pair
    task = read(loop, ours)
    sent = HEADER + b"\x16\x03\x01hello"
    for at in range(0, len(sent), size):
        theirs.send(sent[at : at + size])
        loop.turn(4)
    assert task.result().source == ("198.51.100.7", 4000)
    assert ours.recv(100) == b"\x16\x03\x01hello"


def test_a_header_that_is_none(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    task = read(loop, ours)
    theirs.send(b"\x16\x03\x01" + b"x" * 200)
    loop.turn(4)
    assert isinstance(task.exception(), ProtocolError)


def test_a_client_that_closes_before_its_header(
    loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    task = read(loop, ours)
    theirs.send(HEADER[:5])
    loop.turn(4)
    assert not task.done()
    theirs.close()
    loop.turn(4)
    assert isinstance(task.exception(), ConnectionResetError)


def test_a_header_that_does_not_come_in_time(
    loop: Loop, clock: Clock, pair: tuple[socket.socket, socket.socket]
) -> None:
    task = read(loop, pair[0], 10.0)
    loop.turn(2)
    clock.advance(9)
    loop.turn(3)
    assert not task.done()
    clock.advance(2)
    loop.turn(8)
    assert isinstance(task.exception(), asyncio.TimeoutError)


class Blocks:
    """Takes blocks, and says "drained" when it is told to."""

    def __init__(self, loop: Loop) -> None:
        self.taken: list[bytes] = []
        self.loop = loop
        self.waiter: asyncio.Future[None] | None = None

    async def drained(self) -> None:
        self.waiter = self.loop.create_future()
        await self.waiter


def send(loop: Loop, path: Path, offset: int, count: int) -> tuple[Blocks, asyncio.Task[None], int]:
    blocks = Blocks(loop)
    fd = os.open(path, os.O_RDONLY)
    work: Callable[[], Any] = blocks.drained
    task = loop.create_task(send_blocks(loop, fd, offset, count, blocks.taken.append, work))
    return blocks, task, fd


def test_a_file_goes_out_in_blocks_each_after_the_one_before(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 3000)
    blocks, task, fd = send(loop, path, 100, 600_000)
    for number in range(1, 4):
        loop.turn(4)
        assert len(blocks.taken) == number
        assert blocks.waiter is not None
        blocks.waiter.set_result(None)
    loop.turn(2)
    assert task.result() is None
    assert b"".join(blocks.taken) == (bytes(range(256)) * 3000)[100:600_100]
    os.close(fd)


def test_a_file_that_is_shorter_than_announced(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"short")
    blocks, task, fd = send(loop, path, 0, 600_000)
    loop.turn(4)
    assert blocks.waiter is not None
    blocks.waiter.set_result(None)
    loop.turn(4)
    assert isinstance(task.exception(), ClientDisconnected)
    os.close(fd)
