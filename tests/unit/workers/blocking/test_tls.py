"""The poller's TLS socket, over a socket pair, with Python's own TLS as the client."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from authority import Authority

from servo.http.proxy_protocol import ProxyProtocolReader
from servo.net.sockets import WantsWrite
from servo.net.tls import TLS
from servo.net.tls_facts import TLSFacts
from servo.workers.blocking.tls import TLSSocket


class Owner:
    """What a connection of the poller is to its socket."""

    def __init__(self) -> None:
        self.proxy_reader: ProxyProtocolReader | None = None
        self.peer_name = "192.0.2.1"
        self.facts: TLSFacts | None = None
        self.header: object = None

    def read_proxy_header(self, data: bytes) -> bytes:
        assert self.proxy_reader is not None
        found = self.proxy_reader.feed(data)
        if found is None:
            return b""
        self.proxy_reader = None
        self.header, rest = found
        return rest

    def secured(self, facts: TLSFacts) -> None:
        self.facts = facts


class Pair:
    """A TLS socket and the raw bytes' way to and from a client that lives in memory."""

    def __init__(self, tls: TLS, client: ssl.SSLContext) -> None:
        ours, self.wire = socket.socketpair()
        ours.setblocking(False)
        self.wire.setblocking(False)
        self.owner = Owner()
        self.raw = ours
        self.server = TLSSocket(ours, tls, self.owner)
        self.to_client, self.from_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self.to_client, self.from_client, server_hostname="localhost")

    def receive(self) -> bytes:
        """What the server reads next; b"?" for nothing yet."""
        try:
            return self.server.recv(65536)
        except BlockingIOError:
            return b"?"

    def fetch(self) -> int:
        """Take what is on the wire to the client; how many bytes."""
        count = 0
        while True:
            try:
                data = self.wire.recv(65536)
            except BlockingIOError:
                return count
            if not data:
                self.to_client.write_eof()
                return count
            self.to_client.write(data)
            count += len(data)

    def deliver(self) -> None:
        data = self.from_client.read()
        if data:
            self.wire.sendall(data)

    def step(self) -> bool:
        """The client's part of the handshake; whether it is done."""
        self.fetch()
        try:
            self.client.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def shake(self) -> Pair:
        while not self.step():
            self.deliver()
            assert self.receive() == b"?"
        self.deliver()
        assert self.receive() == b"?"
        assert self.owner.facts is not None
        return self

    def say(self, data: bytes) -> None:
        self.client.write(data)
        self.deliver()

    def hear(self) -> bytes:
        """All that the client can read now; ends with b"." at a proper end."""
        self.fetch()
        pieces = []
        while True:
            try:
                data = self.client.read(65536)
            except ssl.SSLWantReadError:
                return b"".join(pieces)
            except ssl.SSLZeroReturnError:
                data = b""
            if not data:
                return b"".join([*pieces, b"."])
            pieces.append(data)

    def close(self) -> None:
        self.server.close()
        self.wire.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> TLS:
    files = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return TLS(context)


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pair(request: pytest.FixtureRequest, authority: Authority, tls: TLS) -> Iterator[Pair]:
    client = authority.client_context()
    client.maximum_version = request.param
    pair = Pair(tls, client)
    yield pair
    pair.close()


def test_data_both_ways(pair: Pair) -> None:
    pair.shake()
    pair.say(b"GET")
    assert pair.receive() == b"GET"
    assert pair.receive() == b"?"
    assert pair.server.send(b"200") == 3
    assert pair.hear() == b"200"


def test_a_handshake_byte_by_byte(pair: Pair) -> None:
    while not pair.step():
        data = pair.from_client.read()
        for at in range(len(data)):
            pair.wire.send(data[at : at + 1])
            assert pair.receive() == b"?"
    pair.client.write(b"GET")
    data = pair.from_client.read()
    for at in range(len(data) - 1):
        pair.wire.send(data[at : at + 1])
        assert pair.receive() == b"?"
    pair.wire.send(data[-1:])
    assert pair.receive() == b"GET"


