"""A reload: the configuration is read, one new worker proves it, the others follow.

Until the last step it can be rolled back. What a reload knows of itself is in `Reload`; the
functions take the supervisor from phase to phase, each called for an event or once a turn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from servo.arbiter.core import actions, events
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.policy import ROLLING_ATTEMPTS

if TYPE_CHECKING:
    from servo.arbiter.core.supervisor import Supervisor
    from servo.arbiter.core.worker_table import WorkerHandle


class Phase(Enum):
    """The phases of a reload, in their order."""

    CHECKING = "a throw-away child reads the configuration"
    LOADING = "the arbiter reads it"
    CANARY = "one worker of the new generation boots"
    ROLLING = "the others are replaced"


_NEXT = {
    Phase.CHECKING: Phase.LOADING,
    Phase.LOADING: Phase.CANARY,
    Phase.CANARY: Phase.ROLLING,
}


@dataclass(slots=True, eq=False)
class Reload:
    """One reload that is under way.

    cause        who asked, for the log
    generation   of the workers that it brings
    deadline     of the configuration check
    canary       the serial of the first new worker, once it is forked
    failures     failed boots after the canary
    again        another reload was asked for meanwhile: it follows this one
    old_*        what a roll-back returns to
    """

    cause: str
    generation: int
    started_at: float
    deadline: float
    old_generation: int
    old_target: int
    phase: Phase = Phase.CHECKING
    canary: int | None = None
    failures: int = 0
    failed_at: float = 0.0
    again: str = ""

    def advance(self, phase: Phase) -> None:
        """Enter the next phase; any other is a bug and raises."""
        if _NEXT.get(self.phase) is not phase:
            raise RuntimeError(f"reload: {self.phase.name} > {phase.name}")
        self.phase = phase

    def failed(self, spawned_at: float, now: float) -> bool:
        """A new worker forked at `spawned_at` failed. True when it opened a new round of them."""
        if self.failures and spawned_at < self.failed_at:
            return False
        self.failures += 1
        self.failed_at = now
        return True

    def shift(self, gap: float) -> None:
        """The machine stood still for `gap` seconds."""
        self.deadline += gap
        self.failed_at += gap


def ask_reload(supervisor: Supervisor, cause: str, now: float) -> None:
    """Reload now, or once more after the reload that is under way."""
    if supervisor.ending:
        supervisor.crew.log("info", f"no reload ({cause}): the server is stopping")
        return
    if supervisor.reload is not None:
        supervisor.reload.again = cause
        supervisor.crew.log("info", f"reload ({cause}): another follows the one that is under way")
        return
    supervisor.last_generation += 1
    supervisor.reload = Reload(
        cause=cause,
        generation=supervisor.last_generation,
        started_at=now,
        deadline=now + (supervisor.policy.boot_timeout_s or math.inf),
        old_generation=supervisor.generation,
        old_target=supervisor.target,
    )
    text = f"reload ({cause}): reading the configuration"
    supervisor.crew.announce(
        "reload_started", "info", text, reason=cause, generation=supervisor.last_generation
    )
    supervisor.crew.do(actions.CheckConfig(supervisor.last_generation))


def on_config_checked(supervisor: Supervisor, event: events.ConfigChecked, now: float) -> None:
    reload = supervisor.reload
    if reload is None or reload.generation != event.generation:
        return
    if reload.phase is not Phase.CHECKING:
        return
    if event.error is not None:
        reload.advance(Phase.LOADING)
        roll_back(supervisor, f"the configuration is bad: {event.error}", now)
    else:
        reload.advance(Phase.LOADING)
        supervisor.crew.do(actions.LoadConfig(reload.generation))


def on_config_loaded(supervisor: Supervisor, event: events.ConfigLoaded, now: float) -> None:
    supervisor.crew.policies[event.generation] = event.policy
    reload = supervisor.reload
    if reload is None or reload.generation != event.generation:
        return  # given up meanwhile; `_settle` drops the generation
    reload.advance(Phase.CANARY)
    if event.policy.workers > event.policy.most_workers:
        roll_back(
            supervisor,
            f"workers = {event.policy.workers} is more than the {event.policy.most_workers} "
            "that the scoreboard has room for until a restart (scoreboard_size)",
            now,
        )


def on_config_failed(supervisor: Supervisor, event: events.ConfigFailed, now: float) -> None:
    if supervisor.reload is not None and supervisor.reload.generation == event.generation:
        roll_back(supervisor, f"the configuration can't be taken up: {event.error}", now)


def check_reload(supervisor: Supervisor, now: float) -> None:
    """A configuration that takes too long to read is a bad one."""
    reload = supervisor.reload
    if reload is not None and reload.phase is Phase.CHECKING and now >= reload.deadline:
        limit = supervisor.policy.boot_timeout_s
        text = f"reading the configuration takes over {limit:g} s (boot_timeout)"
        roll_back(supervisor, text, now)


def is_canary(supervisor: Supervisor, handle: WorkerHandle) -> bool:
    """Whether the new release stands or falls with this worker."""
    reload = supervisor.reload
    return reload is not None and reload.phase is Phase.CANARY and reload.canary == handle.serial


def commit_reload(supervisor: Supervisor, now: float) -> None:
    """The canary is ready: its generation is the current one from now on."""
    reload = supervisor.reload
    assert reload is not None
    reload.advance(Phase.ROLLING)
    before = supervisor.policy.workers
    supervisor.generation = reload.generation
    supervisor.paused = supervisor.held = False
    supervisor.backoff.reset()
    supervisor.crew.do(actions.AdoptGeneration(reload.generation))
    took = now - reload.started_at
    supervisor.crew.log(
        "info", f"reload: a new worker is ready after {took:.2f} s; the others follow"
    )
    # What TTIN and TTOU have done stays, unless the configuration asks for another number.
    if supervisor.policy.workers != before:
        supervisor.scale(supervisor.policy.workers, "reload")
    elif supervisor.target > supervisor.policy.most_workers:
        supervisor.scale(supervisor.policy.most_workers, "reload")


def count_failure(supervisor: Supervisor, handle: WorkerHandle, now: float) -> None:
    """A worker died before or soon after it got ready: a release that goes on so is given up."""
    reload = supervisor.reload
    if reload is None or reload.phase is not Phase.ROLLING:
        return
    is_new = handle.generation == reload.generation
    if is_new and reload.failed(handle.spawned_at, now) and reload.failures >= ROLLING_ATTEMPTS:
        roll_back(supervisor, f"its workers failed {reload.failures} times", now)


def step_reload(supervisor: Supervisor, now: float) -> None:
    """Fork the canary once there is room; see that the last old worker has gone."""
    reload = supervisor.reload
    if reload is None:
        return
    live = supervisor.pool.live()
    if reload.phase is Phase.CANARY and reload.canary is None:
        # One at a time: a successor that boots already has the surge until it is dropped.
        room = len(supervisor.pool) < supervisor.policy.capacity
        if room and len(live) < supervisor.desired + supervisor.policy.reload_batch:
            slot = min((handle.slot for handle in live), default=1)
            reload.canary = supervisor.crew.fork(slot, reload.generation, now).serial
    elif reload.phase is Phase.ROLLING and all(
        handle.generation == reload.generation for handle in live
    ):
        supervisor.reload = None
        took = now - reload.started_at
        supervisor.crew.announce(
            "reload_finished",
            "info",
            f"reload ({reload.cause}) finished after {took:.2f} s",
            reason=reload.cause,
            generation=reload.generation,
            data={"seconds": took},
        )
        if reload.again:
            ask_reload(supervisor, reload.again, now)


def roll_back(supervisor: Supervisor, text: str, now: float, details: str = "") -> None:
    """Give the reload up: the old generation is, or becomes again, the current one."""
    reload, supervisor.reload = supervisor.reload, None
    assert reload is not None
    if reload.phase is Phase.CHECKING:
        supervisor.crew.do(actions.CancelCheck())
    if reload.phase is Phase.ROLLING:
        supervisor.generation = reload.old_generation
        supervisor.crew.do(actions.AdoptGeneration(supervisor.generation))
        supervisor.scale(reload.old_target, "rolled back")
    for handle in supervisor.pool.live():
        if handle.generation == reload.generation and not handle.ready:
            supervisor.crew.retire(handle, ExitReason.ROLLED_BACK, now)
    keeps = "the old workers keep serving" if supervisor.pool.live() else "the old release returns"
    supervisor.paused = False
    if not supervisor.served and supervisor.policy.wait_for_change:
        supervisor.held = True
        keeps = "waiting for the next change of a file"
    short, _, rest = text.partition("\n")
    supervisor.crew.announce(
        "reload_rolled_back",
        "error",
        f"reload ({reload.cause}) rolled back: {text}; {keeps}",
        reason=short,
        details=details or rest,
        generation=reload.generation,
        data={"seconds": now - reload.started_at},
    )
    if reload.again:
        ask_reload(supervisor, reload.again, now)
