"""HTTP/2, which the `async` worker speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.http.negotiate import ALPN, has_http2
from servo.settings.setting import Setting
from servo.settings.types import Choice, Size, TextList, Whole

if TYPE_CHECKING:
    from pathlib import Path

_HTTP2 = "HTTP/2"
_MISSING = "HTTP/2 needs the h2 library: pip install 'servo-server[http2]'"


class NotInstalledError(ValueError):
    """A value that asks for HTTP/2, where there is none."""

    advice = _MISSING


def _version(text: str) -> str:
    word = text.strip().lower()
    if word not in ALPN:
        raise ValueError("no such version")
    return word


class Versions(TextList):
    """Versions of HTTP, the best first."""

    def check(self, value: Any, base: Path) -> None:
        """HTTP/2 must be there where it is asked for by name."""
        if "h2" in value and not has_http2():
            raise NotInstalledError


class Cleartext(Choice):
    """How HTTP/2 may begin without TLS."""

    def check(self, value: Any, base: Path) -> None:
        """See Versions."""
        if value != "off" and not has_http2():
            raise NotInstalledError


SETTINGS = [
    Setting(
        name="http_protocols",
        type=Versions(
            metavar="h2,h1", valid="h1, h2, or both, the best first", commas=True, item=_version
        ),
        default=None,
        nullable=True,
        section=_HTTP2,
        help="The versions of HTTP that TLS clients may choose from, the best first.",
        details="""\
Unset: `h2,h1` where the h2 library is installed, `h1` elsewhere. Only the `async` worker speaks
HTTP/2; the others offer HTTP/1.1 alone. A client that chooses none is served HTTP/1.1.""",
    ),
    Setting(
        name="http2_cleartext",
        type=Cleartext(
            ("off", "prior-knowledge", "upgrade", "both"),
            {"false": "off", "true": "both", "0": "off", "1": "both"},
        ),
        default="off",
        bare="both",
        section=_HTTP2,
        help="Whether HTTP/2 may begin without TLS: by its first bytes, by an upgrade, or by both.",
        details="""\
Only for peers that `forwarded_allow_ips` names, or whose PROXY protocol header was taken; to
others it is off. HTTP/1 is served beside it.""",
    ),
    Setting(
        name="http2_max_concurrent_streams",
        type=Whole(1, maximum=(1 << 31) - 1),
        default=100,
        unit="requests",
        section=_HTTP2,
        help="How many requests of one HTTP/2 connection are served at a time.",
        details="The next ones are refused, and may be sent again.",
    ),
    Setting(
        name="http2_initial_window_size",
        type=Whole(1, maximum=(1 << 31) - 1),
        default=65535,
        unit="bytes",
        section=_HTTP2,
        help="How much of a request's body a client may send before the app has read it.",
        details="""\
For each request: a connection may take this many bytes of memory for each of its
`http2_max_concurrent_streams`. More lets a distant client upload faster.""",
    ),
    Setting(
        name="http2_max_frame_size",
        type=Whole(16384, maximum=(1 << 24) - 1),
        default=16384,
        unit="bytes",
        section=_HTTP2,
        help="The biggest HTTP/2 frame that is taken.",
    ),
    Setting(
        name="http2_max_header_list_size",
        type=Size(),
        default=65536,
        unit="bytes",
        section=_HTTP2,
        help="A request's header fields, decompressed, with 32 bytes for each; 0: no limit.",
        details="""\
A bigger list ends the connection. The limits of HTTP/1 hold as well, and are answered with 431.""",
    ),
]
