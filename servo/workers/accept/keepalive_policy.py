"""Whether its requests hold a worker up so much that its connections had better go elsewhere."""

from __future__ import annotations

from typing import Final

# To come anew costs some 100 us, and 500 us over TLS. Whose mean request holds its worker for ten
# times as long closes connections, and does so for a while.
QUICK_NS: Final = 1_000_000
TLS_QUICK_NS: Final = 5_000_000
# What a handshake may take (RSA with 4096 bits: 5 ms), which holds up an event loop, too.
HANDSHAKE_NS: Final = 10_000_000
WARY_NS: Final = 30_000_000_000
# Who is held up for less than a twentieth of the time has no wait worth a new connection.
_SHARE: Final = 20


class Habit:
    """Whether to close connections after each response, for one of several workers.

    While a `sync` worker runs a request, or one blocks the loop of an `async` worker, those on its
    other connections wait. Siblings may be idle that would take them, if they came anew.

    tls  connections begin with a handshake
    """

    __slots__ = (
        "_asked_ns",
        "_busy_ns",
        "_fresh",
        "_fresh_ns",
        "_quick_ns",
        "_served",
        "_until_ns",
    )

    def __init__(self, tls: bool = False) -> None:
        self._quick_ns = TLS_QUICK_NS if tls else QUICK_NS
        self._fresh_ns = HANDSHAKE_NS if tls else 0
        self._asked_ns = self._busy_ns = self._served = self._fresh = self._until_ns = 0

    def is_slow(self, served: int, fresh: int, busy_ns: int, now_ns: int) -> bool:
        """To be asked about once a second.

        served, fresh   how many requests, and connections, the worker has had by now
        busy_ns         how long they held it in all, without the time it waited for a CPU: that is
                        no reason to make more work
        """
        allowed = (served - self._served) * self._quick_ns + (fresh - self._fresh) * self._fresh_ns
        busy = busy_ns - self._busy_ns
        if busy > allowed and busy > (now_ns - self._asked_ns) // _SHARE:
            self._until_ns = now_ns + WARY_NS
        self._served = served
        self._fresh = fresh
        self._busy_ns = busy_ns
        self._asked_ns = now_ns
        return now_ns < self._until_ns
