"""The settings of HTTP/2 that the connections of one `async` worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from servo.http.limits import H2Limits
from servo.http.negotiate import has_http2, protocols

if TYPE_CHECKING:
    import asyncio

    from servo.net.tls import TLS
    from servo.settings.sources import Settings

# Bytes of one stream's response that may wait for the client. Past it the application's `send`
# waits, and a WebSocket on the stream stops reading. Files are read in blocks of this size. An
# asyncio transport has the same limit.
HIGH_WATER: Final = 65536


class H2Settings:
    """How a worker speaks HTTP/2.

    protocols        the protocols that ALPN offers, "h1" and "h2", in order of preference
    prior_knowledge  whether a connection of a trusted peer may begin as HTTP/2 without TLS
    upgrade          whether a connection of a trusted peer may go over to HTTP/2 from HTTP/1.1
    limits           the limits that the client is told
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
    """The settings of HTTP/2; None if its library is missing, or no connection can speak it.

    tls   the worker's TLS contexts; None if it serves plain HTTP
    """
    if not has_http2() or "h2" not in (settings.http_protocols or ("h2",)):
        return None
    if tls is None and settings.http2_cleartext == "off":
        return None
    return H2Settings(settings)
