"""The first bytes of a connection: the PROXY protocol's header, and the version of HTTP.

A proxy that only passes bytes on can't add a header field to requests. Instead it sends the PROXY
protocol's header, one line or block with its client's address, before the first request.

HTTP/1 or HTTP/2 follows. With TLS the handshake has chosen one of them. Without TLS the first bytes
decide (see `http.negotiate`). All of these bytes can arrive in any number of pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from servo.http.errors import ProtocolError
from servo.http.forwarded import TrustedPeers
from servo.http.negotiate import Sniffer
from servo.http.proxy_protocol import ProxyProtocolReader

if TYPE_CHECKING:
    from servo.http.proxy_protocol import ProxyHeader
    from servo.settings.sources import Settings


class ProxyHeaderReader(Protocol):
    """Reads the PROXY protocol's header of one connection."""

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        """See ProxyProtocolReader.feed."""


class ProtocolDetector:
    """Reads the first bytes of a connection until its version of HTTP is known.

    proxy_reader  reads the PROXY protocol's header; None if none is expected
    detect_h2     whether the client may begin with HTTP/2
    """

    __slots__ = ("_header", "_proxy_reader", "_sniffer")

    def __init__(self, proxy_reader: ProxyHeaderReader | None, detect_h2: bool) -> None:
        self._proxy_reader = proxy_reader
        self._sniffer = Sniffer() if detect_h2 else None
        self._header: ProxyHeader | None = None

    def feed(self, data: bytes) -> tuple[ProxyHeader | None, bool, bytes] | None:
        """Take received bytes. Returns None until there are enough to decide.

        When there are, returns the PROXY protocol's header (None if none is expected), whether
        HTTP/2 follows, and the bytes received after the header. Raises ProtocolError.
        """
        if self._proxy_reader is not None:
            found = self._proxy_reader.feed(data)
            if found is None:
                return None
            self._proxy_reader = None
            self._header, data = found
        if self._sniffer is None:
            return self._header, False, data
        sniffed = self._sniffer.feed(data)
        return None if sniffed is None else (self._header, *sniffed)


class _Forbidden:
    """Refuses a peer that is not one of `proxy_allow_ips`.

    With `proxy_protocol`, all clients must come through the proxy. Any other peer has bypassed the
    proxy.
    """

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        raise ProtocolError(403, "this peer is not one of proxy_allow_ips")


class ProxyProtocol:
    """Applies the settings `proxy_protocol` and `proxy_allow_ips` in one worker."""

    def __init__(self, settings: Settings) -> None:
        self._mode: str = settings.proxy_protocol
        self._allowed = TrustedPeers(settings.proxy_allow_ips)

    def header_reader(self, peer: tuple[str, int] | None) -> ProxyHeaderReader | None:
        """Make the reader of a new connection's header; None if connections have no header.

        peer  the socket's (host, port); None for a Unix socket
        """
        if self._mode == "off":
            return None
        if (peer[0] if peer else None) not in self._allowed:
            return _Forbidden()
        return ProxyProtocolReader(self._mode)
