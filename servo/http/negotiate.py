"""Finds out which version of HTTP a connection uses.

The client chooses it in the TLS handshake (ALPN), by its first bytes (prior knowledge), or by an
upgrade from HTTP/1.1.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from binascii import Error as BinasciiError
from typing import TYPE_CHECKING

from servo.http.headers import tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.http.events import Request

# The first bytes of every HTTP/2 client (RFC 9113 section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# Our name of a version -> its name in TLS handshakes.
ALPN = {"h1": "http/1.1", "h2": "h2"}


def protocols(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The versions to offer, of "h1" and "h2", the preferred one first.

    wanted  the setting `http_protocols`; None for both
    """
    if wanted is not None:
        return tuple(dict.fromkeys(wanted))
    return ("h2", "h1")


class Sniffer:
    """Recognises HTTP/2 with prior knowledge (RFC 9113 section 3.3) by a connection's first bytes.

    HTTP/2 begins with a fixed preface. An HTTP/1 request differs from it within the first four
    bytes, because no method is called PRI. So an HTTP/1 client never has to wait. A first line that
    does not name a version of HTTP counts as HTTP/2 with a wrong preface: such a client expects an
    error in HTTP/2 (RFC 9113 section 3.4).
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> tuple[bool, bytes] | None:
        """Take received bytes. Returns None while they are too few.

        data  the bytes that were read

        When there are enough, returns whether it is HTTP/2, and all bytes so far.
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

    request  a request with h2c in `Connection` and `Upgrade`

    Returns None if the request is not valid. It is then served over HTTP/1.1, because a server may
    always ignore an upgrade (RFC 9110 section 7.8).
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
