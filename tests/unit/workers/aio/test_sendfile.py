"""Files to the sockets of an event loop, on a socket pair and without waiting."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit.workers.fakes import Clock, Loop

from servo.http.errors import ClientDisconnected
from servo.workers.aio.sendfile import send_region, settle


class Sending:
    """A file on its way, turn by turn."""

    def __init__(self, clock: Clock, path: Path, offset: int, count: int, limit_s: float) -> None:
        self.loop = Loop(clock)
        self.ours, self.theirs = socket.socketpair()
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for sock in (self.ours, self.theirs):
            sock.setblocking(False)
        self.fd = os.open(path, os.O_RDONLY)
        self.task = self.loop.create_task(
            send_region(self.ours.fileno(), self.fd, offset, count, limit_s)
        )

    def read(self) -> bytes:
        try:
            return self.theirs.recv(1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.loop.end()
        self.ours.close()
        self.theirs.close()
        os.close(self.fd)


@pytest.fixture
def start(clock: Clock, tmp_path: Path) -> Iterator[Any]:
    made: list[Sending] = []
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4000)

    def begin(offset: int, count: int, limit_s: float = 0.0) -> Sending:
        made.append(Sending(clock, path, offset, count, limit_s))
        return made[-1]

    yield begin
    for sending in made:
        sending.close()


def test_a_part_of_a_file(start: Any) -> None:
    sending = start(10, 100)
    sending.loop.turn(3)
    assert sending.task.done()
    assert sending.read() == (bytes(range(256)) * 2)[10:110]


def test_nothing_is_sent_of_an_empty_part(start: Any) -> None:
    sending = start(10, 0)
    sending.loop.turn(2)
    assert sending.task.done()
    assert sending.read() == b""


def test_a_slow_reader_gets_all_of_it(start: Any) -> None:
    sending = start(0, 1_000_000)
    received = b""
    while not sending.task.done() or len(received) < 1_000_000:
        sending.loop.turn(3)
        data = sending.read()
        assert data or not sending.task.done()
        received += data
    assert received == (bytes(range(256)) * 4000)[:1_000_000]
    assert sending.task.exception() is None


def test_others_have_their_turn_between_two_parts(start: Any) -> None:
    sending = start(0, 1_000_000)
    turns: list[int] = []
    sending.loop.call_soon(turns.append, 1)
    sending.loop.turn()
    assert turns == [1]
    assert not sending.task.done()


def test_a_reader_that_has_stopped(start: Any, clock: Clock) -> None:
    sending = start(0, 1_000_000, 10.0)
    sending.loop.turn(5)
    clock.advance(9)
    sending.loop.turn(3)
    assert not sending.task.done()
    assert sending.read()
    sending.loop.turn(5)
    clock.advance(9)
    sending.loop.turn(3)
    assert not sending.task.done()
    clock.advance(2)
    sending.loop.turn(8)
    assert isinstance(sending.task.exception(), ClientDisconnected)


def test_without_a_limit_a_reader_may_take_its_time(start: Any, clock: Clock) -> None:
    sending = start(0, 1_000_000)
    sending.loop.turn(5)
    clock.advance(1_000_000)
    sending.loop.turn(3)
    assert not sending.task.done()


def test_a_client_that_is_gone(start: Any) -> None:
    sending = start(0, 1_000_000)
    sending.loop.turn(5)
    sending.theirs.close()
    sending.loop.turn(5)
    assert isinstance(sending.task.exception(), ClientDisconnected)


def test_a_file_that_is_shorter_than_it_was(start: Any) -> None:
    sending = start(1_023_000, 5000)
    while not sending.task.done():
        sending.loop.turn(3)
        sending.read()
    assert isinstance(sending.task.exception(), ClientDisconnected)


def test_no_descriptor_is_left(start: Any) -> None:
    sending = start(0, 1_000_000)
    before = len(os.listdir("/proc/self/fd"))
    sending.loop.turn(5)
    sending.theirs.close()
    sending.loop.turn(5)
    assert sending.task.done()
    assert sending.task.exception() is not None
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_what_is_settled_stays_so(loop: Loop) -> None:
    waiter: asyncio.Future[None] = loop.create_future()
    settle(waiter)
    settle(waiter)
    assert waiter.result() is None
