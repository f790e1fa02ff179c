"""Which workers to retire and which to fork, so that as many serve as are asked for.

One rule for a reload, a recycling, a scaling and a crash: a worker is *stale* when it is of another
generation or has asked for a successor. Stale workers serve until a fresh one is ready in
their place, and only `surge` more workers than asked for may live meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.arbiter.core.worker_table import WorkerHandle


@dataclass(slots=True)
class Plan:
    """Workers to retire, and the slots of workers to fork."""

    retire: list[WorkerHandle] = field(default_factory=list)
    fork: list[int] = field(default_factory=list)


def balance(
    live: Sequence[WorkerHandle],
    *,
    desired: int,
    generation: int,
    surge: int,
    room: int,
    may_surge: bool = True,
) -> Plan:
    """What to do about these live workers.

    desired    how many are to serve
    generation the one that is current
    surge      how many more may live while stale ones are replaced
    room       how many may be forked now at most (0 while backing off)
    may_surge  False: fork no further successors now, but keep those on the way
    """
    plan = Plan()
    ready = [handle for handle in live if handle.ready]
    coming = [handle for handle in live if not handle.ready]
    for handle in [h for h in coming if h.generation != generation]:
        plan.retire.append(handle)
        coming.remove(handle)

    for handle in _least_wanted(ready, generation)[: max(0, len(ready) - desired)]:
        plan.retire.append(handle)
        ready.remove(handle)

    stale = [handle for handle in ready if is_stale(handle, generation)]
    keep = desired + min(surge, len(stale))
    while coming and len(ready) + len(coming) > keep:
        last = max(coming, key=lambda handle: (handle.slot, handle.serial))
        plan.retire.append(last)
        coming.remove(last)

    wanted = desired if not may_surge else keep
    missing = min(room, wanted - len(ready) - len(coming))
    if missing > 0:
        fresh = [handle for handle in ready if not is_stale(handle, generation)] + coming
        plan.fork = _free_slots(stale, fresh, desired)[:missing]
    return plan


def is_stale(handle: WorkerHandle, generation: int) -> bool:
    """True for a worker that is to be replaced."""
    return handle.generation != generation or handle.wish is not None


def _least_wanted(ready: list[WorkerHandle], generation: int) -> list[WorkerHandle]:
    """Stale ones first, and of those the ones whose successor is ready; then the highest slots."""
    served = {handle.slot for handle in ready if not is_stale(handle, generation)}

    def rank(handle: WorkerHandle) -> tuple[bool, bool, float, int]:
        stale = is_stale(handle, generation)
        by_slot = handle.slot if stale else -handle.slot
        return (not stale, handle.slot not in served, handle.wished_at, by_slot)

    return sorted(ready, key=rank)


def _free_slots(stale: list[WorkerHandle], fresh: list[WorkerHandle], desired: int) -> list[int]:
    """The slots that no fresh worker has: first the empty ones, then those of stale workers."""
    taken = {handle.slot for handle in fresh}
    old = {handle.slot: handle for handle in stale}
    free = [slot for slot in range(1, desired + 1) if slot not in taken]
    return sorted(free, key=lambda slot: (slot in old, _wished(old.get(slot)), slot))


def _wished(handle: WorkerHandle | None) -> float:
    return handle.wished_at if handle is not None else 0.0
