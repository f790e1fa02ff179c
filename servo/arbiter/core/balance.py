"""Balance: which workers to retire and which to fork.

This one function covers a start, a crash, scaling, recycling and a reload. The supervisor calls it
after every event. It compares the live workers with the desired number, and returns the next step
towards that number. It never waits, and keeps no state.

A worker is *stale* if it has an older generation or has asked for a replacement. A stale worker
serves until a fresh one is ready in its place, so a replacement costs no capacity. For this, up to
`surge` extra workers may live at a time (Kubernetes calls this maxSurge). Example with 3 workers
and a surge of 1, where ' marks a fresh worker: fork 1'; when 1' is ready, retire 1 and fork 2';
when 2' is ready, retire 2 and fork 3'; when 3' is ready, retire 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from servo.arbiter.core.worker_table import WorkerEntry


_ALIKE: Mapping[int, float] = MappingProxyType({})


@dataclass(slots=True)
class Plan:
    """The workers to retire and to fork now.

    retire  the workers to retire
    fork    the slots of the workers to fork
    """

    retire: list[WorkerEntry] = field(default_factory=list)
    fork: list[int] = field(default_factory=list)


def balance(
    live: Sequence[WorkerEntry],
    *,
    desired: int,
    generation: int,
    surge: int,
    room: int,
    may_surge: bool = True,
    use: Mapping[int, float] = _ALIKE,
) -> Plan:
    """Return the next step towards `desired` fresh workers.

    live        the serving and booting workers
    desired     the number of workers that should serve
    generation  the current generation
    surge       the number of extra workers that may live while stale ones are replaced
    room        the largest number of workers to fork now (0 during a back-off)
    may_surge   whether to fork replacements; if False, booting ones are still kept
    use         serial -> the share of its capacity that the worker uses. Of the fresh workers, the
                least busy one is retired first
    """
    plan = Plan()
    ready = [worker for worker in live if worker.ready]
    coming = [worker for worker in live if not worker.ready]
    for worker in [each for each in coming if each.generation != generation]:
        plan.retire.append(worker)
        coming.remove(worker)

    for worker in _by_need(ready, generation, use)[: max(0, len(ready) - desired)]:
        plan.retire.append(worker)
        ready.remove(worker)

    stale = [worker for worker in ready if is_stale(worker, generation)]
    keep = desired + min(surge, len(stale))
    while coming and len(ready) + len(coming) > keep:
        last = max(coming, key=lambda worker: (worker.slot, worker.serial))
        plan.retire.append(last)
        coming.remove(last)

    wanted = desired if not may_surge else keep
    missing = min(room, wanted - len(ready) - len(coming))
    if missing > 0:
        fresh = [worker for worker in ready if not is_stale(worker, generation)] + coming
        plan.fork = _free_slots(stale, fresh, desired)[:missing]
    return plan


def is_stale(worker: WorkerEntry, generation: int) -> bool:
    """Return True if a fresh worker should replace this one."""
    return worker.generation != generation or worker.replace_reason is not None


def _by_need(
    ready: list[WorkerEntry], generation: int, use: Mapping[int, float]
) -> list[WorkerEntry]:
    """Sort the workers, the least needed first.

    Stale workers come first, beginning with those whose replacement is ready. The fresh workers
    follow, the least busy first; of equally busy ones, the highest slot first.
    """
    replaced = {worker.slot for worker in ready if not is_stale(worker, generation)}

    def rank(worker: WorkerEntry) -> tuple[bool, bool, float, float, int]:
        stale = is_stale(worker, generation)
        by_slot = worker.slot if stale else -worker.slot
        busy = 0.0 if stale else use.get(worker.serial, 0.0)
        return (not stale, worker.slot not in replaced, worker.replace_asked_at, busy, by_slot)

    return sorted(ready, key=rank)


def _free_slots(stale: list[WorkerEntry], fresh: list[WorkerEntry], desired: int) -> list[int]:
    """Return the slots without a fresh worker: the empty ones, then those of stale workers."""
    taken = {worker.slot for worker in fresh}
    old = {worker.slot: worker for worker in stale}
    free = [slot for slot in range(1, desired + 1) if slot not in taken]
    return sorted(free, key=lambda slot: (slot in old, _asked_at(old.get(slot)), slot))


def _asked_at(worker: WorkerEntry | None) -> float:
    return worker.replace_asked_at if worker is not None else 0.0
