"""The poller over TLS: the handshake is a part of reading, and never blocks."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from authority import Authority
from unit.workers.fakes import GET, BlockingServer, TLSClient, responses

from servo.net.tls import TLS

Make = Callable[..., BlockingServer]
Script = Iterator[None]


@pytest.fixture
def make(make_blocking: Make, tls: TLS) -> Make:
    return lambda app=hello, **values: make_blocking(app, tls=tls, **values)


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["wsgi.url_scheme"].encode(), environ["SSL_PROTOCOL"].encode()[:3]]


def large(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "600000")])
    return [b"x" * 600_000]


def shake(client: TLSClient) -> Script:
    while not client.shaken:
        client.step()
        yield


def test_requests_over_one_connection(make: Make, authority: Authority) -> None:
    server = make()

    def script() -> Script:
        client = TLSClient(server.connect(), authority.client_context())
        yield from shake(client)
        for _ in range(2):
            client.send(GET)
            yield
            yield
            assert responses(client.read()) == [(200, b"httpsTLS")]
        assert not client.ended

    server.run(script())
    assert server.world.requests == 2


def test_handshake_and_request_byte_by_byte(make: Make, authority: Authority) -> None:
    server = make()

    def script() -> Script:
        client = TLSClient(server.connect(), authority.client_context())
        asked = False
        for _ in range(20):
            data = client.pending()
            if client.shaken and not asked:
                asked = True
                client.client.send(data)
                yield
                client.tls.write(GET)
                data = client.pending()
            for at in range(len(data)):
                client.client.send(data[at : at + 1])
                yield
            yield
        assert responses(client.read()) == [(200, b"httpsTLS")]

    server.run(script())


def test_a_slow_reader_gets_all_of_a_large_response(make: Make, authority: Authority) -> None:
    server = make(large)

    def script() -> Script:
        client = TLSClient(server.connect(buffer=4096), authority.client_context())
        yield from shake(client)
        client.send(GET)
        while len(client.received) < 600_000:
            yield
            client.read()
        assert [len(body) for _, body in responses(client.received)] == [600_000]

    server.run(script())
    assert server.world.in_flight == 0


def test_a_keepalive_that_is_over_ends_with_a_close_notify(
    make: Make, authority: Authority
) -> None:
    server = make(keepalive=5)

    def script() -> Script:
        client = TLSClient(server.connect(), authority.client_context())
        yield from shake(client)
        client.send(GET)
        yield
        yield
        assert client.read()
        yield from server.after(6)
        client.read()
        assert client.ended
        assert not client.client.reset

    server.run(script())


def test_a_close_notify_of_the_client_closes_the_connection(
    make: Make, authority: Authority
) -> None:
    server = make()

    def script() -> Script:
        client = TLSClient(server.connect(), authority.client_context())
        yield from shake(client)
        yield
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        client.step()
        for _ in range(3):
            yield
        assert not server.worker.connections

    server.run(script())


def test_plain_http_is_told_to_use_https(make: Make) -> None:
    server = make()

    def script() -> Script:
        client = server.connect()
        client.send(GET)
        yield
        yield
        assert [status for status, _ in responses(client.read())] == [400]
        assert not server.worker.connections

    server.run(script())


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["nothing", "a part"])
def test_a_handshake_that_does_not_come_in_time(make: Make, sent: bytes) -> None:
    server = make(header_timeout=20)

    def script() -> Script:
        client = server.connect()
        client.send(sent)
        yield
        yield
        yield from server.after(19)
        assert not client.gone
        yield from server.after(2)
        assert client.gone
        assert client.received == b""

    server.run(script())
    assert server.world.requests == 0


def test_a_client_that_leaves_amid_its_handshake(make: Make, authority: Authority) -> None:
    server = make()

    def script() -> Script:
        client = TLSClient(server.connect(), authority.client_context())
        client.step()
        yield
        yield
        client.client.sock.shutdown(socket.SHUT_RDWR)
        yield
        yield
        assert not server.worker.connections

    server.run(script())
