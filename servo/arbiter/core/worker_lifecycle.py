"""The lifecycle of one worker: fork, boot, readiness, drain and exit, with the limits of each step.

The supervisor decides how many workers should live, and which ones. This module carries these
decisions out for a single worker. Each method is one step: it moves the worker's entry to its next
state, records a lifecycle event, and queues the actions.

A worker ends in one of these ways:

* `Retire`: it closes its listeners, finishes open requests, and exits. The other workers still
  serve.
* `Stop`: the same, but all workers get it, because the server stops. A quick stop cuts off open
  requests.
* SIGTERM, if its channel is gone, so that it can't read messages. The effect is that of `Retire`.
* SIGABRT and, two seconds later, SIGKILL, if it hangs or uses far too much memory. On SIGABRT it
  prints its stacks.

After the first three, a worker that still exists at `kill_at` gets SIGKILL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.arbiter.core.actions import CancelFork, Fork, KillWorker, Release, SendMessage
from servo.arbiter.core.exit_reasons import ExitReason, StopCause, conclude, reason_named
from servo.arbiter.core.policy import (
    ABORT_S,
    BOOT_EXIT_S,
    BOOT_STOP_S,
    LIFETIME_SPREAD,
    QUICK_STOP_S,
    spread,
)
from servo.arbiter.core.worker_table import WorkerState
from servo.ipc.messages import ReplaceMe, Retire, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.action_queue import ActionQueue
    from servo.arbiter.core.events import ChildExited
    from servo.arbiter.core.policy import Policy
    from servo.arbiter.core.worker_table import WorkerEntry, WorkerTable
    from servo.ipc.messages import BootFailed, Message

# The reasons of ordinary exits: the log shows these as "info", not as "error".
_ORDINARY = frozenset(
    {
        ExitReason.ASKED,
        ExitReason.RECYCLED,
        ExitReason.REFORKED,
        ExitReason.MAX_MEMORY,
        ExitReason.UNHEALTHY,
        ExitReason.TERMINATED,
        ExitReason.RESTARTED,
        ExitReason.SCALED_DOWN,
        ExitReason.REPLACED,
        ExitReason.NOT_NEEDED,
        ExitReason.DRAINED,
        ExitReason.ROLLED_BACK,
    }
)

# The causes of `abort`.
_ABORTED = (ExitReason.NO_HEARTBEAT, ExitReason.REQUEST_TIMEOUT, ExitReason.MAX_MEMORY_HARD)


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """The exit of a reaped worker.

    worker   its entry, already removed from the table
    reason   the reason
    text     the reason, for the log
    unasked  whether it exited although the arbiter had not told it to end
    """

    worker: WorkerEntry
    reason: ExitReason
    text: str
    unasked: bool


class WorkerLifecycle:
    """Moves single workers from one state to the next.

    workers   the table; this object adds and removes its entries
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

        slot        the slot of the new worker, 1 to N
        generation  the number of its configuration
        now         the current time, in seconds (in every method here)
        """
        worker = self._workers.add(slot, generation, now)
        self._queue.do(Fork(worker.serial, slot, generation))
        return worker

    def forked(self, serial: int, pid: int) -> WorkerEntry:
        """Note the pid of a forked worker, and return the worker."""
        worker = self._workers.get(serial)
        assert worker is not None
        worker.pid = pid
        text = f"{worker} is forked, serial {serial}, generation {worker.generation}"
        self._queue.record_worker(worker, "spawned", "debug", text)
        if not worker.live:
            # The worker was told to end before its mold had forked it.
            self._record_draining(worker)
        return worker

    def fork_failed(self, serial: int, text: str) -> WorkerEntry:
        """Remove the entry of a worker that could not be forked, and return it.

        serial  the worker's number
        text    the reason, for the log
        """
        worker = self._workers.get(serial)
        assert worker is not None
        level = "error" if worker.live else "info"
        self._queue.log(level, f"worker {worker.slot} can't be forked: {text}")
        worker.move(WorkerState.EXITED)
        self._workers.remove(worker)
        return worker

    def booting(self, worker: WorkerEntry) -> None:
        """Handle the worker's report that it boots."""
        if worker.state is WorkerState.SPAWNED:
            worker.move(WorkerState.BOOTING)
            self._queue.record_worker(worker, "booting", "info", f"{worker} is booting")

    def ready(self, worker: WorkerEntry, now: float) -> bool:
        """Handle the worker's report that it accepts connections.

        Return False if the report has no effect: the worker was told to end, or is already ready.
        """
        self.booting(worker)
        if worker.state is WorkerState.BOOTING:
            worker.move(WorkerState.READY)
            worker.ready_at = worker.heartbeat_at = now
            text = f"{worker} is ready after {now - worker.spawned_at:.2f} s"
            self._queue.record_worker(worker, "ready", "info", text)
            return True
        if worker.state is WorkerState.DRAINING and worker.ready_at is None:
            # The worker got ready before it read our message, so it may have accepted requests.
            # Give it the whole grace period, not the short one of a booting worker.
            worker.ready_at = worker.heartbeat_at = now
            if worker.stop_asked_at is not None and not worker.signal_sent:
                worker.kill_at = worker.stop_asked_at + worker.grace_s
        return False

    def boot_failed(self, worker: WorkerEntry, message: BootFailed, now: float) -> bool:
        """Handle the worker's report that it can't boot and will exit.

        Return False if the report has no effect: the worker was told to end, or is already ready.
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

    def request_replacement(
        self, worker: WorkerEntry, message: ReplaceMe, now: float
    ) -> ExitReason | None:
        """Mark a worker as one to replace; `balance` forks its replacement first.

        Return the reason; None if the worker is ending or being replaced already.
        """
        if not worker.live or worker.replace_reason is not None:
            return None
        reason = reason_named(message.reason) or ExitReason.TERMINATED
        detail = f" ({message.detail})" if message.detail else ""
        self._queue.log("info", f"{worker} will be replaced: {reason.value}{detail}")
        worker.replace_reason, worker.replace_detail = reason.name, message.detail
        worker.replace_asked_at = now
        return reason

    # --- drain ----------------------------------------------------------------------------------

    def retire(
        self, worker: WorkerEntry, reason: ExitReason, now: float, *, take_queued: bool = False
    ) -> None:
        """Tell a live worker to end, while the others still serve.

        reason       the reason, for the log and for the worker
        take_queued  whether it first accepts the connections that are queued at its listeners
        """
        known = worker.replace_detail if worker.replace_reason == reason.name else ""
        worker.stop_cause = StopCause(reason, f"{reason.value} ({known})" if known else "")
        self._begin_drain(worker, self._policies[worker.generation].graceful_timeout_s, now)
        self._send(worker, Retire(reason.name.lower(), take_queued))

    def stop(self, worker: WorkerEntry, quick: bool, now: float) -> None:
        """Tell a worker to end, because the server stops.

        quick  whether to cut off open requests. If not, a draining worker gets no message, because
               it is ending anyway; only a lingering one is told to close its WebSockets
        """
        grace_s = self._policies[worker.generation].graceful_timeout_s
        if quick:
            grace_s = min(grace_s, QUICK_STOP_S)
        if worker.live:
            worker.stop_cause = StopCause(ExitReason.ASKED)
            self._begin_drain(worker, grace_s, now)
            self._send(worker, Stop(quick))
        elif worker.lingering and not quick:
            self.end_lingering(worker, now)
        elif quick and worker.signal_sent != "SIGKILL":
            worker.lingered = worker.lingered or worker.lingering
            worker.lingering = False
            worker.grace_s = min(worker.grace_s, grace_s)
            due = now + grace_s
            worker.kill_at = due if worker.kill_at is None else min(worker.kill_at, due)
            self._send(worker, Stop(quick))

    def draining(self, worker: WorkerEntry, now: float) -> None:
        """Handle the worker's report that it drains, with or without our request."""
        worker.draining_confirmed = True
        if worker.live:
            worker.stop_cause = StopCause(ExitReason.LEFT)
            self._begin_drain(worker, self._policies[worker.generation].graceful_timeout_s, now)

    def lingering(self, worker: WorkerEntry) -> None:
        """Handle the worker's report that it keeps WebSockets or event streams while it drains.

        It gets more time than other draining workers: `drain_websockets` until it closes them, and
        then the usual grace period.
        """
        limit_s = self._policies[worker.generation].drain_websockets_s
        if worker.lingering or worker.lingered or worker.signal_sent or worker.kill_at is None:
            return
        if worker.state is not WorkerState.DRAINING or worker.stop_asked_at is None or not limit_s:
            return
        worker.lingering = True
        worker.kill_at = worker.stop_asked_at + limit_s + worker.grace_s
        text = f"{worker} keeps its WebSockets and event streams for up to {limit_s:g} s"
        self._queue.log("info", f"{text} (drain_websockets)")

    def end_lingering(self, worker: WorkerEntry, now: float) -> None:
        """Tell a lingering worker to close its WebSockets and event streams."""
        worker.lingering = False
        worker.lingered = True
        due = now + worker.grace_s
        worker.kill_at = due if worker.kill_at is None else min(worker.kill_at, due)
        self._send(worker, Stop())

    def bound_lingering(self, policy: Policy, target: int, now: float) -> None:
        """Limit lingering workers to the number of serving ones, and keep rows for new workers.

        policy  the current generation's
        target  the number of workers that should serve

        Without this limit, frequent reloads would fill the memory with old workers, and new workers
        would wait for a row of the scoreboard. If there are too many lingering workers, those that
        were retired first must close their WebSockets early.
        """
        lingering = self._workers.lingering()
        free = policy.capacity - target - policy.reload_batch
        most = max(0, min(max(1, target), free - len(self._workers.busy())))
        for worker in lingering[: max(0, len(lingering) - most)]:
            text = f"{worker} closes its WebSockets early: {len(lingering)} workers linger"
            self._queue.log("info", f"{text}, at most {most} may")
            self.end_lingering(worker, now)

    def channel_lost(self, worker: WorkerEntry) -> None:
        """Note that messages no longer reach the worker; the last one may have been lost."""
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
        if worker.pid is not None:
            self._record_draining(worker)
        # A worker without a pid has no process yet: `forked` or `fork_failed` follows.

    def _record_draining(self, worker: WorkerEntry) -> None:
        assert worker.stop_cause is not None
        text = f"{worker} is draining: {worker.stop_cause}"
        self._queue.record_worker(worker, "draining", "info", text, worker.stop_cause.reason)

    def _send(self, worker: WorkerEntry, message: Message) -> None:
        if not worker.channel_lost:
            self._queue.do(SendMessage(worker.serial, message))
        elif not worker.draining_confirmed:
            self._terminate(worker)

    def _terminate(self, worker: WorkerEntry) -> None:
        # A worker that has lost its channel drains on SIGTERM. With its channel, it would first
        # request a replacement.
        self._queue.do(KillWorker(worker.serial, "SIGTERM", "its channel is gone"))

    # --- kill -----------------------------------------------------------------------------------

    def abort(self, worker: WorkerEntry, cause: StopCause, now: float) -> None:
        """Make a worker print its stacks and die. SIGKILL follows if it still lives."""
        text = f"{worker}: {cause}; aborting it, its stacks follow"
        worker.stop_cause = cause
        worker.signal_sent = "SIGABRT"
        worker.kill_at = now + ABORT_S
        was_live = worker.live
        if was_live:
            worker.move(WorkerState.DRAINING)
        if was_live and worker.pid is not None:
            self._queue.record_worker(worker, "draining", "error", text, cause.reason)
        else:
            self._queue.log("error", text)
        self._queue.do(KillWorker(worker.serial, "SIGABRT", str(cause)))

    def kill(self, worker: WorkerEntry, now: float) -> None:
        """Send SIGKILL to a worker that did not end in time."""
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
        """Note that the kernel refused to deliver `signal` to the worker."""
        if signal == "SIGKILL":
            worker.unkillable = True
            self._queue.log("error", f"{worker} can't be killed: it runs until it ends by itself")
        # A worker that hangs only for a while reads this message later, and then ends.
        self._queue.do(SendMessage(worker.serial, Stop(quick=True)))

    def exited(self, event: ChildExited, now: float) -> WorkerExit | None:
        """Handle the exit of a child. Return None if it was not a worker."""
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

    def _give_up_fork(self, worker: WorkerEntry, cause: StopCause, now: float) -> None:
        """End the wait for a worker whose mold does not report that it has forked it.

        The mold may have been stopped just after the fork. Then the worker serves already, so it is
        told to drain, not killed.
        """
        self._queue.log("error", f"{worker}: {cause}; a mold that has begun to fork it is killed")
        worker.stop_cause = cause
        self._begin_drain(worker, self._policies[worker.generation].graceful_timeout_s, now)
        self._queue.do(CancelFork(worker.serial))
        self._send(worker, Retire(cause.reason.name.lower(), take_queued=False))

    def enforce_limits(
        self, heartbeats: Mapping[int, float], oldest: Mapping[int, float], now: float
    ) -> list[WorkerEntry]:
        """Enforce every limit that is due.

        heartbeats  serial -> time of the last heartbeat, in seconds
        oldest      serial -> start of the oldest request in flight, in seconds

        Returns the workers that have exceeded `boot_timeout`.
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
                cause = StopCause(ExitReason.BOOT_TIMEOUT, text)
                if worker.pid is None:
                    self._give_up_fork(worker, cause, now)
                else:
                    self.abort(worker, cause, now)
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
        # A worker with heartbeats ends the request itself, so this branch is for a worker without
        # them. Its last heartbeat may be a little newer than the request's start, hence the 0.9.
        elif (
            start
            and _exceeded(worker.request_limit_from, policy.request_timeout_s, now)
            and _exceeded(worker.heartbeat_at, 0.9 * policy.request_timeout_s, now)
        ):
            text = f"a request runs for more than {policy.request_timeout_s:g} s (request_timeout)"
            self.abort(worker, StopCause(ExitReason.REQUEST_TIMEOUT, text), now)
        elif worker.ready and worker.replace_reason is None and policy.max_lifetime_s:
            share = 1 - spread(worker.serial, LIFETIME_SPREAD)
            assert worker.ready_at is not None
            if _exceeded(worker.ready_at, policy.max_lifetime_s * share, now):
                lived = f"lived for {_duration_text(now - worker.ready_at)}"
                self.request_replacement(worker, ReplaceMe("recycled", lived), now)

    def due_times(self) -> list[float]:
        """Return the known times, in seconds, at which `enforce_limits` has work."""
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
    # SIGABRT does not ask a worker to end. So an aborted worker counts as one that has ended
    # unasked, unless it was draining.
    return cause.reason in _ABORTED and worker.stop_asked_at is None


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
