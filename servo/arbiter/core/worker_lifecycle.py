"""What is done to one worker: fork it, believe it, ask it to end, end it.

The supervisor decides about all of them; this keeps each one's life in order and its limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.arbiter.core.actions import Action, Fork, Happened, KillWorker, Log, Release, SendMessage
from servo.arbiter.core.exit_reasons import Ending, ExitReason, conclude, reason_named
from servo.arbiter.core.policy import ABORT_S, BOOT_EXIT_S, BOOT_STOP_S, QUICK_STOP_S, Policy
from servo.arbiter.core.worker_table import Pool, WorkerHandle, WorkerState
from servo.ipc.messages import BootFailed, Message, ReplaceMe, Retire, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.events import ChildExited

# All workers of a generation get ready together; their lifetimes are cut by up to this part, spread
# by the golden ratio, so that they don't end together.
_LIFETIME_SPREAD = 0.1
_GOLDEN = 0.6180339887498949

_QUIET = frozenset(
    {
        ExitReason.ASKED,
        ExitReason.RECYCLED,
        ExitReason.TERMINATED,
        ExitReason.RESTARTED,
        ExitReason.SCALED_DOWN,
        ExitReason.REPLACED,
        ExitReason.NOT_NEEDED,
        ExitReason.DRAINED,
        ExitReason.ROLLED_BACK,
    }
)

_HUNG = (ExitReason.NO_HEARTBEAT, ExitReason.REQUEST_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Departure:
    """A worker that was reaped. `unasked`: the arbiter had not asked it to end."""

    handle: WorkerHandle
    reason: ExitReason
    text: str
    unasked: bool


class Crew:
    """The workers. `actions` collects what is to be done; `policies` is by generation."""

    def __init__(self, policy: Policy) -> None:
        self.pool = Pool()
        self.policies: dict[int, Policy] = {1: policy}
        self.actions: list[Action] = []

    def do(self, action: Action) -> None:
        self.actions.append(action)

    def log(self, level: str, text: str) -> None:
        self.actions.append(Log(level, text))

    def announce(self, name: str, level: str, text: str, **values: Any) -> None:
        """One log line that is an event, too; `values` are `Happened`'s."""
        self.do(Happened(level, text, name=name, **values))

    def tell(
        self,
        handle: WorkerHandle,
        name: str,
        level: str,
        text: str,
        reason: ExitReason | None = None,
        details: str = "",
    ) -> None:
        """A worker's transition."""
        self.announce(
            name,
            level,
            text,
            slot=handle.slot,
            serial=handle.serial,
            pid=handle.pid,
            generation=handle.generation,
            reason=reason.name.lower() if reason is not None else "",
            details=details,
        )

    # --- getting up -----------------------------------------------------------------------------

    def fork(self, slot: int, generation: int, now: float) -> WorkerHandle:
        """Have a worker forked."""
        handle = self.pool.add(slot, generation, now)
        self.do(Fork(handle.serial, slot, generation))
        return handle

    def forked(self, serial: int, pid: int) -> None:
        """The fork was performed."""
        handle = self.pool.get(serial)
        assert handle is not None
        handle.pid = pid
        text = f"{handle} is forked, serial {serial}, generation {handle.generation}"
        self.tell(handle, "spawned", "debug", text)

    def not_forked(self, serial: int, text: str) -> WorkerHandle:
        """The fork failed: there is no such worker."""
        handle = self.pool.get(serial)
        assert handle is not None
        self.log("error", f"worker {handle.slot} can't be forked: {text}")
        handle.move(WorkerState.EXITED)
        self.pool.remove(handle)
        return handle

    def booting(self, handle: WorkerHandle) -> None:
        """It says that it boots."""
        if handle.state is WorkerState.SPAWNED:
            handle.move(WorkerState.BOOTING)
            self.tell(handle, "booting", "info", f"{handle} is booting")

    def ready(self, handle: WorkerHandle, now: float) -> bool:
        """It says that it accepts connections. False when that no longer counts."""
        self.booting(handle)
        if handle.state is WorkerState.BOOTING:
            handle.move(WorkerState.READY)
            handle.ready_at = handle.alive_at = now
            text = f"{handle} is ready after {now - handle.spawned_at:.2f} s"
            self.tell(handle, "ready", "info", text)
            return True
        if handle.state is WorkerState.DRAINING and handle.ready_at is None:
            # It got up before it read that it is to end, so it may have taken requests by now.
            handle.ready_at = handle.alive_at = now
            if handle.asked_at is not None and not handle.killed_by:
                handle.kill_at = handle.asked_at + handle.grace_s
        return False

    def boot_failed(self, handle: WorkerHandle, message: BootFailed, now: float) -> bool:
        """It says that it can't boot, and exits. False when that is no news."""
        if not handle.live or handle.ready:
            return False
        handle.ending = Ending(ExitReason.BOOT_FAILED)
        handle.move(WorkerState.DRAINING)
        text = f"{handle} could not boot: {message.text}"
        self.tell(handle, "draining", "error", text, ExitReason.BOOT_FAILED, message.text)
        handle.kill_at = now + BOOT_EXIT_S
        return True

    # --- wishes ---------------------------------------------------------------------------------

    def wishes(self, handle: WorkerHandle, message: ReplaceMe, now: float) -> None:
        """It asks for a successor."""
        if not handle.live or handle.wish is not None:
            return
        reason = reason_named(message.reason) or ExitReason.TERMINATED
        detail = f" ({message.detail})" if message.detail else ""
        self.log("info", f"{handle} is to be replaced: {reason.value}{detail}")
        handle.wish = reason.name
        handle.wished_at = now

    def drains(self, handle: WorkerHandle, now: float) -> None:
        """It says that it accepts no more; news only if nobody had asked it."""
        handle.confirmed = True
        if handle.live:
            handle.ending = Ending(ExitReason.LEFT)
            self._begin_drain(handle, self.policies[handle.generation].graceful_timeout_s, now)

    # --- asking it to end -------------------------------------------------------------------------

    def retire(
        self, handle: WorkerHandle, reason: ExitReason, now: float, message: Message | None = None
    ) -> None:
        """Ask a live worker to leave the work to its siblings and end."""
        handle.ending = Ending(reason)
        self._begin_drain(handle, self.policies[handle.generation].graceful_timeout_s, now)
        self._tell(handle, message or Retire(reason.name.lower()))

    def stop(self, handle: WorkerHandle, quick: bool, now: float) -> None:
        """Ask a worker to end since the server does; one that drains anyway hears only of haste."""
        grace_s = self.policies[handle.generation].graceful_timeout_s
        if quick:
            grace_s = min(grace_s, QUICK_STOP_S)
        if handle.live:
            handle.ending = Ending(ExitReason.ASKED)
            self._begin_drain(handle, grace_s, now)
            self._tell(handle, Stop(quick))
        elif quick and handle.killed_by != "SIGKILL":
            handle.grace_s = min(handle.grace_s, grace_s)
            due = now + grace_s
            handle.kill_at = due if handle.kill_at is None else min(handle.kill_at, due)
            self._tell(handle, Stop(quick))

    def _begin_drain(self, handle: WorkerHandle, grace_s: float, now: float) -> None:
        handle.move(WorkerState.DRAINING)
        handle.asked_at = now
        handle.grace_s = grace_s
        handle.kill_at = now + (
            grace_s if handle.ready_at is not None else min(grace_s, BOOT_STOP_S)
        )
        assert handle.ending is not None
        text = f"{handle} is draining: {handle.ending}"
        self.tell(handle, "draining", "info", text, handle.ending.reason)

    def _tell(self, handle: WorkerHandle, message: Message) -> None:
        if not handle.deaf:
            self.do(SendMessage(handle.serial, message))
        elif not handle.confirmed:
            self._terminate(handle)

    def lost_channel(self, handle: WorkerHandle) -> None:
        """Messages no longer reach it; what it was asked last may be lost."""
        handle.deaf = True
        if handle.asked_at is not None and not handle.killed_by and not handle.confirmed:
            self._terminate(handle)

    def _terminate(self, handle: WorkerHandle) -> None:
        # Without its channel a worker drains by itself at SIGTERM.
        self.do(KillWorker(handle.serial, "SIGTERM", "its channel is gone"))

    # --- ending it --------------------------------------------------------------------------------

    def abort(self, handle: WorkerHandle, ending: Ending, now: float) -> None:
        """Make it print its stacks and die; SIGKILL follows."""
        text = f"{handle}: {ending}; aborting it, its stacks follow"
        handle.ending = ending
        handle.killed_by = "SIGABRT"
        handle.kill_at = now + ABORT_S
        if handle.live:
            handle.move(WorkerState.DRAINING)
            self.tell(handle, "draining", "error", text, ending.reason)
        else:
            self.log("error", text)
        self.do(KillWorker(handle.serial, "SIGABRT", str(ending)))

    def kill(self, handle: WorkerHandle, now: float) -> None:
        """End it now."""
        ending = handle.ending
        assert ending is not None
        if not handle.killed_by:
            since = now - (handle.asked_at if handle.asked_at is not None else handle.spawned_at)
            ending = Ending(
                ending.reason, f"still there {since:.3g} s after it was to end: {ending}"
            )
            self.log("warning", f"{handle} is {ending}; killing it")
            handle.ending = ending
        handle.killed_by = "SIGKILL"
        handle.kill_at = None
        self.do(KillWorker(handle.serial, "SIGKILL", str(ending)))

    def not_killed(self, handle: WorkerHandle, signal: str) -> None:
        """The kernel has refused to signal it. If it gets unstuck, it reads that it has to end."""
        if signal == "SIGKILL":
            handle.unkillable = True
            self.log("error", f"{handle} can't be killed: it stays until it ends by itself")
        self.do(SendMessage(handle.serial, Stop(quick=True)))

    def exited(self, event: ChildExited, now: float) -> Departure | None:
        """A child was reaped; None for one that is no worker."""
        handle = self.pool.find(event.pid)
        if handle is None:
            return None
        reason, text = conclude(
            event.code, event.signal, handle.ending, handle.killed_by, event.out_of_memory
        )
        quiet = reason in _QUIET and not handle.killed_by
        lived = f" after {_span(now - handle.spawned_at)}"
        handle.move(WorkerState.EXITED)
        level = "info" if quiet else "error"
        self.tell(handle, "exited", level, f"{handle} ended{lived}: {text}", reason)
        self.do(Release(handle.serial))
        self.pool.remove(handle)
        return Departure(handle, reason, text, _unasked(handle))

    # --- time -------------------------------------------------------------------------------------

    def check_limits(
        self, beats: Mapping[int, float], oldest: Mapping[int, float], now: float
    ) -> list[WorkerHandle]:
        """Enforce every limit that is due. Returns the workers that have not booted in time."""
        late = []
        for handle in self.pool:
            policy = self.policies[handle.generation]
            if handle.kill_at is not None:
                if now >= handle.kill_at:
                    self.kill(handle, now)
                    continue
            elif (
                handle.live
                and not handle.ready
                and _over(handle.spawned_at, policy.boot_timeout_s, now)
            ):
                text = f"not ready after {policy.boot_timeout_s:g} s (boot_timeout)"
                self.abort(handle, Ending(ExitReason.BOOT_TIMEOUT, text), now)
                late.append(handle)
            if handle.ready_at is not None and not handle.killed_by:
                self._check_life(handle, beats.get(handle.serial, 0.0), oldest, policy, now)
        return late

    def _check_life(
        self,
        handle: WorkerHandle,
        beat: float,
        oldest: Mapping[int, float],
        policy: Policy,
        now: float,
    ) -> None:
        handle.alive_at = max(handle.alive_at, beat)
        began = oldest.get(handle.serial, 0.0)
        if began != handle.request_began:
            handle.request_began = handle.request_at = began
        if _over(handle.alive_at, policy.timeout_s, now):
            text = f"no heartbeat for {policy.timeout_s:g} s"
            self.abort(handle, Ending(ExitReason.NO_HEARTBEAT, text), now)
        # A worker that beats can end the request by itself; the margin is for its last beat,
        # which came just before or after the request's start.
        elif (
            began
            and _over(handle.request_at, policy.request_timeout_s, now)
            and _over(handle.alive_at, 0.9 * policy.request_timeout_s, now)
        ):
            text = f"a request runs for more than {policy.request_timeout_s:g} s (request_timeout)"
            self.abort(handle, Ending(ExitReason.REQUEST_TIMEOUT, text), now)
        elif handle.ready and handle.wish is None and policy.max_lifetime_s:
            part = 1 - _LIFETIME_SPREAD * (handle.serial * _GOLDEN % 1)
            assert handle.ready_at is not None
            if _over(handle.ready_at, policy.max_lifetime_s * part, now):
                lived = f"lived for {_span(now - handle.ready_at)}"
                self.wishes(handle, ReplaceMe("recycled", lived), now)

    def due_times(self) -> list[float]:
        """The moments at which `check_limits` has something to do, as far as they are known."""
        times = []
        for handle in self.pool:
            boot_timeout_s = self.policies[handle.generation].boot_timeout_s
            if handle.kill_at is not None:
                times.append(handle.kill_at)
            elif handle.live and not handle.ready and boot_timeout_s:
                times.append(handle.spawned_at + boot_timeout_s)
        return times


def _unasked(handle: WorkerHandle) -> bool:
    if handle.ending is None or handle.ending.reason is ExitReason.LEFT:
        return True
    # It hung; a worker that did so in its drain had been asked.
    return handle.ending.reason in _HUNG and handle.asked_at is None


def _over(since: float, limit_s: float, now: float) -> bool:
    """Whether a limit has passed; 0 is none."""
    return limit_s > 0 and now - since >= limit_s


def _span(seconds: float) -> str:
    """A time as people say it: 0.42 s, 12 s, 3 min, 5 h."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
