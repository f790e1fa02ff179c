"""A forked child of the app holds every socket, but clients still get the end of the stream."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from authority import Authority

from integration.conftest import class_args
from integration.raw import connect, read_all, request, status
from integration.server import Server

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

ENDS = {
    "close": request("/leave-child"),
    "HTTP/1.0": b"GET /leave-child HTTP/1.0\r\n\r\n",
    "HTTP/1.0 without a length": b"GET /leave-child?stream HTTP/1.0\r\n\r\n",
    "refused behind it": request("/leave-child", close=False) + b"nonsense\r\n\r\n",
}


@contextlib.contextmanager
def ended(response: bytes) -> Iterator[None]:
    """End the child that a response names."""
    try:
        assert status(response) == 200
        yield
    finally:
        os.kill(int(response.split(b"\r\n\r\n", 1)[1].split(b"HTTP", 1)[0]), signal.SIGKILL)


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_the_connection_ends_although_a_child_holds_it(
    serve: Serve, worker_class: str, end: bytes
) -> None:
    server = serve(*class_args(worker_class))
    with connect(server) as client:
        client.sendall(end)
        with ended(read_all(client)):
            pass


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_in_either_loop(serve: Serve, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    server = serve(*class_args("async"), "--loop", loop)
    with connect(server) as client:
        client.sendall(ENDS["close"])
        with ended(read_all(client)):
            pass


def test_an_idle_connection_ends_too(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "--keep-alive", "1")
    with connect(server) as client:
        client.sendall(request("/leave-child", close=False))
        with ended(read_all(client)):
            pass


def test_a_tls_connection_ends_on_both_layers(
    serve: Serve, worker_class: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    server = serve(*class_args(worker_class), *authority.issue("server").flags)
    client = authority.client_context().wrap_socket(connect(server), server_hostname="localhost")
    with client:
        client.sendall(ENDS["close"])
        with ended(read_all(client)), client.unwrap() as plain:
            assert plain.recv(1) == b""
