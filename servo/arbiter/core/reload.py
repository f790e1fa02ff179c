"""A reload: replace all workers by workers with new configuration and code, without a lost request.

A reload goes through four phases:

CHECKING  A child process reads the configuration and exits. If that process hangs or crashes, the
          arbiter has lost nothing.
LOADING   The arbiter reads the configuration itself, and binds new listeners if it names any.
CANARY    One worker of the new generation boots beside the old ones. If it fails, the new release
          is broken, and nobody has noticed: the old workers have served all the time.
ROLLING   The canary is ready, so the new generation is now the current one. `balance` replaces the
          old workers, a few at a time.

At any point the reload can be rolled back: the old generation stays current, or becomes it again. A
reload that is asked for while another is under way follows that one; several become one.

`Reload` decides and does nothing: its methods take what happened and return a `Decision`, or None
if there is nothing to do. The supervisor carries the decision out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from servo.arbiter.core.actions import Log, RecordLifecycleEvent
from servo.arbiter.core.policy import ROLLING_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.worker_table import WorkerEntry


class Phase(Enum):
    """The phases of a reload, in their order."""

    CHECKING = "a child process reads the configuration"
    LOADING = "the arbiter reads the configuration"
    CANARY = "one worker of the new generation boots"
    ROLLING = "the other workers are replaced"


_NEXT = {
    Phase.CHECKING: Phase.LOADING,
    Phase.LOADING: Phase.CANARY,
    Phase.CANARY: Phase.ROLLING,
}


# --- decisions --------------------------------------------------------------------------------


@dataclass(slots=True)
class Load:
    """Have the arbiter read the configuration."""


@dataclass(slots=True)
class ForkCanary:
    """Fork the first worker of the new generation, and report its serial with `canary_forked`.

    slot  the place of that worker
    """

    slot: int


@dataclass(slots=True)
class Commit:
    """Make the new generation the current one."""


@dataclass(slots=True)
class Finish:
    """The reload is complete: forget it."""


@dataclass(slots=True)
class RollBack:
    """Give the reload up.

    text          why, for the log
    details       a traceback, or ""
    cancel_check  the child process that reads the configuration still runs
    restore       the new generation is the current one already: restore the old one, and the old
                  number of workers
    """

    text: str
    details: str
    cancel_check: bool
    restore: bool


Decision = Load | ForkCanary | Commit | Finish | RollBack


# --- the reload -------------------------------------------------------------------------------


class Reload:
    """A reload that is under way.

    cause           who or what asked for it, for the log
    generation      the new generation
    old_generation  the generation that a roll-back returns to
    old_target      the number of workers that a roll-back returns to
    phase           the current phase
    canary          the serial of the first new worker, once it is forked
    next_cause      the cause of the reload that follows this one; "" if none does
    """

    def __init__(
        self,
        cause: str,
        generation: int,
        *,
        old_generation: int,
        old_target: int,
        check_limit_s: float,
        now: float,
    ) -> None:
        """Start in the phase CHECKING.

        check_limit_s  how long reading the configuration may take; 0 is no limit
        now            the current time, in seconds
        """
        self.cause = cause
        self.generation = generation
        self.old_generation = old_generation
        self.old_target = old_target
        self.phase = Phase.CHECKING
        self.canary: int | None = None
        self.next_cause = ""
        self._check_limit_s = check_limit_s
        self._check_due = now + (check_limit_s or math.inf)
        self._started_at = now
        self._failures = 0
        self._failed_at = 0.0

    @property
    def due_at(self) -> float:
        """The time, in seconds, when `check_limit` has something to do; infinity for never."""
        return self._check_due if self.phase is Phase.CHECKING else math.inf

    @property
    def candidate(self) -> int | None:
        """The generation of the canary, until it is committed."""
        return self.generation if self.phase is Phase.CANARY else None

    def surge(self, batch: int) -> int:
        """Return how many more workers than asked for `balance` may have alive.

        batch  the setting `reload_batch`
        """
        if self.phase is Phase.CANARY:
            return 0  # the canary is that one more worker
        return batch if self.phase is Phase.ROLLING else 1

    def shift(self, gap_s: float) -> None:
        """Move all limits: the machine stood still for `gap_s` seconds."""
        self._check_due += gap_s
        self._failed_at += gap_s

    # --- what happens: each returns the decision that follows -----------------------------------

    def config_checked(self, generation: int, error: str | None) -> Decision | None:
        """The child process has read the configuration of `generation`, or found an error."""
        if generation != self.generation or self.phase is not Phase.CHECKING:
            return None
        self._advance(Phase.LOADING)
        if error is not None:
            return self.give_up(f"the configuration is bad: {error}")
        return Load()

    def config_loaded(self, generation: int, policy: Policy) -> Decision | None:
        """The arbiter has read the configuration of `generation`; `policy` is part of it."""
        if generation != self.generation:
            return None
        self._advance(Phase.CANARY)
        if policy.workers > policy.most_workers:
            return self.give_up(
                f"workers = {policy.workers} is more than the {policy.most_workers} "
                "that the scoreboard has room for until a restart (scoreboard_size)"
            )
        return None

    def config_failed(self, generation: int, error: str) -> Decision | None:
        """The arbiter could not read the configuration of `generation`, or not use it."""
        if generation != self.generation:
            return None
        return self.give_up(f"the configuration can't be used: {error}")

    def check_limit(self, now: float) -> Decision | None:
        """Time has passed: give up if reading the configuration takes too long."""
        if now < self.due_at:
            return None
        limit = f"{self._check_limit_s:g} s (boot_timeout)"
        return self.give_up(f"reading the configuration takes over {limit}")

    def next_step(self, live: Sequence[WorkerEntry], may_fork: bool) -> Decision | None:
        """Continue, once per event.

        live      the workers that serve or boot
        may_fork  there is room for one more worker
        """
        if self.phase is Phase.CANARY and self.canary is None and may_fork:
            return ForkCanary(min((worker.slot for worker in live), default=1))
        if self.phase is Phase.ROLLING and all(
            worker.generation == self.generation for worker in live
        ):
            return Finish()
        return None

    def canary_forked(self, serial: int) -> None:
        """The first worker of the new generation is being forked."""
        self.canary = serial

    def is_canary(self, worker: WorkerEntry) -> bool:
        """Return True if the reload depends on this worker."""
        return self.phase is Phase.CANARY and self.canary == worker.serial

    def worker_ready(self, worker: WorkerEntry) -> Decision | None:
        """A worker got ready: if it is the canary, the new generation works."""
        if not self.is_canary(worker):
            return None
        self._advance(Phase.ROLLING)
        return Commit()

    def boot_failed(self, worker: WorkerEntry, text: str, details: str) -> Decision | None:
        """A worker could not boot: if it is the canary, the new release is broken.

        text     why, for the log
        details  a traceback, or ""
        """
        if not self.is_canary(worker):
            return None
        return self.give_up(f"its first worker failed: {text}", details)

    def worker_ended(self, worker: WorkerEntry, text: str) -> Decision | None:
        """A worker has exited in an orderly way; a canary should not have. `text` says why."""
        if not self.is_canary(worker):
            return None
        return self.give_up(f"its first worker ended: {text}")

    def worker_failed(self, worker: WorkerEntry, now: float) -> Decision | None:
        """A worker died before or soon after it got ready: after several rounds, give up.

        Rounds count as in `backoff`: new workers that die together are one failure.
        """
        if self.phase is not Phase.ROLLING or worker.generation != self.generation:
            return None
        if self._failures and worker.spawned_at < self._failed_at:
            return None
        self._failures += 1
        self._failed_at = now
        if self._failures < ROLLING_ATTEMPTS:
            return None
        return self.give_up(f"its workers failed {self._failures} times")

    def give_up(self, text: str, details: str = "") -> RollBack:
        """Return the decision to roll back.

        text     why, for the log
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

    # --- the record -----------------------------------------------------------------------------

    def started(self) -> RecordLifecycleEvent:
        """Return the lifecycle event of the start."""
        return RecordLifecycleEvent(
            "info",
            f"reload ({self.cause}): reading the configuration",
            name="reload_started",
            reason=self.cause,
            generation=self.generation,
        )

    def committed(self, now: float) -> Log:
        """Return the line for the log about a canary that got ready."""
        took_s = now - self._started_at
        return Log("info", f"reload: a new worker is ready after {took_s:.2f} s; the others follow")

    def finished(self, now: float) -> RecordLifecycleEvent:
        """Return the lifecycle event of the end."""
        took_s = now - self._started_at
        return RecordLifecycleEvent(
            "info",
            f"reload ({self.cause}) finished after {took_s:.2f} s",
            name="reload_finished",
            reason=self.cause,
            generation=self.generation,
            data={"seconds": took_s},
        )

    def rolled_back(self, decision: RollBack, outcome: str, now: float) -> RecordLifecycleEvent:
        """Return the lifecycle event of a roll-back.

        decision  why it was rolled back
        outcome   what serves now, for the log
        """
        short, _, rest = decision.text.partition("\n")
        return RecordLifecycleEvent(
            "error",
            f"reload ({self.cause}) rolled back: {decision.text}; {outcome}",
            name="reload_rolled_back",
            reason=short,
            details=decision.details or rest,
            generation=self.generation,
            data={"seconds": now - self._started_at},
        )
