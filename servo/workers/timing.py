"""Times that drivers of several worker classes and protocols share."""

from __future__ import annotations

from typing import Final

# Seconds between two heartbeats while requests are in flight. The siblings' load gate reads these
# beats, and takes a worker that misses one for blocked: see BLOCKED_AFTER_NS of the scoreboard.
BEAT_S: Final = 0.005
# Seconds that a stopping worker waits for the first request of a connection that it has only just
# accepted. The client has connected to send one, and would lose it.
FRESH_GRACE_S: Final = 1.0
