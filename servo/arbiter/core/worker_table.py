"""The table of workers: one entry for every worker process that was forked and not yet reaped.

Each worker has three numbers:

* Its *serial* identifies it. A serial is never reused, unlike a pid.
* Its *slot*, 1 to N, is its place. A replacement gets the slot of the replaced worker, so for a
  while two entries can have the same slot.
* Its *generation* is the number of its configuration and code. Each reload makes a new one.

An entry moves through the states of `WorkerState` in one direction only. It stays in the table
until the arbiter has reaped the process, because messages of the process may arrive until then.
This module only keeps the table: it decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from servo.arbiter.core.exit_reasons import ExitReason, StopCause

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class WorkerState(Enum):
    """The states of a worker, in their order.

    DRAINING covers every worker that was told to end, or is being killed. It no longer counts as
    serving.
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
    """Raised for a transition that `_FOLLOWS` does not list: a bug in the supervisor."""


class WorkerTable:
    """All workers that were forked and not yet reaped, by serial."""

    def __init__(self) -> None:
        self._by_serial: dict[int, WorkerEntry] = {}
        self._last_serial = 0

    def add(self, slot: int, generation: int, now: float) -> WorkerEntry:
        """Add an entry for a worker that the arbiter is about to fork.

        slot        its slot, 1 to N
        generation  the number of its configuration
        now         the time of the fork, in seconds
        """
        self._last_serial += 1
        entry = WorkerEntry(self._last_serial, slot, generation, now, heartbeat_at=now)
        self._by_serial[entry.serial] = entry
        return entry

    def get(self, serial: int) -> WorkerEntry | None:
        """Return the worker with this serial; None if it was reaped."""
        return self._by_serial.get(serial)

    def find(self, pid: int) -> WorkerEntry | None:
        """Return the worker with this pid; None if no worker has it."""
        return next((entry for entry in self if entry.pid == pid), None)

    def remove(self, entry: WorkerEntry) -> None:
        """Remove a worker that has exited. Raises InvalidTransitionError for any other."""
        if entry.state is not WorkerState.EXITED:
            raise InvalidTransitionError(f"{entry} is {entry.state.value} and can't be removed")
        del self._by_serial[entry.serial]

    def to_state(self) -> dict[str, Any]:
        """Return the table as JSON values, for `restore`."""
        return {"last_serial": self._last_serial, "workers": [each.to_state() for each in self]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Fill the empty table with the workers of the previous program's table.

        state  the result of `to_state` in that program

        Raises KeyError, TypeError or ValueError for an invalid state.
        """
        entries = [WorkerEntry.from_state(each) for each in state["workers"]]
        self._by_serial = {entry.serial: entry for entry in entries}
        self._last_serial = int(state["last_serial"])

    def live(self) -> list[WorkerEntry]:
        """Return the serving and booting workers."""
        return [entry for entry in self if entry.live]

    def draining(self) -> list[WorkerEntry]:
        """Return the draining workers."""
        return [entry for entry in self if entry.state is WorkerState.DRAINING]

    def lingering(self) -> list[WorkerEntry]:
        """Return the lingering workers, in the order in which they were retired."""
        found = [entry for entry in self.draining() if entry.lingering and not entry.signal_sent]
        return sorted(found, key=lambda entry: (entry.stop_asked_at or 0.0, entry.serial))

    def busy(self) -> list[WorkerEntry]:
        """Return the draining workers that still answer ordinary requests."""
        return [entry for entry in self.draining() if entry.signal_sent or not entry.lingering]

    def generations(self) -> set[int]:
        """Return the generations that still have a process."""
        return {entry.generation for entry in self}

    def __iter__(self) -> Iterator[WorkerEntry]:
        # A copy, because callers add and remove entries while they iterate.
        return iter(list(self._by_serial.values()))

    def __len__(self) -> int:
        return len(self._by_serial)


@dataclass(slots=True, eq=False)
class WorkerEntry:
    """The supervisor's record of one worker. Times are in seconds; None means "not yet".

    serial              its number, never reused
    slot                its place, 1 to N
    generation          the number of its configuration
    spawned_at          when it was forked
    pid                 None until the fork is confirmed
    state               see `WorkerState`
    ready_at            when it got ready, even if it had been told to end before
    heartbeat_at        when its last heartbeat came; before the first one, when it was forked or
                        got ready
    stop_asked_at       when the arbiter told it to end
    kill_at             when the arbiter will send it SIGKILL
    grace_s             seconds that a ready worker has to end after `stop_asked_at`
    signal_sent         the strongest signal that the arbiter has sent to end it, or ""
    stop_cause          why the arbiter told it to end, or is killing it
    replace_reason      why it will be replaced (the name of an ExitReason), or None
    replace_detail      what led to this, such as the problem or the sender of a command, or ""
    replace_asked_at    when its replacement was requested
    channel_lost        whether messages no longer reach it
    draining_confirmed  whether it has reported that it accepts no more connections
    unkillable          whether the kernel refused our SIGKILL; then a stop does not wait for it
    lingering           whether it drains and keeps WebSockets or event streams open
    lingered            whether it was told to close these
    request_start       the start of its oldest request, from the scoreboard
    request_limit_from  when `request_timeout` begins to count: `request_start`, moved forward by
                        each standstill of the machine
    failure_counted     whether its failed boot was counted
    capacity            how many requests it can work on at a time
    memory_at_boot      its memory in bytes when it was first measured after it got ready
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
    replace_detail: str = ""
    replace_asked_at: float = 0.0
    channel_lost: bool = False
    draining_confirmed: bool = False
    unkillable: bool = False
    lingering: bool = False
    lingered: bool = False
    request_start: float = 0.0
    request_limit_from: float = 0.0
    failure_counted: bool = False
    capacity: int = 1
    memory_at_boot: int | None = None

    def to_state(self) -> dict[str, Any]:
        """Return the entry as JSON values, for `from_state`."""
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        cause = self.stop_cause
        state["stop_cause"] = None if cause is None else [cause.reason.name, cause.detail]
        return {**state, "state": self.state.value}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> WorkerEntry:
        """Restore an entry of the previous program. Fields may be missing: see `Policy.from_state`.

        Raises KeyError, TypeError or ValueError for an invalid state.
        """
        known = {each.name for each in fields(cls)}
        values = {name: value for name, value in state.items() if name in known}
        values["state"] = WorkerState(values["state"])
        if values["stop_cause"] is not None:
            name, detail = values["stop_cause"]
            values["stop_cause"] = StopCause(ExitReason[name], detail)
        return cls(**values)

    def __str__(self) -> str:
        which = f"pid {self.pid}" if self.pid is not None else "not forked yet"
        return f"worker {self.slot} ({which})"

    @property
    def live(self) -> bool:
        """Whether it serves or boots."""
        return self.state not in (WorkerState.DRAINING, WorkerState.EXITED)

    @property
    def ready(self) -> bool:
        """Whether it accepts connections."""
        return self.state is WorkerState.READY

    def move(self, state: WorkerState) -> None:
        """Enter `state`. Raises InvalidTransitionError if it can't follow the current one."""
        if state not in _FOLLOWS[self.state]:
            raise InvalidTransitionError(f"{self}: {self.state.value} > {state.value}")
        self.state = state

    def shift(self, gap_s: float) -> None:
        """Extend every limit by `gap_s` seconds, because the machine stood still for that long."""
        self.spawned_at += gap_s
        self.heartbeat_at += gap_s
        self.request_limit_from += gap_s
        if self.ready_at is not None:
            self.ready_at += gap_s
        if self.stop_asked_at is not None:
            self.stop_asked_at += gap_s
        if self.kill_at is not None:
            self.kill_at += gap_s
