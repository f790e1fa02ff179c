"""Counts what the threads of an `async` worker's pool do, for the metrics.

The counts are kept by the event loop's thread, which hands the calls to the pool. Only the start of
each call is measured by the pool's thread.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from servo.shared_memory.row_layout import THREAD_REQUESTS, count_thread_wait

if TYPE_CHECKING:
    from collections.abc import Callable


class PooledCall:
    """One call of a function by a thread of the pool.

    has_to_wait  whether all threads were busy when it was handed over
    """

    __slots__ = ("_began_ns", "_queued_ns", "has_to_wait")

    def __init__(self, has_to_wait: bool) -> None:
        self.has_to_wait = has_to_wait
        self._queued_ns = monotonic_ns()
        self._began_ns = 0

    def run(self, function: Callable[[], object]) -> None:
        """Call the function. The thread of the pool calls this."""
        self._began_ns = monotonic_ns()
        function()

    @property
    def waited_ns(self) -> int:
        """How long the call has waited for its thread, in nanoseconds; -1 if it never got one."""
        return self._began_ns - self._queued_ns if self._began_ns else -1

    def held_ns(self, now_ns: int) -> int:
        """How long the call has held its thread, in nanoseconds; 0 while it waits for one.

        now_ns  monotonic nanoseconds
        """
        return max(now_ns - self._began_ns, 0) if self._began_ns else 0


class PoolMeter:
    """Counts the calls in one pool. Only the event loop's thread uses it.

    row      the worker's row of the scoreboard
    threads  the number of threads in the pool
    """

    def __init__(self, row: memoryview, threads: int) -> None:
        self._row = row
        self.threads = threads
        self._calls: set[PooledCall] = set()
        self._held_ns = 0

    def enter(self) -> PooledCall:
        """Count a call that is handed to the pool."""
        call = PooledCall(len(self._calls) >= self.threads)
        self._calls.add(call)
        self._row[THREAD_REQUESTS] = len(self._calls)
        return call

    def leave(self, call: PooledCall) -> None:
        """Count the end of a call, or that it was cancelled before it got a thread."""
        self._calls.discard(call)
        self._row[THREAD_REQUESTS] = len(self._calls)
        self._held_ns += call.held_ns(monotonic_ns())
        if call.has_to_wait and call.waited_ns >= 0:
            count_thread_wait(self._row, call.waited_ns)

    def held_ns(self, now_ns: int) -> int:
        """How long calls have held threads so far: the sum over all threads, in nanoseconds.

        now_ns  monotonic nanoseconds
        """
        return self._held_ns + sum(call.held_ns(now_ns) for call in self._calls)
