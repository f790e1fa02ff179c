"""The table of workers: who they are, what state each is in, what may follow.

Pure bookkeeping. Serials are never reused; a row leaves the table only after waitpid.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo.arbiter.core.exit_reasons import Ending


class WorkerState(Enum):
    """The life of a worker. DRAINING: asked to end, or being ended; nobody counts on it."""

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
    """A transition that is not in the table: a bug of the supervisor."""


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """The arbiter's view of one worker. Times are seconds; None means not yet.

    ready_at   set even if it got ready only after it was asked to end
    alive_at   the last sign of life: its heartbeat, or the moment it got ready
    kill_at    when the next, harder signal is due
    grace_s    how long it may take to end, once it has been asked and is up
    killed_by  the hardest signal that the arbiter has sent to end it
    ending     why the arbiter asked it to end, or ends it
    wish       why it wants a successor (an ExitReason's name), with the moment it said so
    deaf       its channel is gone
    confirmed  it has said that it accepts no more
    unkillable  the arbiter may not send it SIGKILL, so a stop can't wait for its end
    request_began, request_at   its oldest request's start, as told and with standstills allowed for
    """

    serial: int
    slot: int
    generation: int
    spawned_at: float
    pid: int | None = None
    state: WorkerState = WorkerState.SPAWNED
    ready_at: float | None = None
    alive_at: float = 0.0
    asked_at: float | None = None
    kill_at: float | None = None
    grace_s: float = 0.0
    killed_by: str = ""
    ending: Ending | None = None
    wish: str | None = None
    wished_at: float = 0.0
    deaf: bool = False
    confirmed: bool = False
    unkillable: bool = False
    request_began: float = 0.0
    request_at: float = 0.0
    failure_counted: bool = False

    def __str__(self) -> str:
        return f"worker {self.slot} (pid {self.pid})"

    @property
    def live(self) -> bool:
        """Serving, or on the way there."""
        return self.state not in (WorkerState.DRAINING, WorkerState.EXITED)

    @property
    def ready(self) -> bool:
        return self.state is WorkerState.READY

    def move(self, state: WorkerState) -> None:
        """Take the next state. Raises InvalidTransitionError for one that can't follow."""
        if state not in _FOLLOWS[self.state]:
            raise InvalidTransitionError(f"{self}: {self.state.value} > {state.value}")
        self.state = state

    def shift(self, gap: float) -> None:
        """The machine stood still for `gap` seconds: move every moment that a limit counts from."""
        self.spawned_at += gap
        self.alive_at += gap
        self.request_at += gap
        if self.ready_at is not None:
            self.ready_at += gap
        if self.asked_at is not None:
            self.asked_at += gap
        if self.kill_at is not None:
            self.kill_at += gap


class Pool:
    """All workers that were forked and not yet reaped, by serial."""

    def __init__(self) -> None:
        self._by_serial: dict[int, WorkerHandle] = {}
        self._last_serial = 0

    def add(self, slot: int, generation: int, now: float) -> WorkerHandle:
        """A new worker, about to be forked."""
        self._last_serial += 1
        handle = WorkerHandle(self._last_serial, slot, generation, now, alive_at=now)
        self._by_serial[handle.serial] = handle
        return handle

    def get(self, serial: int) -> WorkerHandle | None:
        return self._by_serial.get(serial)

    def find(self, pid: int) -> WorkerHandle | None:
        """The worker with this pid, or None for a stranger."""
        return next((handle for handle in self if handle.pid == pid), None)

    def remove(self, handle: WorkerHandle) -> None:
        """Forget a worker that has exited."""
        if handle.state is not WorkerState.EXITED:
            raise InvalidTransitionError(f"{handle} is {handle.state.value} and can't be removed")
        del self._by_serial[handle.serial]

    def live(self) -> list[WorkerHandle]:
        return [handle for handle in self if handle.live]

    def draining(self) -> list[WorkerHandle]:
        return [handle for handle in self if handle.state is WorkerState.DRAINING]

    def generations(self) -> set[int]:
        return {handle.generation for handle in self}

    def __iter__(self) -> Iterator[WorkerHandle]:
        return iter(list(self._by_serial.values()))

    def __len__(self) -> int:
        return len(self._by_serial)
