"""The listening socket of a pool."""

from __future__ import annotations

import socket

import pytest

from servo.pools.listening import listen, set_queue


def test_the_length_of_the_queue_is_exact_and_can_be_changed(tmp_path):
    path = str(tmp_path / "s")
    listener = listen(path, 2)
    clients = []

    def fill():
        while len(clients) < 10:
            client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            client.setblocking(False)
            clients.append(client)
            client.connect(path)

    with pytest.raises(BlockingIOError):
        fill()
    assert len(clients) == 3  # the last one was refused
    set_queue(listener, 4)
    with pytest.raises(BlockingIOError):
        fill()
    assert len(clients) == 6
    for each in (*clients, listener):
        each.close()


def test_a_path_that_is_too_long(tmp_path):
    with pytest.raises(OSError, match="too long"):
        listen(str(tmp_path / ("x" * 200)), 1)
