"""A bake: a trial period after a reload, in which Servo can return to the old generation.

A reload commits the new generation when its canary (its first worker) gets ready. This shows that
the release boots, but not that it works: it may fail at the first request that needs the database,
or crash once a minute. So the old generation is kept for `bake_time`, and the new one is compared
with it. The new generation is bad in either of these cases:

* Its workers exit unexpectedly or fail their health checks, in several rounds and more than twice
  as often as before.
* The share of its responses with a 5xx status is clearly higher.

Then the supervisor makes the old generation the current one again. During the bake, operators can
also request this (`servoctl rollback`).

With `preload_app`, the old generation's mold (the process that forks its workers) is kept, and
forks workers with the old code. Without `preload_app`, only the old settings can return: workers
import the code that is on disk.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from servo.arbiter.core.failure_rounds import FailureRounds
from servo.arbiter.core.policy import BAKE_ERRORS, BAKE_RESPONSES, BAKE_RESTARTS

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.events import ResponsesCounted
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.reload import Reload
    from servo.arbiter.core.worker_table import WorkerEntry, WorkerTable


class ErrorShares:
    """Counts the responses of each generation, and those with a 5xx status."""

    def __init__(self) -> None:
        # generation -> serial -> (responses, those with a 5xx status). The serial 0, which no
        # worker has, stands for all workers that have exited.
        self._counts: dict[int, dict[int, tuple[int, int]]] = {}

    def count(self, generation: int, serial: int, responses: int, errors: int) -> None:
        """Note the counters of a worker, since its start.

        generation  the worker's generation
        serial      the worker's number
        responses   its responses
        errors      those with a 5xx status
        """
        self._counts.setdefault(generation, {})[serial] = (responses, errors)

    def fold(self, serials: Container[int]) -> None:
        """Add up the counters of all workers that have exited: there may be millions of them.

        serials  the numbers of the workers that have not exited
        """
        for counts in self._counts.values():
            for serial in [each for each in counts if each and each not in serials]:
                responses, errors = counts.pop(serial)
                all_responses, all_errors = counts.get(0, (0, 0))
                counts[0] = all_responses + responses, all_errors + errors

    def of(self, generation: int) -> tuple[int, int]:
        """Return the responses of a generation, and how many of them had a 5xx status."""
        counts = self._counts.get(generation, {}).values()
        return sum(responses for responses, _ in counts), sum(errors for _, errors in counts)

    def keep(self, generations: Mapping[int, object]) -> None:
        """Forget all generations except these."""
        for generation in set(self._counts) - set(generations):
            del self._counts[generation]


class Restarts:
    """Counts unexpected exits of workers, by generation and in rounds (see `failure_rounds`)."""

    def __init__(self) -> None:
        self._rounds: dict[int, FailureRounds] = {}
        # The time, in seconds, and the generation of each round.
        self._times: deque[tuple[float, int]] = deque(maxlen=100)

    def exited(self, generation: int, spawned_at: float, now: float) -> None:
        """Count an unexpected exit.

        generation  the worker's generation
        spawned_at  when it was forked, in seconds
        now         the current time, in seconds
        """
        if self._rounds.setdefault(generation, FailureRounds()).failed(spawned_at, now):
            self._times.append((now, generation))

    def of(self, generation: int) -> int:
        """Return the rounds of a generation, from its first worker on."""
        rounds = self._rounds.get(generation)
        return rounds.count if rounds is not None else 0

    def of_others(self, generation: int, since: float) -> int:
        """Return the rounds of all other generations since the time `since`, in seconds."""
        return sum(at >= since and other != generation for at, other in self._times)

    def keep(self, generations: Container[int]) -> None:
        """Forget the count of all other generations, but not the times of their rounds."""
        for generation in [each for each in self._rounds if each not in generations]:
            del self._rounds[generation]

    def shift(self, gap_s: float) -> None:
        """Move all times by `gap_s` seconds, because the machine stood still for that long."""
        self._times = deque(((at + gap_s, each) for at, each in self._times), self._times.maxlen)
        for rounds in self._rounds.values():
            rounds.shift(gap_s)


class Bake:
    """One bake, with its two generations.

    generation      the new generation, which is the current one
    old_generation  the generation that a roll-back returns to
    until           when the bake is over, in seconds
    """

    def __init__(
        self, generation: int, old_generation: int, *, until: float, old_restarts: int
    ) -> None:
        """Begin a bake.

        old_restarts  the rounds of unexpected exits in an equally long time before the bake; only
                      those of other generations count
        """
        self.generation = generation
        self.old_generation = old_generation
        self.until = until
        self._old_restarts = old_restarts

    def problem(self, shares: ErrorShares, restarts: int) -> str:
        """Return why the new generation is bad, in one line; "" if it is not.

        shares    the responses of both generations
        restarts  how many rounds of workers of the new generation have exited unexpectedly
        """
        if restarts >= BAKE_RESTARTS and restarts > 2 * self._old_restarts:
            before = f"{self._old_restarts} in the same time before"
            return f"its workers have failed {restarts} times ({before})"
        responses, errors = shares.of(self.generation)
        old_responses, old_errors = shares.of(self.old_generation)
        share = errors / responses if responses else 0.0
        old_share = old_errors / old_responses if old_responses else 0.0
        if responses >= BAKE_RESPONSES and share >= old_share + BAKE_ERRORS:
            return f"{share:.0%} of its responses are 5xx ({old_share:.0%} before)"
        return ""

    def shift(self, gap_s: float) -> None:
        """Move all times by `gap_s` seconds, because the machine stood still for that long."""
        self.until += gap_s


class BakeMonitor:
    """Begins and ends bakes, and reports when a generation has to be rolled back.

    queue    collects the lines for the log

    current  the bake in progress, or None
    """

    def __init__(self, queue: ActionQueue) -> None:
        self.current: Bake | None = None
        self._queue = queue
        self._shares = ErrorShares()
        self._restarts = Restarts()

    @property
    def due_at(self) -> float:
        """When the bake is over, in seconds; infinity if there is none."""
        return self.current.until if self.current is not None else math.inf

    @property
    def kept(self) -> set[int]:
        """The generations to keep even if they have no workers."""
        return {self.current.old_generation} if self.current is not None else set()

    def count(self, event: ResponsesCounted, workers: WorkerTable) -> None:
        """Note how many responses the workers have given."""
        for serial, (responses, errors) in event.counts.items():
            worker = workers.get(serial)
            if worker is not None:
                self._shares.count(worker.generation, serial, responses, errors)
        self._shares.fold(event.counts)

    def failed(self, worker: WorkerEntry, now: float) -> None:
        """Note that a worker has exited unexpectedly, or has failed its health check.

        now  the current time, in seconds (in every method here)
        """
        self._restarts.exited(worker.generation, worker.spawned_at, now)

    def begin(self, reload: Reload, policy: Policy, can_fork_old: bool, now: float) -> None:
        """Begin the bake of a complete reload, unless its old generation can't return.

        reload        the reload
        policy        the new generation's policy
        can_fork_old  whether workers of the old generation can be forked
        """
        limit_s = policy.bake_time_s
        if not (limit_s and reload.old_served and can_fork_old):
            return
        # Leave out the new generation: some of its workers may have exited during the reload.
        restarts = self._restarts.of_others(reload.generation, now - limit_s)
        old = reload.old_generation
        self.current = Bake(reload.generation, old, until=now + limit_s, old_restarts=restarts)
        text = f"generation {old} is kept for {limit_s:g} s (bake_time)"
        self._queue.log("info", f"{text}: `servoctl rollback` brings it back")

    def look(self, now: float) -> str:
        """Return why the new generation is bad, or "". Ends the bake when its time is over."""
        bake = self.current
        if bake is None:
            return ""
        problem = bake.problem(self._shares, self._restarts.of(bake.generation))
        if not problem and now >= bake.until:
            self.current = None
            text = f"generation {bake.generation} has proved itself"
            self._queue.log("info", f"{text}: generation {bake.old_generation} is dropped")
        return problem

    def forget(self, generations: Mapping[int, object]) -> None:
        """Keep only the counts of these generations."""
        self._shares.keep(generations)
        self._restarts.keep(generations)

    def shift(self, gap_s: float) -> None:
        """Move all times by `gap_s` seconds, because the machine stood still for that long."""
        self._restarts.shift(gap_s)
        if self.current is not None:
            self.current.shift(gap_s)
