"""The bytes before HTTP on a connection: the PROXY protocol, and the preface of HTTP/2."""

from __future__ import annotations

import pytest

from servo.http.errors import ProtocolError
from servo.settings.sources import Settings
from servo.workers.request.preface import ProtocolDetector, ProxyProtocol

HEADER = b"PROXY TCP4 198.51.100.7 203.0.113.1 4000 443\r\n"
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PEER = ("192.0.2.1", 5000)


def proxy_protocol(mode: str = "v1", allowed: str = "192.0.2.1") -> ProxyProtocol:
    return ProxyProtocol(Settings({"proxy_protocol": mode, "proxy_allow_ips": allowed}, {}))


def test_without_the_setting_nothing_is_read() -> None:
    assert proxy_protocol("off").header_reader(PEER) is None
    assert proxy_protocol("off").header_reader(None) is None


@pytest.mark.parametrize("peer", [("192.0.2.2", 1), None])
def test_a_peer_that_may_not_speak_for_others_is_refused(peer: tuple[str, int] | None) -> None:
    proxy_reader = proxy_protocol().header_reader(peer)
    assert proxy_reader is not None
    with pytest.raises(ProtocolError) as raised:
        proxy_reader.feed(HEADER)
    assert raised.value.status == 403


def test_a_header_at_every_split() -> None:
    for at in range(1, len(HEADER) + 3):
        proxy_reader = proxy_protocol().header_reader(PEER)
        assert proxy_reader is not None
        data = HEADER + b"GET"
        found = proxy_reader.feed(data[:at])
        if found is None:
            found = proxy_reader.feed(data[at:])
            assert found is not None
            header, rest = found
        else:
            header, rest = found[0], found[1] + data[at:]
        assert header.source == ("198.51.100.7", 4000)
        assert header.destination == ("203.0.113.1", 443)
        assert rest == b"GET"


@pytest.mark.parametrize("with_header", [False, True])
@pytest.mark.parametrize(
    ("detect_h2", "sent", "is_h2"),
    [(False, b"GET / HTTP/1.1", False), (True, b"GET / HTTP/1.1", False), (True, H2, True)],
)
def test_first_bytes_in_one_piece_and_byte_by_byte(
    with_header: bool, detect_h2: bool, sent: bytes, is_h2: bool
) -> None:
    data = HEADER + sent if with_header else sent
    for size in (len(data), 1):
        detector = ProtocolDetector(
            proxy_protocol().header_reader(PEER) if with_header else None, detect_h2
        )
        found, at = None, 0
        while found is None:
            found = detector.feed(data[at : at + size])
            at += size
        header, spoken, rest = found
        assert (header is not None) is with_header
        assert spoken is is_h2
        assert rest + data[at:] == sent


def test_a_bad_header_is_an_error() -> None:
    detector = ProtocolDetector(proxy_protocol().header_reader(PEER), True)
    with pytest.raises(ProtocolError):
        detector.feed(b"GET / HTTP/1.1\r\n")
