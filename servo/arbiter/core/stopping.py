"""The two stages of a stop.

With `pre_stop_delay`, a stop begins with a `PendingStop`: the server reports "not ready" on its
readiness endpoint, but still serves for a while. In this time load balancers can send new requests
to other servers. Then the second stage, `Stopping`, begins: the listeners close. Neither stage can
be undone.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PendingStop:
    """A stop that was requested, but has not begun: the server still serves.

    until  when the stop begins, in seconds
    why    who or what requested the stop
    """

    until: float
    why: str


@dataclass(slots=True)
class Stopping:
    """A stop that has begun.

    quick  whether open requests are cut off
    code   the exit code of the arbiter
    """

    quick: bool
    code: int
