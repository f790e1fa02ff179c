"""The end of a stream, and the unread or unsent bytes of a connection."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from types import SimpleNamespace

import pytest

from servo.net.sockets import (
    end_output,
    end_transport,
    has_unread,
    since_last_ack_s,
    unacknowledged,
)


@pytest.fixture(params=["tcp", "unix"])
def connection(request):
    """Two connected sockets."""
    if request.param == "unix":
        here, there = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            here = socket.create_connection(listener.getsockname())
            there, _ = listener.accept()
    there.settimeout(30)
    yield here, there
    here.close()
    there.close()


def test_the_peer_sees_the_end_while_another_process_holds_the_socket(connection):
    here, there = connection
    held = os.dup(here.fileno())  # as a child of the application has it
    here.sendall(b"last")
    end_output(here.fileno())
    here.close()
    assert there.recv(10) == b"last"
    assert there.recv(10) == b""
    os.close(held)


def test_the_socket_can_still_receive_after_its_end_was_sent(connection):
    here, there = connection
    end_output(here.fileno())
    assert there.recv(1) == b""
    there.sendall(b"late")
    here.settimeout(30)
    assert here.recv(10) == b"late"


def test_sending_the_end_of_a_connection_that_has_ended_does_nothing(connection):
    here, there = connection
    end_output(-1)
    there.close()
    end_output(here.fileno())
    end_output(here.fileno())
    with socket.socket() as unconnected:
        end_output(unconnected.fileno())
        assert unconnected.fileno() >= 0


def test_a_transport_is_ended_by_its_socket(connection):
    here, there = connection
    end_transport(SimpleNamespace(get_extra_info=lambda name: here if name == "socket" else None))
    assert there.recv(1) == b""
    end_transport(SimpleNamespace(get_extra_info=lambda _name: None))


def test_bytes_wait_to_be_read(connection):
    here, there = connection
    assert not has_unread(there.fileno())
    here.sendall(b"two")
    assert has_unread(there.fileno())
    there.recv(10)
    assert not has_unread(there.fileno())


def test_bytes_that_a_peer_does_not_read_are_unacknowledged(connection):
    here, _ = connection
    assert unacknowledged(here.fileno()) == 0
    here.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            here.send(bytes(1 << 16))
    assert unacknowledged(here.fileno()) > 0


def test_nothing_waits_on_a_closed_socket():
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    for closed in (fd, -1):
        assert not has_unread(closed)
        assert unacknowledged(closed) == 0


def test_the_time_since_the_last_acknowledgement(connection):
    here, _there = connection
    since = since_last_ack_s(here.fileno())
    if here.family == socket.AF_UNIX:
        assert since is None
    else:
        assert 0 <= since < 60
        time.sleep(0.05)
        assert since_last_ack_s(here.fileno()) > since
    assert since_last_ack_s(-1) is None
