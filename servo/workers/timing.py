"""Times that drivers of several worker classes and protocols share."""

from __future__ import annotations

from typing import Final

# Seconds between two heartbeats while requests are in flight. If a heartbeat is late, the other
# workers' load gates count the worker as blocked: see BLOCKED_AFTER_NS of the scoreboard.
BEAT_S: Final = 0.005
# Seconds that a stopping worker waits for the first request on a new connection: its client has
# probably just connected to send one, and the request would be lost.
FRESH_GRACE_S: Final = 1.0
