"""The least rate at which a client must send a request body.

If only pauses were limited, a client could hold a connection for any time by sending one byte now
and then (a Slowloris attack with the body). So there are two limits: `body_timeout` for each pause,
and `body_min_rate` for the average rate of the whole body. The rate is enforced only after the
first `body_timeout` seconds, because even a good connection may begin slowly.

Time in which the server itself does not read is not counted against the client: see `pause`.
"""

from __future__ import annotations


class BodyRate:
    """Computes when to give up on one request body.

    gap_s   the longest pause in seconds. The rate is enforced only after this time. 0 for no limits
    rate    the minimum average rate, in bytes per second; 0 for none
    now_ns  when the body begins, in monotonic nanoseconds
    """

    __slots__ = ("_gap_ns", "_ns_per_byte", "_received", "_start_ns")

    def __init__(self, gap_s: float, rate: int, now_ns: int) -> None:
        self._gap_ns = int(gap_s * 1e9)
        self._ns_per_byte = 1_000_000_000 // rate if rate else 0
        self._received = 0
        self._start_ns = now_ns

    def deadline_ns(self, now_ns: int, received: int) -> int:
        """When to give up, in monotonic nanoseconds; 0 for never.

        now_ns    the current time, in monotonic nanoseconds
        received  how many bytes have arrived since the last call
        """
        if not self._gap_ns:
            return 0
        self._received += received
        deadline = now_ns + self._gap_ns
        if self._ns_per_byte:
            due = self._start_ns + self._gap_ns + self._received * self._ns_per_byte
            return min(deadline, due)
        return deadline

    def pause(self, ns: int) -> None:
        """Don't count the time that reading was paused against the client.

        ns  how long reading was paused, in nanoseconds
        """
        self._start_ns += ns
