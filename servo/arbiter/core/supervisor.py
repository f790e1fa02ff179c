"""The supervisor: decides what the arbiter does.

    actions = supervisor.handle(event, now)

An event is an input of the arbiter: a signal, a message from a worker, the exit of a child, a tick
of the clock. An action is an output: fork, send, kill, log. The supervisor takes one event and
returns actions. It does no I/O and reads no clock, so a simulation can drive it through a thousand
lifetimes in a second.

The supervisor never waits. Stops, reloads and scalings are states. Each event may change them, and
then `_settle` compares the workers with the desired state, and takes the next step.

Its parts are in separate modules:
`worker_table`      the workers
`worker_lifecycle`  forks, retires and kills one worker
`molds`             the processes that fork workers, with `preload_app`
`memory_limits`     which workers use too much memory
`worker_count`      how many workers should serve
`autoscale`         how many workers the load needs
`balance`           which workers to fork and to retire
`reload`            the phases of a reload
`bake`              whether a new generation works well, for a while after a reload
`rollback`          the return to the old generation
`refork`            the choice of a worker that forks the next mold
`upgrade`           the phases of an upgrade
`commands`          the commands of signals and `servoctl`
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from servo.arbiter.core import actions, events
from servo.arbiter.core.action_queue import ActionQueue
from servo.arbiter.core.backoff import Backoff
from servo.arbiter.core.bake import BakeMonitor
from servo.arbiter.core.balance import balance
from servo.arbiter.core.commands import SIGNALS, run_app_command, run_command
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.failure_rounds import FailureRounds
from servo.arbiter.core.memory_limits import MemoryLimits
from servo.arbiter.core.molds import Molds
from servo.arbiter.core.policy import (
    FIRST_BOOT_ATTEMPTS,
    STANDSTILL_S,
    TICK_S,
    TICK_SLACK_S,
    YOUNG_S,
    Policy,
)
from servo.arbiter.core.refork import Reforks, look_at_refork
from servo.arbiter.core.reload import Commit, Finish, ForkCanary, Load, Phase, Reload, RollBack
from servo.arbiter.core.rollback import give_up_reload, look_at_bake
from servo.arbiter.core.stopping import PendingStop, Stopping
from servo.arbiter.core.upgrade import Upgrade, UpgradePhase, given_back
from servo.arbiter.core.worker_count import WorkerCount
from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
from servo.arbiter.core.worker_table import WorkerTable
from servo.ipc import messages as msg
from servo.ipc.messages import EXIT_APP, EXIT_BOOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.actions import Action
    from servo.arbiter.core.events import Event
    from servo.arbiter.core.molds import MoldEntry
    from servo.arbiter.core.reload import Decision
    from servo.arbiter.core.worker_table import WorkerEntry


class Supervisor:
    """Keeps `count.target` workers of the current generation serving.

    workers          the table of workers
    lifecycle        moves single workers from state to state
    memory           replaces and kills workers that use too much memory
    queue            collects the actions for the current event
    policies         the policy of each generation that has, or will have, workers
    count            the number of workers that should serve, and its bounds
    generation       the current generation
    last_generation  the newest generation so far; no number is used twice
    served           whether a worker has ever been ready. If so, failed boots end the server only
                     with `max_boot_failures`
    paused           (WINCH) whether the sockets are kept without workers
    held             (--reload) whether to fork nothing until a file changes, because no worker can
                     boot
    reload           the reload in progress, or None
    upgrade          the upgrade in progress, or None; never together with a reload
    pending_stop     the stop that begins later, or None
    stopping         the stop in progress, or None
    exited           whether `Exit` was returned: then no event may follow
    backoff          when the next worker may be forked
    boot_failures    the failed boots since a worker last got ready
    molds            the molds, by generation
    bakes            watches a new generation after a reload, and keeps the previous one
    reforks          knows which generations have been reforked
    """

    def __init__(self, policy: Policy) -> None:
        self.workers = WorkerTable()
        self.queue = ActionQueue()
        self.policies: dict[int, Policy] = {1: policy}
        self.lifecycle = WorkerLifecycle(self.workers, self.policies, self.queue)
        self.memory = MemoryLimits(self.workers, self.policies, self.lifecycle, self.queue)
        self.count = WorkerCount(policy, self.queue)
        self.generation = self.last_generation = 1
        self.served = False
        self.paused = False
        self.held = False
        self.reload: Reload | None = None
        self.upgrade: Upgrade | None = None
        self.pending_stop: PendingStop | None = None
        self.stopping: Stopping | None = None
        self.exited = False
        self.backoff = Backoff()
        self.boot_failures = FailureRounds()
        self.molds = Molds(self.policies, self.queue)
        self.bakes = BakeMonitor(self.queue)
        self.reforks = Reforks()
        self._started = False
        self._now: float | None = None

    @property
    def policy(self) -> Policy:
        """The policy of the current generation."""
        return self.policies[self.generation]

    @property
    def desired(self) -> int:
        """The number of workers that should serve now."""
        return 0 if self.paused else self.count.target

    @property
    def is_autoscaled(self) -> bool:
        """Whether the load decides about the number of workers, so that it has to be measured."""
        return self.policy.max_workers > 0 and not self.ending

    @property
    def ending(self) -> bool:
        """Whether a stop was requested, even if it begins later (`pre_stop_delay`)."""
        return self.stopping is not None or self.pending_stop is not None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle one event. Returns the actions, in the order to perform them.

        event  the event
        now    the current time, in seconds; it must not decrease. A Tick must come at least every
               TICK_S: a longer gap counts as a standstill of the machine, and extends all limits
        """
        assert not self.exited
        self._notice_standstill(now, expected=isinstance(event, events.Upgraded | events.GivenBack))
        _HANDLERS[type(event)](self, event, now)
        self._settle(now)
        return self.queue.take()

    def wake_at(self) -> float:
        """Return when the next limit is due, in seconds; infinity if there is none.

        Limits that depend on heartbeats are left out: the regular Tick covers them.
        """
        now = self._now or 0.0
        times = self.lifecycle.due_times() + self.molds.due_times()
        if self.stopping is None:
            times.append(self.backoff.not_before)
            if self.pending_stop is not None:
                times.append(self.pending_stop.until)
            if self.reload is not None:
                times.append(self.reload.due_at)
            if self.upgrade is not None:
                times.append(self.upgrade.due_at)
            times.append(self.bakes.due_at)
        return min((time for time in times if time > now), default=math.inf)

    # --- events -----------------------------------------------------------------------------------

    def _on_started(self, _event: events.Started, _now: float) -> None:
        self._started = True
        self.queue.do(actions.WorkerCountChanged(self.count.target, None))

    def _on_signal(self, event: events.SignalReceived, now: float) -> None:
        command = SIGNALS.get(event.name)
        if command is None:
            self.queue.log("info", f"{event.name} has no meaning here")
        else:
            command(self, now)

    def _on_command(self, event: events.CommandReceived, now: float) -> None:
        run_command(self, event, now)

    def _on_forked(self, event: events.Forked, now: float) -> None:
        worker = self.lifecycle.forked(event.serial, event.pid)
        self.molds.forked_worker(worker.generation, now)

    def _on_fork_failed(self, event: events.ForkFailed, now: float) -> None:
        worker = self.lifecycle.fork_failed(event.serial, event.text)
        if worker.stop_cause is None:
            text = f"it can't be forked: {event.text}"
            self._boot_failed(worker, EXIT_BOOT, text, now, final=False)

    def _on_exited(self, event: events.ChildExited, now: float) -> None:
        ended = self.lifecycle.exited(event, now)
        if ended is None:
            return
        worker = ended.worker
        if ended.unasked:
            self.bakes.failed(worker, now)
        if self.reload is not None and self.reload.awaits_mold(worker.serial):
            self.carry_out(self.reload.worker_ended(worker, ended.text), now)
        if ended.unasked and worker.ready_at is None:
            code = EXIT_APP if event.code == EXIT_APP else EXIT_BOOT
            final = event.code in (EXIT_BOOT, EXIT_APP)
            self._boot_failed(worker, code, ended.text, now, final=final)
        elif ended.unasked and now - (worker.ready_at or now) < YOUNG_S:
            self._count_failure(worker, now)
        elif self.reload is not None:
            self.carry_out(self.reload.worker_ended(worker, ended.text), now)

    def _on_row_overwritten(self, event: events.RowOverwritten, now: float) -> None:
        worker = self.workers.get(event.serial)
        if worker is not None:
            # Usually a stray pointer in the worker's own code did this, and may have overwritten
            # more. So replace the worker.
            reason = ExitReason.ROW_OVERWRITTEN
            self.queue.log(
                "error",
                f"{worker}: {reason.value}; the row is repaired, the worker will be replaced",
            )
            self.lifecycle.request_replacement(worker, msg.ReplaceMe(reason.name.lower()), now)

    def _on_kill_failed(self, event: events.KillFailed, _now: float) -> None:
        worker = self.workers.get(event.serial)
        if worker is not None:
            self.lifecycle.kill_failed(worker, event.signal)

    def _on_message(self, event: events.MessageReceived, now: float) -> None:
        worker = self.workers.get(event.serial)
        if worker is None:
            return
        message = event.message
        if isinstance(message, msg.Booting):
            self.lifecycle.booting(worker)
        elif isinstance(message, msg.Ready):
            worker.capacity = max(1, message.capacity)
            if self.lifecycle.ready(worker, now):
                self._learn_class(worker, message.worker_class)
                self._worker_ready(worker, now)
        elif isinstance(message, msg.BootFailed):
            if self.lifecycle.boot_failed(worker, message, now):
                code = EXIT_APP if message.kind == "app" else EXIT_BOOT
                text = message.text.strip()
                short = text.partition("\n")[0]
                self._boot_failed(worker, code, short, now, details=text)
        elif isinstance(message, msg.Draining):
            self.lifecycle.draining(worker, now)
        elif isinstance(message, msg.Lingering):
            self.lifecycle.lingering(worker)
            if self.stopping is not None and worker.lingering:
                self.lifecycle.end_lingering(worker, now)
        elif isinstance(message, msg.ReplaceMe):
            if self.lifecycle.request_replacement(worker, message, now) is ExitReason.UNHEALTHY:
                self.bakes.failed(worker, now)
        elif isinstance(message, msg.AppCommand):
            run_app_command(self, worker, message, now)
        elif isinstance(message, msg.MoldForked):
            self._mold_forked(worker, message, now)

    def _mold_forked(self, worker: WorkerEntry, message: msg.MoldForked, now: float) -> None:
        reload = self.reload
        if reload is None or not reload.awaits_mold(worker.serial):
            return  # the refork was given up: its mold ends, because its socket is closed
        self.carry_out(reload.mold_forked(worker.serial, message.pid, message.text), now)
        if message.pid:
            self.molds.adopt(reload.generation, message.pid, now)

    def _on_channel_lost(self, event: events.ChannelLost, _now: float) -> None:
        worker = self.workers.get(event.serial)
        if worker is not None:
            self.lifecycle.channel_lost(worker)

    def _on_tick(self, event: events.Tick, now: float) -> None:
        for worker in self.lifecycle.enforce_limits(event.heartbeats, event.oldest, now):
            self._boot_failed(worker, EXIT_BOOT, str(worker.stop_cause), now)
        self.molds.enforce_limits(self.workers, self.generation, now)
        for worker in self.workers:
            if worker.ready and now - (worker.ready_at or now) >= YOUNG_S:
                self.backoff.survived(worker.spawned_at)
        if self.reload is not None:
            self.carry_out(self.reload.check_limit(now), now)
        look_at_bake(self, now)
        look_at_refork(self, now)
        if self.upgrade is not None and now >= self.upgrade.due_at:
            self.queue.do(actions.CancelPreflight())
            self._upgrade_failed(self.upgrade.took_too_long(), "", now)
        if self.pending_stop is not None and now >= self.pending_stop.until:
            self.stop(now, quick=False, why=self.pending_stop.why)

    def _on_memory_measured(self, event: events.MemoryMeasured, now: float) -> None:
        may_replace = self.reload is None and not self.ending
        self.memory.measured(event.sizes, now, may_replace=may_replace)

    def _on_load_measured(self, event: events.LoadMeasured, now: float) -> None:
        if not self.is_autoscaled or self.paused or self.held:
            self.count.forget_load()
        else:
            self.count.measured(event.load, now, may_shrink=self.reload is None)

    def _on_config_checked(self, event: events.ConfigChecked, now: float) -> None:
        if self.reload is not None:
            self.carry_out(self.reload.config_checked(event.generation, event.error), now)

    def _on_config_loaded(self, event: events.ConfigLoaded, now: float) -> None:
        # The arbiter now holds this generation's settings, even if the reload has been given up.
        # With an entry here, `_drop_generations` releases them.
        self.policies[event.generation] = event.policy
        if self.reload is not None:
            self.carry_out(self.reload.config_loaded(event.generation, event.policy), now)

    def _on_config_failed(self, event: events.ConfigFailed, now: float) -> None:
        if self.reload is not None:
            self.carry_out(self.reload.config_failed(event.generation, event.error), now)

    def _on_preflight_ended(self, event: events.PreflightEnded, now: float) -> None:
        upgrade = self.upgrade
        if upgrade is None or upgrade.phase is not UpgradePhase.PREFLIGHT:
            return
        if event.error is not None:
            self._upgrade_failed(event.error, event.details, now)
            return
        upgrade.phase = UpgradePhase.EXECUTING
        self.queue.do(actions.Execute(upgrade.python))

    def _on_execute_failed(self, event: events.ExecuteFailed, now: float) -> None:
        if self.upgrade is not None:
            self._upgrade_failed(event.error, "", now)

    def _on_upgraded(self, event: events.Upgraded, now: float) -> None:
        self._started = True
        # Don't reload a server without workers: the reload would bring them back.
        generation = None if self.paused else self.last_generation + 1
        self.queue.record("upgraded", "info", event.text, generation=generation)
        if not self.paused:
            self.request_reload("upgrade", now)

    def _on_responses_counted(self, event: events.ResponsesCounted, _now: float) -> None:
        self.bakes.count(event, self.workers)
        self.reforks.count(event)

    def _on_mold_ready(self, event: events.MoldReady, now: float) -> None:
        self.molds.ready(event, now)
        if self.reload is not None:
            self.reload.mold_ready(event.generation)

    def _on_mold_ended(self, event: events.MoldEnded, now: float) -> None:
        mold = self.molds.ended(event, self.generation)
        if mold is None or self.stopping is not None:
            return
        text = mold.ended_for or event.text
        reload = self.reload
        if reload is not None and reload.generation == mold.generation:
            loading = mold.ready_at is None and not mold.is_refork
            cause = "its app could not be loaded" if loading else "its mold ended"
            self.carry_out(reload.give_up(f"{cause}: {text}", event.details), now)
            if self.policy.preload and self.generation not in self.molds:
                # The old generation has no mold either, so nothing can fork a worker.
                self._mold_failed(mold, event, now)
        elif mold.generation == self.generation and mold.ready_at is None:
            self._mold_failed(mold, event, now)
        elif mold.generation == self.generation:
            # A refork needs this mold: the worker drains only after its replacement is ready, and
            # only this mold could fork the replacement.
            self._give_up_refork(f"the mold of generation {mold.generation} has ended", now)

    def _on_given_back(self, event: events.GivenBack, _now: float) -> None:
        self._started = True
        self.queue.do(given_back(event.error))

    def _on_file_changed(self, event: events.FileChanged, now: float) -> None:
        more = f" and {len(event.paths) - 1} more" if len(event.paths) > 1 else ""
        self.request_reload(f"{event.paths[0]}{more} changed", now)

    # --- operators' commands: called by `commands` ------------------------------------------------

    def request_reload(self, cause: str, now: float) -> None:
        """Reload now, or after the reload in progress.

        cause  who or what requested it, for the log
        now    the current time, in seconds (in every method here)
        """
        if self.ending:
            self.queue.log("info", f"no reload ({cause}): the server is stopping")
            return
        self._give_up_refork(f"a reload ({cause}) goes first", now)
        if self.upgrade is not None:
            self.upgrade.next_cause = cause
            self.queue.log("info", f"reload ({cause}): it follows the upgrade that is under way")
            # An upgrade of a server without workers ends without a reload.
            self.paused = False
            return
        if self.reload is not None:
            self.reload.next_cause = cause
            text = f"reload ({cause}): another follows the one that is under way"
            self.queue.log("info", text)
            return
        self.last_generation += 1
        self.reload = Reload(
            cause,
            self.last_generation,
            old_generation=self.generation,
            old_target=self.count.target,
            old_low=self.count.low,
            old_served=self.served,
            check_limit_s=self.policy.boot_timeout_s,
            now=now,
        )
        self.queue.do(self.reload.started(), actions.CheckConfig(self.last_generation))

    def request_upgrade(self, cause: str, python: str, now: float) -> str:
        """Begin an upgrade. Returns "", or the reason of a refusal.

        cause   who or what requested it, for the log
        python  the path of the new interpreter, or "" for the current one
        """
        if self.ending:
            return "the server is stopping"
        if self.upgrade is not None:
            return "an upgrade is under way already"
        self._give_up_refork(f"an upgrade ({cause}) goes first", now)
        if self.reload is not None:
            return "a reload is under way; ask again when it has finished"
        if not self.served:
            return "no worker has been ready yet"
        self.upgrade = Upgrade(cause, python, limit_s=self.policy.boot_timeout_s, now=now)
        self.queue.do(self.upgrade.started(self.last_generation + 1), actions.Preflight(python))
        return ""

    def _give_up_refork(self, why: str, now: float) -> None:
        """Give up a refork that still waits for its mold: it must not delay an operator."""
        if self.reload is not None and self.reload.phase is Phase.REFORKING:
            give_up_reload(self, why, now)

    def stop(self, now: float, *, quick: bool, why: str, code: int = 0) -> None:
        """Stop the server, or turn a stop in progress into a quick one.

        A graceful stop first waits for `pre_stop_delay`. A second call ends this wait.

        quick  whether to cut off open requests
        why    who or what requested it, for the log
        code   the exit code of the arbiter
        """
        self._give_up_upgrade("the server is stopping", now)
        delay_s = self.policy.pre_stop_delay_s
        if delay_s and self.served and not (quick or code or self.ending):
            self.pending_stop = PendingStop(now + delay_s, why)
            text = f"{why}: not ready any more, stopping in {delay_s:g} s (pre_stop_delay)"
            self.queue.log("info", text)
            return
        self.pending_stop = None
        if self.stopping is not None:
            self.stopping.quick = self.stopping.quick or quick
        else:
            if self.reload is not None and self.reload.phase is Phase.CHECKING:
                self.queue.do(actions.CancelCheck())
            self.reload = None
            self.stopping = Stopping(quick, code)
            self.queue.do(actions.CloseListeners())
        way = "open requests are cut off" if quick else "open requests are finished"
        data = {"quick": quick, "code": code}
        if code:
            text = f"{why}: the server ends with exit code {code}"
            self.queue.record("stopping", "error", text, reason=why, data=data)
        else:
            text = f"{why}: stopping; {way}"
            self.queue.record("stopping", "info", text, reason=why, data=data)
        for worker in self.workers:
            self.lifecycle.stop(worker, quick, now)

    def kill_all(self, now: float) -> None:
        """Send SIGKILL to every worker, except those that already got it."""
        for worker in self.workers:
            if worker.signal_sent != "SIGKILL":
                self.lifecycle.kill(worker, now)

    def pause(self, now: float) -> None:
        """Drain all workers, but keep the sockets.

        Also gives up a reload, even one that waits for an upgrade: a reload would bring the workers
        back.
        """
        outcome = "SIGHUP or SIGTTIN brings the workers back"
        give_up_reload(self, "all workers drain", now, outcome=outcome)
        if self.upgrade is not None:
            self.upgrade.next_cause = ""
        self.paused = True

    # --- boot -------------------------------------------------------------------------------------

    def _worker_ready(self, worker: WorkerEntry, now: float) -> None:
        self.served = True
        self.boot_failures.reset()
        decision = self.reload.worker_ready(worker) if self.reload is not None else None
        if decision is not None:
            self.carry_out(decision, now)
        elif worker.generation == self.generation:
            self.held = False

    def _learn_class(self, worker: WorkerEntry, worker_class: str) -> None:
        """Set the number of workers for the class that the app needs (`workers = auto`)."""
        policy = self.policies[worker.generation]
        if worker_class not in policy.workers_of:
            return
        workers = min(policy.workers_of[worker_class], policy.most_workers)
        learned = replace(policy, workers=workers, workers_of={})
        self.policies[worker.generation] = learned
        if worker.generation == self.generation:
            self.count.adopt(learned, f"workers = auto, of the class {worker_class}")

    def _boot_failed(
        self,
        worker: WorkerEntry,
        code: int,
        text: str,
        now: float,
        *,
        final: bool = True,
        details: str = "",
    ) -> None:
        """Handle a failed boot: roll back a reload, delay the next fork, or end the server.

        worker   the worker
        code     the arbiter's exit code if the server ends because of this failure
        text     the reason, for the log
        final    whether the worker reported the reason, so that another attempt would not help
        details  a traceback, or ""
        """
        if self.stopping is not None or worker.failure_counted:
            return
        worker.failure_counted = True
        if self.reload is not None:
            decision = self.reload.boot_failed(worker, text, details)
            if decision is not None:
                self.carry_out(decision, now)
                return
        self._count_failure(worker, now)
        if worker.generation == self.generation:
            self._current_boot_failed(worker.spawned_at, code, now, final=final)

    def _mold_failed(self, mold: MoldEntry, event: events.MoldEnded, now: float) -> None:
        """Delay the next mold, because this one could not import the app."""
        self.backoff.failed(mold.spawned_at, now)
        code = EXIT_APP if event.kind == "app" else EXIT_BOOT
        final = bool(event.kind or mold.ended_for)
        self._current_boot_failed(mold.spawned_at, code, now, final=final)

    def _current_boot_failed(
        self, spawned_at: float, code: int, now: float, *, final: bool
    ) -> None:
        """Count a failed boot of the current generation, and end the server after too many.

        spawned_at  when the process was forked, in seconds
        code        the arbiter's exit code if the server ends
        final       whether the process reported the reason
        """
        self.boot_failures.failed(spawned_at, now)
        if self.reload is not None:
            return  # the reload in progress may bring a fix
        failures, limit = self.boot_failures.count, self.policy.max_boot_failures
        if limit and failures >= limit and not any(each.ready for each in self.workers):
            times = f"{failures} times in a row " if failures > 1 else ""
            self._give_up_booting(now, code, f"no worker could boot {times}(max_boot_failures)")
        elif not self.served and (final or failures >= FIRST_BOOT_ATTEMPTS):
            self._give_up_booting(now, code, "no worker could boot")

    def _give_up_booting(self, now: float, code: int, why: str) -> None:
        """End the server, or wait until a file changes (--reload).

        code  the exit code of the arbiter
        why   the reason, for the log
        """
        if not self.policy.wait_for_change:
            self.stop(now, quick=True, code=code, why=why)
            return
        if not self.held:
            self.queue.log("info", "waiting for a file to change before trying again")
        self.held = True

    def _count_failure(self, worker: WorkerEntry, now: float) -> None:
        """Delay the next fork, because a worker died before or soon after readiness."""
        if self.stopping is not None:
            return
        if self.backoff.failed(worker.spawned_at, now) and self.served:
            delay = self.backoff.not_before - now
            self.queue.log("warning", f"the next worker is forked in {delay:.3g} s at the earliest")
        if self.reload is not None:
            self.carry_out(self.reload.worker_failed(worker, now), now)

    # --- reload -----------------------------------------------------------------------------------

    def carry_out(self, decision: Decision | None, now: float) -> None:
        """Carry out a decision of the reload in progress."""
        if decision is None:
            return
        reload = self.reload
        assert reload is not None
        if isinstance(decision, Load):
            self.queue.do(actions.LoadConfig(reload.generation))
        elif isinstance(decision, ForkCanary):
            canary = self.lifecycle.fork(decision.slot, reload.generation, now)
            reload.canary_forked(canary.serial)
        elif isinstance(decision, Commit):
            self._commit(reload, now)
        elif isinstance(decision, RollBack):
            self._roll_back(reload, decision, now)
        elif isinstance(decision, Finish):
            self.queue.do(reload.finished(now))
            self.bakes.begin(reload, self.policy, self.molds.can_fork(reload.old_generation), now)
            self._end_reload(reload, now)

    def _commit(self, reload: Reload, now: float) -> None:
        self.bakes.current = None
        self.generation = reload.generation
        self.paused = self.held = False
        self.backoff.reset()
        self.queue.do(actions.AdoptGeneration(reload.generation), reload.committed(now))
        self.count.adopt(self.policy, "reload")

    def _roll_back(self, reload: Reload, decision: RollBack, now: float) -> None:
        if decision.cancel_check:
            self.queue.do(actions.CancelCheck())
        if decision.restore:
            self.generation = reload.old_generation
            self.queue.do(actions.AdoptGeneration(self.generation))
            self.count.roll_back(self.policy, low=reload.old_low, target=reload.old_target)
        # Ready workers of the new generation serve until `balance` has replaced them.
        for worker in self.workers.live():
            if worker.generation == reload.generation and not worker.ready:
                self.lifecycle.retire(worker, ExitReason.ROLLED_BACK, now)
        outcome = (
            "the old workers keep serving" if self.workers.live() else "the old release returns"
        )
        self.paused = False
        if self.policy.wait_for_change and (self.held or not self.served):
            self.held = True
            outcome = "waiting for the next change of a file"
        self.queue.do(reload.rolled_back(decision, decision.outcome or outcome, now))
        self._end_reload(reload, now)

    def _end_reload(self, reload: Reload, now: float) -> None:
        self.reload = None
        if reload.next_cause:
            self.request_reload(reload.next_cause, now)

    # --- upgrade ----------------------------------------------------------------------------------

    def _upgrade_failed(self, text: str, details: str, now: float) -> None:
        """Forget the upgrade, and start the reload that was requested meanwhile, if any.

        text     the reason for the log, in one line
        details  the output of the preflight, or ""
        """
        upgrade = self.upgrade
        assert upgrade is not None
        self.upgrade = None
        self.queue.do(upgrade.failed(text, details))
        if upgrade.next_cause:
            self.request_reload(upgrade.next_cause, now)

    def _give_up_upgrade(self, text: str, now: float) -> None:
        if self.upgrade is None:
            return
        if self.upgrade.phase is UpgradePhase.PREFLIGHT:
            self.queue.do(actions.CancelPreflight())
        self.upgrade.next_cause = ""
        self._upgrade_failed(text, "", now)

    # --- the next step ----------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Compare the workers with the desired state, and take the next step."""
        if self.stopping is not None:
            if all(worker.unkillable for worker in self.workers):
                self.exited = True
                self.queue.do(actions.Exit(self.stopping.code))
            return
        if not self._started:
            return
        self._start_molds(now)
        self._balance(now)
        self.lifecycle.bound_lingering(self.policy, self.count.target, now)
        reload = self.reload
        if reload is not None:
            # A booting replacement may already be the allowed extra worker.
            live = self.workers.live()
            may_fork = (
                len(self.workers) < self.policy.capacity
                and len(live) < self.desired + self.policy.reload_batch
                and (reload.candidate is None or self.molds.can_fork(reload.candidate))
            )
            self.carry_out(reload.next_step(live, may_fork), now)
        self._drop_generations()

    def _start_molds(self, now: float) -> None:
        """Request the molds that are needed: the canary's, and the current generation's."""
        if self.reload is not None and self.reload.candidate is not None:
            self.molds.start_missing(self.reload.candidate, now)
        if self.paused or self.held or self.ending:
            return
        if not self.served and now >= self.backoff.not_before:
            self.molds.start_missing(self.generation, now)
        elif self.served and self.reload is None and self.molds.may_replace(self.generation, now):
            # Make a new generation, because the code on disk may be newer than that of the old
            # workers.
            self.request_reload(f"generation {self.generation} has no mold", now)

    def _balance(self, now: float) -> None:
        reload, policy = self.reload, self.policy
        # Hide the canary from `balance`: it retires a booting worker of any other generation.
        candidate = reload.candidate if reload is not None else None
        waits = (
            self.held or now < self.backoff.not_before or not self.molds.can_fork(self.generation)
        )
        workers = [worker for worker in self.workers.live() if worker.generation != candidate]
        if reload is not None:
            awaits_mold = candidate is not None and not self.molds.can_fork(candidate)
            surge = reload.surge(policy.reload_batch, awaits_mold=awaits_mold)
        else:
            # After a roll-back, replace the bad generation's workers as fast as a reload would.
            leave = any(worker.generation != self.generation for worker in workers)
            surge = policy.reload_batch if leave else 1
        plan = balance(
            workers,
            desired=self.desired,
            generation=self.generation,
            surge=surge,
            room=0 if waits else policy.capacity - len(self.workers),
            # Workers may request replacements at any rate. While many old workers are still
            # draining, don't fork more replacements; a reload, however, must not wait.
            may_surge=reload is not None or len(self.workers.busy()) < self.count.target,
            # If each slot has its own listeners, retire the highest slot, not the least busy
            # worker: without a worker in a slot, nobody accepts from that slot's listeners.
            use=self.count.use if policy.max_workers and not policy.own_queues else {},
        )
        for worker in plan.retire:
            self._retire(worker, now)
        for slot in plan.fork:
            self.lifecycle.fork(slot, self.generation, now)

    def _retire(self, worker: WorkerEntry, now: float) -> None:
        if self.paused:
            reason = ExitReason.DRAINED
        elif worker.generation != self.generation:
            reason = ExitReason.REPLACED
        elif worker.ready and worker.replace_reason is not None:
            reason = ExitReason[worker.replace_reason]
        elif worker.ready or worker.slot > self.count.target:
            reason = ExitReason.SCALED_DOWN
        else:
            reason = ExitReason.NOT_NEEDED
        others = (each.slot for each in self.workers.live() if each is not worker)
        if (
            self.policy.own_queues
            and not self.paused
            and worker.slot > self.count.target
            and worker.slot not in others
        ):
            # Before it ends, this worker must accept the connections that are queued at its slot's
            # listeners, because no other worker has these listeners.
            self.queue.do(actions.CloseSlot(worker.slot))
            self.lifecycle.retire(worker, reason, now, take_queued=True)
        else:
            self.lifecycle.retire(worker, reason, now)

    def _drop_generations(self) -> None:
        keep = {self.generation, *self.workers.generations()}
        if self.reload is not None:
            keep |= {self.reload.generation, self.reload.old_generation}
        keep |= self.bakes.kept
        for generation in sorted(set(self.policies) - keep):
            del self.policies[generation]
            self.memory.forget(generation)
            self.molds.drop(generation)
            self.bakes.forget(self.policies)
            self.reforks.forget(generation)
            self.queue.do(actions.DropGeneration(generation))

    # --- time -------------------------------------------------------------------------------------

    def _notice_standstill(self, now: float, *, expected: bool) -> None:
        """Extend every limit if the machine stood still, because workers could not run meanwhile.

        expected   whether the gap comes from an upgrade; if so, it is not logged
        """
        last, self._now = self._now, now
        if last is None or now - last <= TICK_S + TICK_SLACK_S:
            return
        # Up to TICK_S of this gap was ordinary waiting. Including it makes the limits up to a
        # second too long, which does no harm.
        gap_s = now - last
        if gap_s >= STANDSTILL_S and not expected:
            text = f"the arbiter stood still for {gap_s:.1f} s: all limits are extended by that"
            self.queue.log("warning", text)
        for worker in self.workers:
            worker.shift(gap_s)
        self.molds.shift(gap_s)
        self.backoff.shift(gap_s)
        self.boot_failures.shift(gap_s)
        self.memory.shift(gap_s)
        self.count.shift(gap_s)
        self.bakes.shift(gap_s)
        if self.pending_stop is not None:
            self.pending_stop.until += gap_s
        if self.reload is not None:
            self.reload.shift(gap_s)
        if self.upgrade is not None:
            self.upgrade.shift(gap_s)


