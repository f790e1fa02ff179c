"""Which version of HTTP a connection speaks.

A client chooses it in the TLS handshake (ALPN), by its first bytes (prior knowledge), or by an
upgrade from HTTP/1.1.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from binascii import Error as BinasciiError
from importlib.util import find_spec
from typing import TYPE_CHECKING

from servo.http.headers import tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.http.events import Request

# The first bytes of every HTTP/2 client (RFC 9113 section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Our names of the versions to those in TLS handshakes.
ALPN = {"h1": "http/1.1", "h2": "h2"}


def has_http2() -> bool:
    """Whether the `h2` library is installed (the extra `http2`)."""
    return find_spec("h2") is not None


def protocols(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The versions to offer, "h1" and "h2", the preferred one first.

    wanted  the setting `http_protocols`; None for HTTP/1.1, and HTTP/2 if its library is installed
    """
    if wanted is not None:
        return tuple(dict.fromkeys(wanted))
    return ("h2", "h1") if has_http2() else ("h1",)


class Sniffer:
    """Recognises HTTP/2 with prior knowledge (RFC 9113 section 3.3) by a connection's first bytes.

    An HTTP/1 request differs from the preface by its fourth byte at the latest, since no method is
    called PRI. So a client of HTTP/1 never waits for this. A first line without a version of HTTP
    is taken for HTTP/2 with a wrong preface: its client expects an error in its own protocol (RFC
    9113 section 3.4).
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> tuple[bool, bytes] | None:
        """Take received bytes. Whether it is HTTP/2, and all bytes so far; None: too early to say.

        data  the bytes that were read
        """
        data = self._data + data
        if data.startswith(PREFACE):
            return True, data
        if PREFACE.startswith(data):
            self._data = data
            return None
        line, ended, _ = data.lstrip(b"\r\n").partition(b"\n")
        return bool(ended) and b"HTTP/" not in line, data


def upgrade_settings(request: Request) -> bytes | None:
    """The SETTINGS payload of a valid request for `Upgrade: h2c` (RFC 7540 section 3.2.1).

    request  a request whose `Connection` and `Upgrade` name h2c

    None if it is not valid: the request is served over HTTP/1.1 then, since a server may always
    ignore an upgrade (RFC 9110 section 7.8).
    """
    found = [value for name, value in request.headers if name == b"http2-settings"]
    options = tokens(request.named.get(b"connection", b""))
    if len(found) != 1 or b"http2-settings" not in options or b"upgrade" not in options:
        return None
    text = found[0].rstrip(b"=")
    if text.translate(None, _BASE64URL):
        return None
    try:
        payload = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except BinasciiError:
        return None
    return payload if len(payload) % 6 == 0 else None


_BASE64URL = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
