"""A model of everything around the supervisor: processes, their messages, a configuration, a clock.

`World` performs the supervisor's actions on model processes and checks the invariants after every
event. A driver decides what the processes do, and when: seeded chance in `test_lifetimes.py`,
hypothesis in `test_machine.py`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import TICK_S, Policy
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.core.worker_table import WorkerState
from servo.ipc.messages import Message, ReopenLogs, Retire, Stop


@dataclass
class Proc:
    """A model process.

    hung_at      when its heartbeats stopped
    asked        the message that told it to end
    deaf         its channel is gone
    killed       it got SIGKILL
    untouchable  the kernel refuses the arbiter's signals to it
    """

    pid: int
    serial: int
    slot: int
    generation: int
    ready: bool = False
    hung_at: float | None = None
    asked: Message | None = None
    deaf: bool = False
    killed: bool = False
    untouchable: bool = False


class World:
    """Everything around the supervisor, and the invariants that it must keep."""

    def __init__(self, policy: Policy) -> None:
        self.supervisor = Supervisor(policy)
        self.now = 1000.0
        self.procs: dict[int, Proc] = {}
        self.inbox: deque[events.Event] = deque()
        self.answers: list[events.Event] = []
        self.exit_code: int | None = None
        self.stop_asked = False
        self.ever_ready = False
        self.checking: int | None = None
        self.loading: int | None = None
        self.listeners_open = True
        self.dropped: set[int] = set()
        self.log: list[str] = []
        self.last_pid = 100
        self.last_serial = 0
        self.batch = policy.reload_batch
        self.killed_healthy: list[str] = []
        self.answered: list[actions.CommandAnswered] = []
        self.lives: dict[int, list[str]] = {}
        self.reloads: list[str] = []
        self._ready_before = 0
        self._retired_ready = False

    # --- what a driver calls ----------------------------------------------------------------------

    def tell(self, *happened: events.Event) -> None:
        """Give the supervisor events; perform its actions and check the invariants after each."""
        self.inbox.extend(happened)
        while self.inbox and self.exit_code is None:
            event = self.inbox.popleft()
            self._retired_ready = False
            ready = {worker.serial for worker in self.supervisor.workers if worker.ready}
            for action in self.supervisor.handle(event, self.now):
                retires = isinstance(action, actions.SendMessage) and isinstance(
                    action.message, Retire
                )
                if retires and action.serial in ready:
                    self._retired_ready = True
                self.perform(action)
            self.inbox.extendleft(reversed(self.answers))
            self.answers.clear()
            self.check(event)

    def tick(self) -> None:
        """Time has passed."""
        beats = {}
        for proc in self.procs.values():
            if proc.ready:
                beats[proc.serial] = self.now if proc.hung_at is None else proc.hung_at
        self.tell(events.Tick(beats))

    def advance(self, seconds: float) -> None:
        """Let time pass as the loop does: a Tick at least every TICK_S, and when one is due."""
        end = self.now + seconds
        while self.exit_code is None and self.now < end:
            self.now = min(end, self.now + TICK_S, self.supervisor.wake_at())
            self.tick()

    def signal(self, name: str) -> None:
        if name in ("SIGTERM", "SIGINT", "SIGQUIT"):
            self.stop_asked = True
        self.tell(events.SignalReceived(name))

    def asks(self, command: str, argument: object) -> actions.CommandAnswered:
        """Send an operator's command over the control socket; return the answer."""
        if command == "stop":
            self.stop_asked = True
        self.answered.clear()
        self.tell(events.CommandReceived(1, command, argument))
        (answer,) = self.answered
        return answer

    def says(self, proc: Proc, message: Message) -> None:
        if proc.pid in self.procs and not proc.deaf:
            self.tell(events.MessageReceived(proc.serial, message))

    def exits(self, proc: Proc, code: int = 0, signal: str = "") -> None:
        if proc.pid in self.procs:
            del self.procs[proc.pid]
            lost = [] if proc.deaf else [events.ChannelLost(proc.serial)]
            self.tell(*lost, events.ChildExited(proc.pid, code, signal))

    def loses_channel(self, proc: Proc) -> None:
        if proc.pid in self.procs and not proc.deaf:
            proc.deaf = True
            self.tell(events.ChannelLost(proc.serial))

    def config_checked(self, error: str | None) -> None:
        generation, self.checking = self.checking, None
        assert generation is not None
        self.tell(events.ConfigChecked(generation, error))

    # --- what happens to processes, for a driver to override --------------------------------------

    def fork_fails(self) -> bool:
        return False

    def on_fork(self, proc: Proc) -> None:
        """A process begins its life."""

    def on_asked(self, proc: Proc) -> None:
        """A process was told to end: it may obey."""

    def on_kill(self, proc: Proc, signal: str) -> None:
        """A process got a signal."""

    def on_check(self) -> None:
        """A child process begins to read the configuration."""

    def new_config(self) -> Policy | str:
        """Return the configuration that the arbiter reads, or why it can't."""
        return self.supervisor.policy

    # --- the loop's part --------------------------------------------------------------------------

    def perform(self, action: actions.Action) -> None:
        if isinstance(action, actions.Fork):
            self._fork(action)
        elif isinstance(action, actions.SendMessage):
            proc = self._proc(action.serial)
            if proc is not None and not isinstance(action.message, ReopenLogs):
                assert isinstance(action.message, (Retire, Stop))
                proc.asked = action.message
                self.on_asked(proc)
        elif isinstance(action, actions.KillWorker):
            assert self.supervisor.workers.get(action.serial) is not None, (
                "kill of an unknown worker"
            )
            proc = self._proc(action.serial)
            if proc is not None:
                healthy = proc.ready and proc.hung_at is None and proc.asked is None
                if healthy and "no heartbeat" in action.why:
                    self.killed_healthy.append(action.why)
                if proc.untouchable:
                    self.answers.append(events.KillFailed(proc.serial, action.signal))
                else:
                    self.on_kill(proc, action.signal)
        elif isinstance(action, actions.CheckConfig):
            assert self.checking is None, "two checks at a time"
            self.checking = action.generation
            self.on_check()
        elif isinstance(action, actions.CancelCheck):
            self.checking = None
        elif isinstance(action, actions.LoadConfig):
            self._load(action)
        elif isinstance(action, actions.DropGeneration):
            assert action.generation not in {
                worker.generation for worker in self.supervisor.workers
            }
            assert action.generation != self.supervisor.generation
            self.dropped.add(action.generation)
        elif isinstance(action, actions.CloseListeners):
            assert self.listeners_open
            self.listeners_open = False
        elif isinstance(action, actions.RecordLifecycleEvent):
            self.log.append(f"{self.now - 1000:.2f} {action.text}")
            self._note(action)
        elif isinstance(action, actions.Log):
            self.log.append(f"{self.now - 1000:.2f} {action.text}")
        elif isinstance(action, actions.CommandAnswered):
            self.answered.append(action)
        elif isinstance(action, actions.Exit):
            assert all(proc.untouchable for proc in self.procs.values()), "an orphan"
            self.exit_code = action.code

    def _fork(self, action: actions.Fork) -> None:
        assert action.serial > self.last_serial, "a serial came twice"
        assert self.listeners_open, "a fork during the stop"
        assert action.generation not in self.dropped
        self.last_serial = action.serial
        if self.fork_fails():
            self.answers.append(events.ForkFailed(action.serial, "no process can be had"))
            return
        self.last_pid += 1
        proc = Proc(self.last_pid, action.serial, action.slot, action.generation)
        self.procs[proc.pid] = proc
        self.answers.append(events.Forked(proc.serial, proc.pid))
        self.on_fork(proc)

    def _note(self, event: actions.RecordLifecycleEvent) -> None:
        """Check that lifecycle events report states once and in order, and how reloads end."""
        if event.serial is not None:
            life = self.lives.setdefault(event.serial, [])
            order = ["spawned", "booting", "ready", "draining", "exited"]
            assert order.index(event.name) > max(map(order.index, life), default=-1), (life, event)
            life.append(event.name)
            assert life[0] == "spawned"
        elif event.name.startswith("reload_"):
            begun = self.reloads[-1:] == ["reload_started"]
            # A stop ends a reload without an event for the reload.
            assert begun or event.name == "reload_started", (self.reloads, event)
            self.reloads.append(event.name)

    def _load(self, action: actions.LoadConfig) -> None:
        config = self.new_config()
        if isinstance(config, str):
            self.inbox.append(events.ConfigFailed(action.generation, config))
        else:
            self.batch = max(self.batch, config.reload_batch)
            self.inbox.append(events.ConfigLoaded(action.generation, config))

    def _proc(self, serial: int) -> Proc | None:
        return next((proc for proc in self.procs.values() if proc.serial == serial), None)

    # --- the invariants ---------------------------------------------------------------------------

    def check(self, event: events.Event) -> None:
        supervisor = self.supervisor
        workers = supervisor.workers
        if not self.inbox:
            known = {worker.pid for worker in workers}
            assert known == set(self.procs), f"orphans or ghosts after {event}"
            recorded = {serial for serial, life in self.lives.items() if life[-1] != "exited"}
            assert recorded == {worker.serial for worker in workers}, (
                f"events miss a worker after {event}"
            )
            under_way = self.reloads[-1:] == ["reload_started"]
            assert under_way == (supervisor.reload is not None) or supervisor.stopping is not None
        live = workers.live()
        desired = 0 if supervisor.paused else supervisor.target
        if supervisor.stopping is None:
            assert len(live) <= desired + max(1, self.batch), f"too many workers after {event}"
            assert len(workers) <= supervisor.policy.capacity
            if self._retired_ready and not supervisor.paused:
                ready = sum(worker.ready for worker in live)
                assert ready >= desired, f"a serving worker was retired too early after {event}"
        else:
            assert not live, f"a worker was not told of the stop after {event}"
        self.ever_ready = self.ever_ready or any(worker.ready for worker in live)
        if self.exit_code is not None and not self.stop_asked:
            assert not self.ever_ready, "a server that has served ended by itself"
            assert self.exit_code in (3, 4)
        if self.exit_code is not None and self.stop_asked:
            assert self.exit_code in (0, 3, 4)
        for worker in workers:
            if worker.state is WorkerState.DRAINING:
                assert worker.kill_at is not None or worker.signal_sent == "SIGKILL", (
                    "no end in sight"
                )
        assert not self.killed_healthy, self.killed_healthy
