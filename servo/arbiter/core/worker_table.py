"""The table of workers: one entry for every worker process that was forked and not yet reaped.

The arbiter identifies a worker by its *serial*, a number that is never given twice; a pid may come
back for another process. A *slot* is a worker's place, 1 to N: a replacement takes the slot of the
worker that it replaces, so for a while two entries can have the same slot. A *generation* is the
number of the configuration (and code) that a worker was started with: each reload brings one.

An entry moves through the states of `WorkerState` in one direction only. It leaves the table when
the arbiter has reaped the process, because only then can nothing more come from that process.
This module does bookkeeping and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo.arbiter.core.exit_reasons import StopCause


class WorkerState(Enum):
    """The states of a worker, in their order.

    DRAINING covers every worker that was told to end, or is being killed: it no longer counts as a
    worker that serves.
    """

    SPAWNED = "spawned"
    BOOTING = "booting"
    READY = "ready"
    DRAINING = "draining"
    EXITED = "exited"


_FOLLOWS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.SPAWNED: frozenset({WorkerState.BOOTING, WorkerState.DRAINING, WorkerState.EXITED}),
    WorkerState.BOOTING: frozenset({WorkerState.READY, WorkerState.DRAINING, WorkerState.EXITED}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.EXITED}),
    WorkerState.DRAINING: frozenset({WorkerState.EXITED}),
    WorkerState.EXITED: frozenset(),
}


class InvalidTransitionError(RuntimeError):
    """The supervisor tried a transition that `_FOLLOWS` does not list: a bug of ours."""


class WorkerTable:
    """All workers that were forked and not yet reaped, by serial."""

    def __init__(self) -> None:
        self._by_serial: dict[int, WorkerEntry] = {}
        self._last_serial = 0

    def add(self, slot: int, generation: int, now: float) -> WorkerEntry:
        """Add an entry for a worker that the arbiter is about to fork.

        slot        its place, 1 to N
        generation  the configuration that it runs
        now         the time of the fork, in seconds
        """
        self._last_serial += 1
        entry = WorkerEntry(self._last_serial, slot, generation, now, heartbeat_at=now)
        self._by_serial[entry.serial] = entry
        return entry

    def get(self, serial: int) -> WorkerEntry | None:
        """Return the worker with this serial, or None if it was reaped."""
        return self._by_serial.get(serial)

    def find(self, pid: int) -> WorkerEntry | None:
        """Return the worker with this pid, or None if no worker has it."""
        return next((entry for entry in self if entry.pid == pid), None)

    def remove(self, entry: WorkerEntry) -> None:
        """Remove a worker that has exited. Raises InvalidTransitionError for any other."""
        if entry.state is not WorkerState.EXITED:
            raise InvalidTransitionError(f"{entry} is {entry.state.value} and can't be removed")
        del self._by_serial[entry.serial]

    def live(self) -> list[WorkerEntry]:
        """Return the workers that serve or are about to."""
        return [entry for entry in self if entry.live]

    def draining(self) -> list[WorkerEntry]:
        """Return the workers that were told to end and have not exited yet."""
        return [entry for entry in self if entry.state is WorkerState.DRAINING]

    def generations(self) -> set[int]:
        """Return the generations that still have a process."""
        return {entry.generation for entry in self}

    def __iter__(self) -> Iterator[WorkerEntry]:
        # A copy: callers remove entries, and add some, while they iterate.
        return iter(list(self._by_serial.values()))

    def __len__(self) -> int:
        return len(self._by_serial)


@dataclass(slots=True, eq=False)
class WorkerEntry:
    """One worker, as the supervisor knows it. Times are in seconds; None means "not yet".

    serial              its number, never given twice
    slot                its place, 1 to N
    generation          the configuration that it runs
    spawned_at          when it was forked
    pid                 None until the fork is confirmed
    state               see `WorkerState`
    ready_at            when it got ready, even if that was only after it was told to end
    heartbeat_at        its last heartbeat; before the first one, when it was forked or got ready
    stop_asked_at       when the arbiter told it to end
    kill_at             when the arbiter will send it SIGKILL
    grace_s             how long it may take to end after it was told to, provided that it is ready
    signal_sent         the strongest signal that the arbiter has sent to end it, or ""
    stop_cause          why the arbiter told it to end, or is killing it
    replace_reason      why it asked for a replacement (the name of an ExitReason), or None
    replace_asked_at    when it asked for the replacement
    channel_lost        messages no longer reach it
    draining_confirmed  it has reported that it accepts no more connections
    unkillable          the kernel refused our SIGKILL, so a stop does not wait for its exit
    request_start       the start of its oldest request, as the scoreboard gives it
    request_limit_from  the moment that `request_timeout` counts from: `request_start`, moved
                        forward by each standstill of the machine
    failure_counted     its failed boot was counted already
    """

    serial: int
    slot: int
    generation: int
    spawned_at: float
    pid: int | None = None
    state: WorkerState = WorkerState.SPAWNED
    ready_at: float | None = None
    heartbeat_at: float = 0.0
    stop_asked_at: float | None = None
    kill_at: float | None = None
    grace_s: float = 0.0
    signal_sent: str = ""
    stop_cause: StopCause | None = None
    replace_reason: str | None = None
    replace_asked_at: float = 0.0
    channel_lost: bool = False
    draining_confirmed: bool = False
    unkillable: bool = False
    request_start: float = 0.0
    request_limit_from: float = 0.0
    failure_counted: bool = False

    def __str__(self) -> str:
        return f"worker {self.slot} (pid {self.pid})"

    @property
    def live(self) -> bool:
        """True if it serves or is about to."""
        return self.state not in (WorkerState.DRAINING, WorkerState.EXITED)

    @property
    def ready(self) -> bool:
        """True if it accepts connections."""
        return self.state is WorkerState.READY

    def move(self, state: WorkerState) -> None:
        """Enter `state`. Raises InvalidTransitionError if it can't follow the current one."""
        if state not in _FOLLOWS[self.state]:
            raise InvalidTransitionError(f"{self}: {self.state.value} > {state.value}")
        self.state = state

    def shift(self, gap_s: float) -> None:
        """Move every time that a limit counts from: the machine stood still for `gap_s` seconds."""
        self.spawned_at += gap_s
        self.heartbeat_at += gap_s
        self.request_limit_from += gap_s
        if self.ready_at is not None:
            self.ready_at += gap_s
        if self.stop_asked_at is not None:
            self.stop_asked_at += gap_s
        if self.kill_at is not None:
            self.kill_at += gap_s
