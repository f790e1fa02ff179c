"""The time that a request has spent in queues before Servo read it.

A proxy writes the time at which it got the request into X-Request-Start, or into X-Queue-Start. The
difference to now is the time that the request has waited: in the proxy, in the accept queue and in
the socket. It grows before anything else when there are too few workers. There is no standard, but
these forms are in use:

    t=1700000000.123        nginx: `proxy_set_header X-Request-Start "t=${msec}";`
    1700000000123           Heroku's router
    t=1700000000123456      HAProxy: `http-request set-header X-Request-Start t=%[date(0,us)]`, and
                            Apache: `RequestHeader set X-Request-Start "%t"`

The unit is not given. But seconds, milliseconds, microseconds and nanoseconds since 1970 differ by
a factor of 1000, so the size of the number shows it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES = (b"x-request-start", b"x-queue-start")

# A value that differs more from the server's clock is not a time in one of these units, or a clock
# is wrong. No proxy keeps a request for so long.
MAX_NS = 600_000_000_000

_TIME = re.compile(rb"(?:t=)?([0-9]{9,20})(?:\.([0-9]{1,9})[0-9]*)?")
_SECONDS_BELOW = 10**11  # the year 5138; as milliseconds, this is 1973
_UNITS_NS = (1_000_000_000, 1_000_000, 1_000, 1)
# No value is longer. Don't search a longer one.
_MAX_LENGTH = 40


def queue_ns(named: Mapping[bytes, bytes], now_ns: int) -> int:
    """How long ago a proxy got a request, in nanoseconds; -1 if it doesn't say so.

    named   the request's headers by name
    now_ns  nanoseconds since the epoch

    Returns 0 for a time in the future, because the clocks of two machines differ a little.
    """
    for name in NAMES:
        value = named.get(name)
        start_ns = -1 if value is None else _parse(value)
        if start_ns >= 0 and abs(now_ns - start_ns) <= MAX_NS:
            return max(now_ns - start_ns, 0)
    return -1


def _parse(value: bytes) -> int:
    """A time in nanoseconds since the epoch; -1 if the value is not a time."""
    match = _TIME.fullmatch(value) if len(value) <= _MAX_LENGTH else None
    if match is None:
        return -1
    whole, fraction = match.groups()
    number = int(whole)
    limit = _SECONDS_BELOW
    for unit_ns in _UNITS_NS:
        if number < limit:
            part_ns = int(fraction.ljust(9, b"0")) * unit_ns // 10**9 if fraction else 0
            return number * unit_ns + part_ns
        limit *= 1000
    return -1