def test_a_request_that_comes_with_the_end_of_the_handshake(pair: Pair) -> None:
    while not pair.step():
        pair.deliver()
        assert pair.receive() == b"?"
    pair.client.write(b"GET")
    pair.deliver()
    assert pair.receive() == b"GET"


def test_one_read_takes_all_records(pair: Pair) -> None:
    pair.shake()
    for number in range(100):
        pair.client.write(b"%d," % number)
    pair.deliver()
    assert pair.receive() == b"".join(b"%d," % number for number in range(100))
    assert pair.receive() == b"?"


def test_a_record_that_is_larger_than_its_last_part(pair: Pair) -> None:
    pair.shake()
    pair.client.write(b"x" * 16384)
    data = pair.from_client.read()
    pair.wire.sendall(data[:-10])
    assert pair.receive() == b"?"
    pair.wire.sendall(data[-10:])
    assert pair.receive() == b"x" * 16384


def test_a_large_upload(pair: Pair) -> None:
    pair.shake()
    body = os.urandom(1_000_000)
    received = b""
    for start in range(0, len(body), 50_000):
        pair.say(body[start : start + 50_000])
        while (data := pair.receive()) != b"?":
            received += data
    assert received == body


@pytest.mark.parametrize("size", [1, 65_536, 65_537, 1_000_000])
def test_a_socket_that_is_full(pair: Pair, size: int) -> None:
    """Whatever the socket takes of it, the client gets each byte once."""
    pair.shake()
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = os.urandom(size)
    rest, heard, blocked = memoryview(body), b"", 0
    while rest:
        try:
            rest = rest[pair.server.send(rest) :]
        except BlockingIOError:
            blocked += 1
            heard += pair.hear()
    assert heard + pair.hear() == body
    assert blocked or size < 65_536


def test_the_rest_may_come_in_another_object(pair: Pair) -> None:
    pair.shake()
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = os.urandom(200_000)
    heard, at = b"", 0
    while at < len(body):
        try:
            at += pair.server.send(bytes(body[at:]))
        except BlockingIOError:
            heard += pair.hear()
    assert heard + pair.hear() == body


@pytest.mark.parametrize("size", [1000, 65_536, 200_000])
def test_the_rest_may_come_in_smaller_pieces_and_from_a_file(
    pair: Pair, size: int, tmp_path: Path
) -> None:
    """What was encrypted of a block goes out once, wherever the block was cut and kept."""
    pair.shake()
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(body)
    fd = os.open(path, os.O_RDONLY)
    heard, at, step = b"", 0, 0
    while at < size:
        step += 1
        try:
            if not at or step < 20:
                at += pair.server.send(body[at : at + (7001 if at or step > 1 else size)])
            else:
                at += pair.server.sendfile(fd, at, min(9001, size - at))
        except BlockingIOError:
            heard += pair.hear()
    assert heard + pair.hear() == body
    os.close(fd)


def test_what_is_given_up_does_not_stand_for_what_comes_next(pair: Pair) -> None:
    pair.shake()
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    first, second = os.urandom(60_000), os.urandom(70_000)
    with pytest.raises(BlockingIOError):
        pair.server.send(first)
    heard, at = b"", 0
    while at < len(second):
        try:
            at += pair.server.send(second[at:])
        except BlockingIOError:
            heard += pair.hear()
    assert heard + pair.hear() == first + second


def test_a_file(pair: Pair, tmp_path: Path) -> None:
    pair.shake()
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = os.urandom(300_000)
    path = tmp_path / "file"
    path.write_bytes(body)
    fd = os.open(path, os.O_RDWR)
    heard, at, blocked = b"", 1000, 0
    while at < 250_000:
        try:
            at += pair.server.sendfile(fd, at, 250_000 - at)
        except BlockingIOError:
            blocked += 1
            # What was read of it stays what is sent, though the file changes now.
            os.pwrite(fd, b"!" * 10, at)
            heard += pair.hear()
    heard += pair.hear()
    assert heard == body[1000:250_000]
    assert blocked
    assert pair.server.sendfile(fd, 300_000, 10) == 0
    os.close(fd)


