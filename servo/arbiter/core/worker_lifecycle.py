"""The lifecycle of one worker: fork, boot, readiness, drain, exit; and the limits of each step.

The supervisor decides how many workers there should be, and which ones; this module carries out
those decisions for a single worker. Every method is one step: it moves the worker's entry to its
next state, records that as a lifecycle event, and queues the actions that follow.

How a worker ends. The arbiter sends `Retire` (close the listeners, finish open requests, exit; the
other workers serve on) or `Stop` (the same, while the whole server stops; a quick one cuts open
requests). Either sets `kill_at`: a worker that still exists then gets SIGKILL. A worker whose
channel is gone can't read a message, so it gets SIGTERM, which has the same effect. A worker that
hangs can't end by itself: it gets SIGABRT first, which makes it print its stacks, and SIGKILL two
seconds later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.arbiter.core.actions import Fork, KillWorker, Release, SendMessage
from servo.arbiter.core.exit_reasons import ExitReason, StopCause, conclude, reason_named
from servo.arbiter.core.policy import ABORT_S, BOOT_EXIT_S, BOOT_STOP_S, QUICK_STOP_S
from servo.arbiter.core.worker_table import WorkerState
from servo.ipc.messages import ReplaceMe, Retire, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.events import ChildExited
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.worker_table import WorkerEntry, WorkerTable
    from servo.ipc.messages import BootFailed, Message

# The workers of a generation get ready at about the same time. Without a spread, `max_lifetime`
# would end them all at the same time, too. Each lifetime is cut by up to this share; multiples of
# the golden ratio spread the cuts evenly, however many workers there are.
_LIFETIME_SPREAD = 0.1
_GOLDEN_RATIO = 0.6180339887498949

# Exits that are part of normal work: the log shows them as "info" and not as "error".
_ORDINARY = frozenset(
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
class WorkerExit:
    """A worker that was reaped.

    worker   its entry, already removed from the table
    reason   why it exited
    text     the same for the log
    unasked  the arbiter had not told it to end
    """

    worker: WorkerEntry
    reason: ExitReason
    text: str
    unasked: bool


class WorkerLifecycle:
    """Takes single workers from one state to the next.

    workers   the table; this object adds entries to it and removes them
    policies  the limits, by generation; the supervisor keeps them up to date
    queue     collects the actions
    """

    def __init__(
        self, workers: WorkerTable, policies: Mapping[int, Policy], queue: ActionQueue
    ) -> None:
        self._workers = workers
        self._policies = policies
        self._queue = queue

    # --- fork and boot --------------------------------------------------------------------------

    def fork(self, slot: int, generation: int, now: float) -> WorkerEntry:
        """Request a fork.

        slot        the place of the new worker, 1 to N
        generation  the configuration that it runs
        now         the current time, in seconds (in every method here)
        """
        worker = self._workers.add(slot, generation, now)
        self._queue.do(Fork(worker.serial, slot, generation))
        return worker

    def forked(self, serial: int, pid: int) -> None:
        """The fork of worker `serial` has succeeded: its process is `pid`."""
        worker = self._workers.get(serial)
        assert worker is not None
        worker.pid = pid
        text = f"{worker} is forked, serial {serial}, generation {worker.generation}"
        self._queue.record_worker(worker, "spawned", "debug", text)

    def fork_failed(self, serial: int, text: str) -> WorkerEntry:
        """The fork of worker `serial` has failed, `text` says why. Return the removed entry."""
        worker = self._workers.get(serial)
        assert worker is not None
        self._queue.log("error", f"worker {worker.slot} can't be forked: {text}")
        worker.move(WorkerState.EXITED)
        self._workers.remove(worker)
        return worker

    def booting(self, worker: WorkerEntry) -> None:
        """The worker reports that it boots."""
        if worker.state is WorkerState.SPAWNED:
            worker.move(WorkerState.BOOTING)
            self._queue.record_worker(worker, "booting", "info", f"{worker} is booting")

    def ready(self, worker: WorkerEntry, now: float) -> bool:
        """The worker reports that it accepts connections.

        Return False if that changes nothing: it was told to end meanwhile, or has reported it
        before.
        """
        self.booting(worker)
        if worker.state is WorkerState.BOOTING:
            worker.move(WorkerState.READY)
            worker.ready_at = worker.heartbeat_at = now
            text = f"{worker} is ready after {now - worker.spawned_at:.2f} s"
            self._queue.record_worker(worker, "ready", "info", text)
            return True
        if worker.state is WorkerState.DRAINING and worker.ready_at is None:
            # It got ready before it read our message, so it may have accepted requests. They get
            # the whole grace period, in place of the short one of a worker that still boots.
            worker.ready_at = worker.heartbeat_at = now
            if worker.stop_asked_at is not None and not worker.signal_sent:
                worker.kill_at = worker.stop_asked_at + worker.grace_s
        return False

    def boot_failed(self, worker: WorkerEntry, message: BootFailed, now: float) -> bool:
        """The worker reports that it can't boot and will exit.

        Return False if that changes nothing: it was told to end meanwhile, or is ready already.
        """
        if not worker.live or worker.ready:
            return False
        worker.stop_cause = StopCause(ExitReason.BOOT_FAILED)
        worker.move(WorkerState.DRAINING)
        text = f"{worker} could not boot: {message.text}"
        self._queue.record_worker(
            worker, "draining", "error", text, ExitReason.BOOT_FAILED, message.text
        )
        worker.kill_at = now + BOOT_EXIT_S
        return True

    # --- replacement ----------------------------------------------------------------------------

    def request_replacement(self, worker: WorkerEntry, message: ReplaceMe, now: float) -> None:
        """Mark a worker as one to replace; `balance` forks its replacement first."""
        if not worker.live or worker.replace_reason is not None:
            return
        reason = reason_named(message.reason) or ExitReason.TERMINATED
        detail = f" ({message.detail})" if message.detail else ""
        self._queue.log("info", f"{worker} will be replaced: {reason.value}{detail}")
        worker.replace_reason = reason.name
        worker.replace_asked_at = now

    # --- drain ----------------------------------------------------------------------------------

    def retire(
        self, worker: WorkerEntry, reason: ExitReason, now: float, message: Message | None = None
    ) -> None:
        """Tell a live worker to end while the others serve on.

        reason   why, for the log and for the worker
        message  what to send in place of `Retire`
        """
        worker.stop_cause = StopCause(reason)
        self._begin_drain(worker, self._policies[worker.generation].graceful_timeout_s, now)
        self._send(worker, message or Retire(reason.name.lower()))

    def stop(self, worker: WorkerEntry, quick: bool, now: float) -> None:
        """Tell a worker to end because the server stops.

        quick  cut open requests. A worker that drains already is told to hurry if this is True;
               otherwise there is nothing new to tell it.
        """
        grace_s = self._policies[worker.generation].graceful_timeout_s
        if quick:
            grace_s = min(grace_s, QUICK_STOP_S)
        if worker.live:
            worker.stop_cause = StopCause(ExitReason.ASKED)
            self._begin_drain(worker, grace_s, now)
            self._send(worker, Stop(quick))
        elif quick and worker.signal_sent != "SIGKILL":
            worker.grace_s = min(worker.grace_s, grace_s)
            due = now + grace_s
            worker.kill_at = due if worker.kill_at is None else min(worker.kill_at, due)
            self._send(worker, Stop(quick))

    def draining(self, worker: WorkerEntry, now: float) -> None:
        """The worker reports that it drains, which it may have begun without being told."""
        worker.draining_confirmed = True
        if worker.live:
            worker.stop_cause = StopCause(ExitReason.LEFT)
            self._begin_drain(worker, self._policies[worker.generation].graceful_timeout_s, now)

    def channel_lost(self, worker: WorkerEntry) -> None:
        """Messages no longer reach the worker, and the last one may not have reached it either."""
        worker.channel_lost = True
        told = worker.stop_asked_at is not None and not worker.signal_sent
        if told and not worker.draining_confirmed:
            self._terminate(worker)

    def _begin_drain(self, worker: WorkerEntry, grace_s: float, now: float) -> None:
        worker.move(WorkerState.DRAINING)
        worker.stop_asked_at = now
        worker.grace_s = grace_s
        booting = worker.ready_at is None
        worker.kill_at = now + (min(grace_s, BOOT_STOP_S) if booting else grace_s)
        assert worker.stop_cause is not None
        text = f"{worker} is draining: {worker.stop_cause}"
        self._queue.record_worker(worker, "draining", "info", text, worker.stop_cause.reason)

    def _send(self, worker: WorkerEntry, message: Message) -> None:
        if not worker.channel_lost:
            self._queue.do(SendMessage(worker.serial, message))
        elif not worker.draining_confirmed:
            self._terminate(worker)

    def _terminate(self, worker: WorkerEntry) -> None:
        # A worker without its channel drains when it gets SIGTERM; with one, it would ask for a
        # replacement first.
        self._queue.do(KillWorker(worker.serial, "SIGTERM", "its channel is gone"))

    # --- kill -----------------------------------------------------------------------------------

    def abort(self, worker: WorkerEntry, cause: StopCause, now: float) -> None:
        """Make a hung worker print its stacks and die; SIGKILL follows if it does not."""
        text = f"{worker}: {cause}; aborting it, its stacks follow"
        worker.stop_cause = cause
        worker.signal_sent = "SIGABRT"
        worker.kill_at = now + ABORT_S
        if worker.live:
            worker.move(WorkerState.DRAINING)
            self._queue.record_worker(worker, "draining", "error", text, cause.reason)
        else:
            self._queue.log("error", text)
        self._queue.do(KillWorker(worker.serial, "SIGABRT", str(cause)))

    def kill(self, worker: WorkerEntry, now: float) -> None:
        """Send SIGKILL to a worker that was told to end."""
        cause = worker.stop_cause
        assert cause is not None
        if not worker.signal_sent:
            told_at = worker.stop_asked_at
            since = now - (told_at if told_at is not None else worker.spawned_at)
            cause = StopCause(
                cause.reason, f"still running {since:.3g} s after it was told to end: {cause}"
            )
            self._queue.log("warning", f"{worker} is {cause}; killing it")
            worker.stop_cause = cause
        worker.signal_sent = "SIGKILL"
        worker.kill_at = None
        self._queue.do(KillWorker(worker.serial, "SIGKILL", str(cause)))

    def kill_failed(self, worker: WorkerEntry, signal: str) -> None:
        """The kernel refused to deliver `signal` to the worker."""
        if signal == "SIGKILL":
            worker.unkillable = True
            self._queue.log("error", f"{worker} can't be killed: it runs until it ends by itself")
        # If it hangs only for a while, it reads this afterwards and ends.
        self._queue.do(SendMessage(worker.serial, Stop(quick=True)))

    def exited(self, event: ChildExited, now: float) -> WorkerExit | None:
        """A child was reaped. Return None if it was not a worker."""
        worker = self._workers.find(event.pid)
        if worker is None:
            return None
        reason, text = conclude(
            event.code, event.signal, worker.stop_cause, worker.signal_sent, event.out_of_memory
        )
        level = "info" if reason in _ORDINARY and not worker.signal_sent else "error"
        lived = f" after {_duration_text(now - worker.spawned_at)}"
        worker.move(WorkerState.EXITED)
        self._queue.record_worker(worker, "exited", level, f"{worker} ended{lived}: {text}", reason)
        self._queue.do(Release(worker.serial))
        self._workers.remove(worker)
        return WorkerExit(worker, reason, text, _ended_unasked(worker))

    # --- limits ---------------------------------------------------------------------------------

    def enforce_limits(
        self, heartbeats: Mapping[int, float], oldest: Mapping[int, float], now: float
    ) -> list[WorkerEntry]:
        """Enforce every limit that is due.

        heartbeats  serial -> time of the last heartbeat, in seconds
        oldest      serial -> start of the oldest request in flight, in seconds

        Return the workers that have exceeded `boot_timeout`.
        """
        late = []
        for worker in self._workers:
            policy = self._policies[worker.generation]
            if worker.kill_at is not None:
                if now >= worker.kill_at:
                    self.kill(worker, now)
                    continue
            elif (
                worker.live
                and not worker.ready
                and _exceeded(worker.spawned_at, policy.boot_timeout_s, now)
            ):
                text = f"not ready after {policy.boot_timeout_s:g} s (boot_timeout)"
                self.abort(worker, StopCause(ExitReason.BOOT_TIMEOUT, text), now)
                late.append(worker)
            if worker.ready_at is not None and not worker.signal_sent:
                self._enforce_serving_limits(
                    worker, heartbeats.get(worker.serial, 0.0), oldest, policy, now
                )
        return late

    def _enforce_serving_limits(
        self,
        worker: WorkerEntry,
        heartbeat: float,
        oldest: Mapping[int, float],
        policy: Policy,
        now: float,
    ) -> None:
        worker.heartbeat_at = max(worker.heartbeat_at, heartbeat)
        start = oldest.get(worker.serial, 0.0)
        if start != worker.request_start:
            worker.request_start = worker.request_limit_from = start
        if _exceeded(worker.heartbeat_at, policy.timeout_s, now):
            text = f"no heartbeat for {policy.timeout_s:g} s"
            self.abort(worker, StopCause(ExitReason.NO_HEARTBEAT, text), now)
        # A worker that sends heartbeats can end the request by itself, so this is only for one that
        # sends none. Its last heartbeat may have come just after the request's start: hence 0.9.
        elif (
            start
            and _exceeded(worker.request_limit_from, policy.request_timeout_s, now)
            and _exceeded(worker.heartbeat_at, 0.9 * policy.request_timeout_s, now)
        ):
            text = f"a request runs for more than {policy.request_timeout_s:g} s (request_timeout)"
            self.abort(worker, StopCause(ExitReason.REQUEST_TIMEOUT, text), now)
        elif worker.ready and worker.replace_reason is None and policy.max_lifetime_s:
            share = 1 - _LIFETIME_SPREAD * (worker.serial * _GOLDEN_RATIO % 1)
            assert worker.ready_at is not None
            if _exceeded(worker.ready_at, policy.max_lifetime_s * share, now):
                lived = f"lived for {_duration_text(now - worker.ready_at)}"
                self.request_replacement(worker, ReplaceMe("recycled", lived), now)

    def due_times(self) -> list[float]:
        """Return the times, in seconds, at which `enforce_limits` has work, if they are known."""
        times = []
        for worker in self._workers:
            boot_timeout_s = self._policies[worker.generation].boot_timeout_s
            if worker.kill_at is not None:
                times.append(worker.kill_at)
            elif worker.live and not worker.ready and boot_timeout_s:
                times.append(worker.spawned_at + boot_timeout_s)
        return times


def _ended_unasked(worker: WorkerEntry) -> bool:
    cause = worker.stop_cause
    if cause is None or cause.reason is ExitReason.LEFT:
        return True
    # A worker that hung had not been told to end, unless it hung while it drained.
    return cause.reason in _HUNG and worker.stop_asked_at is None


def _exceeded(since: float, limit_s: float, now: float) -> bool:
    """Return True if `limit_s` has passed since `since`; a limit of 0 is no limit."""
    return limit_s > 0 and now - since >= limit_s


def _duration_text(seconds: float) -> str:
    """Format a duration for people: 0.42 s, 12 s, 3 min, 5 h."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"
