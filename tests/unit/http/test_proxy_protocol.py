"""PROXY protocol headers: in pieces, and invalid ones."""

from __future__ import annotations

import pytest

from servo.http.errors import ProtocolError
from servo.http.proxy_protocol import ProxyHeader, ProxyProtocolReader

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4 = b"\xc0\xa8\x01\x0a\xc0\xa8\x01\x01\x30\x39\x01\xbb"
V6 = bytes.fromhex("20010db8000000000000000000000001" * 2) + b"\xd4\x31\x00\x50"


def v2(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(block).to_bytes(2, "big") + block


VALID = {
    b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n": ("192.168.0.1", 56324),
    b"PROXY TCP6 2001:db8::1 ::1 56324 0\r\n": ("2001:db8::1", 56324),
    b"PROXY UNKNOWN\r\n": None,
    b"PROXY UNKNOWN ffff:f...f:ffff 1 2 3\r\n": None,
    v2(0x21, 0x11, V4): ("192.168.1.10", 12345),
    v2(0x21, 0x11, V4 + b"\x03\x00\x04abcd"): ("192.168.1.10", 12345),
    v2(0x21, 0x21, V6): ("2001:db8::1", 54321),
    v2(0x20, 0x00, b""): None,
    v2(0x20, 0x11, V4): None,
    v2(0x21, 0x00, b"anything"): None,
    v2(0x21, 0x31, bytes(216)): None,
}


@pytest.mark.parametrize("data", VALID)
def test_valid(data: bytes) -> None:
    rest = b"GET / HTTP/1.1\r\n"
    result = ProxyProtocolReader().feed(data + rest)
    assert result is not None
    assert (result[0].source, result[1]) == (VALID[data], rest)


@pytest.mark.parametrize("data", VALID)
def test_byte_by_byte(data: bytes) -> None:
    reader = ProxyProtocolReader()
    for i in range(len(data) - 1):
        assert reader.feed(data[i : i + 1]) is None
    result = reader.feed(data[-1:])
    assert result is not None
    assert (result[0].source, result[1]) == (VALID[data], b"")


def test_destination() -> None:
    result = ProxyProtocolReader().feed(v2(0x21, 0x11, V4))
    assert result == (ProxyHeader(("192.168.1.10", 12345), ("192.168.1.1", 443)), b"")


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\r\n\r\nGET",
        b"proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY\r\n",
        b"PROXY \r\n",
        b"PROXY TCP4 192.168.0.1 192.16...\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 65iii 100000\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 1 65536\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 01 2\r\n",
        b"PROXY TCP4 192.168.0.1 192.168.0.11 -1 2\r\n",
        b"PROXY TCP4 not-an-ip 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 192.168.0.1\xff 192.168.0.11 56324 443\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
        b"PROXY TCP4 " + b"1" * 100,
        b"PROXY UNKNOWN " + b"x" * 100 + b"\r\n",
        v2(0x11, 0x11, V4),
        v2(0x22, 0x11, V4),
        v2(0x21, 0x12, V4),
        v2(0x21, 0x11, V4[:-1]),
        v2(0x21, 0x21, V4),
        v2(0x21, 0x11, bytes(5000)),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        ProxyProtocolReader().feed(data)
    assert caught.value.status == 400


def test_modes() -> None:
    v1 = b"PROXY UNKNOWN\r\n"
    binary = v2(0x20, 0, b"")
    assert ProxyProtocolReader("v1").feed(v1) is not None
    assert ProxyProtocolReader("v2").feed(binary) is not None
    for mode, data in (("v1", binary), ("v2", v1)):
        with pytest.raises(ProtocolError, match="required"):
            ProxyProtocolReader(mode).feed(data)
    with pytest.raises(ValueError, match="mode"):
        ProxyProtocolReader("v3")
