"""The arbiter's decisions: events in, actions out; no I/O, no clock.

    actions = supervisor.handle(event, now)

A stop, a reload and a scaling are states that every event meets, never waits: after each event
`_settle` compares what is with what is wanted and does the next step. `plan.balance` says which
workers to fork and to retire; `crew` knows how one is asked and ended; `reload` brings in the next
generation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from servo.arbiter.core import actions, events
from servo.arbiter.core.balance import balance
from servo.arbiter.core.commands import SIGNALS, on_command
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.policy import (
    FIRST_BOOT_ATTEMPTS,
    STANDSTILL_S,
    TICK_S,
    TICK_SLACK_S,
    YOUNG_S,
    Backoff,
    Policy,
)
from servo.arbiter.core.reload import (
    Phase,
    Reload,
    ask_reload,
    check_reload,
    commit_reload,
    count_failure,
    is_canary,
    on_config_checked,
    on_config_failed,
    on_config_loaded,
    roll_back,
    step_reload,
)
from servo.arbiter.core.worker_lifecycle import Crew
from servo.ipc import messages as msg

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.actions import Action
    from servo.arbiter.core.events import Event
    from servo.arbiter.core.worker_table import Pool, WorkerHandle

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

    target           how many workers are asked for now
    generation       the current one
    last_generation  the newest that a reload was to bring; no number is used again
    served           some worker has been ready: from then on no failed boot ends the server
    paused           WINCH: no workers, the sockets stay
    held             (--reload) the first generation is broken: nothing is forked until a file
                     changes
    backoff          when the next worker may be forked
    """

    def __init__(self, policy: Policy) -> None:
        self.crew = Crew(policy)
        self.target = policy.workers
        self.generation = self.last_generation = 1
        self.served = False
        self.paused = False
        self.held = False
        self.reload: Reload | None = None
        self.stopping: Stopping | None = None
        self.leaving: Leaving | None = None
        self.exited = False
        self.backoff = Backoff()
        self._started = False
        self._now: float | None = None

    @property
    def pool(self) -> Pool:
        return self.crew.pool

    @property
    def policy(self) -> Policy:
        """The current generation's."""
        return self.crew.policies[self.generation]

    @property
    def desired(self) -> int:
        """How many workers there are to be."""
        return 0 if self.paused else self.target

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
        taken, self.crew.actions = self.crew.actions, []
        return taken

    def wake_at(self) -> float:
        """When a Tick is due for something other than heartbeats; infinity for nothing known."""
        now = self._now or 0.0
        times = self.crew.due_times()
        if self.stopping is None:
            times.append(self.backoff.not_before)
            if self.leaving is not None:
                times.append(self.leaving.until)
            if self.reload is not None and self.reload.phase is Phase.CHECKING:
                times.append(self.reload.deadline)
        return min((time for time in times if time > now), default=math.inf)

    # --- events -----------------------------------------------------------------------------------

    def _on_started(self, _event: events.Started, _now: float) -> None:
        self._started = True
        self.crew.do(actions.WorkerCountChanged(self.target, None))

    def _on_signal(self, event: events.SignalReceived, now: float) -> None:
        command = SIGNALS.get(event.name)
        if command is None:
            self.crew.log("info", f"{event.name} has no meaning here")
        else:
            command(self, now)

    def _on_forked(self, event: events.Forked, _now: float) -> None:
        self.crew.forked(event.serial, event.pid)

    def _on_fork_failed(self, event: events.ForkFailed, now: float) -> None:
        handle = self.crew.not_forked(event.serial, event.text)
        text = f"it can't be forked: {event.text}"
        self._boot_failure(handle, EXIT_BOOT, text, now, final=False)

    def _on_exited(self, event: events.ChildExited, now: float) -> None:
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
        elif is_canary(self, handle):
            roll_back(self, f"its first worker ended: {departure.text}", now)

    def _on_row_overwritten(self, event: events.RowOverwritten, now: float) -> None:
        handle = self.pool.get(event.serial)
        if handle is not None:
            # By its own code, as a rule; what else that has damaged nobody knows.
            reason = ExitReason.ROW_OVERWRITTEN
            self.crew.log("error", f"{handle}: {reason.value}; the row is put right")
            self.crew.wishes(handle, msg.ReplaceMe(reason.name.lower()), now)

    def _on_kill_failed(self, event: events.KillFailed, _now: float) -> None:
        handle = self.pool.get(event.serial)
        if handle is not None:
            self.crew.not_killed(handle, event.signal)

    def _on_message(self, event: events.MessageReceived, now: float) -> None:
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

    def _on_channel_lost(self, event: events.ChannelLost, _now: float) -> None:
        handle = self.pool.get(event.serial)
        if handle is not None:
            self.crew.lost_channel(handle)

    def _on_tick(self, event: events.Tick, now: float) -> None:
        for handle in self.crew.check_limits(event.beats, event.oldest, now):
            self._boot_failure(handle, EXIT_BOOT, str(handle.ending), now)
        for handle in self.pool:
            if handle.ready and now - (handle.ready_at or now) >= YOUNG_S:
                self.backoff.proved(handle.spawned_at)
        check_reload(self, now)
        if self.leaving is not None and now >= self.leaving.until:
            self.stop(now, quick=False, why=self.leaving.why)

    def _on_file_changed(self, event: events.FileChanged, now: float) -> None:
        more = f" and {len(event.paths) - 1} more" if len(event.paths) > 1 else ""
        ask_reload(self, f"{event.paths[0]}{more} changed", now)

    # --- what operators ask for (commands.py) -----------------------------------------------------

    def scale(self, target: int, why: str) -> None:
        """Ask for another number of workers."""
        old, self.target = self.target, target
        if target != old:
            text = f"{why}: {target} worker{'s' * (target != 1)} instead of {old}"
            data = {"workers": target, "before": old}
            self.crew.announce("scaled", "info", text, reason=why, data=data)
            self.crew.do(actions.WorkerCountChanged(target, old))

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
                self.crew.do(actions.CancelCheck())
            self.reload = None
            self.stopping = Stopping(quick, code)
            self.crew.do(actions.CloseListeners())
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
            roll_back(self, "all workers are to drain", now)
        self.paused = True

    # --- boot, and its failure --------------------------------------------------------------------

    def _on_ready(self, handle: WorkerHandle, now: float) -> None:
        self.served = True
        if is_canary(self, handle):
            commit_reload(self, now)
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
        if is_canary(self, handle):
            roll_back(self, f"its first worker failed: {text}", now, details)
            return
        self._note_failure(handle, now)
        if self.served or self.reload is not None or handle.generation != self.generation:
            return
        if not final and self.backoff.rounds < FIRST_BOOT_ATTEMPTS:
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
        if self.backoff.failed(handle.spawned_at, now) and self.served:
            delay = self.backoff.not_before - now
            self.crew.log("warning", f"the next worker is forked in {delay:.3g} s at the earliest")
        count_failure(self, handle, now)

    # --- what is wanted ---------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        """Do the next step towards what is wanted."""
        if self.stopping is not None:
            if all(handle.unkillable for handle in self.pool):
                self.exited = True
                self.crew.do(actions.Exit(self.stopping.code))
            return
        if not self._started:
            return
        self._balance(now)
        step_reload(self, now)
        self._drop_generations()

    def _balance(self, now: float) -> None:
        reload = self.reload
        candidate, surge = None, 1
        if reload is not None and reload.phase is Phase.CANARY:
            # The canary takes the surge.
            candidate, surge = reload.generation, 0
        elif reload is not None and reload.phase is Phase.ROLLING:
            surge = self.policy.reload_batch
        waits = self.held or now < self.backoff.not_before
        plan = balance(
            [handle for handle in self.pool.live() if handle.generation != candidate],
            desired=self.desired,
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
            self.crew.do(actions.CloseSlot(handle.slot))
            self.crew.retire(handle, reason, now, msg.Stop())
        else:
            self.crew.retire(handle, reason, now)

    def _drop_generations(self) -> None:
        keep = {self.generation, *self.pool.generations()}
        if self.reload is not None:
            keep |= {self.reload.generation, self.reload.old_generation}
        for generation in sorted(set(self.crew.policies) - keep):
            del self.crew.policies[generation]
            self.crew.do(actions.DropGeneration(generation))

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
        self.backoff.shift(gap)
        if self.leaving is not None:
            self.leaving.until += gap
        if self.reload is not None:
            self.reload.shift(gap)


_HANDLERS: dict[type, Callable[..., None]] = {
    events.Started: Supervisor._on_started,
    events.SignalReceived: Supervisor._on_signal,
    events.Forked: Supervisor._on_forked,
    events.ForkFailed: Supervisor._on_fork_failed,
    events.KillFailed: Supervisor._on_kill_failed,
    events.RowOverwritten: Supervisor._on_row_overwritten,
    events.ChildExited: Supervisor._on_exited,
    events.MessageReceived: Supervisor._on_message,
    events.ChannelLost: Supervisor._on_channel_lost,
    events.Tick: Supervisor._on_tick,
    events.ConfigChecked: on_config_checked,
    events.ConfigLoaded: on_config_loaded,
    events.ConfigFailed: on_config_failed,
    events.FileChanged: Supervisor._on_file_changed,
    events.CommandReceived: on_command,
}
