"""The arbiter's decisions: events in, actions out; no I/O, no clock.

    actions = supervisor.handle(event, now)

A stop, a reload and a scaling are states that every event meets, never waits: after each event
`_settle` compares what is with what is wanted and does the next step. `plan.balance` says which
workers to fork and to retire; `crew` knows how one is asked and ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from servo.arbiter import events as ev
from servo.arbiter.commands import SIGNALS, on_command
from servo.arbiter.crew import Crew
from servo.arbiter.plan import balance
from servo.arbiter.policy import (
    FIRST_BOOT_ATTEMPTS,
    ROLLING_ATTEMPTS,
    STANDSTILL_S,
    TICK_S,
    TICK_SLACK_S,
    YOUNG_S,
    Backoff,
    Policy,
)
from servo.arbiter.reasons import ExitReason
from servo.arbiter.reload import Phase, Reload
from servo.ipc import messages as msg

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.events import Action, Event
    from servo.arbiter.pool import Pool, WorkerHandle

EXIT_BOOT = 3
EXIT_APP = 4


@dataclass(slots=True)
class Stopping:
    """The server is ending; `code` is what the arbiter will exit with."""

    quick: bool
    code: int


@dataclass(slots=True)
class Leaving:
    """The server is to end for the reason `why`, and serves on until then: balancers that probe its
    readiness are to send their requests elsewhere first."""

    until: float
    why: str


class Supervisor:
    """Keeps `target` workers of the current generation serving.

    target   how many workers are asked for now
    served   some worker has been ready: from then on no failed boot ends the server
    paused   WINCH: no workers, the sockets stay
    held     (--reload) the first generation is broken: nothing is forked until a file changes
    """

    def __init__(self, policy: Policy) -> None:
        self.crew = Crew(policy)
        self.target = policy.workers
        self.generation = self._last_generation = 1
        self.served = False
        self.paused = False
        self.held = False
        self.reload: Reload | None = None
        self.stopping: Stopping | None = None
        self.leaving: Leaving | None = None
        self.exited = False
        self._started = False
        self._backoff = Backoff()
        self._now: float | None = None

    @property
    def pool(self) -> Pool:
        return self.crew.pool

    @property
    def policy(self) -> Policy:
        """The current generation's."""
        return self.crew.policies[self.generation]

    @property
    def ending(self) -> bool:
        """A stop was asked for; it may not have begun (`pre_stop_delay`)."""
        return self.stopping is not None or self.leaving is not None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event; return what is to be done, in this order.

        `now` never goes back, and a Tick comes at least every TICK_S, or limits are prolonged.
        """
        assert not self.exited
        self._notice_standstill(now)
        _HANDLERS[type(event)](self, event, now)
        self._settle(now)
        actions, self.crew.actions = self.crew.actions, []
        return actions

    def wake_at(self) -> float:
        """When a Tick is due for something other than heartbeats; infinity for nothing known."""
        now = self._now or 0.0
        times = self.crew.due_times()
        if self.stopping is None:
            times.append(self._backoff.not_before)
            if self.leaving is not None:
                times.append(self.leaving.until)
            if self.reload is not None and self.reload.phase is Phase.CHECKING:
                times.append(self.reload.deadline)
        return min((time for time in times if time > now), default=math.inf)

    # --- events -----------------------------------------------------------------------------------

    def _on_started(self, _event: ev.Started, _now: float) -> None:
        self._started = True
        self.crew.do(ev.WorkerCountChanged(self.target, None))

    def _on_signal(self, event: ev.SignalReceived, now: float) -> None:
        command = SIGNALS.get(event.name)
        if command is None:
            self.crew.log("info", f"{event.name} has no meaning here")
        else:
            command(self, now)

    def _on_forked(self, event: ev.Forked, _now: float) -> None:
        self.crew.forked(event.serial, event.pid)

    def _on_fork_failed(self, event: ev.ForkFailed, now: float) -> None:
        handle = self.crew.not_forked(event.serial, event.text)
        text = f"it can't be forked: {event.text}"
        self._boot_failure(handle, EXIT_BOOT, text, now, final=False)

    def _on_exited(self, event: ev.ChildExited, now: float) -> None:
        departure = self.crew.exited(event, now)
        if departure is None:
            return
        handle = departure.handle
        if departure.unasked and handle.ready_at is None:
            code = EXIT_APP if event.code == EXIT_APP else EXIT_BOOT
            final = event.code in (EXIT_BOOT, EXIT_APP)
            self._boot_failure(handle, code, departure.text, now, final=final)
        elif departure.unasked and now - (handle.ready_at or now) < YOUNG_S:
            self._note_failure(handle, now)
        elif self._is_canary(handle):
            self._roll_back(f"its first worker ended: {departure.text}", now)

    def _on_message(self, event: ev.MessageReceived, now: float) -> None:
        handle = self.pool.get(event.serial)
        if handle is None:
            return
        message = event.message
        if isinstance(message, msg.Booting):
            self.crew.booting(handle)
        elif isinstance(message, msg.Ready):
            if self.crew.ready(handle, now):
                self._learn_class(handle, message.worker_class)
                self._on_ready(handle, now)
        elif isinstance(message, msg.BootFailed):
            if self.crew.boot_failed(handle, message, now):
                code = EXIT_APP if message.kind == "app" else EXIT_BOOT
                text = message.text.strip()
                short = text.partition("\n")[0]
                self._boot_failure(handle, code, short, now, details=text)
        elif isinstance(message, msg.Draining):
            self.crew.drains(handle, now)
        elif isinstance(message, msg.ReplaceMe):
            self.crew.wishes(handle, message, now)

    def _on_channel_lost(self, event: ev.ChannelLost, _now: float) -> None:
        handle = self.pool.get(event.serial)
        if handle is not None:
            self.crew.lost_channel(handle)

    def _on_tick(self, event: ev.Tick, now: float) -> None:
        for handle in self.crew.check_limits(event.beats, event.oldest, now):
            self._boot_failure(handle, EXIT_BOOT, str(handle.ending), now)
        for handle in self.pool:
            if handle.ready and now - (handle.ready_at or now) >= YOUNG_S:
                self._backoff.proved(handle.spawned_at)
        reload = self.reload
        if reload is not None and reload.phase is Phase.CHECKING and now >= reload.deadline:
            limit = self.policy.boot_timeout_s
            self._roll_back(f"reading the configuration takes over {limit:g} s (boot_timeout)", now)
        if self.leaving is not None and now >= self.leaving.until:
            self.stop(now, quick=False, why=self.leaving.why)

    def _on_config_checked(self, event: ev.ConfigChecked, now: float) -> None:
        reload = self.reload
        if reload is None or reload.generation != event.generation:
            return
        if reload.phase is not Phase.CHECKING:
            return
        if event.error is not None:
            reload.advance(Phase.LOADING)
            self._roll_back(f"the configuration is bad: {event.error}", now)
        else:
            reload.advance(Phase.LOADING)
            self.crew.do(ev.LoadConfig(reload.generation))

    def _on_config_loaded(self, event: ev.ConfigLoaded, now: float) -> None:
        self.crew.policies[event.generation] = event.policy
        reload = self.reload
        if reload is None or reload.generation != event.generation:
            return  # given up meanwhile; `_settle` drops the generation
        reload.advance(Phase.CANARY)
        if event.policy.workers > event.policy.most_workers:
            self._roll_back(
                f"workers = {event.policy.workers} is more than the {event.policy.most_workers} "
                "that the scoreboard has room for until a restart (scoreboard_size)",
                now,
            )

    def _on_config_failed(self, event: ev.ConfigFailed, now: float) -> None:
        if self.reload is not None and self.reload.generation == event.generation:
            self._roll_back(f"the configuration can't be taken up: {event.error}", now)

    def _on_file_changed(self, event: ev.FileChanged, now: float) -> None:
        more = f" and {len(event.paths) - 1} more" if len(event.paths) > 1 else ""
        self.ask_reload(f"{event.paths[0]}{more} changed", now)

    # --- what operators ask for (commands.py) -----------------------------------------------------

    def scale(self, target: int, why: str) -> None:
        """Ask for another number of workers."""
        old, self.target = self.target, target
        if target != old:
            text = f"{why}: {target} worker{'s' * (target != 1)} instead of {old}"
            data = {"workers": target, "before": old}
            self.crew.announce("scaled", "info", text, reason=why, data=data)
            self.crew.do(ev.WorkerCountChanged(target, old))

    def stop(self, now: float, *, quick: bool, why: str, code: int = 0) -> None:
        """End the server; `quick` cuts requests, also those of a slower stop under way.

        An orderly one waits for `pre_stop_delay` first, unless it is asked for once more.
        """
        delay_s = self.policy.pre_stop_delay_s
        if delay_s and self.served and not (quick or code or self.ending):
            self.leaving = Leaving(now + delay_s, why)
            text = f"{why}: not ready any more; stopping in {delay_s:g} s (pre_stop_delay)"
            self.crew.log("info", text)
            return
        self.leaving = None
        if self.stopping is not None:
            self.stopping.quick = self.stopping.quick or quick
        else:
            if self.reload is not None and self.reload.phase is Phase.CHECKING:
                self.crew.do(ev.CancelCheck())
            self.reload = None
            self.stopping = Stopping(quick, code)
            self.crew.do(ev.CloseListeners())
        way = "open requests are cut" if quick else "what is under way is finished"
        data = {"quick": quick, "code": code}
        if code:
            text = f"{why}: the server ends with exit code {code}"
            self.crew.announce("stopping", "error", text, reason=why, data=data)
        else:
            text = f"{why}: stopping; {way}"
            self.crew.announce("stopping", "info", text, reason=why, data=data)
        for handle in self.pool:
            self.crew.stop(handle, quick, now)

    def kill_all(self, now: float) -> None:
        """The last resort of a stop."""
        for handle in self.pool:
            if handle.killed_by != "SIGKILL":
                self.crew.kill(handle, now)

    def pause(self, now: float) -> None:
        """Drain all workers, and keep the sockets; a reload that is under way is given up."""
        if self.reload is not None:
            self.reload.again = ""
            self._roll_back("all workers are to drain", now)
        self.paused = True

    def ask_reload(self, cause: str, now: float) -> None:
        """Reload now, or once more after the reload that is under way."""
        if self.ending:
            self.crew.log("info", f"no reload ({cause}): the server is stopping")
            return
        if self.reload is not None:
            self.reload.again = cause
            self.crew.log("info", f"reload ({cause}): another follows the one that is under way")
            return
        self._last_generation += 1
        self.reload = Reload(
            cause=cause,
            generation=self._last_generation,
            started_at=now,
            deadline=now + (self.policy.boot_timeout_s or math.inf),
            old_generation=self.generation,
            old_target=self.target,
        )
        text = f"reload ({cause}): reading the configuration"
        self.crew.announce(
            "reload_started", "info", text, reason=cause, generation=self._last_generation
        )
        self.crew.do(ev.CheckConfig(self._last_generation))

    # --- boot, and its failure --------------------------------------------------------------------

    def _is_canary(self, handle: WorkerHandle) -> bool:
        reload = self.reload
        return (
            reload is not None and reload.phase is Phase.CANARY and reload.canary == handle.serial
        )

    def _on_ready(self, handle: WorkerHandle, now: float) -> None:
        self.served = True
        if self._is_canary(handle):
            self._commit(now)
        elif handle.generation == self.generation:
            self.held = False

    def _learn_class(self, handle: WorkerHandle, worker_class: str) -> None:
        policy = self.crew.policies[handle.generation]
        if worker_class not in policy.workers_of:
            return
        workers = min(policy.workers_of[worker_class], policy.most_workers)
        changed = workers != policy.workers
        self.crew.policies[handle.generation] = replace(policy, workers=workers, workers_of={})
        if changed and handle.generation == self.generation:
            self.scale(workers, f"workers = auto, of the class {worker_class}")

    def _boot_failure(
        self,
        handle: WorkerHandle,
        code: int,
        text: str,
        now: float,
        *,
        final: bool = True,
        details: str = "",
    ) -> None:
        """A worker could not boot. `final`: it said why, so trying again would not help."""
        if self.stopping is not None or handle.failure_counted:
            return
        handle.failure_counted = True
        if self._is_canary(handle):
            self._roll_back(f"its first worker failed: {text}", now, details)
            return
        self._note_failure(handle, now)
        if self.served or self.reload is not None or handle.generation != self.generation:
            return
        if not final and self._backoff.rounds < FIRST_BOOT_ATTEMPTS:
            return
        if self.policy.wait_for_change:
            if not self.held:
                self.crew.log("info", "waiting for a file to change before trying again")
            self.held = True
        else:
            self.stop(now, quick=True, code=code, why="no worker could boot")

    def _note_failure(self, handle: WorkerHandle, now: float) -> None:
        """A worker died before or soon after it got ready: wait longer before the next fork."""
        if self.stopping is not None:
            return
        if self._backoff.failed(handle.spawned_at, now) and self.served:
            delay = self._backoff.not_before - now
            self.crew.log("warning", f"the next worker is forked in {delay:.3g} s at the earliest")
        reload = self.reload
        if reload is None or reload.phase is not Phase.ROLLING:
            return
        is_new = handle.generation == reload.generation
        if is_new and reload.failed(handle.spawned_at, now) and reload.failures >= ROLLING_ATTEMPTS:
            self._roll_back(f"its workers failed {reload.failures} times", now)

    # --- reload -----------------------------------------------------------------------------------

    def _commit(self, now: float) -> None:
        """The canary is ready: its generation is the current one from now on."""
        reload = self.reload
        assert reload is not None
        reload.advance(Phase.ROLLING)
        before = self.policy.workers
        self.generation = reload.generation
        self.paused = self.held = False
        self._backoff.reset()
        self.crew.do(ev.AdoptGeneration(reload.generation))
        took = now - reload.started_at
        self.crew.log(
            "info", f"reload: a new worker is ready after {took:.2f} s; the others follow"
        )
        # What TTIN and TTOU have done stays, unless the configuration asks for another number.
        if self.policy.workers != before:
            self.scale(self.policy.workers, "reload")
        elif self.target > self.policy.most_workers:
            self.scale(self.policy.most_workers, "reload")

    def _roll_back(self, text: str, now: float, details: str = "") -> None:
        """Give the reload up: the old generation is, or becomes again, the current one."""
        reload, self.reload = self.reload, None
        assert reload is not None
        if reload.phase is Phase.CHECKING:
            self.crew.do(ev.CancelCheck())
        if reload.phase is Phase.ROLLING:
            self.generation = reload.old_generation
            self.crew.do(ev.AdoptGeneration(self.generation))
            self.scale(reload.old_target, "rolled back")
        for handle in self.pool.live():
            if handle.generation == reload.generation and not handle.ready:
                self.crew.retire(handle, ExitReason.ROLLED_BACK, now)
        keeps = "the old workers keep serving" if self.pool.live() else "the old release returns"
        self.paused = False
        if not self.served and self.policy.wait_for_change:
            self.held = True
            keeps = "waiting for the next change of a file"
        short, _, rest = text.partition("\n")
        self.crew.announce(
            "reload_rolled_back",
            "error",
            f"reload ({reload.cause}) rolled back: {text}; {keeps}",
            reason=short,
            details=details or rest,
            generation=reload.generation,
            data={"seconds": now - reload.started_at},
        )
        if reload.again:
            self.ask_reload(reload.again, now)

    def _step_reload(self, now: float) -> None:
        reload = self.reload
        if reload is None:
            return
        live = self.pool.live()
        if reload.phase is Phase.CANARY and reload.canary is None:
            # One at a time: a successor that boots already has the surge until it is dropped.
            room = len(self.pool) < self.policy.capacity
            if room and len(live) < self._desired + self.policy.reload_batch:
                slot = min((handle.slot for handle in live), default=1)
                reload.canary = self.crew.fork(slot, reload.generation, now).serial
        elif reload.phase is Phase.ROLLING and all(
            handle.generation == reload.generation for handle in live
        ):
            self.reload = None
            took = now - reload.started_at
            self.crew.announce(
                "reload_finished",
                "info",
                f"reload ({reload.cause}) finished after {took:.2f} s",
                reason=reload.cause,
                generation=reload.generation,
                data={"seconds": took},
            )
            if reload.again:
                self.ask_reload(reload.again, now)

    # --- what is wanted ---------------------------------------------------------------------------

    @property
    def _desired(self) -> int:
        return 0 if self.paused else self.target

    def _settle(self, now: float) -> None:
        """Do the next step towards what is wanted."""
        if self.stopping is not None:
            if not len(self.pool):
                self.exited = True
                self.crew.do(ev.Exit(self.stopping.code))
            return
        if not self._started:
            return
        self._balance(now)
        self._step_reload(now)
        self._drop_generations()

    def _balance(self, now: float) -> None:
        reload = self.reload
        candidate, surge = None, 1
        if reload is not None and reload.phase is Phase.CANARY:
            # The canary takes the surge.
            candidate, surge = reload.generation, 0
        elif reload is not None and reload.phase is Phase.ROLLING:
            surge = self.policy.reload_batch
        waits = self.held or now < self._backoff.not_before
        plan = balance(
            [handle for handle in self.pool.live() if handle.generation != candidate],
            desired=self._desired,
            generation=self.generation,
            surge=surge,
            room=0 if waits else self.policy.capacity - len(self.pool),
            # Recycling goes on by itself, so its slow drains must not pile up.
            may_surge=reload is not None or len(self.pool.draining()) < self.target,
        )
        for handle in plan.retire:
            self._retire(handle, now)
        for slot in plan.fork:
            self.crew.fork(slot, self.generation, now)

    def _retire(self, handle: WorkerHandle, now: float) -> None:
        if self.paused:
            reason = ExitReason.DRAINED
        elif handle.generation != self.generation:
            reason = ExitReason.REPLACED
        elif handle.ready and handle.wish is not None:
            reason = ExitReason[handle.wish]
        elif handle.ready or handle.slot > self.target:
            reason = ExitReason.SCALED_DOWN
        else:
            reason = ExitReason.NOT_NEEDED
        others = (h.slot for h in self.pool.live() if h is not handle)
        if (
            self.policy.own_queues
            and not self.paused
            and handle.slot > self.target
            and handle.slot not in others
        ):
            # Nobody inherits this slot's queue: the worker empties it, as on a stop.
            self.crew.do(ev.CloseSlot(handle.slot))
            self.crew.retire(handle, reason, now, msg.Stop())
        else:
            self.crew.retire(handle, reason, now)

    def _drop_generations(self) -> None:
        keep = {self.generation, *self.pool.generations()}
        if self.reload is not None:
            keep |= {self.reload.generation, self.reload.old_generation}
        for generation in sorted(set(self.crew.policies) - keep):
            del self.crew.policies[generation]
            self.crew.do(ev.DropGeneration(generation))

    # --- time -------------------------------------------------------------------------------------

    def _notice_standstill(self, now: float) -> None:
        """A machine that was frozen is nobody's hang: every limit moves by the gap."""
        last, self._now = self._now, now
        if last is None or now - last <= TICK_S + TICK_SLACK_S:
            return
        # All of it, though up to TICK_S may have been ordinary: too long a limit does no harm.
        gap = now - last
        if gap >= STANDSTILL_S:
            self.crew.log(
                "warning", f"the arbiter stood still for {gap:.1f} s: limits wait as long"
            )
        for handle in self.pool:
            handle.shift(gap)
        self._backoff.shift(gap)
        if self.leaving is not None:
            self.leaving.until += gap
        if self.reload is not None:
            self.reload.shift(gap)


_HANDLERS: dict[type, Callable[..., None]] = {
    ev.Started: Supervisor._on_started,
    ev.SignalReceived: Supervisor._on_signal,
    ev.Forked: Supervisor._on_forked,
    ev.ForkFailed: Supervisor._on_fork_failed,
    ev.ChildExited: Supervisor._on_exited,
    ev.MessageReceived: Supervisor._on_message,
    ev.ChannelLost: Supervisor._on_channel_lost,
    ev.Tick: Supervisor._on_tick,
    ev.ConfigChecked: Supervisor._on_config_checked,
    ev.ConfigLoaded: Supervisor._on_config_loaded,
    ev.ConfigFailed: Supervisor._on_config_failed,
    ev.FileChanged: Supervisor._on_file_changed,
    ev.CommandReceived: on_command,
}
