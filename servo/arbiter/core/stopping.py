"""The two stages of a stop.

A stop does not always begin at once. With `pre_stop_delay`, the server first reports "not ready" on
its readiness endpoint and goes on serving for a while, so that load balancers can send new requests
elsewhere: that is a `PendingStop`. Then the stop itself begins, and the listeners close: from there
on it is `Stopping`, and there is no way back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PendingStop:
    """The server still serves, and begins to stop later.

    until  when the stop begins, in seconds
    why    who or what asked for the stop
    """

    until: float
    why: str


@dataclass(slots=True)
class Stopping:
    """The server is stopping.

    quick  open requests are cut
    code   the exit code of the arbiter
    """

    quick: bool
    code: int
