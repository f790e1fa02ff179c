"""Measures the memory of workers for `max_worker_memory` and `max_worker_memory_hard`.

It measures the PSS, which divides shared pages among the processes, because molds and their workers
share many pages. To compute the PSS, the kernel walks all pages of a process, and the arbiter
waits: 23 ms for 1 GB, measured. The RSS counts shared pages in full, so the PSS never exceeds it,
and reading it takes only 12 us. So the PSS is read only if the RSS is near a limit, and for at most
a twentieth of the arbiter's time.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from servo.arbiter.core.policy import MEMORY_SPREAD
from servo.metrics import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.worker_table import WorkerEntry

log = logging.getLogger("servo.error")

# The pause after reading the PSS, as a multiple of the time that the reading took.
_PAUSE = 20.0


class MemoryMeter:
    """Measures workers that have a memory limit.

    resident       returns the RSS of a process in bytes, or None if it has ended
    proportional   returns its PSS, or None if the kernel doesn't say
    clock          returns monotonic seconds
    """

    def __init__(
        self,
        resident: Callable[[int], int | None] = procfs.resident_of,
        proportional: Callable[[int], int | None] = procfs.proportional_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resident = resident
        self._proportional = proportional
        self._clock = clock
        self._read_at: dict[int, float] = {}
        self._next_read_at = 0.0
        self._warned = False

    def at_ready(self, worker: WorkerEntry, policy: Policy) -> dict[int, int]:
        """Measure a worker that has just got ready; see `measure`."""
        lowest = _lowest_limit(policy)
        size = self._resident(worker.pid) if lowest and worker.pid else None
        if size is None:
            return {}
        return {worker.serial: size if size < lowest else self._read(worker, size)}

    def measure(
        self, workers: Iterable[WorkerEntry], policies: Mapping[int, Policy]
    ) -> dict[int, int]:
        """Measure the workers that have a limit.

        workers   the workers that were forked and not yet reaped
        policies  the limits, by generation

        Returns bytes by serial: the PSS, or the RSS if it is below all limits. A worker near a
        limit is left out until it is its turn to be measured.
        """
        sizes: dict[int, int] = {}
        near: list[tuple[float, WorkerEntry, int]] = []
        for worker in workers:
            lowest = _lowest_limit(policies[worker.generation])
            if not lowest or worker.ready_at is None or worker.pid is None:
                continue
            resident = self._resident(worker.pid)
            if resident is None:
                continue
            if resident < lowest:
                sizes[worker.serial] = resident
            else:
                near.append((self._read_at.get(worker.serial, 0.0), worker, resident))
        self._read_at = {w.serial: at for at, w, _ in near}
        for _, worker, resident in sorted(near, key=lambda row: row[0]):
            if self._clock() < self._next_read_at:
                break
            sizes[worker.serial] = self._read(worker, resident)
        return sizes

    def _read(self, worker: WorkerEntry, resident: int) -> int:
        assert worker.pid is not None
        started_at = self._clock()
        size = self._proportional(worker.pid)
        ended_at = self._read_at[worker.serial] = self._clock()
        self._next_read_at = ended_at + _PAUSE * (ended_at - started_at)
        if size is None:
            if not self._warned:
                log.warning(
                    "The kernel doesn't show the PSS of %s, so its memory limits count pages that "
                    "it shares in full (is CAP_SYS_PTRACE missing?)",
                    worker,
                )
            self._warned = True
        return resident if size is None else size


def _lowest_limit(policy: Policy) -> float:
    """The RSS in bytes above which the PSS is needed; 0 if there is no limit."""
    limits = [limit for limit in (policy.max_memory_bytes, policy.max_memory_hard_bytes) if limit]
    return min(limits) * (1 - MEMORY_SPREAD) if limits else 0
