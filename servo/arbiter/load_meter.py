"""Measures the load of the server for autoscaling: see `core.autoscale`.

The requests in flight come from the scoreboard, the CPU time from /proc, and the lengths of the
accept queues from the kernel. There are four measurements a second; one of 16 workers takes about
1 ms. The slow parts are less frequent: the CPU time once a second, and the memory (PSS) of the
largest worker, which takes 23 ms for 1 GB, every 10 s.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from servo.arbiter.cgroup_memory import memory_left
from servo.arbiter.core.autoscale import SAMPLE_S, ServerLoad, WorkerLoad
from servo.metrics import accept_queue, procfs
from servo.metrics.saturation import BLOCKED_NS
from servo.settings.cpus import count_cpus
from servo.shared_memory import row_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from servo.arbiter.core.worker_table import WorkerEntry

# Seconds between two measurements of CPU time.
_SLOW_S = 1.0
# Seconds between two measurements of a worker's PSS.
_MEMORY_S = 10.0
# A larger number of requests is reduced to this, because a compromised worker may write any number
# into its row.
_MAX_REQUESTS = 1 << 20


class LoadMeter:
    """Measures the load.

    addresses   returns the listeners' addresses, in the form of `getsockname`
    clock       returns monotonic seconds
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[tuple[str, int] | str | bytes]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = addresses
        self._clock = clock
        self._cpus = count_cpus()
        self._next_at = 0.0
        self._slow_at = 0.0
        self._memory_at = 0.0
        # serial -> CPU seconds so far, and the share of a CPU since the previous measurement
        self._cpu: dict[int, tuple[float, float]] = {}
        self._worker_memory: int | None = None

    def wake_at(self, is_on: bool) -> float:
        """When the next measurement is due, in monotonic seconds; infinity without autoscaling."""
        return self._next_at if is_on else math.inf

    def measure(
        self, workers: Iterable[WorkerEntry], row_of: Callable[[int], memoryview | None]
    ) -> ServerLoad:
        """Measure the load.

        workers  the workers that were forked and not yet reaped
        row_of   returns a worker's row of the scoreboard, by serial
        """
        now = self._clock()
        self._next_at = now + SAMPLE_S
        ready = [worker for worker in workers if worker.ready]
        if now >= self._slow_at:
            self._measure_slowly(ready, now)
        loads = []
        for worker in ready:
            row = row_of(worker.serial)
            if row is not None:
                loads.append(self._load_of(worker, row))
        left = memory_left()  # not an older value: it must match the number of ready workers
        queues = accept_queue.queues(self._addresses())
        waiting = sum(queue.waiting for queue in queues if queue is not None)
        return ServerLoad(loads, waiting, self._cpus, left, self._worker_memory)

    def _load_of(self, worker: WorkerEntry, row: memoryview) -> WorkerLoad:
        requests = min(row[row_layout.IN_FLIGHT], _MAX_REQUESTS)
        age_ns = row_layout.now_ns() - row[row_layout.BEAT_NS]
        _, cpu = self._cpu.get(worker.serial, (0.0, 0.0))
        blocked = requests > 0 and age_ns > BLOCKED_NS
        return WorkerLoad(worker.serial, requests, worker.capacity, cpu, blocked)

    def _measure_slowly(self, ready: list[WorkerEntry], now: float) -> None:
        elapsed = now - self._slow_at + _SLOW_S
        self._slow_at = now + _SLOW_S
        before, self._cpu = self._cpu, {}
        for worker in ready:
            used = procfs.cpu_of(worker.pid) if worker.pid is not None else None
            if used is None:
                continue
            total = used.user + used.system
            last = before.get(worker.serial)
            share = 0.0 if last is None else max(0.0, total - last[0]) / elapsed
            self._cpu[worker.serial] = total, share
        if now >= self._memory_at:
            self._memory_at = now + _MEMORY_S
            self._measure_memory(ready)

    def _measure_memory(self, ready: list[WorkerEntry]) -> None:
        sizes = [
            (procfs.resident_of(worker.pid) or 0, worker.pid) for worker in ready if worker.pid
        ]
        if not sizes:
            return
        resident, pid = max(sizes)
        self._worker_memory = procfs.proportional_of(pid) or resident
