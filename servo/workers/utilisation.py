"""How much of a worker is in use: its utilisation.

A worker has several resources, and it is as busy as the busiest of them:

* The CPU. Python's lock (GIL) lets one thread run at a time, so the CPU time of all threads counts
  as a share of one CPU. Without the GIL, only the main thread counts: it runs the event loop or the
  poller, and `held_ns` covers the application's threads. Time in which the main thread waited for a
  CPU counts, too: a worker on a busy machine has no time left although it uses less than a CPU.
* The resources that requests hold: the only thread of a `sync` worker, the pool of a `thread`
  worker, the event loop. A request may hold one without using a CPU, for example while it waits for
  a database. Each worker class measures this itself: see `Worker.held_ns`.

All measures are sums since the start, so that one look a second is enough, and requests cost
nothing.
"""

from __future__ import annotations

import sys
from collections import deque
from time import process_time_ns, thread_time_ns
from typing import TYPE_CHECKING

from servo.metrics.procfs import waited_ns
from servo.shared_memory.row_layout import FULL_UTILISATION, UTILISATION_WINDOW_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# With less CPU time than this since the last look, a worker was idle, and hardly waited for a CPU.
_IDLE_NS = 1_000_000


class UtilisationMeter:
    """Computes the utilisation of this process's worker.

    cpu_ns  returns the CPU time that the worker has used or waited for, in nanoseconds
    """

    def __init__(self, cpu_ns: Callable[[], int] | None = None) -> None:
        self._cpu_ns = cpu_ns or CPUTime().total_ns
        self._looks: deque[tuple[int, tuple[int, ...]]] = deque()

    def measure(self, now_ns: int, held_ns: Sequence[int]) -> int:
        """The utilisation over the last seconds, from 0 to FULL_UTILISATION. Call it once a second.

        now_ns   monotonic nanoseconds
        held_ns  for each resource of the worker class, how long it was in use so far
        """
        looks = self._looks
        looks.append((now_ns, (self._cpu_ns(), *held_ns)))
        while len(looks) > 2 and now_ns - looks[1][0] >= UTILISATION_WINDOW_NS:
            looks.popleft()
        start_ns, before = looks[0]
        elapsed_ns = now_ns - start_ns
        if elapsed_ns <= 0:
            return 0
        used_ns = max(after - start for after, start in zip(looks[-1][1], before, strict=True))
        return min(max(used_ns * FULL_UTILISATION // elapsed_ns, 0), FULL_UTILISATION)


class CPUTime:
    """The CPU time that this process has used or waited for; see above."""

    def __init__(self) -> None:
        self._used_ns = self._waited_ns = 0

    def total_ns(self) -> int:
        """The sum since the start of the process, in nanoseconds. Call it in the main thread."""
        has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        used_ns = process_time_ns() if has_gil else thread_time_ns()
        if used_ns - self._used_ns >= _IDLE_NS:
            # Asking the kernel takes 20 us, so an idle worker doesn't.
            self._used_ns = used_ns
            self._waited_ns = waited_ns()
        return used_ns + self._waited_ns
