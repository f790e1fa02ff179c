"""Molds: one process for each generation, which imports the app and forks the workers.

With `preload_app` the arbiter does not fork workers itself. It forks a mold, which imports the app,
and then orders workers from the mold. The workers share the memory of the imported app, and need
not import it again. A mold serves no requests.

A generation keeps its mold as long as it has workers, or may get more. So during a reload there are
two molds. Workers from the old one run the old code, even if the files on disk have changed. If an
old worker dies during a reload that fails later, its replacement still has the old code.

If a mold dies, its generation can't get another one: the files on disk may have changed, and all
workers of a generation must run the same code. So the supervisor makes a new generation by a
reload, while the workers of the old generation still serve.

A mold may also come from a worker that has served requests: see `refork`.

This module keeps the molds and their time limits; the supervisor decides when to make a mold.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from servo.arbiter.core.actions import AdoptMold, ForkMold, KillMold
from servo.arbiter.core.backoff import Backoff
from servo.arbiter.core.policy import ABORT_S, FORK_ORDER_S, PROVED_MOLD_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.events import MoldEnded, MoldReady
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.worker_table import WorkerEntry


@dataclass(slots=True, eq=False)
class MoldEntry:
    """One mold. Times are in seconds.

    generation   the generation of its workers
    spawned_at   when it was forked
    ready_at     when it had imported the app; None before
    forked_at    when it last forked a worker, or got ready
    kill_at      when it will get SIGKILL, or None
    is_refork    whether a worker has forked it, with the app already imported
    ended_for    why the arbiter is ending it, for the log; or ""
    """

    generation: int
    spawned_at: float
    ready_at: float | None = None
    forked_at: float = 0.0
    kill_at: float | None = None
    is_refork: bool = False
    ended_for: str = ""

    @property
    def can_fork(self) -> bool:
        """Whether workers can be ordered from it."""
        return self.ready_at is not None and not self.ended_for


class Molds:
    """The live molds, by generation.

    policies  the limits, by generation; the supervisor keeps them up to date
    queue     collects the actions
    """

    def __init__(self, policies: Mapping[int, Policy], queue: ActionQueue) -> None:
        self._policies = policies
        self._queue = queue
        self._molds: dict[int, MoldEntry] = {}
        # Decides when a mold that has ended may be replaced.
        self._backoff = Backoff()

    def __contains__(self, generation: int) -> bool:
        return generation in self._molds

    def can_fork(self, generation: int) -> bool:
        """Return True if a worker of this generation can be forked now, with or without a mold."""
        if not self._policies[generation].preload:
            return True
        mold = self._molds.get(generation)
        return mold is not None and mold.can_fork

    def start(self, generation: int, now: float) -> None:
        """Request the mold of a generation.

        generation  a generation without a mold
        now         the current time, in seconds (in every method here)
        """
        assert generation not in self._molds
        self._molds[generation] = MoldEntry(generation, now)
        self._queue.do(ForkMold(generation))

    def adopt(self, generation: int, pid: int, now: float) -> None:
        """Take over the mold that a worker has forked (see `refork`). `pid` is the mold's."""
        assert generation not in self._molds
        self._molds[generation] = MoldEntry(generation, now, is_refork=True)
        self._queue.do(AdoptMold(generation, pid))

    def ready(self, event: MoldReady, now: float) -> None:
        """Note that a mold has imported the app."""
        mold = self._molds.get(event.generation)
        if mold is not None and mold.ready_at is None:
            mold.ready_at = mold.forked_at = now
            took_s = now - mold.spawned_at
            how = "is ready" if mold.is_refork else "has imported the app"
            text = f"the mold of generation {event.generation} (pid {event.pid}) {how}"
            self._queue.log("info", f"{text} after {took_s:.2f} s")

    def forked_worker(self, generation: int, now: float) -> None:
        """Note that a mold has forked a worker."""
        mold = self._molds.get(generation)
        if mold is not None:
            mold.forked_at = now

    def ended(self, event: MoldEnded, current: int) -> MoldEntry | None:
        """Forget a mold that has ended, and return it; None if it was no longer needed.

        event    its end
        current  the current generation
        """
        mold = self._molds.pop(event.generation, None)
        if mold is None:
            return None
        if mold.ready_at is None:
            outcome = "did not get ready" if mold.is_refork else "could not load the app"
        elif mold.generation == current:
            outcome = "ended; its workers serve on, and none is forked until there is a new one"
        else:
            outcome = "ended"
        which = f"the mold of generation {mold.generation} (pid {event.pid})"
        text = f"{which} {outcome}: {mold.ended_for or event.text}\n{event.details}"
        self._queue.log("error", text.rstrip())
        return mold

    def to_state(self, generation: int) -> list[dict[str, Any]]:
        """Return a list with the mold of a generation as JSON values, for `restore`.

        The list is empty if that mold can't fork workers. An upgrade keeps no other mold.
        """
        mold = self._molds.get(generation)
        return [asdict(mold)] if mold is not None and mold.can_fork else []

    def restore(self, state: Iterable[Mapping[str, Any]]) -> None:
        """Continue with the molds of another program's `to_state`.

        Raises TypeError for an invalid state.
        """
        known = {each.name for each in fields(MoldEntry)}
        for each in state:
            values = {name: value for name, value in each.items() if name in known}
            mold = MoldEntry(**values)
            self._molds[mold.generation] = mold

    def drop(self, generation: int) -> None:
        """Forget the mold of a dropped generation."""
        self._molds.pop(generation, None)

    def start_missing(self, generation: int, now: float) -> None:
        """Request the mold of a generation, if it needs one and has none."""
        if self._policies[generation].preload and generation not in self._molds:
            self.start(generation, now)

    def may_replace(self, generation: int, now: float) -> bool:
        """Return True if a generation has lost its mold, and it is time for a new one."""
        if not self._policies[generation].preload or generation in self._molds:
            return False
        if now < self._backoff.not_before:
            return False
        self._backoff.failed(now, now)
        return True

    def enforce_limits(self, workers: Iterable[WorkerEntry], current: int, now: float) -> None:
        """End the molds that take too long to import the app, or to fork a worker.

        workers  all workers; those without a pid wait for their mold
        current  the current generation
        now      the current time, in seconds
        """
        proved = self._molds.get(current)
        if proved and proved.can_fork and now - (proved.ready_at or now) >= PROVED_MOLD_S:
            self._backoff.reset()
        waits_since: dict[int, float] = {}
        for worker in workers:
            if worker.pid is None:
                since = waits_since.get(worker.generation, worker.spawned_at)
                waits_since[worker.generation] = min(since, worker.spawned_at)
        for mold in self._molds.values():
            limit_s = self._policies[mold.generation].boot_timeout_s
            since = max(waits_since.get(mold.generation, now), mold.forked_at)
            if mold.kill_at is not None:
                if now >= mold.kill_at:
                    mold.kill_at = None
                    self._queue.do(KillMold(mold.generation, "SIGKILL"))
            elif mold.ended_for:
                continue
            elif mold.ready_at is None and limit_s and now - mold.spawned_at >= limit_s:
                late = "is not ready" if mold.is_refork else "has not imported the app"
                self._abort(mold, f"it {late} after {limit_s:g} s (boot_timeout)")
                mold.kill_at = now + ABORT_S
            elif mold.ready_at is not None and now - since >= FORK_ORDER_S:
                mold.ended_for = f"it has forked no worker for {FORK_ORDER_S:g} s"
                text = f"the mold of generation {mold.generation}: {mold.ended_for}; killing it"
                self._queue.log("error", text)
                self._queue.do(KillMold(mold.generation, "SIGKILL"))

    def _abort(self, mold: MoldEntry, why: str) -> None:
        mold.ended_for = why
        text = f"the mold of generation {mold.generation}: {why}; aborting it, its stacks follow"
        self._queue.log("error", text)
        self._queue.do(KillMold(mold.generation, "SIGABRT"))

    def due_times(self) -> list[float]:
        """Return the known times, in seconds, at which there is something to do."""
        times = [self._backoff.not_before]
        for mold in self._molds.values():
            limit_s = self._policies[mold.generation].boot_timeout_s
            if mold.kill_at is not None:
                times.append(mold.kill_at)
            elif mold.ready_at is None and limit_s and not mold.ended_for:
                times.append(mold.spawned_at + limit_s)
        return times

    def shift(self, gap_s: float) -> None:
        """Move all times by `gap_s` seconds, because the machine stood still for that long."""
        self._backoff.shift(gap_s)
        for mold in self._molds.values():
            mold.spawned_at += gap_s
            mold.forked_at += gap_s
            if mold.ready_at is not None:
                mold.ready_at += gap_s
            if mold.kill_at is not None:
                mold.kill_at += gap_s
