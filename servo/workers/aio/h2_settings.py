"""The settings of HTTP/2 that the connections of one `async` worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from servo.http.limits import H2Limits
from servo.http.negotiate import protocols

if TYPE_CHECKING:
    import asyncio

    from servo.net.tls import TLS
    from servo.settings.sources import Settings

# How many bytes of one stream's response may wait for the client (as in an asyncio transport).
# Above this, the application's `send` waits, and a WebSocket on the stream stops reading. Files are
# read in blocks of this size.
HIGH_WATER: Final = 65536


class H2Settings:
    """The HTTP/2 settings of one worker.

    protocols        the protocols that ALPN offers, "h1" and "h2", in order of preference
    prior_knowledge  whether a connection of a trusted peer may begin as HTTP/2 without TLS
    upgrade          whether a connection of a trusted peer may switch from HTTP/1.1 to HTTP/2
    limits           the limits that we announce to the client
    date             whether responses have a Date field
    """

    def __init__(self, settings: Settings) -> None:
        self.protocols = protocols(settings.http_protocols)
        mode = settings.http2_cleartext
        self.prior_knowledge = mode in ("prior-knowledge", "both")
        self.upgrade = mode in ("upgrade", "both")
        self.limits = H2Limits(
            streams=settings.http2_max_concurrent_streams,
            window=settings.http2_initial_window_size,
            frame=settings.http2_max_frame_size,
            header_list=settings.http2_max_header_list_size or (1 << 31) - 1,
        )
        self.date: bool = settings.date_header

    def agreed(self, transport: asyncio.BaseTransport) -> bool:
        """Whether the client has chosen HTTP/2 in the TLS handshake."""
        chosen: str | None = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        return chosen == "h2"


def h2_settings(settings: Settings, tls: TLS | None) -> H2Settings | None:
    """The HTTP/2 settings; None if no connection can use HTTP/2.

    settings  the worker's settings
    tls       the worker's TLS contexts; None if it serves plain HTTP
    """
    if "h2" not in (settings.http_protocols or ("h2",)):
        return None
    if tls is None and settings.http2_cleartext == "off":
        return None
    return H2Settings(settings)
