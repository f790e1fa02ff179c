"""Settings of HTTP/2, for the `async` worker."""

from __future__ import annotations

from servo.http.negotiate import ALPN
from servo.settings.setting import Setting
from servo.settings.types import Choice, Size, TextList, Whole

_HTTP2 = "HTTP/2"


def _version(text: str) -> str:
    version = text.strip().lower()
    if version not in ALPN:
        raise ValueError("no such version")
    return version


SETTINGS = [
    Setting(
        name="http_protocols",
        type=TextList(
            metavar="h2,h1",
            valid="h1, h2, or both, the preferred one first",
            commas=True,
            item=_version,
        ),
        default=None,
        nullable=True,
        section=_HTTP2,
        help="The HTTP versions offered to TLS clients, the preferred one first.",
        details="""\
Unset: `h2,h1`. Only the `async` worker speaks HTTP/2;
other workers offer HTTP/1.1 alone. Clients that choose no version get HTTP/1.1.""",
    ),
    Setting(
        name="http2_cleartext",
        type=Choice(
            ("off", "prior-knowledge", "upgrade", "both"),
            {"false": "off", "true": "both", "0": "off", "1": "both"},
        ),
        default="off",
        bare="both",
        section=_HTTP2,
        help="Whether clients may use HTTP/2 without TLS: by prior knowledge, by upgrade, or both.",
        details="""\
This applies only to peers that `forwarded_allow_ips` trusts or that sent an accepted PROXY protocol
header; for all others it is off. Clients may use HTTP/1 as well.""",
    ),
    Setting(
        name="http2_max_concurrent_streams",
        type=Whole(1, maximum=(1 << 31) - 1),
        default=100,
        unit="requests",
        section=_HTTP2,
        help="How many requests of one HTTP/2 connection are served at a time.",
        details="Further requests are refused (REFUSED_STREAM); clients may safely retry them.",
    ),
    Setting(
        name="http2_initial_window_size",
        type=Whole(1, maximum=(1 << 31) - 1),
        default=65535,
        unit="bytes",
        section=_HTTP2,
        help="How much of a request's body a client may send before the app reads it.",
        details="""\
The window is per request, so a connection may use this much memory for each of its
`http2_max_concurrent_streams`. A larger window lets distant clients upload faster.""",
    ),
    Setting(
        name="http2_max_frame_size",
        type=Whole(16384, maximum=(1 << 24) - 1),
        default=16384,
        unit="bytes",
        section=_HTTP2,
        help="The largest HTTP/2 frame that is accepted.",
    ),
    Setting(
        name="http2_max_header_list_size",
        type=Size(),
        default=65536,
        unit="bytes",
        section=_HTTP2,
        help="The largest decompressed header list, counting 32 bytes per field; 0: no limit.",
        details="""\
A larger list ends the connection. The limits of HTTP/1 apply as well; a request over one of them is
answered with 431.""",
    ),
]
