"""Decides about the processes of one pool: when to fork, replace and end them.

A pool has a fixed number of slots, with one process each. A process is booting, ready or retiring.
These are the rules:

* An empty slot gets a process, after a back-off if the last ones have failed.
* A process is stale if it belongs to an older generation, has run `max_tasks` tasks, or is larger
  than `max_memory`. It gets a replacement, which boots beside it; when that is ready, the stale
  process retires. Only one replacement per pool boots at a time. So after a reload, the first new
  process is a canary: if it can't boot, the others stay as they are, with the old code.
* A retiring process finishes its task, within `graceful_timeout`.
* Every state has a time limit: `boot_timeout` for a booting process, the pool's `timeout` for a
  task. An idle process waits in the kernel, where nothing can hang. So no heartbeat is needed.

`PoolSupervision` is pure: its methods take the time, and leave actions in `actions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from servo.arbiter.core.backoff import Backoff
from servo.arbiter.core.exit_reasons import ExitReason, StopCause
from servo.arbiter.core.policy import ABORT_S


class PoolPolicy(NamedTuple):
    """The settings of a pool that concern supervision; times in seconds, 0 for no limit."""

    workers: int
    timeout_s: float
    max_tasks: int
    max_memory_bytes: int
    boot_timeout_s: float
    graceful_timeout_s: float


class PoolState(Enum):
    """The states of a pool process."""

    BOOTING = "booting"
    READY = "ready"
    RETIRING = "retiring"


@dataclass(slots=True, eq=False)
class PoolEntry:
    """One process.

    serial       its number, never reused
    pid          its process id
    slot         its place, 1 to N
    generation   the generation of its settings and code
    spawned_at   when it was forked, in seconds
    state        see PoolState
    stale        why it needs a replacement; "" if it doesn't
    retired_at   when it began to retire, in seconds
    cause        why the arbiter ends it, or None
    signal_sent  the strongest signal sent to it, or ""
    kill_at      when to send SIGKILL after SIGABRT, in seconds; 0.0: not due
    timed_out    whether its task ran too long
    """

    serial: int
    pid: int
    slot: int
    generation: int
    spawned_at: float
    state: PoolState = PoolState.BOOTING
    stale: str = ""
    retired_at: float = 0.0
    cause: StopCause | None = None
    signal_sent: str = ""
    kill_at: float = 0.0
    timed_out: bool = False


class Reading(NamedTuple):
    """The measurements of one pool process.

    busy_s   seconds since its task began; None if it has none
    label    the name of the task's function
    tasks    the number of tasks that it has begun
    memory   its memory in bytes; 0 if it was not measured
    """

    busy_s: float | None
    label: str
    tasks: int
    memory: int


class ForkProcess(NamedTuple):
    """Fork a process. Call `forked` or `fork_failed` at once."""

    slot: int
    generation: int


class RetireProcess(NamedTuple):
    """Ask a process to end after its task."""

    serial: int


class SignalProcess(NamedTuple):
    """Send a signal, such as "SIGKILL", to a process."""

    serial: int
    signal: str


class LogPool(NamedTuple):
    """Write a line to the log."""

    level: str
    text: str


PoolAction = ForkProcess | RetireProcess | SignalProcess | LogPool


class PoolSupervision:
    """Supervises the processes of one pool.

    name        the pool's name
    policy      its settings
    generation  the current generation

    entries     the processes, by serial
    actions     the actions to perform, in this order; the caller removes them
    restarts    how many processes have failed
    failure     why the last process could not boot; "" after one could
    """

    def __init__(self, name: str, policy: PoolPolicy, generation: int) -> None:
        self.name = name
        self.policy = policy
        self.generation = generation
        self.entries: dict[int, PoolEntry] = {}
        self.actions: list[PoolAction] = []
        self.restarts = 0
        self.failure = ""
        self._backoff = Backoff()

    # --- events -----------------------------------------------------------------------------------

    def adopt(self, policy: PoolPolicy, generation: int, now: float) -> None:
        """Use the settings of another generation, and replace all processes."""
        self.policy = policy
        self.generation = generation
        self._backoff.reset()
        for entry in self.entries.values():
            if entry.generation != generation:
                entry.stale = "a reload replaces it"
                if entry.state is PoolState.BOOTING:
                    self._kill(entry, StopCause(ExitReason.NOT_NEEDED), now)
            elif entry.stale:
                entry.stale = ""  # rolled back to its own generation
        self.step(now)

    def end(self, now: float) -> None:
        """End all processes: the pool is no longer declared."""
        self.policy = self.policy._replace(workers=0)
        self.step(now)

    def restore(self, entry: PoolEntry) -> None:
        """Take over a process that the previous program of this arbiter has forked."""
        self.entries[entry.serial] = entry

    def forked(self, serial: int, pid: int, action: ForkProcess, now: float) -> None:
        """Note that a process was forked."""
        self.entries[serial] = PoolEntry(serial, pid, action.slot, action.generation, now)

    def fork_failed(self, text: str, now: float) -> None:
        """Note that a process could not be forked."""
        self._log("error", f"a process of the pool {self.name} can't be forked: {text}")
        self._backoff.failed(now, now)

    def ready(self, serial: int, now: float) -> None:
        """Note that a process has booted: it replaces the stale one in its slot."""
        entry = self.entries[serial]
        if entry.state is not PoolState.BOOTING:
            return
        entry.state = PoolState.READY
        self._backoff.survived(entry.spawned_at)
        self.failure = ""
        self._log(
            "info",
            f"{self._named(entry)} is ready after {now - entry.spawned_at:.2f} s",
        )
        for other in self._in_slot(entry.slot):
            if other is not entry and other.state is PoolState.READY:
                self._retire(other, other.stale or "replaced by a newer one", now)
        self.step(now)

    def boot_failed(self, serial: int, text: str) -> None:
        """Note the reason why a process can't boot. Its exit follows."""
        entry = self.entries[serial]
        if entry.state is PoolState.BOOTING:
            entry.cause = StopCause(ExitReason.BOOT_FAILED, text.partition("\n")[0])
            self.failure = entry.cause.detail
            self._log("error", f"{self._named(entry)} can't boot: {text}")

    def exited(self, serial: int, text: str, now: float, *, is_failure: bool) -> None:
        """Remove a process that has ended.

        serial      the process
        text        the reason, for the log
        is_failure  whether it is neither asked to end nor cancelled by its caller
        """
        entry = self.entries.pop(serial)
        # Not even with exit code 0 may a process end before it is ready.
        is_failure = is_failure or (entry.state is PoolState.BOOTING and entry.cause is None)
        level = "info"
        if is_failure:
            level = "error"
            self.restarts += 1
        self._log(level, f"{self._named(entry)} has ended: {text}")
        if entry.state is PoolState.BOOTING and is_failure:
            self._backoff.failed(entry.spawned_at, now)
            if any(other.stale for other in self._in_slot(entry.slot)):
                self._log(
                    "warning",
                    f"the pool {self.name} keeps its old processes: the first new one has failed",
                )
        self.step(now)

    def measured(self, readings: dict[int, Reading], now: float) -> None:
        """Enforce the limits. Called once a second.

        readings  by serial
        """
        policy = self.policy
        for serial, reading in readings.items():
            entry = self.entries[serial]
            if entry.state is PoolState.READY and not entry.stale:
                if policy.max_tasks and reading.tasks >= policy.max_tasks:
                    entry.stale = f"it has run {reading.tasks} tasks (max_tasks)"
                elif policy.max_memory_bytes and reading.memory > policy.max_memory_bytes:
                    entry.stale = f"it uses {reading.memory >> 20} MiB of memory (max_memory)"
            self._enforce(entry, reading, now)
        self.step(now)

    def _enforce(self, entry: PoolEntry, reading: Reading, now: float) -> None:
        policy = self.policy
        if entry.kill_at:
            if now >= entry.kill_at and entry.signal_sent != "SIGKILL":
                self._send(entry, "SIGKILL")
        elif entry.state is PoolState.BOOTING:
            if policy.boot_timeout_s and now - entry.spawned_at > policy.boot_timeout_s:
                limit = f"it did not get ready within {policy.boot_timeout_s:g} s (boot_timeout)"
                self.failure = limit
                self._kill(entry, StopCause(ExitReason.BOOT_TIMEOUT, limit), now)
        elif reading.busy_s is not None and policy.timeout_s and reading.busy_s > policy.timeout_s:
            entry.timed_out = True
            limit = f"{reading.label} ran for more than {policy.timeout_s:g} s (timeout)"
            self._log("error", f"{self._named(entry)}: {limit}; its stacks follow")
            self._kill(entry, StopCause(ExitReason.REQUEST_TIMEOUT, limit), now)
        elif entry.state is PoolState.RETIRING:
            waited = now - entry.retired_at
            if waited > policy.graceful_timeout_s:
                limit = f"{reading.label} did not end within graceful_timeout"
                self._kill(entry, StopCause(ExitReason.REPLACED, limit), now)

    # --- decisions --------------------------------------------------------------------------------

    def step(self, now: float) -> None:
        """Fork the processes that are missing, and replace stale ones."""
        is_replacing = any(
            entry.state is PoolState.BOOTING
            and any(other.state is PoolState.READY for other in self._in_slot(entry.slot))
            for entry in self.entries.values()
        )
        for entry in list(self.entries.values()):
            if entry.slot > self.policy.workers and entry.state is not PoolState.RETIRING:
                self._retire(entry, "no longer needed", now)
        if now < self._backoff.not_before:
            return
        for slot in range(1, self.policy.workers + 1):
            here = [e for e in self._in_slot(slot) if e.state is not PoolState.RETIRING]
            if not here:
                self.actions.append(ForkProcess(slot, self.generation))
            elif (
                not is_replacing
                and len(here) == 1
                and here[0].stale
                and here[0].state is PoolState.READY
            ):
                is_replacing = True
                self.actions.append(ForkProcess(slot, self.generation))

    def _in_slot(self, slot: int) -> list[PoolEntry]:
        return [entry for entry in self.entries.values() if entry.slot == slot]

    def _retire(self, entry: PoolEntry, text: str, now: float) -> None:
        entry.state = PoolState.RETIRING
        entry.retired_at = now
        entry.cause = StopCause(ExitReason.REPLACED, text)
        self.actions.append(RetireProcess(entry.serial))

    def _kill(self, entry: PoolEntry, cause: StopCause, now: float) -> None:
        entry.cause = cause
        entry.kill_at = now + ABORT_S
        self._send(entry, "SIGABRT")

    def _send(self, entry: PoolEntry, name: str) -> None:
        entry.signal_sent = name
        self.actions.append(SignalProcess(entry.serial, name))

    def _log(self, level: str, text: str) -> None:
        self.actions.append(LogPool(level, text))

    def _named(self, entry: PoolEntry) -> str:
        return f"process {entry.slot} of pool {self.name} (pid {entry.pid})"
