"""Reforks: a worker that has served requests forks the next mold (`refork_after`).

A mold (see `molds`) has imported the app, but has served no requests, except those of `warm_up`.
With its first requests, each worker fills caches and imports more modules, so each worker has its
own copy of this memory. In a refork, a worker that has served `refork_after` requests drains, forks
a new mold, and ends. The workers of the new mold share the memory.

A generation is a mold and its workers. So the new mold begins a new generation, with the settings
of the old one. The other workers are replaced as in a reload: first a canary, then `reload_batch`
at a time. If the canary does not get ready, the old mold forks workers again. With `bake_time`, the
old mold is kept as after any reload, and the refork is rolled back if the new workers are bad.

The worker drains before it forks. Otherwise threads that run requests would be missing in the mold,
but might hold locks at the time of the fork. The worker's replacement is ready before it drains.

There is one refork for each release, as in Puma: after it, most of the memory is shared, and each
refork replaces all workers. During a bake there is no refork, because the new release must first
show that it works.

The protocol `Server` avoids an import cycle: it declares the part of the supervisor that is used
here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from servo.arbiter.core.actions import MakeMold
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.reload import Reload
from servo.ipc.messages import ReplaceMe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.bake import BakeMonitor
    from servo.arbiter.core.events import ResponsesCounted
    from servo.arbiter.core.molds import Molds
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.upgrade import Upgrade
    from servo.arbiter.core.worker_count import WorkerCount
    from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
    from servo.arbiter.core.worker_table import WorkerEntry, WorkerTable


class Reforks:
    """Counts the requests of each worker, and knows which generations may not be reforked again."""

    def __init__(self) -> None:
        self._requests: dict[int, int] = {}
        self._done: set[int] = set()

    def count(self, event: ResponsesCounted) -> None:
        """Note how many responses the workers have given."""
        self._requests = {serial: responses for serial, (responses, _) in event.counts.items()}

    def warmed(self, workers: WorkerTable, generation: int, policy: Policy) -> WorkerEntry | None:
        """Return the worker that should fork the next mold, or None if there is none yet.

        generation  the current generation
        policy      the policy of this generation
        """
        if not policy.refork_after or generation in self._done:
            return None
        found = [
            worker
            for worker in workers
            if worker.ready
            and worker.generation == generation
            and worker.replace_reason is None
            and self.requests(worker) >= policy.refork_after
        ]
        return max(found, key=self.requests, default=None)

    def requests(self, worker: WorkerEntry) -> int:
        """Return how many requests a worker had served when they were last counted."""
        return self._requests.get(worker.serial, 0)

    def begin(self, old: int, new: int) -> None:
        """Note that a refork begins: neither generation gets another one."""
        self._done |= {old, new}

    def to_state(self) -> list[int]:
        """Return the generations that may not be reforked again, as JSON values for `restore`."""
        return sorted(self._done)

    def restore(self, state: Iterable[int]) -> None:
        """Restore the result of `to_state`. Raises TypeError or ValueError."""
        self._done = {int(generation) for generation in state}

    def forget(self, generation: int) -> None:
        """Forget a dropped generation."""
        self._done.discard(generation)


class Server(Protocol):
    """The part of `Supervisor` that a refork uses. `Supervisor` has the docstrings."""

    generation: int
    last_generation: int
    policies: dict[int, Policy]
    paused: bool
    held: bool
    served: bool
    count: WorkerCount
    reload: Reload | None
    upgrade: Upgrade | None
    bakes: BakeMonitor
    reforks: Reforks
    molds: Molds
    workers: WorkerTable
    lifecycle: WorkerLifecycle
    queue: ActionQueue

    @property
    def policy(self) -> Policy: ...

    @property
    def ending(self) -> bool: ...


def look_at_refork(server: Server, now: float) -> None:
    """Begin a refork if a worker has served enough requests. Called once a second.

    server  the supervisor
    now     the current time, in seconds
    """
    old = server.generation
    if server.reload is not None or server.upgrade is not None or server.bakes.current is not None:
        return
    if server.ending or server.paused or server.held or not server.policy.preload:
        return
    worker = server.reforks.warmed(server.workers, old, server.policy)
    if worker is None or not server.molds.can_fork(old):
        return
    server.last_generation = new = server.last_generation + 1
    server.policies[new] = server.policy
    server.reforks.begin(old, new)
    served = f"served {server.reforks.requests(worker)} requests"
    server.reload = Reload(
        f"{worker} has {served}",
        new,
        old_generation=old,
        old_target=server.count.target,
        old_low=server.count.low,
        old_served=server.served,
        warmed=worker.serial,
        check_limit_s=0.0,
        now=now,
    )
    server.queue.do(server.reload.started(), MakeMold(new, old, worker.serial))
    server.lifecycle.request_replacement(worker, ReplaceMe(ExitReason.REFORKED.name, served), now)
