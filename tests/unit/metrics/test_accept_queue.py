"""The accept queues of real sockets, read from this machine's kernel."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from servo.metrics import accept_queue


def listening(family: int, address: object, limit: int) -> socket.socket:
    sock = socket.socket(family)
    sock.bind(address)
    sock.listen(limit)
    return sock


def test_queues_come_in_the_order_of_the_addresses(tmp_path):
    path = str(tmp_path / "s")
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0), 7) as tcp,
        listening(socket.AF_UNIX, path, 9),
        socket.create_connection(tcp.getsockname()),
        socket.create_connection(tcp.getsockname()),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(path)
        port = tcp.getsockname()[1]
        found = accept_queue.queues([path, ("127.0.0.1", port), ("127.0.0.2", port), b"\0nobody"])
        assert found == [(1, 9, None), (2, 7, 0), None, None]
        tcp.accept()[0].close()
        assert accept_queue.queues([("127.0.0.1", port)]) == [(1, 7, 0)]


def test_an_abstract_name(tmp_path):
    name = f"\0servo-test-{tmp_path}".encode()
    with listening(socket.AF_UNIX, name, 3):
        assert accept_queue.queues([name]) == [(0, 3, None)]


def test_sockets_of_one_port_are_summed_up():
    with socket.socket() as first, socket.socket() as second:
        for sock in (first, second):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        second.bind(first.getsockname())
        first.listen(5)
        second.listen(6)
        assert accept_queue.queues([first.getsockname()]) == [(0, 11, 0)]


def test_an_ipv6_listener():
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with listening(socket.AF_INET6, ("::1", 0), 4) as sock:
        assert accept_queue.queues([sock.getsockname()[:2]]) == [(0, 4, 0)]


def test_a_kernel_that_does_not_answer_is_not_an_error(monkeypatch):
    def refuse(_request):
        raise PermissionError("not in this sandbox")

    monkeypatch.setattr(accept_queue, "_dump", refuse)
    assert accept_queue.queues([("127.0.0.1", 1), "/nowhere"]) == [None, None]


def test_overflows_are_read_by_name(monkeypatch):
    text = (
        "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 42 3\nIpExt: A\nIpExt: 1\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda _path: text)
    assert accept_queue.overflows() == 42
    monkeypatch.setattr(Path, "read_text", lambda _path: "IpExt: A\nIpExt: 1\n")
    assert accept_queue.overflows() is None
