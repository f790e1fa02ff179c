"""Connections that a proxy opens for its clients, with the PROXY protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from servo.http.errors import ProtocolError
from servo.http.forwarded import TrustedPeers
from servo.http.negotiate import Sniffer
from servo.http.proxy_protocol import ProxyProtocolReader

if TYPE_CHECKING:
    from servo.http.proxy_protocol import ProxyHeader
    from servo.settings.sources import Settings


class Preface(Protocol):
    """Reads what comes before HTTP on a connection."""

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        """See ProxyProtocolReader.feed."""


class Beginning:
    """What comes before a connection's first request: a PROXY protocol header, and the first bytes
    of HTTP as far as they tell its version.

    preface  reads the header; None where none is expected
    sniffs   whether the connection may begin as HTTP/2
    """

    __slots__ = ("_header", "_preface", "_sniffer")

    def __init__(self, preface: Preface | None, sniffs: bool) -> None:
        self._preface = preface
        self._sniffer = Sniffer() if sniffs else None
        self._header: ProxyHeader | None = None

    def feed(self, data: bytes) -> tuple[ProxyHeader | None, bool, bytes] | None:
        """The header, whether HTTP/2 follows, and what was received of it; None: too early.

        Raises ProtocolError.
        """
        if self._preface is not None:
            found = self._preface.feed(data)
            if found is None:
                return None
            self._preface = None
            self._header, data = found
        if self._sniffer is None:
            return self._header, False, data
        sniffed = self._sniffer.feed(data)
        return None if sniffed is None else (self._header, *sniffed)


class _Forbidden:
    """Stands for a peer that may not speak for others. It is refused, not served as itself: once
    the header is asked for, a connection without it has gone around the proxy."""

    def feed(self, data: bytes) -> tuple[ProxyHeader, bytes] | None:
        raise ProtocolError(403, "this peer is not one of proxy_allow_ips")


class ProxyProtocol:
    """The settings `proxy_protocol` and `proxy_allow_ips`, for the connections of one worker."""

    def __init__(self, settings: Settings) -> None:
        self._mode: str = settings.proxy_protocol
        self._allowed = TrustedPeers(settings.proxy_allow_ips)

    def preface(self, peer: tuple[str, int] | None) -> Preface | None:
        """What is to read the beginning of a connection from this peer; None: nothing."""
        if self._mode == "off":
            return None
        if (peer[0] if peer else None) not in self._allowed:
            return _Forbidden()
        return ProxyProtocolReader(self._mode)
