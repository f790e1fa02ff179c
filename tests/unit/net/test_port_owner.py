"""The process that listens on a port, for the message of a failed bind."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from servo.net import port_owner
from servo.net.port_owner import describe_port_owner, describe_unix_owner


@contextmanager
def listening_child(listen: Callable[[], socket.socket]) -> Iterator[tuple[int, bytes]]:
    """A child that listens; its pid, and the port that it has sent."""
    here, there = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        here.close()
        with listen() as listener:
            name = listener.getsockname()
            there.sendall(str(name[1]).encode() if isinstance(name, tuple) else b"unix")
            there.recv(1)  # until the parent closes its end
            os._exit(0)
    there.close()
    try:
        yield pid, here.recv(64)
    finally:
        here.close()
        os.waitpid(pid, 0)


def test_this_process_is_named_as_such_while_it_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert describe_port_owner(port) == "this process itself"
    assert describe_port_owner(port) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_another_process_is_named_by_its_number_and_command(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listening_child(lambda: socket.create_server((host, 0), family=family)) as (pid, port):
        described = describe_port_owner(int(port))
    with open("/proc/self/comm", encoding="utf-8") as file:
        assert described == f"process {pid} ({file.read().strip()})"


def test_a_connection_on_the_port_is_not_taken_for_a_listener():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
        listener.close()
        assert describe_port_owner(port) == ""


def test_without_proc_nothing_is_known(monkeypatch):
    def missing(*_args, **_options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "listdir", missing)
    assert describe_port_owner(80) == ""


def test_the_process_behind_a_unix_socket_is_named(tmp_path):
    path = str(tmp_path / "app.sock")

    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen()
        return listener

    with listening_child(listen) as (pid, _), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert describe_unix_owner(client).startswith(f"process {pid} (")


def test_a_process_whose_name_can_not_be_read_has_only_its_number(monkeypatch):
    def gone(*_args, **_options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(port_owner, "open", gone, raising=False)
    assert port_owner._described(2) == "process 2"


def test_a_name_of_a_process_is_printable(monkeypatch):
    monkeypatch.setattr(
        port_owner, "open", lambda *_, **__: io.StringIO("a\x1b[2J\nb\n"), raising=False
    )
    assert port_owner._described(2) == r"process 2 (a\x1b[2J\nb)"
