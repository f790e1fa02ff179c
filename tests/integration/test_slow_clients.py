"""Slow or silent clients delay no other client, in any worker class."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

import pytest

from integration.conftest import class_args
from integration.load import EVERY_KIND, Load, read_response
from integration.server import Server

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"
BEGINNINGS = {
    "half a head": b"GET / HTTP/1.1\r\nHost: local",
    "half a body": POST + b"Content-Length: 1000\r\n\r\nabc",
    "half a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\nab",
    "nothing": b"",
}


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
def test_two_hundred_idle_clients(serve: Serve, worker_class: str, beginning: bytes) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=30)
            )
            client.sendall(beginning)
        with Load(server.port, EVERY_KIND) as load:
            load.wait_answers(100)
    assert load.failures == []


def test_half_a_head_is_answered_408(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "--header-timeout", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(BEGINNINGS["half a head"])
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 408 ")


def test_half_a_body_is_answered_408(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "--body-timeout", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(BEGINNINGS["half a body"])
        data = b"".join(iter(lambda: client.recv(65536), b""))
    assert data.startswith(b"HTTP/1.1 408 ")


def test_idle_connection_is_closed_after_keepalive(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "--keep-alive", "1")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_response(client)
        assert client.recv(1) == b""


def test_reader_that_stops_reading_holds_nobody_up(serve: Serve, worker_class: str) -> None:
    """A finished response waits in the poller or the transport, not in a thread."""
    server = serve(*class_args(worker_class), "-w", "1")
    with contextlib.ExitStack() as stack:
        for _ in range(4):  # as many as there are threads
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=30)
            )
            body = b"x" * 8_000_000
            head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert client.recv(1) == b"H"
        with Load(server.port, {"raw-fresh": 2, "raw-kept": 2}) as load:
            load.wait_answers(50)
    assert load.failures == []