_HANDLERS: dict[type, Callable[..., None]] = {
    events.Started: Supervisor._on_started,
    events.SignalReceived: Supervisor._on_signal,
    events.CommandReceived: Supervisor._on_command,
    events.Forked: Supervisor._on_forked,
    events.ForkFailed: Supervisor._on_fork_failed,
    events.KillFailed: Supervisor._on_kill_failed,
    events.RowOverwritten: Supervisor._on_row_overwritten,
    events.ChildExited: Supervisor._on_exited,
    events.MessageReceived: Supervisor._on_message,
    events.ChannelLost: Supervisor._on_channel_lost,
    events.MemoryMeasured: Supervisor._on_memory_measured,
    events.LoadMeasured: Supervisor._on_load_measured,
    events.Tick: Supervisor._on_tick,
    events.ConfigChecked: Supervisor._on_config_checked,
    events.ConfigLoaded: Supervisor._on_config_loaded,
    events.ConfigFailed: Supervisor._on_config_failed,
    events.PreflightEnded: Supervisor._on_preflight_ended,
    events.ExecuteFailed: Supervisor._on_execute_failed,
    events.Upgraded: Supervisor._on_upgraded,
    events.GivenBack: Supervisor._on_given_back,
    events.ResponsesCounted: Supervisor._on_responses_counted,
    events.MoldReady: Supervisor._on_mold_ready,
    events.MoldEnded: Supervisor._on_mold_ended,
    events.FileChanged: Supervisor._on_file_changed,
}
