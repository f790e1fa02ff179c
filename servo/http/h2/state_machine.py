"""The `h2` library's connection, set up for our use: it keeps stream states and windows.

Its own checks of header fields are off: `head` judges requests, `serialise` responses, and our
codecs (`hpack`) replace its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes, Settings

from servo.http.h2.hpack import FieldEncoder

if TYPE_CHECKING:
    from servo.http.h2.hpack import FieldDecoder
    from servo.http.limits import H2Limits

_CONFIGURATION = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class StateMachine(H2Connection):
    """The server's side of one connection.

    limits   the values for our SETTINGS
    tunnels  whether to offer extended CONNECT (RFC 8441)
    decoder  keeps the header fields that arrive
    """

    # Closed streams that it remembers, to tell late frames from wrong ones. Its default is 65536.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self, limits: H2Limits, tunnels: bool, decoder: FieldDecoder) -> None:
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
