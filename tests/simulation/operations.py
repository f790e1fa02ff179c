"""What no operation may do: take serving workers away, or give a broken release more of them.

These checks keep their own books from the events and actions that pass. They do not ask the
supervisor what it wants, so a supervisor that wants the wrong thing is found, too.
"""

from __future__ import annotations

from collections import Counter

from servo.arbiter.core import actions, events
from servo.arbiter.core.supervisor import Supervisor
from servo.ipc.messages import Draining, Ready


class ServingFloor:
    """Never fewer ready workers than before an operation, less those that were lost.

    The floor is the number of workers that must be ready. It rises when workers get ready, up to
    the target. It falls by one for each ready worker that dies, leaves by itself or is killed; to
    the target when this decreases; and to zero when an operator drains all workers, or at a stop.

    target  the number of workers that was last announced
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.floor = 0
        self._ready: set[int] = set()
        self._lost: set[int] = set()

    def begins(self, event: events.Event, supervisor: Supervisor) -> None:
        """Note who is ready before the supervisor handles an event, and whom this event ends."""
        workers = supervisor.workers
        self._ready = {worker.serial for worker in workers if worker.ready}
        self._lost.clear()
        if isinstance(event, events.ChildExited):
            worker = workers.find(event.pid)
            self._lost |= {worker.serial} if worker is not None else set()
        elif isinstance(event, events.MessageReceived) and isinstance(event.message, Draining):
            self._lost.add(event.serial)
        elif isinstance(event, events.SignalReceived) and event.name == "SIGWINCH":
            self.floor = 0

    def performs(self, action: actions.Action) -> None:
        if isinstance(action, actions.WorkerCountChanged):
            self.target = action.new
            self.floor = min(self.floor, self.target)
        elif isinstance(action, actions.KillWorker) and action.signal != "SIGTERM":
            self._lost.add(action.serial)

    def check(self, event: events.Event, supervisor: Supervisor) -> None:
        assert supervisor.count.target == self.target, f"a secret target after {event}"
        if supervisor.stopping is not None:
            self.floor = 0
        self.floor = max(0, self.floor - len(self._ready & self._lost))
        ready = sum(worker.ready for worker in supervisor.workers)
        assert ready >= self.floor, f"{ready} instead of {self.floor} workers serve after {event}"
        self.floor = max(self.floor, min(ready, self.target))


class Rollouts:
    """A release gets a second worker after its first is ready, and none after it was rolled back.

    current    the generation that was adopted last
    proved     the generations of which a worker has been ready
    condemned  those that were rolled back
    """

    def __init__(self) -> None:
        self.current = 1
        # A first start forks all workers at once: there is nothing to keep.
        self.proved = {1}
        self.condemned: set[int] = set()
        self._live: Counter[int] = Counter()

    def begins(self, event: events.Event, supervisor: Supervisor) -> None:
        if isinstance(event, events.MessageReceived) and isinstance(event.message, Ready):
            worker = supervisor.workers.get(event.serial)
            self.proved |= {worker.generation} if worker is not None else set()

    def performs(self, action: actions.Action) -> None:
        if isinstance(action, actions.AdoptGeneration):
            assert action.generation in self.proved, "a release without a ready worker is adopted"
            assert action.generation not in self.condemned, "a bad release is adopted again"
            self.condemned |= set(range(action.generation + 1, self.current + 1))
            self.current = action.generation
        elif isinstance(action, actions.RecordLifecycleEvent) and action.generation is not None:
            rolled_back = action.name in ("reload_rolled_back", "refork_rolled_back")
            self.condemned |= {action.generation} if rolled_back else set()

    def check(self, event: events.Event, supervisor: Supervisor) -> None:
        assert supervisor.generation == self.current
        assert self.current not in self.condemned, f"a bad release is current after {event}"
        live = Counter(worker.generation for worker in supervisor.workers.live())
        for generation, number in live.items():
            assert number <= 1 or generation in self.proved, (
                f"{number} workers of generation {generation}, none was ready, after {event}"
            )
            if generation in self.condemned:
                assert number <= self._live[generation], (
                    f"generation {generation} was rolled back, and grows after {event}"
                )
        self._live = live
