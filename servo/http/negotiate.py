"""Which version of HTTP a connection speaks: by ALPN, by its first bytes, or by an upgrade."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from binascii import Error as BinasciiError
from importlib.util import find_spec
from typing import TYPE_CHECKING

from servo.http.headers import tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.http.events import Request

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ALPN = {"h1": "http/1.1", "h2": "h2"}


def has_http2() -> bool:
    """Whether the `h2` library is installed (the extra `http2`)."""
    return find_spec("h2") is not None


def protocols(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The versions to speak, "h1" and "h2", the best first.

    wanted  the setting `http_protocols`; None: HTTP/2 too, where its library is installed
    """
    if wanted is not None:
        return tuple(dict.fromkeys(wanted))
    return ("h2", "h1") if has_http2() else ("h1",)


class Sniffer:
    """Tells HTTP/2 with prior knowledge (RFC 9113 section 3.3) by its first bytes.

    An HTTP/1 request differs by its fourth byte at the latest: none has the method PRI. So nobody
    waits for longer than it takes to send those. A whole first line that names no version of HTTP
    is taken for HTTP/2 with a wrong preface, which a client of HTTP/2 wants to be told in its own
    protocol (RFC 9113 section 3.4).
    """

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> tuple[bool, bytes] | None:
        """Whether it is HTTP/2, and all that was received; None: too early to tell."""
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

    None for any other: an upgrade may always be ignored (RFC 9110 section 7.8).
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
