"""Each invariant of the simulation has teeth: a supervisor that is broken on purpose is caught.

Each mutant changes one rule of the core. Some lifetime must then fail, and with the assertion that
is there for this rule. A mutant that survives shows an invariant that can't fail, or a world that
never gets near it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from simulation import world
from simulation.test_lifetimes import live_a_life

from servo.arbiter.core import autoscale, supervisor
from servo.arbiter.core.actions import ForkMold
from servo.arbiter.core.bake import BakeMonitor
from servo.arbiter.core.certificate_watch import CertificateWatch
from servo.arbiter.core.exit_reasons import ExitReason, StopCause
from servo.arbiter.core.memory_limits import MemoryLimits
from servo.arbiter.core.molds import Molds
from servo.arbiter.core.reload import ForkCanary, Phase, Reload
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.core.worker_count import WorkerCount
from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
from servo.arbiter.core.worker_table import WorkerEntry

pytestmark = pytest.mark.slow

# A mutant that none of so many lifetimes notices has survived.
SEEDS = 1000

Mutant = Callable[[pytest.MonkeyPatch], None]


def retires_one_too_many(patch: pytest.MonkeyPatch) -> None:
    real = supervisor.balance

    def balance(live: Any, *, desired: int, generation: int, **rest: Any) -> Any:
        stale = [each for each in live if each.ready and each.generation != generation]
        fewer = desired - 1 if stale and desired > 1 else desired
        return real(live, desired=fewer, generation=generation, **rest)

    patch.setattr(supervisor, "balance", balance)


def forgets_the_number_in_an_upgrade(patch: pytest.MonkeyPatch) -> None:
    real = world.restored

    def restored(state: Any) -> Supervisor:
        after = real(state)
        after.count.target = after.count.low = 1
        return after

    patch.setattr(world, "restored", restored)


def forgets_the_number_in_a_roll_back(patch: pytest.MonkeyPatch) -> None:
    def roll_back(self: WorkerCount, policy: Any, *, low: int, target: int) -> None:
        self._policy = policy
        self.low = self.target = 1

    patch.setattr(WorkerCount, "roll_back", roll_back)


def forks_more_than_the_surge(patch: pytest.MonkeyPatch) -> None:
    real = supervisor.balance

    def balance(live: Any, *, surge: int, **rest: Any) -> Any:
        return real(live, surge=surge + 2, **rest)

    patch.setattr(supervisor, "balance", balance)


def never_finishes_a_reload(patch: pytest.MonkeyPatch) -> None:
    real = Reload.next_step

    def next_step(self: Reload, live: Any, may_fork: bool) -> Any:
        decision = real(self, live, may_fork)
        return decision if isinstance(decision, ForkCanary) else None

    patch.setattr(Reload, "next_step", next_step)


def never_ends_the_back_off(patch: pytest.MonkeyPatch) -> None:
    real = supervisor.Backoff.failed

    def failed(self: Any, spawned_at: float, now: float) -> bool:
        begins = real(self, spawned_at, now)
        self.not_before = now + 10_000 if begins else self.not_before
        return begins

    patch.setattr(supervisor.Backoff, "failed", failed)


def forgets_a_mold(patch: pytest.MonkeyPatch) -> None:
    def start(self: Any, generation: int, _now: float) -> None:
        self._queue.do(ForkMold(generation))

    patch.setattr(Molds, "start", start)


def leaves_the_configuration_check_alone(patch: pytest.MonkeyPatch) -> None:
    real = Reload.give_up

    def give_up(self: Reload, text: str, details: str = "") -> Any:
        decision = real(self, text, details)
        decision.cancel_check = False
        return decision

    patch.setattr(Reload, "give_up", give_up)


def forks_a_second_canary(patch: pytest.MonkeyPatch) -> None:
    def canary_forked(self: Reload, serial: int) -> None:
        self.canary = serial if self.canary is None else self.canary

    real = Reload.next_step

    def next_step(self: Reload, live: Any, may_fork: bool) -> Any:
        if self.phase is Phase.CANARY and may_fork:
            return ForkCanary(1)
        return real(self, live, may_fork)

    patch.setattr(Reload, "canary_forked", canary_forked)
    patch.setattr(Reload, "next_step", next_step)


def adopts_at_the_fork(patch: pytest.MonkeyPatch) -> None:
    real = Supervisor._on_config_loaded

    def on_config_loaded(self: Supervisor, event: Any, now: float) -> None:
        real(self, event, now)
        if self.reload is not None and self.reload.phase is Phase.CANARY:
            self.reload.phase = Phase.ROLLING
            self._commit(self.reload, now)

    patch.setitem(supervisor._HANDLERS, world.events.ConfigLoaded, on_config_loaded)


def keeps_a_bad_generation(patch: pytest.MonkeyPatch) -> None:
    real = Reload.give_up

    def give_up(self: Reload, text: str, details: str = "") -> Any:
        decision = real(self, text, details)
        decision.restore = False
        return decision

    patch.setattr(Reload, "give_up", give_up)


def counts_a_standstill(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WorkerEntry, "shift", lambda _self, _gap_s: None)


def kills_idle_workers(patch: pytest.MonkeyPatch) -> None:
    real = WorkerLifecycle._enforce_serving_limits

    def enforce(self: Any, worker: Any, heartbeat: Any, oldest: Any, policy: Any, now: Any) -> None:
        real(self, worker, heartbeat, oldest, policy, now)
        if worker.ready and now - worker.ready_at > 2:
            self.abort(worker, StopCause(ExitReason.REQUEST_TIMEOUT, "request_timeout"), now)

    patch.setattr(WorkerLifecycle, "_enforce_serving_limits", enforce)


def replaces_all_large_workers_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MemoryLimits, "_is_replacing", lambda _self: False)
    patch.setattr(supervisor.Backoff, "failed", lambda *_: False)


def takes_half_the_memory_limit(patch: pytest.MonkeyPatch) -> None:
    real = MemoryLimits._soft_limit
    patch.setattr(MemoryLimits, "_soft_limit", lambda self, worker: real(self, worker) / 2)


def scales_past_the_memory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(autoscale, "_most_by_memory", lambda _load: None)


def scales_past_the_bound(patch: pytest.MonkeyPatch) -> None:
    real = WorkerCount.scale
    patch.setattr(WorkerCount, "scale", lambda self, to, why: real(self, to + 1, why))


def lets_all_workers_linger(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(WorkerLifecycle, "bound_lingering", lambda *_: None)


def kills_nobody(patch: pytest.MonkeyPatch) -> None:
    def kill(_self: Any, worker: WorkerEntry, _now: float) -> None:
        worker.kill_at = math.inf

    patch.setattr(WorkerLifecycle, "kill", kill)


def keeps_the_generation_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BakeMonitor, "due_at", math.inf)
    patch.setattr(BakeMonitor, "look", lambda _self, _now: "")


def ignores_new_certificates(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CertificateWatch, "look", lambda _self, _stamps, _now: False)


def complains_during_a_renewal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CertificateWatch, "failed", lambda _self, _now: True)


def reads_files_all_the_time(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(CertificateWatch, "look", lambda _self, _stamps, _now: True)


# The text of the assertion that fails, and the seed from which to search: without
# it, those that are noticed late would take a minute each.
MUTANTS: dict[Mutant, tuple[str, int]] = {
    retires_one_too_many: ("workers serve after", 0),
    forgets_the_number_in_an_upgrade: ("the state has changed on the way", 0),
    forgets_the_number_in_a_roll_back: ("a secret target", 0),
    forks_more_than_the_surge: ("too many workers", 0),
    never_finishes_a_reload: ("a reload that never ends", 0),
    never_ends_the_back_off: ("of . serve", 94),
    forgets_a_mold: ("has no owner", 0),
    leaves_the_configuration_check_alone: ("a check without a reload", 27),
    forks_a_second_canary: ("none was ready", 0),
    adopts_at_the_fork: ("a release without a ready worker is adopted", 0),
    keeps_a_bad_generation: ("a bad release is current", 0),
    counts_a_standstill: ("is healthy, and killed: no heartbeat", 0),
    kills_idle_workers: ("works on nothing", 0),
    replaces_all_large_workers_at_once: ("more than one worker is replaced for its memory", 25),
    takes_half_the_memory_limit: ("has room left", 0),
    scales_past_the_memory: ("more workers than fit into memory", 0),
    scales_past_the_bound: ("bounds after", 38),
    lets_all_workers_linger: ("many workers linger", 0),
    kills_nobody: ("the stop does not end", 288),
    keeps_the_generation_before: ("a generation is kept without end", 0),
    ignores_new_certificates: ("an old certificate stays in use", 0),
    complains_during_a_renewal: ("an error during a renewal", 0),
    reads_files_all_the_time: ("files are read that have not changed", 0),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_supervisor_is_caught(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    text, start = MUTANTS[mutant]
    others = set()
    for seed in range(start, start + SEEDS):
        try:
            live_a_life(seed)
        except AssertionError as error:
            first, _, _ = str(error).partition("\n")
            if re.search(text, first):
                return
            others.add(first.partition(": ")[2][:80])
    pytest.fail(f"it survives {SEEDS} lifetimes; other assertions failed: {others}")
