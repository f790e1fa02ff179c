"""Settings of WebSocket, for the `async` worker with ASGI apps."""

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
        details="""\
If this is off, or if the package `websockets` is missing, the app gets the request for a WebSocket
as an ordinary GET.""",
    ),
    Setting(
        name="websocket_max_message_size",
        type=Size(),
        default=16 << 20,
        unit="bytes",
        section=_WEBSOCKET,
        help="The largest message that is accepted, decompressed; 0: no limit.",
        details="""\
A larger message closes the connection with code 1009. A message is kept in memory until it is
complete.""",
    ),
    Setting(
        name="websocket_max_queue",
        type=Whole(1),
        default=32,
        unit="messages",
        section=_WEBSOCKET,
        help="How many messages, or 64 KiB of them, may wait for the app before reading pauses.",
    ),
    Setting(
        name="websocket_ping_interval",
        type=Seconds(),
        default=20.0,
        unit="seconds",
        section=_WEBSOCKET,
        help="How often to send clients a ping; 0: never.",
        details="""\
Pings keep idle connections open in proxies and firewalls, and show when a client is gone. A ping
may
be sent up to a second late.""",
    ),
    Setting(
        name="websocket_ping_timeout",
        type=Seconds(),
        default=20.0,
        unit="seconds",
        section=_WEBSOCKET,
        help="How long a client may be silent after a ping; 0: no limit.",
        details="""\
After this time the connection is closed with code 1011. Any data from the client counts as an
answer. Time in which received messages wait for the app does not count.""",
    ),
    Setting(
        name="websocket_per_message_deflate",
        type=Switch(),
        default=True,
        section=_WEBSOCKET,
        help="Compress messages if the client offers it (permessage-deflate).",
        details="""\
Compression costs CPU time, and about 45 KiB of memory for each connection that uses it. Turn it off
if messages are compressed already, or if memory or CPU time matter more than bandwidth.""",
    ),
]
