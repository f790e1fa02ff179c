"""Sockets from systemd's store: used if they match the settings exactly, otherwise closed."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from servo.net.stored_sockets import StoredSockets, is_store_name, store_name

NAME = store_name("127.0.0.1:8000", None)


@pytest.fixture
def stored() -> Iterator[StoredSockets]:
    found = StoredSockets()
    yield found
    found.close_rest()


def keep(
    stored: StoredSockets, sock: socket.socket, name: str = NAME
) -> tuple[int, tuple[str | int, ...]]:
    """Pass a copy of a socket on as systemd does; return its family and address."""
    family, address = sock.family, sock.getsockname()
    stored.add(sock.detach(), name)
    return family, address


def bound(family: int = socket.AF_INET, **options: bool) -> socket.socket:
    sock = socket.socket(family)
    if options.get("reuse_port"):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if options.get("v6_only"):
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
    sock.listen()
    return sock


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_tcp_socket_is_taken_once(stored: StoredSockets, reuse_port: bool) -> None:
    target = keep(stored, bound(reuse_port=reuse_port))
    options = {"backlog": 5, "v6_only": False}
    assert stored.take_tcp(*target, reuse_port=not reuse_port, **options) is None
    assert stored.take_tcp(target[0], ("127.0.0.1", 1), reuse_port=reuse_port, **options) is None
    sock = stored.take_tcp(*target, reuse_port=reuse_port, **options)
    assert sock is not None
    with sock, socket.create_connection(target[1]):
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert stored.take_tcp(*target, reuse_port=reuse_port, **options) is None
        stored.close_rest()
        assert stored.forgotten == []


def test_an_ipv6_socket_must_take_the_same_families(stored: StoredSockets) -> None:
    try:
        target = keep(stored, bound(socket.AF_INET6, v6_only=True))
    except OSError:
        pytest.skip("no IPv6 here")
    options = {"backlog": 5, "reuse_port": False}
    assert stored.take_tcp(*target, v6_only=False, **options) is None
    sock = stored.take_tcp(*target, v6_only=True, **options)
    assert sock is not None
    sock.close()


def listening_at(path: str | bytes) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return sock


def test_a_unix_socket_is_taken_with_its_file(stored: StoredSockets, tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    sock = listening_at(path)
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    keep(stored, sock, store_name("", identity))
    assert stored.take_file(str(tmp_path / "b"), 5) is None
    found = stored.take_file(path, 5)
    assert found is not None
    assert found[1] == identity
    with found[0], socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_unix_socket_whose_file_was_replaced_is_not_taken(
    stored: StoredSockets, tmp_path: Path
) -> None:
    path = str(tmp_path / "a")
    sock = listening_at(path)
    status = os.stat(path)
    name = store_name("", (status.st_dev, status.st_ino))
    keep(stored, sock, name)
    os.rename(path, tmp_path / "old")  # the inode stays in use
    assert stored.take_file(path, 5) is None
    with listening_at(path):
        assert stored.take_file(path, 5) is None
    stored.close_rest()
    assert stored.forgotten == [name]


def test_an_abstract_socket(stored: StoredSockets) -> None:
    name = f"servo-test-{os.getpid()}"
    keep(stored, listening_at(b"\0" + name.encode()))
    assert stored.take_abstract(name + "x", 5) is None
    sock = stored.take_abstract(name, 5)
    assert sock is not None
    sock.close()


def test_what_is_no_listening_socket_is_not_taken(
    stored: StoredSockets, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "servo.error")
    reader, writer = os.pipe()
    os.close(writer)
    stored.add(reader, f"{NAME}-pipe")
    stored.add(987654, f"{NAME}-none")
    assert stored.forgotten == [f"{NAME}-pipe", f"{NAME}-none"]
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))  # it does not listen
    target = keep(stored, sock)
    assert stored.take_tcp(*target, backlog=5, reuse_port=False, v6_only=False) is None
    stored.close_rest()
    assert stored.forgotten[2:] == [NAME]
    assert caplog.messages[-1] == f"{NAME} is closed: no address of bind is its own"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


def test_a_start_that_fails_leaves_them(stored: StoredSockets) -> None:
    sock = bound()
    fd = sock.fileno()
    keep(stored, sock)
    stored.leave()
    os.close(fd)  # it is still open
    assert stored.forgotten == []


def test_names() -> None:
    assert is_store_name(NAME)
    assert not is_store_name("web.socket")
    assert store_name("[::1]:80", None) == "servo-listener-___1__80"
    assert store_name("unix:/a", (7, 8)) == "servo-listener-file-7-8"
    assert len(store_name("x" * 500, None)) <= 255
