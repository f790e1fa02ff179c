"""How fast a request body has to come: a limit on each pause, and a least rate over all of it."""

from __future__ import annotations


class BodyPace:
    """Computes the moment at which a client is too slow.

    gap_s   how long it may pause, and how long the rate is not asked for; 0: for ever
    rate    bytes a second that it must keep up on average after that; 0: none
    """

    __slots__ = ("_gap_ns", "_ns_per_byte", "_received", "_start_ns")

    def __init__(self, gap_s: float, rate: int, now_ns: int) -> None:
        self._gap_ns = int(gap_s * 1e9)
        self._ns_per_byte = 1_000_000_000 // rate if rate else 0
        self._received = 0
        self._start_ns = now_ns

    def deadline_ns(self, now_ns: int, received: int) -> int:
        """When to give up, now that `received` more bytes have come; 0: never."""
        if not self._gap_ns:
            return 0
        self._received += received
        deadline = now_ns + self._gap_ns
        if self._ns_per_byte:
            due = self._start_ns + self._gap_ns + self._received * self._ns_per_byte
            return min(deadline, due)
        return deadline

    def pause(self, ns: int) -> None:
        """For so long we did not read: that is not the client's fault."""
        self._start_ns += ns
