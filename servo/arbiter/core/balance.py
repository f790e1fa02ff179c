"""Balance: which workers to retire and which to fork, so that the right number serves.

This one function covers a start, a crash, scaling, recycling and a reload. The supervisor calls it
after every event. It compares the workers that live with the number that should serve, and returns
the next step towards that number; it never waits, and remembers nothing.

A worker is *stale* if it is of an older generation or has asked for a replacement. A stale worker
serves until a fresh one is ready in its place, so replacing workers costs no capacity. For that,
`surge` more workers than asked for may live at a time (Kubernetes calls this maxSurge). Example for
3 workers and a surge of 1, where ' marks a fresh one: 1 2 3, fork 1'; 1' is ready: retire 1, fork
2'; 2' is ready: retire 2, fork 3'; 3' is ready: retire 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.arbiter.core.worker_table import WorkerEntry


@dataclass(slots=True)
class Plan:
    """The next step.

    retire  workers to retire
    fork    the slots to fork a worker for
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
) -> Plan:
    """Return the next step towards `desired` fresh workers.

    live        the workers that serve or boot
    desired     how many workers should serve
    generation  the current generation
    surge       how many more workers may live while stale ones are replaced
    room        how many may be forked now at most (0 during a back-off)
    may_surge   False: fork no further replacements now, but keep those that boot already
    """
    plan = Plan()
    ready = [worker for worker in live if worker.ready]
    coming = [worker for worker in live if not worker.ready]
    for worker in [each for each in coming if each.generation != generation]:
        plan.retire.append(worker)
        coming.remove(worker)

    for worker in _by_need(ready, generation)[: max(0, len(ready) - desired)]:
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
    """Return True if a fresh worker should take this worker's place."""
    return worker.generation != generation or worker.replace_reason is not None


def _by_need(ready: list[WorkerEntry], generation: int) -> list[WorkerEntry]:
    """Sort the workers, the least needed first.

    Stale ones come first, and among them those whose replacement is ready; then fresh ones, the
    highest slot first.
    """
    replaced = {worker.slot for worker in ready if not is_stale(worker, generation)}

    def rank(worker: WorkerEntry) -> tuple[bool, bool, float, int]:
        stale = is_stale(worker, generation)
        by_slot = worker.slot if stale else -worker.slot
        return (not stale, worker.slot not in replaced, worker.replace_asked_at, by_slot)

    return sorted(ready, key=rank)


def _free_slots(stale: list[WorkerEntry], fresh: list[WorkerEntry], desired: int) -> list[int]:
    """Return the slots without a fresh worker: the empty ones, then those of stale workers."""
    taken = {worker.slot for worker in fresh}
    old = {worker.slot: worker for worker in stale}
    free = [slot for slot in range(1, desired + 1) if slot not in taken]
    return sorted(free, key=lambda slot: (slot in old, _asked_at(old.get(slot)), slot))


def _asked_at(worker: WorkerEntry | None) -> float:
    return worker.replace_asked_at if worker is not None else 0.0
