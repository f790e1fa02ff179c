"""Workers that use too much memory: replaced above a soft limit, killed above a hard one.

`max_worker_memory` is the soft limit. A worker above it is replaced, as after `max_requests`: its
replacement gets ready first. Only one worker at a time is replaced for its memory, the largest
first. Workers with the same leak would reach the same limit at about the same time. So each
worker's limit is a different amount below the setting: up to a tenth of the growth that the setting
allows after boot.

`max_worker_memory_hard` protects the machine from a worker that grows too fast for a replacement:
the worker is killed. Its stacks in the log show the code that needs the memory.

If a worker exceeds a limit as soon as it is ready, its replacement would, too. So the limit does
not apply to this worker, and one warning per generation suggests a higher limit. An app may also
load so much for its first requests that each replacement soon reaches the limit again. Then the
pause before the next replacement doubles each time, up to 30 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.arbiter.core.backoff import Backoff
from servo.arbiter.core.exit_reasons import ExitReason, StopCause
from servo.arbiter.core.policy import MEMORY_SPREAD, spread
from servo.ipc.messages import ReplaceMe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
    from servo.arbiter.core.worker_table import WorkerEntry, WorkerTable

# A worker that reaches the limit within this many seconds of readiness probably has no leak: it
# needs more memory.
SOON_S = 60.0
# After this many such workers in a row, a warning is logged.
_SOON_TIMES = 3


class MemoryLimits:
    """Enforces `max_worker_memory` and `max_worker_memory_hard`.

    workers    the table
    policies   the limits, by generation; the supervisor keeps them up to date
    lifecycle  replaces and kills workers
    queue      collects the actions
    """

    def __init__(
        self,
        workers: WorkerTable,
        policies: Mapping[int, Policy],
        lifecycle: WorkerLifecycle,
        queue: ActionQueue,
    ) -> None:
        self._workers = workers
        self._policies = policies
        self._lifecycle = lifecycle
        self._queue = queue
        self._pace = Backoff()
        # The warnings logged so far, as (generation, setting): each is logged only once.
        self._warned: set[tuple[int, str]] = set()

    def measured(self, sizes: Mapping[int, int], now: float, *, may_replace: bool) -> None:
        """Replace or kill the measured workers that are above their limits.

        sizes        serial -> the worker's memory in bytes; far below the limits, an upper bound
                     is enough
        now          the current time, in seconds
        may_replace  False while all workers are being replaced anyway
        """
        above = []
        for serial, size in sizes.items():
            worker = self._workers.get(serial)
            if worker is None or worker.ready_at is None:
                continue
            if worker.memory_at_boot is None:
                worker.memory_at_boot = size
                self._warn_of_low_limits(worker)
            if self._kill_above_hard_limit(worker, size, now):
                continue
            if worker.ready and worker.replace_reason is None and size >= self._soft_limit(worker):
                above.append((size, worker))
        if above and may_replace and now >= self._pace.not_before and not self._is_replacing():
            self._replace(*max(above, key=lambda pair: pair[0]), now)

    def to_state(self) -> dict[str, Any]:
        """Return the back-off and the logged warnings as JSON values, for `restore`."""
        return {"pace": self._pace.to_state(), "warned": sorted(map(list, self._warned))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `to_state` returned in the previous program.

        Raises KeyError, TypeError or ValueError for an invalid state.
        """
        self._pace.restore(state["pace"])
        self._warned = {(int(generation), str(name)) for generation, name in state["warned"]}

    def shift(self, gap_s: float) -> None:
        """Move all times by `gap_s` seconds, because the machine stood still for that long."""
        self._pace.shift(gap_s)

    def forget(self, generation: int) -> None:
        """Forget the warnings of a generation without workers."""
        self._warned = {entry for entry in self._warned if entry[0] != generation}

    # --- the limits -------------------------------------------------------------------------------

    def _soft_limit(self, worker: WorkerEntry) -> float:
        """The limit of this worker, in bytes; infinity if none applies."""
        limit = self._policies[worker.generation].max_memory_bytes
        at_boot = worker.memory_at_boot
        if not limit or at_boot is None or at_boot >= limit:
            return float("inf")
        return limit - spread(worker.serial, MEMORY_SPREAD) * (limit - at_boot)

    def _is_replacing(self) -> bool:
        reason = ExitReason.MAX_MEMORY.name
        return any(worker.replace_reason == reason for worker in self._workers.live())

    def _replace(self, size: int, worker: WorkerEntry, now: float) -> None:
        assert worker.ready_at is not None
        limit = self._policies[worker.generation].max_memory_bytes
        detail = f"{_megabytes(size)}; max_worker_memory is {_megabytes(limit)}"
        self._lifecycle.request_replacement(worker, ReplaceMe("max_memory", detail), now)
        if now - worker.ready_at >= SOON_S:
            self._pace.reset()
            return
        self._pace.failed(worker.spawned_at, now)
        if self._pace.rounds >= _SOON_TIMES:
            self._warn(
                worker.generation,
                "max_worker_memory",
                f"workers reach max_worker_memory ({_megabytes(limit)}) within {SOON_S:g} s of "
                f"their start; with {_enough(limit)}, they would be replaced less often",
            )

    def _kill_above_hard_limit(self, worker: WorkerEntry, size: int, now: float) -> bool:
        limit = self._policies[worker.generation].max_memory_hard_bytes
        at_boot = worker.memory_at_boot
        assert at_boot is not None
        if not limit or size < limit or at_boot >= limit or worker.signal_sent:
            return False
        text = f"it uses {_megabytes(size)} (max_worker_memory_hard is {_megabytes(limit)})"
        self._lifecycle.abort(worker, StopCause(ExitReason.MAX_MEMORY_HARD, text), now)
        return True

    # --- warnings ---------------------------------------------------------------------------------

    def _warn_of_low_limits(self, worker: WorkerEntry) -> None:
        policy, size = self._policies[worker.generation], worker.memory_at_boot
        assert size is not None
        for name, limit in (
            ("max_worker_memory", policy.max_memory_bytes),
            ("max_worker_memory_hard", policy.max_memory_hard_bytes),
        ):
            if limit and size >= limit:
                self._warn(
                    worker.generation,
                    name,
                    f"{name} ({_megabytes(limit)}) has no effect: {worker} uses "
                    f"{_megabytes(size)} after its boot; set at least {_enough(size)}",
                )

    def _warn(self, generation: int, name: str, text: str) -> None:
        if (generation, name) not in self._warned:
            self._warned.add((generation, name))
            self._queue.log("warning", text)


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"


def _enough(size: int) -> str:
    """Return a value for the setting that leaves a worker of this size room to grow."""
    return f"{-(-size * 3 // 2 // (10 << 20)) * 10}M"
