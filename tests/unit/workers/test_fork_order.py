"""Orders to a mold: their descriptors, and invalid ones."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from servo.ipc.channel import channel_pair
from servo.net.address import TCPAddress
from servo.net.listeners import Listener
from servo.workers.fork_order import (
    MAX_ORDER_BYTES,
    ForkOrder,
    check_fds,
    pickle_attributes,
    receive_order,
    unpickle_attributes,
)

ADDRESS = TCPAddress("127.0.0.1", 0)


class Unreadable:
    """Can be pickled, and raises when it is made again."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return int, ("no number",)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def order(kept: dict[str, bytes] | None = None, listeners: int = 0) -> ForkOrder:
    return ForkOrder(7, 2, 1, kept or {}, [(ADDRESS, "name", ADDRESS, "")] * listeners, True)


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def test_an_order_brings_its_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    channel, other_end = channel_pair()
    dump_fd = os.memfd_create("dump")
    with socket.socket() as sock:
        sent = order(listeners=1)
        sent.send(ours, channel, dump_fd, [Listener(sock, ADDRESS, "name", ADDRESS)])
        received = receive_order(theirs)
        assert received is not None
        found, fds = received
        assert found == sent
        check_fds(found, fds)
        assert list(map(same_file, fds, (channel.fileno(), dump_fd, sock.fileno()))) == [True] * 3
        assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in (*fds, dump_fd):
        os.close(fd)
    channel.close()
    other_end.close()


def test_the_end_of_the_stream(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    assert receive_order(theirs) is None


def test_a_process_without_free_descriptors(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    channel, other_end = channel_pair()
    order().send(ours, channel, channel.fileno(), [])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))
    try:
        received = receive_order(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert received is not None
    with pytest.raises(OSError, match="no free descriptors"):
        check_fds(*received)
    assert received[1] == []
    channel.close()
    other_end.close()


def test_orders_that_cant_be_sent(pair: tuple[socket.socket, socket.socket]) -> None:
    channel, other_end = channel_pair()
    with pytest.raises(ValueError, match="attributes that the pre_fork hook has set are too long"):
        order({"all": bytes(MAX_ORDER_BYTES)}).send(pair[0], channel, 0, [])
    closed = socket.socket()
    closed.close()
    with pytest.raises(ValueError, match="a listener is closed"):
        order(listeners=1).send(pair[0], channel, 0, [Listener(closed, ADDRESS, "name", ADDRESS)])
    channel.close()
    other_end.close()


def test_attributes_of_pre_fork(caplog: pytest.LogCaptureFixture) -> None:
    values = {"tag": "a", "number": 1, "function": lambda: None, "bad": Unreadable()}
    pickled = pickle_attributes(values)
    assert sorted(pickled) == ["bad", "number", "tag"]
    assert "worker.function can't be passed on to a mold" in caplog.text
    assert unpickle_attributes(pickled) == {"tag": "a", "number": 1}
    assert "worker.bad can't be unpickled in the worker" in caplog.text


def test_an_order_with_the_socket_of_a_mold(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    channel, other_end = channel_pair()
    mold_sock, worker_end = socket.socketpair()
    with mold_sock, worker_end:
        sent = ForkOrder(7, 2, 1, {}, [], has_dump_file=False, has_mold_socket=True)
        sent.send(ours, channel, -1, [], worker_end.fileno())
        received = receive_order(theirs)
        assert received is not None
        found, fds = received
        assert found == sent
        check_fds(found, fds)
        assert same_file(fds[1], worker_end.fileno())
    for fd in fds:
        os.close(fd)
    channel.close()
    other_end.close()
