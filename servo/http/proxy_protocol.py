"""The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt).

A load balancer for TCP sends a header with the client's address at the beginning of each
connection. Version 1 is a line of text, version 2 is binary.

If the header is expected, a connection without it is refused. If it were optional, any client could
send one and claim any address.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from servo.http.errors import ProtocolError

MODES = ("v1", "v2", "auto")

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1_START = b"PROXY "
# Bytes of the longest line, with its CRLF (section 2.1).
_V1_LENGTH = 107
# How many bytes of addresses and TLVs to accept. Section 2.2 allows 64 KiB, but this is enough even
# for certificates in TLVs.
_V2_LENGTH = 4096
_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESS_LENGTHS = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}


class ProxyHeader(NamedTuple):
    """The addresses in a header. Both are None if it names no TCP connection (LOCAL, UNKNOWN).

    source       host and port of the client
    destination  host and port that the client connected to
    """

    source: tuple[str, int] | None
    destination: tuple[str, int] | None


class ProxyProtocolReader:
    """Reads the header at the start of one connection.

    mode  "v1", "v2", or "auto" for either
    """

    __slots__ = ("_buffer", "_starts")

    def __init__(self, mode: str = "auto") -> None:
        if mode not in MODES:
            raise ValueError(f"no such PROXY protocol mode: {mode!r}")
        self._buffer = b""
        starts = {"v1": (_V1_START,), "v2": (_SIGNATURE,), "auto": (_V1_START, _SIGNATURE)}
        self._starts = starts[mode]

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        """Take received bytes. Raises `ProtocolError` (400).

        data  the bytes that were read

        Returns the header and the bytes after it; None while the header is incomplete.
        """
        buffer = self._buffer = self._buffer + data
        for start in self._starts:
            if buffer.startswith(start):
                parse = _parse_v1 if start is _V1_START else _parse_v2
                return parse(buffer)
        if not any(start.startswith(buffer) for start in self._starts):
            raise ProtocolError(400, "no PROXY protocol header where one is required")
        return None


def _parse_v1(buffer: bytes) -> tuple[ProxyHeader, bytes] | None:
    end = buffer.find(b"\r\n", 0, _V1_LENGTH)
    if end < 0:
        if len(buffer) >= _V1_LENGTH or b"\n" in buffer:
            raise ProtocolError(400, "PROXY protocol v1 line is not ended")
        return None
    rest = buffer[end + 2 :]
    fields = buffer[:end].split(b" ")
    # Ignore the rest of the line after UNKNOWN (section 2.1).
    if fields[1] == b"UNKNOWN":
        return ProxyHeader(None, None), rest
    if len(fields) != 6 or fields[1] not in (b"TCP4", b"TCP6"):
        raise ProtocolError(400, "malformed PROXY protocol v1 line")
    kind = IPv4Address if fields[1] == b"TCP4" else IPv6Address
    try:
        source, destination = (str(kind(field.decode("ascii"))) for field in fields[2:4])
    except ValueError:
        raise ProtocolError(400, "invalid address in a PROXY protocol v1 line") from None
    ports = [int(field) for field in fields[4:] if _PORT.fullmatch(field)]
    if len(ports) != 2 or max(ports) > 65535:
        raise ProtocolError(400, "invalid port in a PROXY protocol v1 line")
    return ProxyHeader((source, ports[0]), (destination, ports[1])), rest


def _parse_v2(buffer: bytes) -> tuple[ProxyHeader, bytes] | None:
    if len(buffer) < 16:
        return None
    command, family = buffer[12], buffer[13]
    length = int.from_bytes(buffer[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise ProtocolError(400, "unknown PROXY protocol version or command")
    if length > _V2_LENGTH:
        raise ProtocolError(400, "PROXY protocol v2 header too long")
    needed = _ADDRESS_LENGTHS.get(family)
    if command == _PROXY and (needed is None or length < needed):
        raise ProtocolError(400, "unknown or incomplete address in a PROXY protocol v2 header")
    if len(buffer) < 16 + length:
        return None
    rest = buffer[16 + length :]
    # With LOCAL, the balancer itself is the client, for example for a health check (section 2.2).
    # TLVs after the addresses are ignored.
    if command == _LOCAL or family not in (_TCP4, _TCP6):
        return ProxyHeader(None, None), rest
    size = 4 if family == _TCP4 else 16
    kind = IPv4Address if family == _TCP4 else IPv6Address
    block = buffer[16 : 16 + 2 * size + 4]
    source, destination = str(kind(block[:size])), str(kind(block[size : 2 * size]))
    ports = block[2 * size :]
    return (
        ProxyHeader(
            (source, int.from_bytes(ports[:2], "big")),
            (destination, int.from_bytes(ports[2:], "big")),
        ),
        rest,
    )
