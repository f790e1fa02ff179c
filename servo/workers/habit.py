"""Whether a worker's requests keep it so busy that its connections had better go elsewhere."""

from __future__ import annotations

from typing import Final

# To come anew costs some 100 us, and 500 us over TLS. Whose mean request holds its worker for ten
# times as long closes connections, and does so for a while.
QUICK_NS: Final = 1_000_000
TLS_QUICK_NS: Final = 5_000_000
WARY_NS: Final = 30_000_000_000


class Habit:
    """Whether to close connections after each response, for one of several workers.

    While a `sync` worker runs a request, or one blocks the loop of an `async` worker, those on its
    other connections wait. Siblings may be idle that would take them, if they came anew.

    quick_ns  how long requests may hold the worker, each on average
    """

    __slots__ = ("_busy_ns", "_quick_ns", "_served", "_wary_until_ns")

    def __init__(self, quick_ns: int) -> None:
        self._quick_ns = quick_ns
        self._served = 0
        self._busy_ns = 0
        self._wary_until_ns = 0

    def is_slow(self, served: int, busy_ns: int, now_ns: int) -> bool:
        """To be asked about once a second.

        served, busy_ns   how many requests it has had by now, and how long they held it in all
        """
        if busy_ns - self._busy_ns > (served - self._served) * self._quick_ns:
            self._wary_until_ns = now_ns + WARY_NS
        self._served = served
        self._busy_ns = busy_ns
        return now_ns < self._wary_until_ns
