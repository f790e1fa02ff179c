"""The time for which a closed connection is kept."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from servo.net.sockets import unacknowledged
from servo.workers.linger import IdleTime, Linger

SECOND = 1_000_000_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_what_was_taken_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    assert Linger(ours.fileno(), 60.0, 0).is_over(0, 2 * SECOND)


def test_a_client_that_takes_its_time(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    for _ in range(20):
        ours.send(b"x" * 1000)
    linger = Linger(ours.fileno(), 60.0, 0)
    for number in range(19):
        assert not linger.is_over(0, number * 50 * SECOND)
        theirs.recv(1000)
    theirs.recv(1000)
    assert linger.is_over(0, 1000 * SECOND)


def test_a_client_that_takes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.send(b"x" * 1000)
    linger, patient = Linger(ours.fileno(), 60.0, 0), Linger(ours.fileno(), 0.0, 0)
    assert not linger.is_over(0, 2 * SECOND)
    assert not linger.is_over(0, 62 * SECOND)
    assert linger.is_over(0, 63 * SECOND)
    assert not patient.is_over(0, 2 * SECOND)
    assert not patient.is_over(0, 10_000 * SECOND)


def test_what_the_kernel_has_not_taken_counts(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    linger = Linger(ours.fileno(), 60.0, 0)
    assert not linger.is_over(1000, 2 * SECOND)
    assert not linger.is_over(900, 62 * SECOND)
    assert linger.is_over(0, 63 * SECOND)


def test_a_closed_socket(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    ours.close()
    assert Linger(ours.fileno(), 60.0, 0).is_over(0, 0)


def test_an_idle_client_that_has_everything_is_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    assert IdleTime(ours.fileno()).left_s(5.0, 0) == 0.0


def test_the_idle_time_begins_again_when_a_slow_reader_has_everything(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    for _ in range(20):
        ours.send(b"x" * 1000)
    idle = IdleTime(ours.fileno())
    for number in range(20):
        assert idle.left_s(5.0, number * 5 * SECOND) == 1.0
        theirs.recv(1000)
    assert idle.left_s(5.0, 101 * SECOND) == 5.0
    assert idle.left_s(5.0, 106 * SECOND) == 0.0


def test_an_idle_client_that_takes_nothing_is_closed(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, _ = pair
    ours.send(b"x" * 1000)
    idle = IdleTime(ours.fileno())
    assert idle.left_s(5.0, 0) == 1.0
    assert idle.left_s(5.0, 5 * SECOND) == 1.0
    assert idle.left_s(5.0, 6 * SECOND) == 0.0
    assert IdleTime(ours.fileno()).left_s(0.0, 0) == 0.0


def until_acknowledged(sock: socket.socket) -> None:
    while unacknowledged(sock.fileno()):
        time.sleep(0.001)


def test_the_idle_time_begins_with_the_last_acknowledgement() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        ours.send(b"x")
        until_acknowledged(ours)
        idle = IdleTime(ours.fileno())
        # The server has sent long ago, and the client has received just now.
        assert 0.0 < idle.left_s(60.0, 100 * SECOND) <= 60.0
        time.sleep(0.1)
        assert idle.left_s(0.05, 200 * SECOND) == 0.0
        # The client's application reads, and so its window grows.
        ours.sendall(bytes(60_000))
        until_acknowledged(ours)
        assert idle.left_s(60.0, 300 * SECOND) > 0.0
