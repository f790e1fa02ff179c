"""WebSocket, which the `async` worker speaks with ASGI apps."""

from __future__ import annotations

from servo.settings.setting import Setting
from servo.settings.types import Seconds, Size, Switch, Whole

_WEBSOCKET = "WebSocket"

SETTINGS = [
    Setting(
        name="websocket",
        type=Switch(),
        default=True,
        section=_WEBSOCKET,
        help="Let ASGI apps accept WebSockets.",
        details="Off, or without the package `websockets`: a request for one is an ordinary GET.",
    ),
    Setting(
        name="websocket_max_message_size",
        type=Size(),
        default=16 << 20,
        unit="bytes",
        section=_WEBSOCKET,
        help="The biggest message that is taken, decompressed; 0: no limit.",
        details="""\
A bigger one closes the connection with 1009. A message is kept in memory until it is complete.""",
    ),
    Setting(
        name="websocket_max_queue",
        type=Whole(1),
        default=32,
        unit="messages",
        section=_WEBSOCKET,
        help="Messages that may wait for the app; reading pauses past it, or past 64 KiB of them.",
    ),
    Setting(
        name="websocket_ping_interval",
        type=Seconds(),
        default=20.0,
        unit="seconds",
        section=_WEBSOCKET,
        help="How often a client is sent a ping; 0: never.",
        details="""\
So that proxies and firewalls see traffic, and a client that is gone is noticed. Looked at once a
second.""",
    ),
    Setting(
        name="websocket_ping_timeout",
        type=Seconds(),
        default=20.0,
        unit="seconds",
        section=_WEBSOCKET,
        help="How long a client may be silent after a ping; 0: for ever.",
        details="""\
Then the connection is closed with 1011. Whatever comes counts as an answer, and the clock stands
still while the app does not take what has come.""",
    ),
    Setting(
        name="websocket_per_message_deflate",
        type=Switch(),
        default=True,
        section=_WEBSOCKET,
        help="Compress messages where the client offers it (permessage-deflate).",
        details="""\
About 45 KiB of memory for each connection that uses it, and the time to compress: turn it off where
messages are compressed already, or where memory or CPU matter more than bytes.""",
    ),
]