def test_an_end_with_a_goodbye(pair: Pair) -> None:
    pair.shake()
    pair.client.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.deliver()
    assert pair.receive() == b"last"
    assert pair.receive() == b"", "no FIN has come, but the poller is told of the end"
    assert pair.server.send(b"answer") == 6
    assert pair.hear().startswith(b"answer")


def test_an_end_without(pair: Pair) -> None:
    pair.shake()
    pair.wire.shutdown(socket.SHUT_WR)
    assert pair.receive() == b""


def test_we_say_goodbye(pair: Pair) -> None:
    pair.shake()
    pair.server.send(b"bye")
    pair.server.shutdown(socket.SHUT_WR)
    assert pair.hear() == b"bye."
    pair.say(b"what nobody reads any more")
    assert pair.receive() not in (b"", b"?"), "it only counts that something came"
    pair.wire.shutdown(socket.SHUT_WR)
    assert pair.receive() == b""


def test_closing_says_goodbye_too(pair: Pair) -> None:
    pair.shake()
    pair.server.close()
    assert pair.hear() == b"."
    assert pair.server.fileno() == -1


def test_closing_a_connection_that_the_client_has_cut(pair: Pair) -> None:
    pair.shake()
    pair.wire.close()
    pair.server.close()
    assert pair.server.fileno() == -1


@pytest.mark.parametrize(
    "garbage", [b"BREW / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\0" * 9]
)
def test_garbage(pair: Pair, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "servo.error")
    pair.wire.sendall(garbage)
    with pytest.raises(ConnectionError, match=r"192\.0\.2\.1"):
        pair.server.recv(65536)
    (record,) = caplog.records
    assert record.levelname == "DEBUG"
    assert not record.exc_info
    pair.server.close()


def test_a_client_that_goes_in_the_middle(pair: Pair) -> None:
    pair.step()
    pair.deliver()
    assert pair.receive() == b"?"
    pair.wire.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionError, match="closed"):
        pair.server.recv(65536)


def test_damage_on_the_way(pair: Pair) -> None:
    pair.shake()
    pair.client.write(b"GET")
    data = bytearray(pair.from_client.read())
    data[-1] ^= 1
    pair.wire.sendall(data)
    with pytest.raises(OSError, match=r"(?i)mac|decrypt|record layer"):
        pair.server.recv(65536)


def test_a_proxy_header_before_the_handshake(pair: Pair) -> None:
    pair.owner.proxy_reader = ProxyProtocolReader("v1")
    pair.wire.sendall(b"PROXY TCP4 198.51.100.7 ")
    assert pair.receive() == b"?"
    pair.wire.sendall(b"192.0.2.2 4000 443\r\n")
    assert pair.receive() == b"?"
    pair.shake()
    assert "198.51.100.7" in repr(pair.owner.header)
    pair.say(b"GET")
    assert pair.receive() == b"GET"


def test_a_proxy_header_that_is_missing(pair: Pair) -> None:
    pair.owner.proxy_reader = ProxyProtocolReader("v1")
    pair.step()
    pair.deliver()
    with pytest.raises(ConnectionError, match="PROXY"):
        pair.server.recv(65536)


def test_a_flight_that_the_socket_can_not_take_at_once(authority: Authority) -> None:
    """So long a chain that the poller has to wait until the socket is writable."""
    files = authority.issue("long")
    files.cert.write_bytes(files.cert.read_bytes() + authority.path.read_bytes() * 100)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    client = authority.client_context()
    pair = Pair(TLS(context), client)
    pair.raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pair.step()
    pair.deliver()
    waits = 0
    with pytest.raises(WantsWrite):
        pair.server.recv(65536)
    while not pair.step():
        pair.deliver()
        try:
            pair.server.recv(65536)
        except WantsWrite:
            waits += 1
        except BlockingIOError:
            pass
    assert waits
    pair.say(b"GET")
    assert pair.receive() == b"GET"
    pair.close()
