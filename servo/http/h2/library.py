"""The `h2` library as it is used here: it keeps the states, the windows and the compression.

What a message must be is judged elsewhere, and header fields don't pass through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from servo.http.h2.hpack import FieldEncoder

if TYPE_CHECKING:
    from servo.http.h2.hpack import FieldKeeper
    from servo.http.limits import H2Limits

_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    # Judged by `h2_head` and `serialise`.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class Library(H2Connection):
    """A server's side of one connection.

    tunnels  whether to offer extended CONNECT (RFC 8441)
    decoder  takes the header fields that come
    """

    # How many closed streams it remembers, to tell a late frame from a wrong one; 65536 otherwise.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self, limits: H2Limits, tunnels: bool, decoder: FieldKeeper) -> None:
        super().__init__(_CONFIGURATION)
        self.encoder = FieldEncoder()  # type: ignore[assignment]
        self.decoder = decoder
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.window,
                SettingCodes.MAX_FRAME_SIZE: limits.frame,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.header_list,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: int(tunnels),
            },
        )
        self.max_inbound_frame_size = limits.frame
