"""A reload: replace all workers by workers with new configuration and code, without a lost request.

A reload has four phases:

CHECKING  A child process reads the configuration and exits. If it hangs or crashes, the arbiter is
          not affected.
LOADING   The arbiter reads the configuration itself, and binds new listeners if it names any.
CANARY    One worker of the new generation boots beside the old ones. If it fails, no client
          notices that the new release is broken: the old workers still serve.
ROLLING   The canary is ready, so the new generation becomes the current one. `balance` replaces the
          old workers, a few at a time.

A refork (`refork_after`, see `refork`) has the same configuration and code, and begins differently:

REFORKING  One worker is replaced, drains, and forks the mold of the new generation. CANARY follows.

In each phase the reload can be rolled back to the old generation. If another reload is requested
meanwhile, it starts after this one. Several such requests lead to only one more reload.

`Reload` only decides: its methods take an event and return a `Decision`, or None if there is
nothing to do. The supervisor carries the decision out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from servo.arbiter.core.actions import Log, RecordLifecycleEvent
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.failure_rounds import FailureRounds
from servo.arbiter.core.policy import ROLLING_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.worker_table import WorkerEntry


class Phase(Enum):
    """The phases of a reload, in their order."""

    REFORKING = "a worker drains and forks the next mold"
    CHECKING = "a child process reads the configuration"
    LOADING = "the arbiter reads the configuration"
    CANARY = "one worker of the new generation boots"
    ROLLING = "the other workers are replaced"


_NEXT = {
    Phase.REFORKING: Phase.CANARY,
    Phase.CHECKING: Phase.LOADING,
    Phase.LOADING: Phase.CANARY,
    Phase.CANARY: Phase.ROLLING,
}


# --- decisions --------------------------------------------------------------------------------


@dataclass(slots=True)
class Load:
    """Let the arbiter read the configuration."""


@dataclass(slots=True)
class ForkCanary:
    """Fork the first worker of the new generation, and report its serial with `canary_forked`.

    slot  the worker's place
    """

    slot: int


@dataclass(slots=True)
class Commit:
    """Make the new generation the current one."""


@dataclass(slots=True)
class Finish:
    """Forget the reload, because it is complete."""


@dataclass(slots=True)
class RollBack:
    """Give up the reload.

    text          the reason, for the log
    details       a traceback, or ""
    cancel_check  whether to kill the child process that reads the configuration
    restore       whether the new generation is already the current one, so that the old generation
                  and number of workers must be restored
    outcome       which workers serve now, for the log; "" for the usual outcomes
    """

    text: str
    details: str
    cancel_check: bool
    restore: bool
    outcome: str = ""


Decision = Load | ForkCanary | Commit | Finish | RollBack


# --- the reload -------------------------------------------------------------------------------


class Reload:
    """A reload in progress.

    cause           who or what requested it, for the log
    generation      the new generation
    old_generation  the generation that a roll-back returns to
    old_target      the number of workers that a roll-back returns to
    old_low         the minimum number of workers (autoscaling) that a roll-back returns to
    old_served      whether any worker was ready before this reload
    phase           the current phase
    canary          the serial of the first new worker, once it is forked
    next_cause      the cause of the reload that follows this one; "" if there is none
    warmed          in a refork: the serial of the worker that forks the mold; otherwise None
    """

    def __init__(
        self,
        cause: str,
        generation: int,
        *,
        old_generation: int,
        old_target: int,
        old_low: int,
        old_served: bool = True,
        warmed: int | None = None,
        check_limit_s: float,
        now: float,
    ) -> None:
        """Start in the phase CHECKING, or with `warmed` in the phase REFORKING.

        check_limit_s  seconds that reading the configuration may take; 0 for no limit
        now            the current time, in seconds
        """
        self.cause = cause
        self.generation = generation
        self.old_generation = old_generation
        self.old_target = old_target
        self.old_low = old_low
        self.old_served = old_served
        self.phase = Phase.CHECKING if warmed is None else Phase.REFORKING
        self.canary: int | None = None
        self.next_cause = ""
        self.warmed = warmed
        self._has_mold = False
        self._check_limit_s = check_limit_s
        self._check_due = now + (check_limit_s or math.inf)
        self._started_at = now
        self._failures = FailureRounds()

    @property
    def due_at(self) -> float:
        """When to call `check_limit`, in seconds; infinity for never."""
        return self._check_due if self.phase is Phase.CHECKING else math.inf

    @property
    def kind(self) -> str:
        """The word for this operation in the log and in lifecycle events: "reload" or "refork"."""
        return "reload" if self.warmed is None else "refork"

    @property
    def candidate(self) -> int | None:
        """The new generation while its canary boots; None in the other phases."""
        return self.generation if self.phase is Phase.CANARY else None

    def surge(self, batch: int, *, awaits_mold: bool) -> int:
        """Return the number of extra workers that may live.

        batch        the setting `reload_batch`
        awaits_mold  whether the canary can't be forked yet, because its mold imports the app
        """
        if self.phase is Phase.CANARY and not awaits_mold:
            return 0  # the canary is the extra worker
        return batch if self.phase is Phase.ROLLING else 1

    def rebase(self, generation: int, *, target: int, low: int) -> None:
        """Note that the current generation has been rolled back to an older one.

        generation   the older one; a roll-back of this reload returns to it
        target, low  the numbers of workers that a roll-back returns to
        """
        assert self.phase is not Phase.ROLLING
        self.old_generation = generation
        self.old_target = target
        self.old_low = low

    def shift(self, gap_s: float) -> None:
        """Extend the limit by `gap_s` seconds, because the machine stood still for that long."""
        self._check_due += gap_s
        self._failures.shift(gap_s)

    # --- events: each method returns the decision that follows ----------------------------------

    def config_checked(self, generation: int, error: str | None) -> Decision | None:
        """Handle the result of the child process that reads the configuration.

        generation  the generation that gets this configuration
        error       the error in the configuration, or None
        """
        if generation != self.generation or self.phase is not Phase.CHECKING:
            return None
        self._advance(Phase.LOADING)
        if error is not None:
            return self.give_up(f"the configuration is bad: {error}")
        return Load()

    def config_loaded(self, generation: int, policy: Policy) -> Decision | None:
        """Handle the configuration that the arbiter has read.

        generation  the generation that gets this configuration
        policy      the part of the settings that concerns supervision
        """
        if generation != self.generation:
            return None
        self._advance(Phase.CANARY)
        workers = max(policy.workers, policy.max_workers)
        if workers > policy.most_workers:
            return self.give_up(
                f"workers = {workers} is more than the {policy.most_workers} "
                "that the scoreboard has room for until a restart (scoreboard_size)"
            )
        return None

    def config_failed(self, generation: int, error: str) -> Decision | None:
        """Roll back, because the arbiter can't read or use the configuration.

        generation  the generation that gets this configuration
        error       the reason
        """
        if generation != self.generation:
            return None
        return self.give_up(f"the configuration can't be used: {error}")

    def mold_forked(self, serial: int, pid: int, text: str) -> Decision | None:
        """Handle a worker's report that it has forked a mold; roll back if it could not.

        serial  the worker's number
        pid     the mold's process id, or 0
        text    why it could not, in one line
        """
        if not self.awaits_mold(serial):
            return None
        if not pid:
            return self.give_up(f"the next mold could not be forked: {text}")
        self._has_mold = True
        return None

    def awaits_mold(self, serial: int) -> bool:
        """Return True if this worker has to fork the mold, and has not yet reported it."""
        return self.phase is Phase.REFORKING and serial == self.warmed and not self._has_mold

    def mold_ready(self, generation: int) -> None:
        """Go on with the canary if the mold of this refork is ready."""
        if self.phase is Phase.REFORKING and generation == self.generation:
            self._advance(Phase.CANARY)

    def check_limit(self, now: float) -> Decision | None:
        """Give up if reading the configuration takes too long.

        now  the current time, in seconds
        """
        if now < self.due_at:
            return None
        limit = f"{self._check_limit_s:g} s (boot_timeout)"
        return self.give_up(f"reading the configuration takes over {limit}")

    def next_step(self, live: Sequence[WorkerEntry], may_fork: bool) -> Decision | None:
        """Take the next step of the reload. Called once per event.

        live      the serving and booting workers
        may_fork  whether there is room for one more worker
        """
        if self.phase is Phase.CANARY and self.canary is None and may_fork:
            return ForkCanary(min((worker.slot for worker in live), default=1))
        if self.phase is Phase.ROLLING and all(
            worker.generation == self.generation for worker in live
        ):
            return Finish()
        return None

    def canary_forked(self, serial: int) -> None:
        """Note the serial of the first worker of the new generation."""
        self.canary = serial

    def is_canary(self, worker: WorkerEntry) -> bool:
        """Return True if the reload depends on this worker."""
        return self.phase is Phase.CANARY and self.canary == worker.serial

    def worker_ready(self, worker: WorkerEntry) -> Decision | None:
        """Commit the new generation if the worker that got ready is the canary."""
        if not self.is_canary(worker):
            return None
        self._advance(Phase.ROLLING)
        return Commit()

    def boot_failed(self, worker: WorkerEntry, text: str, details: str) -> Decision | None:
        """Handle a failed boot: roll back if the worker is the canary.

        worker   the worker that could not boot
        text     the reason, for the log
        details  a traceback, or ""
        """
        if not self.is_canary(worker):
            return None
        return self.give_up(f"its first worker failed: {text}", details)

    def worker_ended(self, worker: WorkerEntry, text: str) -> Decision | None:
        """Handle an exit: roll back if the worker is the canary, or ended without forking the mold.

        worker  the worker that has ended
        text    the reason, for the log
        """
        if self.awaits_mold(worker.serial):
            # A worker that ends with code 0 has its task as the reason, which it has not done.
            how = text
            if text.startswith(ExitReason.REFORKED.value):
                how = "exited with code 0"
            return self.give_up(f"{worker} ended before it had forked the next mold: {how}")
        if not self.is_canary(worker):
            return None
        return self.give_up(f"its first worker ended: {text}")

    def worker_failed(self, worker: WorkerEntry, now: float) -> Decision | None:
        """Count a worker that died before or soon after readiness. Roll back after several rounds.

        worker  the worker that died
        now     the current time, in seconds

        Rounds count as in `failure_rounds`: new workers that die together are one failure.
        """
        if self.phase is not Phase.ROLLING or worker.generation != self.generation:
            return None
        if not self._failures.failed(worker.spawned_at, now):
            return None
        if self._failures.count < ROLLING_ATTEMPTS:
            return None
        return self.give_up(f"its workers failed {self._failures.count} times")

    def give_up(self, text: str, details: str = "") -> RollBack:
        """Return the decision to roll back.

        text     the reason, for the log
        details  a traceback, or ""
        """
        return RollBack(
            text,
            details,
            cancel_check=self.phase is Phase.CHECKING,
            restore=self.phase is Phase.ROLLING,
        )

    def _advance(self, phase: Phase) -> None:
        if _NEXT.get(self.phase) is not phase:
            raise RuntimeError(f"reload: {self.phase.name} > {phase.name}")
        self.phase = phase

    # --- log lines and lifecycle events ---------------------------------------------------------

    def started(self) -> RecordLifecycleEvent:
        """Return the lifecycle event of the start."""
        what = "reading the configuration" if self.warmed is None else "it forks the next mold"
        return RecordLifecycleEvent(
            "info",
            f"{self.kind} ({self.cause}): {what}",
            name=f"{self.kind}_started",
            reason=self.cause,
            generation=self.generation,
        )

    def committed(self, now: float) -> Log:
        """Return the log line about the ready canary."""
        took_s = now - self._started_at
        return Log(
            "info", f"{self.kind}: a new worker is ready after {took_s:.2f} s; the others follow"
        )

    def finished(self, now: float) -> RecordLifecycleEvent:
        """Return the lifecycle event of the end."""
        took_s = now - self._started_at
        return RecordLifecycleEvent(
            "info",
            f"{self.kind} ({self.cause}) finished after {took_s:.2f} s",
            name=f"{self.kind}_finished",
            reason=self.cause,
            generation=self.generation,
            data={"seconds": took_s},
        )

    def rolled_back(self, decision: RollBack, outcome: str, now: float) -> RecordLifecycleEvent:
        """Return the lifecycle event of a roll-back.

        decision  the decision, with its reason
        outcome   which workers serve now, for the log
        now       the current time, in seconds
        """
        short, _, rest = decision.text.partition("\n")
        return RecordLifecycleEvent(
            "error",
            f"{self.kind} ({self.cause}) rolled back: {decision.text}; {outcome}",
            name=f"{self.kind}_rolled_back",
            reason=short,
            details=decision.details or rest,
            generation=self.generation,
            data={"seconds": now - self._started_at},
        )
