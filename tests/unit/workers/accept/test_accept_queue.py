"""The accept queue, with real listeners."""

from __future__ import annotations

import socket

import pytest

from servo.workers.accept import accept_queue
from servo.workers.accept.accept_queue import AcceptQueue


def listen(family, address):
    listener = socket.socket(family)
    listener.bind(address)
    listener.listen()
    listener.setblocking(False)
    return listener


@pytest.fixture(params=["inet", "inet6", "unix", "abstract", "any", "any6"])
def listener(request, tmp_path):
    family, address = {
        "inet": (socket.AF_INET, ("127.0.0.1", 0)),
        "inet6": (socket.AF_INET6, ("::1", 0)),
        "unix": (socket.AF_UNIX, str(tmp_path / "s.sock")),
        "abstract": (socket.AF_UNIX, f"\0servo-test-{tmp_path}"),
        "any": (socket.AF_INET, ("0.0.0.0", 0)),
        "any6": (socket.AF_INET6, ("::", 0)),
    }[request.param]
    try:
        made = listen(family, address)
    except OSError as error:
        pytest.skip(f"no {request.param} here: {error}")
    with made:
        yield made


def connect(listener):
    client = socket.socket(listener.family)
    address = listener.getsockname()
    if listener.family != socket.AF_UNIX:
        address = ("127.0.0.1" if listener.family == socket.AF_INET else "::1", address[1])
    client.connect(address)
    return client


def test_it_accepts_as_the_socket_does(listener):
    queue = AcceptQueue(listener)
    assert queue.socket is listener
    with connect(listener), connect(listener) as client:
        theirs, their_peer = listener.accept()
        ours, our_peer = queue.accept()
        with theirs, ours:
            assert type(our_peer) is type(their_peer)
            if listener.family != socket.AF_UNIX:
                assert our_peer == client.getsockname()
            for name in ("family", "type", "proto"):
                assert getattr(ours, name) == getattr(theirs, name)
            assert isinstance(ours, socket.socket)
            assert not ours.get_inheritable()
            client.sendall(b"here")
            assert ours.recv(4) == b"here"


def test_our_address_is_that_of_each_connection_or_unknown(listener):
    queue = AcceptQueue(listener)
    with connect(listener):
        sock, _ = queue.accept()
        with sock:
            if queue.local is None:
                assert listener.getsockname()[0] in ("0.0.0.0", "::")
            else:
                assert queue.local == sock.getsockname()


def test_a_transparent_proxy_accepts_for_any_address(monkeypatch):
    with listen(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        assert AcceptQueue(listener).local == listener.getsockname()
        # IP_FREEBIND stands for IP_TRANSPARENT, which only root may set.
        monkeypatch.setattr(accept_queue, "_IP_TRANSPARENT", 15)
        listener.setsockopt(socket.SOL_IP, 15, 1)
        assert AcceptQueue(listener).local is None


def test_a_family_without_ports_or_paths_has_no_known_address():
    class Listener:
        family = socket.AF_VSOCK
        type = socket.SOCK_STREAM
        proto = 0
        _accept = None

        def getsockname(self):
            return (3, 80)

    assert AcceptQueue(Listener()).local is None


def test_an_empty_queue_blocks(listener):
    with pytest.raises(BlockingIOError):
        AcceptQueue(listener).accept()
