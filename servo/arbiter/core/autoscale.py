"""Autoscaling: the number of workers for the current load, between the bounds of `-w MIN:MAX`.

The arbiter measures the load four times a second, in units of one worker's capacity: a `sync`
worker with a request is 1.0, a `thread` worker with 1 of 4 threads in use is 0.25. For an event
loop, and for threads that share an interpreter, the used CPU time counts instead if it is larger.
The load also includes connections that wait to be accepted, and requests that wait for a thread.

    workers needed = (load in use + waiting load) / TARGET_USE

**Up at once.** The mean load of the last second decides, so a burst of a few milliseconds does not
count. If requests wait, the last half second decides. The waiting load is taken at its minimum in
that period, because a queue that is sometimes empty needs no further worker. In one period the
number at most doubles, because older measurements don't show the effect of the new workers.

**Down slowly.** The number decreases only if fewer workers were enough for all of
`scale_down_delay`, and then by one worker in each tenth of that time. Fewer workers are enough only
if their load would be below KEEP_USE, which is less than TARGET_USE. Both rules prevent
oscillation: if the load returns soon, the workers still exist, and a small change has no effect.

**Limits.** If the workers use all CPUs, more of them would only share the same CPU time. Each new
worker must also fit into the remaining memory; its size is estimated from that of the others.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Seconds between two measurements of the load.
SAMPLE_S = 0.25
# The period, in seconds, whose mean load decides whether to add workers. While requests wait, the
# shorter one applies.
WINDOW_S = 1.0
WAITING_WINDOW_S = 0.5
# The share of the capacity that should be in use. The rest is for bursts.
TARGET_USE = 0.75
# A worker may end only if the remaining ones would use no more than this share of their capacity.
KEEP_USE = 0.65
# If the workers use this share of all CPUs, more workers don't help.
_CPU_BOUND = 0.9
# How many workers may end within one `scale_down_delay`.
_STEPS_DOWN = 10


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """The load of one ready worker.

    serial    the worker's number
    requests  the number of its requests, running or waiting for a thread
    capacity  the number of requests that it can run at a time
    cpu       the CPU time that it uses, as a share of one CPU
    blocked   whether its event loop, or its only thread, is blocked
    """

    serial: int
    requests: int
    capacity: int
    cpu: float = 0.0
    blocked: bool = False

    @property
    def use(self) -> float:
        """The used share of its capacity, from 0 to 1."""
        if self.blocked:
            return 1.0
        return min(1.0, max(self.requests / self.capacity, self.cpu))


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """The load of the server.

    workers        the load of each ready worker
    waiting        connections that wait to be accepted
    cpus           the number of CPUs that the server may use
    memory_left    remaining bytes of memory; None if unknown
    worker_memory  bytes of memory for one more worker; None if unknown
    """

    workers: Sequence[WorkerLoad]
    waiting: int = 0
    cpus: int = 1
    memory_left: int | None = None
    worker_memory: int | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """A decision.

    target  the new number of workers; the current number for no change
    text    the text for the log; "" for no line
    """

    target: int
    text: str = ""


@dataclass(slots=True)
class _Sample:
    at: float
    used: float
    waiting: float
    queued: int


class Autoscale:
    """Remembers the recent load, and decides how many workers it needs.

    use  serial -> the used share of that worker's capacity; tells which worker is the least busy
    """

    def __init__(self) -> None:
        self.use: dict[int, float] = {}
        self._samples: deque[_Sample] = deque()
        # The needed number of workers, for each second of the last `scale_down_delay`.
        self._needed: deque[list[float]] = deque()
        self._since: float | None = None
        self._next_up = 0.0
        self._next_down = 0.0
        self._is_short_of_memory = False

    def reset(self) -> None:
        """Forget the load, because measurements or workers were missing for a while."""
        self.use = {}
        self._samples.clear()
        self._needed.clear()
        self._since = None

    def decide(
        self,
        load: ServerLoad,
        *,
        target: int,
        bounds: tuple[int, int],
        delay_s: float,
        now: float,
        may_shrink: bool = True,
    ) -> Scaling:
        """Take a measurement, and decide about the number of workers.

        load        the measurement
        target      the current target; some of these workers may still be booting
        bounds      the least and the largest number of workers
        delay_s     for how many seconds fewer workers must be enough (`scale_down_delay`)
        now         the current time, in seconds
        may_shrink  whether the number may decrease
        """
        low, high = bounds
        self.use = {worker.serial: worker.use for worker in load.workers}
        if not load.workers:
            return Scaling(target)
        self._add_sample(load, now)
        self._remember(self._count_needed(load, target, KEEP_USE), delay_s, now)
        wanted = max(low, min(self._count_needed(load, target, TARGET_USE), high))
        if wanted > target:
            return self._up(load, min(wanted, 2 * target), target, now)
        self._is_short_of_memory = False
        if may_shrink:
            return self._down(max(low, 1), target, delay_s, now)
        return Scaling(target)

    def shift(self, gap_s: float) -> None:
        """Forget the load, because the machine stood still for `gap_s` seconds."""
        self.reset()
        self._next_up += gap_s
        self._next_down += gap_s

    # --- the load ---------------------------------------------------------------------------------

    def _add_sample(self, load: ServerLoad, now: float) -> None:
        if self._since is None:
            self._since = now
        capacity = sum(worker.capacity for worker in load.workers) / len(load.workers)
        late = sum(max(0, worker.requests - worker.capacity) for worker in load.workers)
        queued = load.waiting + late
        used = sum(worker.use for worker in load.workers)
        self._samples.append(_Sample(now, used, queued / capacity, queued))
        while now - self._samples[0].at > WINDOW_S:
            self._samples.popleft()

    def _count_needed(self, load: ServerLoad, target: int, use: float) -> int:
        used, waiting = self._mean()
        # A rounding error must not turn 3.0 into 4.
        needed = max(1, math.ceil((used + waiting) / use - 1e-6))
        cpu = sum(worker.cpu for worker in load.workers)
        return min(needed, target) if cpu >= _CPU_BOUND * load.cpus else needed

    def _recent(self) -> list[_Sample]:
        newest = self._samples[-1].at
        return [each for each in self._samples if newest - each.at <= WAITING_WINDOW_S]

    def _mean(self) -> tuple[float, float]:
        """The load in use and the waiting load; 1.0 is the capacity of one worker."""
        recent = self._recent()
        waiting = min(sample.waiting for sample in recent)
        samples = recent if waiting else self._samples
        return sum(sample.used for sample in samples) / len(samples), waiting

    def _remember(self, needed: int, delay_s: float, now: float) -> None:
        if self._needed and now - self._needed[-1][0] < WINDOW_S:
            self._needed[-1][1] = max(self._needed[-1][1], needed)
        else:
            self._needed.append([now, needed])
        while now - self._needed[0][0] > delay_s + WINDOW_S:
            self._needed.popleft()

    # --- decisions --------------------------------------------------------------------------------

    def _up(self, load: ServerLoad, wanted: int, target: int, now: float) -> Scaling:
        assert self._since is not None
        used, waiting = self._mean()
        window_s = WAITING_WINDOW_S if waiting else WINDOW_S
        if now - self._since < window_s - SAMPLE_S or now < self._next_up:
            return Scaling(target)
        most = _most_by_memory(load)
        if most is not None and most < wanted:
            if most <= target:
                return self._short_of_memory(load, target)
            wanted = most
        self._is_short_of_memory = False
        self._next_up = now + window_s
        ready = len(load.workers)
        queued = min(sample.queued for sample in self._recent())
        wait = (
            f", and {queued} more request{'s wait' if queued != 1 else ' waits'}" if queued else ""
        )
        text = f"scaled up to {wanted} from {target}: {used / ready:.0%} of the capacity is in use"
        return Scaling(wanted, text + wait)

    def _short_of_memory(self, load: ServerLoad, target: int) -> Scaling:
        if self._is_short_of_memory:
            return Scaling(target)
        self._is_short_of_memory = True
        needs, left = _megabytes(load.worker_memory), _megabytes(load.memory_left)
        text = f"not scaled up from {target}: one more needs {needs} of memory, {left} are left"
        return Scaling(target, text)

    def _down(self, low: int, target: int, delay_s: float, now: float) -> Scaling:
        assert self._since is not None
        enough = max(needed for _, needed in self._needed)
        is_early = now - self._since < delay_s or now < self._next_down
        if is_early or target <= low or enough >= target:
            return Scaling(target)
        self._next_down = now + delay_s / _STEPS_DOWN
        text = f"scaled down to {target - 1} from {target}: fewer were enough for {delay_s:g} s"
        return Scaling(target - 1, text)


def _most_by_memory(load: ServerLoad) -> int | None:
    """How many workers fit into memory: the ready ones, plus those for which memory is left."""
    if load.memory_left is None or not load.worker_memory:
        return None
    return len(load.workers) + load.memory_left // load.worker_memory


def _megabytes(size: int | None) -> str:
    return f"{(size or 0) / (1 << 20):.0f} MB"
