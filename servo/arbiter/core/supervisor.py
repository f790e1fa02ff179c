"""The supervisor: decides what the arbiter does.

    actions = supervisor.handle(event, now)

Everything that can happen to the arbiter is an event: a signal, a message from a worker, the exit
of a child, a tick of the clock. Everything that it can do is an action: fork, send, kill, log. The
supervisor takes one event and returns actions. It does no I/O and reads no clock, so a simulation
can drive it through a thousand lifetimes in a second.

The supervisor never waits. A stop, a reload and a scaling are states: each event changes them or
not, and afterwards `_settle` compares what is with what should be and takes the next step.

Its parts, each in a module of its own:
`worker_table`      which workers there are
`worker_lifecycle`  how one worker is forked, told to end, and killed
`balance`           how many to fork and to retire
`reload`            the phases of a reload
`commands`          what signals and `servoctl` can ask for
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from servo.arbiter.core import actions, events
from servo.arbiter.core.action_queue import ActionQueue
from servo.arbiter.core.backoff import Backoff
from servo.arbiter.core.balance import balance
from servo.arbiter.core.commands import SIGNALS, run_command
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.policy import (
    FIRST_BOOT_ATTEMPTS,
    STANDSTILL_S,
    TICK_S,
    TICK_SLACK_S,
    YOUNG_S,
    Policy,
)
from servo.arbiter.core.reload import Commit, Finish, ForkCanary, Load, Phase, Reload, RollBack
from servo.arbiter.core.stopping import PendingStop, Stopping
from servo.arbiter.core.worker_lifecycle import WorkerLifecycle
from servo.arbiter.core.worker_table import WorkerTable
from servo.ipc import messages as msg
from servo.ipc.messages import EXIT_APP, EXIT_BOOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.actions import Action
    from servo.arbiter.core.events import Event
    from servo.arbiter.core.reload import Decision
    from servo.arbiter.core.worker_table import WorkerEntry


class Supervisor:
    """Keeps `target` workers of the current generation serving.

    workers          the table of workers
    lifecycle        takes single workers from state to state
    queue            collects the actions for the current event
    policies         the policy of each generation that has workers, or will have some
    target           how many workers are asked for
    generation       the current generation
    last_generation  the newest generation so far; no number is used twice
    served           a worker has been ready: from then on a failed boot does not end the server
    paused           (WINCH) the sockets are open but no worker runs
    held             (--reload) the first generation is broken: fork nothing until a file changes
    reload           the reload that is under way, or None
    pending_stop     the stop that begins later, or None
    stopping         the stop that is under way, or None
    exited           `Exit` was returned: no event may follow
    backoff          when the next worker may be forked
    """

    def __init__(self, policy: Policy) -> None:
        self.workers = WorkerTable()
        self.queue = ActionQueue()
        self.policies: dict[int, Policy] = {1: policy}
        self.lifecycle = WorkerLifecycle(self.workers, self.policies, self.queue)
        self.target = policy.workers
        self.generation = self.last_generation = 1
        self.served = False
        self.paused = False
        self.held = False
        self.reload: Reload | None = None
        self.pending_stop: PendingStop | None = None
        self.stopping: Stopping | None = None
        self.exited = False
        self.backoff = Backoff()
        self._started = False
        self._now: float | None = None

    @property
    def policy(self) -> Policy:
        """The policy of the current generation."""
        return self.policies[self.generation]

    @property
    def desired(self) -> int:
        """How many workers should serve now."""
        return 0 if self.paused else self.target

    @property
    def ending(self) -> bool:
        """True once a stop was asked for, even if it begins later (`pre_stop_delay`)."""
        return self.stopping is not None or self.pending_stop is not None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; return the actions that follow, in the order to perform them.

        event  what happened
        now    the current time, in seconds. It never goes back. A Tick must come at least every
               TICK_S: a longer gap counts as a standstill of the machine, and extends all limits.
        """
        assert not self.exited
        self._notice_standstill(now)
        _HANDLERS[type(event)](self, event, now)
        self._settle(now)
        return self.queue.take()

    def wake_at(self) -> float:
        """Return when the next limit is due, in seconds; infinity if none is known.

        Limits that depend on heartbeats are not included: the regular Tick covers them.
        """
        now = self._now or 0.0
        times = self.lifecycle.due_times()
        if self.stopping is None:
            times.append(self.backoff.not_before)
            if self.pending_stop is not None:
                times.append(self.pending_stop.until)
            if self.reload is not None:
                times.append(self.reload.due_at)
        return min((time for time in times if time > now), default=math.inf)

    # --- events -----------------------------------------------------------------------------------

    def _on_started(self, _event: events.Started, _now: float) -> None:
        self._started = True
        self.queue.do(actions.WorkerCountChanged(self.target, None))

    def _on_signal(self, event: events.SignalReceived, now: float) -> None:
        command = SIGNALS.get(event.name)
        if command is None:
            self.queue.log("info", f"{event.name} has no meaning here")
        else:
            command(self, now)

    def _on_command(self, event: events.CommandReceived, now: float) -> None:
        run_command(self, event, now)

    def _on_forked(self, event: events.Forked, _now: float) -> None:
        self.lifecycle.forked(event.serial, event.pid)

    def _on_fork_failed(self, event: events.ForkFailed, now: float) -> None:
        worker = self.lifecycle.fork_failed(event.serial, event.text)
        text = f"it can't be forked: {event.text}"
        self._boot_failed(worker, EXIT_BOOT, text, now, final=False)

    def _on_exited(self, event: events.ChildExited, now: float) -> None:
        ended = self.lifecycle.exited(event, now)
        if ended is None:
            return
        worker = ended.worker
        if ended.unasked and worker.ready_at is None:
            code = EXIT_APP if event.code == EXIT_APP else EXIT_BOOT
            final = event.code in (EXIT_BOOT, EXIT_APP)
            self._boot_failed(worker, code, ended.text, now, final=final)
        elif ended.unasked and now - (worker.ready_at or now) < YOUNG_S:
            self._count_failure(worker, now)
        elif self.reload is not None:
            self._carry_out(self.reload.worker_ended(worker, ended.text), now)

    def _on_row_overwritten(self, event: events.RowOverwritten, now: float) -> None:
        worker = self.workers.get(event.serial)
        if worker is not None:
            # Usually the worker's own code has a stray pointer, and nobody knows what else it has
            # overwritten: so the worker is replaced.
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
        elif isinstance(message, msg.ReplaceMe):
            self.lifecycle.request_replacement(worker, message, now)

    def _on_channel_lost(self, event: events.ChannelLost, _now: float) -> None:
        worker = self.workers.get(event.serial)
        if worker is not None:
            self.lifecycle.channel_lost(worker)

    def _on_tick(self, event: events.Tick, now: float) -> None:
        for worker in self.lifecycle.enforce_limits(event.heartbeats, event.oldest, now):
            self._boot_failed(worker, EXIT_BOOT, str(worker.stop_cause), now)
        for worker in self.workers:
            if worker.ready and now - (worker.ready_at or now) >= YOUNG_S:
                self.backoff.survived(worker.spawned_at)
        if self.reload is not None:
            self._carry_out(self.reload.check_limit(now), now)
        if self.pending_stop is not None and now >= self.pending_stop.until:
            self.stop(now, quick=False, why=self.pending_stop.why)

    def _on_config_checked(self, event: events.ConfigChecked, now: float) -> None:
        if self.reload is not None:
            self._carry_out(self.reload.config_checked(event.generation, event.error), now)

    def _on_config_loaded(self, event: events.ConfigLoaded, now: float) -> None:
        # The arbiter now holds this generation's settings even if the reload was given up
        # meanwhile: with an entry here, `_drop_generations` has them freed.
        self.policies[event.generation] = event.policy
        if self.reload is not None:
            self._carry_out(self.reload.config_loaded(event.generation, event.policy), now)

    def _on_config_failed(self, event: events.ConfigFailed, now: float) -> None:
        if self.reload is not None:
            self._carry_out(self.reload.config_failed(event.generation, event.error), now)

    def _on_file_changed(self, event: events.FileChanged, now: float) -> None:
        more = f" and {len(event.paths) - 1} more" if len(event.paths) > 1 else ""
        self.request_reload(f"{event.paths[0]}{more} changed", now)

    # --- what operators ask for: called by `commands` ---------------------------------------------

    def request_reload(self, cause: str, now: float) -> None:
        """Reload now, or after the reload that is under way.

        cause  who or what asked for it, for the log
        now    the current time, in seconds (in every method here)
        """
        if self.ending:
            self.queue.log("info", f"no reload ({cause}): the server is stopping")
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
            old_target=self.target,
            check_limit_s=self.policy.boot_timeout_s,
            now=now,
        )
        self.queue.do(self.reload.started(), actions.CheckConfig(self.last_generation))

    def scale(self, target: int, why: str) -> None:
        """Change the number of workers.

        target  how many should serve from now on
        why     who or what asked for it, for the log
        """
        old, self.target = self.target, target
        if target != old:
            text = f"{why}: {target} worker{'s' * (target != 1)} instead of {old}"
            data = {"workers": target, "before": old}
            self.queue.record("scaled", "info", text, reason=why, data=data)
            self.queue.do(actions.WorkerCountChanged(target, old))

    def stop(self, now: float, *, quick: bool, why: str, code: int = 0) -> None:
        """Stop the server, or make a stop that is under way a quick one.

        A graceful stop first waits for `pre_stop_delay`; asking a second time ends that wait.

        quick  cut open requests
        why    who or what asked for it, for the log
        code   the exit code of the arbiter
        """
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
        way = "open requests are cut" if quick else "open requests are finished"
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
        """Send SIGKILL to every worker that has not got it yet."""
        for worker in self.workers:
            if worker.signal_sent != "SIGKILL":
                self.lifecycle.kill(worker, now)

    def pause(self, now: float) -> None:
        """Drain all workers but keep the sockets; a reload that is under way is rolled back."""
        if self.reload is not None:
            self.reload.next_cause = ""
            self._carry_out(self.reload.give_up("all workers drain"), now)
        self.paused = True

    # --- boot -------------------------------------------------------------------------------------

    def _worker_ready(self, worker: WorkerEntry, now: float) -> None:
        self.served = True
        decision = self.reload.worker_ready(worker) if self.reload is not None else None
        if decision is not None:
            self._carry_out(decision, now)
        elif worker.generation == self.generation:
            self.held = False

    def _learn_class(self, worker: WorkerEntry, worker_class: str) -> None:
        """A ready worker knows the class that the app needs: `workers = auto` depends on it."""
        policy = self.policies[worker.generation]
        if worker_class not in policy.workers_of:
            return
        workers = min(policy.workers_of[worker_class], policy.most_workers)
        changed = workers != policy.workers
        self.policies[worker.generation] = replace(policy, workers=workers, workers_of={})
        if changed and worker.generation == self.generation:
            self.scale(workers, f"workers = auto, of the class {worker_class}")

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
        """A worker could not boot.

        code     the arbiter's exit code if the server ends because of this
        text     why, for the log
        final    the worker said why, so another attempt would not help
        details  a traceback, or ""
        """
        if self.stopping is not None or worker.failure_counted:
            return
        worker.failure_counted = True
        if self.reload is not None:
            decision = self.reload.boot_failed(worker, text, details)
            if decision is not None:
                self._carry_out(decision, now)
                return
        self._count_failure(worker, now)
        if self.served or self.reload is not None or worker.generation != self.generation:
            return
        if not final and self.backoff.rounds < FIRST_BOOT_ATTEMPTS:
            return
        if self.policy.wait_for_change:
            if not self.held:
                self.queue.log("info", "waiting for a file to change before trying again")
            self.held = True
        else:
            self.stop(now, quick=True, code=code, why="no worker could boot")

    def _count_failure(self, worker: WorkerEntry, now: float) -> None:
        """A worker died before or soon after it got ready: wait longer before the next fork."""
        if self.stopping is not None:
            return
        if self.backoff.failed(worker.spawned_at, now) and self.served:
            delay = self.backoff.not_before - now
            self.queue.log("warning", f"the next worker is forked in {delay:.3g} s at the earliest")
        if self.reload is not None:
            self._carry_out(self.reload.worker_failed(worker, now), now)

    # --- reload -----------------------------------------------------------------------------------

    def _carry_out(self, decision: Decision | None, now: float) -> None:
        """Carry out a decision of the reload that is under way."""
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
            self._end_reload(reload, now)

    def _commit(self, reload: Reload, now: float) -> None:
        before = self.policy.workers
        self.generation = reload.generation
        self.paused = self.held = False
        self.backoff.reset()
        self.queue.do(actions.AdoptGeneration(reload.generation), reload.committed(now))
        # A number of workers set by TTIN, TTOU or servoctl stays, unless the number in the
        # configuration has changed.
        if self.policy.workers != before:
            self.scale(self.policy.workers, "reload")
        elif self.target > self.policy.most_workers:
            self.scale(self.policy.most_workers, "reload")

    def _roll_back(self, reload: Reload, decision: RollBack, now: float) -> None:
        if decision.cancel_check:
            self.queue.do(actions.CancelCheck())
        if decision.restore:
            self.generation = reload.old_generation
            self.queue.do(actions.AdoptGeneration(self.generation))
            self.scale(reload.old_target, "rolled back")
        # New workers that are ready serve until `balance` has replaced them.
        for worker in self.workers.live():
            if worker.generation == reload.generation and not worker.ready:
                self.lifecycle.retire(worker, ExitReason.ROLLED_BACK, now)
        outcome = (
            "the old workers keep serving" if self.workers.live() else "the old release returns"
        )
        self.paused = False
        if not self.served and self.policy.wait_for_change:
            self.held = True
            outcome = "waiting for the next change of a file"
        self.queue.do(reload.rolled_back(decision, outcome, now))
        self._end_reload(reload, now)

    def _end_reload(self, reload: Reload, now: float) -> None:
        self.reload = None
        if reload.next_cause:
            self.request_reload(reload.next_cause, now)

    # --- the next step ----------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Compare what is with what should be, and take the next step."""
        if self.stopping is not None:
            if all(worker.unkillable for worker in self.workers):
                self.exited = True
                self.queue.do(actions.Exit(self.stopping.code))
            return
        if not self._started:
            return
        self._balance(now)
        if self.reload is not None:
            # A replacement that boots may already be the one more worker that is allowed.
            live = self.workers.live()
            may_fork = (
                len(self.workers) < self.policy.capacity
                and len(live) < self.desired + self.policy.reload_batch
            )
            self._carry_out(self.reload.next_step(live, may_fork), now)
        self._drop_generations()

    def _balance(self, now: float) -> None:
        reload = self.reload
        # `balance` would retire the canary: to it, a worker that boots and is not of the current
        # generation is a leftover.
        candidate = reload.candidate if reload is not None else None
        waits = self.held or now < self.backoff.not_before
        plan = balance(
            [worker for worker in self.workers.live() if worker.generation != candidate],
            desired=self.desired,
            generation=self.generation,
            surge=reload.surge(self.policy.reload_batch) if reload is not None else 1,
            room=0 if waits else self.policy.capacity - len(self.workers),
            # Without a reload, replacements go on without end, so while many workers take long to
            # drain, their number must not grow.
            may_surge=reload is not None or len(self.workers.draining()) < self.target,
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
        elif worker.ready or worker.slot > self.target:
            reason = ExitReason.SCALED_DOWN
        else:
            reason = ExitReason.NOT_NEEDED
        others = (each.slot for each in self.workers.live() if each is not worker)
        if (
            self.policy.own_queues
            and not self.paused
            and worker.slot > self.target
            and worker.slot not in others
        ):
            # No other worker will accept from this slot's listeners, so this one must accept every
            # connection that waits there. `Stop` makes it do that; `Retire` would not.
            self.queue.do(actions.CloseSlot(worker.slot))
            self.lifecycle.retire(worker, reason, now, msg.Stop())
        else:
            self.lifecycle.retire(worker, reason, now)

    def _drop_generations(self) -> None:
        keep = {self.generation, *self.workers.generations()}
        if self.reload is not None:
            keep |= {self.reload.generation, self.reload.old_generation}
        for generation in sorted(set(self.policies) - keep):
            del self.policies[generation]
            self.queue.do(actions.DropGeneration(generation))

    # --- time -------------------------------------------------------------------------------------

    def _notice_standstill(self, now: float) -> None:
        """Extend every limit if the machine stood still: a frozen worker does not hang."""
        last, self._now = self._now, now
        if last is None or now - last <= TICK_S + TICK_SLACK_S:
            return
        # Up to TICK_S of this gap was ordinary waiting. It is included all the same: a limit that
        # is a second too long does no harm.
        gap_s = now - last
        if gap_s >= STANDSTILL_S:
            text = f"the arbiter stood still for {gap_s:.1f} s: all limits are extended by that"
            self.queue.log("warning", text)
        for worker in self.workers:
            worker.shift(gap_s)
        self.backoff.shift(gap_s)
        if self.pending_stop is not None:
            self.pending_stop.until += gap_s
        if self.reload is not None:
            self.reload.shift(gap_s)


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
    events.Tick: Supervisor._on_tick,
    events.ConfigChecked: Supervisor._on_config_checked,
    events.ConfigLoaded: Supervisor._on_config_loaded,
    events.ConfigFailed: Supervisor._on_config_failed,
    events.FileChanged: Supervisor._on_file_changed,
}
