"""A model of the supervisor's surroundings: processes, their messages, a configuration, a clock.

`World` performs the supervisor's actions on model processes, and checks the invariants after every
event. A driver decides about the processes: a seeded random generator in `test_lifetimes.py`,
hypothesis in `test_machine.py`.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass

from simulation.operations import Rollouts, ServingFloor

from servo.arbiter.core import actions, events
from servo.arbiter.core.autoscale import ServerLoad, WorkerLoad
from servo.arbiter.core.policy import ABORT_S, TICK_S, Policy
from servo.arbiter.core.reload import Phase
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.core.supervisor_state import restored, state_of
from servo.arbiter.core.worker_table import WorkerState
from servo.ipc.messages import BootFailed, Draining, Message, MoldForked, ReopenLogs, Retire, Stop


@dataclass
class Proc:
    """A model process.

    hung_at      when its heartbeats stopped
    still_since  when the machine stood still, until its next heartbeat
    asked        the message that told it to end
    busy_since   when its oldest request began
    deaf         its channel is gone
    ending       it got a signal, or has said that it ends
    killed       it got SIGKILL
    untouchable  the kernel refuses the arbiter's signals to it
    memory       its memory in bytes
    at_boot      the same when it got ready; None before that
    next_mold    the generation of the mold that it forks after its drain; 0: none
    """

    pid: int
    serial: int
    slot: int
    generation: int
    ready: bool = False
    hung_at: float | None = None
    still_since: float | None = None
    asked: Message | None = None
    busy_since: float | None = None
    deaf: bool = False
    ending: bool = False
    killed: bool = False
    untouchable: bool = False
    memory: int = 0
    at_boot: int | None = None
    next_mold: int = 0


@dataclass
class MoldProc:
    """A model mold: it forks the workers of a generation that are ordered from it.

    killed  it got SIGKILL or SIGABRT, or was stopped: it does nothing more
    """

    pid: int
    generation: int
    ready: bool = False
    killed: bool = False


class World:
    """Everything around the supervisor, and the invariants that it must keep."""

    def __init__(self, policy: Policy) -> None:
        self.supervisor = Supervisor(policy)
        self.now = 1000.0
        self.procs: dict[int, Proc] = {}
        self.molds: dict[int, MoldProc] = {}
        self.orders: list[actions.Fork] = []
        self.unread: dict[int, Message] = {}
        self.inbox: deque[events.Event] = deque()
        self.answers: list[events.Event] = []
        self.events = 0
        self.exit_code: int | None = None
        self.stop_asked = False
        self.ever_ready = False
        self.checking: int | None = None
        self.loading: int | None = None
        self.preflighting = False
        self.executing = False
        self.upgrades = 0
        self.listeners_open = True
        self.dropped: set[int] = set()
        self.log: list[str] = []
        self.last_pid = 100
        self.last_serial = 0
        self.answered: list[actions.CommandAnswered] = []
        self.lives: dict[int, list[str]] = {}
        self.reloads: list[str] = []
        self.forks_since_ready = 0
        # Requests that clients have under way, and memory for more workers of 10 bytes each.
        self.demand = 0
        self.memory_left = 1000
        self.ready_serials: set[int] = set()
        self.serving = ServingFloor(policy.workers)
        self.rollouts = Rollouts()

    # --- what a driver calls ----------------------------------------------------------------------

    def tell(self, *happened: events.Event) -> None:
        """Give the supervisor events; perform its actions and check the invariants after each."""
        self.inbox.extend(happened)
        while self.inbox and self.exit_code is None:
            event = self.inbox.popleft()
            self.events += 1
            self.ready_serials = {w.serial for w in self.supervisor.workers if w.ready}
            self.serving.begins(event, self.supervisor)
            self.rollouts.begins(event, self.supervisor)
            for action in self.supervisor.handle(event, self.now):
                self.serving.performs(action)
                self.rollouts.performs(action)
                self.perform(action)
            self.answers.sort(key=lambda answer: isinstance(answer, events.ForkFailed))
            self.inbox.extendleft(reversed(self.answers))
            self.answers.clear()
            self.check(event)
        if self.executing and self.exit_code is None:
            self.executing = False
            self.execute()

    def tick(self) -> None:
        """Time has passed."""
        beats = {}
        for proc in self.procs.values():
            if proc.ready:
                since = proc.hung_at if proc.hung_at is not None else proc.still_since
                beats[proc.serial] = self.now if since is None else since
        oldest = {p.serial: p.busy_since for p in self.procs.values() if p.busy_since is not None}
        self.tell(events.Tick(beats, oldest))

    def measure(self, *procs: Proc) -> None:
        """Measure the memory of these processes, or of all that are ready."""
        for proc in procs or tuple(self.procs.values()):
            if proc.ready and proc.at_boot is None:
                proc.at_boot = proc.memory
        sizes = {
            proc.serial: proc.memory
            for proc in procs or self.procs.values()
            if proc.at_boot is not None
        }
        if sizes:
            self.tell(events.MemoryMeasured(sizes))

    def measure_load(self) -> None:
        """Measure the load: each ready worker has a request, the newest first."""
        ready = [worker for worker in reversed([*self.supervisor.workers]) if worker.ready]
        loads = [
            WorkerLoad(worker.serial, int(i < self.demand), 1) for i, worker in enumerate(ready)
        ]
        waiting = max(0, self.demand - len(ready))
        load = ServerLoad(loads, waiting, 64, self.memory_left, worker_memory=10)
        self.tell(events.LoadMeasured(load))

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
            proc.ending = proc.ending or isinstance(message, Draining | BootFailed)
            self.tell(events.MessageReceived(proc.serial, message))

    def exits(self, proc: Proc, code: int = 0, signal: str = "") -> None:
        if proc.pid in self.procs:
            del self.procs[proc.pid]
            lost = [] if proc.deaf else [events.ChannelLost(proc.serial)]
            self.tell(*lost, events.ChildExited(proc.pid, code, signal))

    def forks_mold(self, proc: Proc, error: str = "") -> None:
        """A drained worker forks the next mold, or can't, if it was told to (refork_after)."""
        if not proc.next_mold:
            return
        proc.next_mold = 0
        self.last_pid += 1
        self.says(proc, MoldForked(0 if error else self.last_pid, error))

    def mold_ready(self, mold: MoldProc) -> None:
        if self.molds.get(mold.generation) is mold and not mold.killed:
            mold.ready = True
            self.tell(events.MoldReady(mold.generation, mold.pid))

    def mold_ends(self, mold: MoldProc, text: str, kind: str = "", details: str = "") -> None:
        """A mold has ended; the workers that were ordered from it are never forked."""
        if self.molds.get(mold.generation) is not mold:
            return
        del self.molds[mold.generation]
        lost = [each for each in self.orders if each.generation == mold.generation]
        self.orders = [each for each in self.orders if each not in lost]
        ended = events.MoldEnded(mold.generation, mold.pid, text, kind, details)
        self.tell(ended, *(events.ForkFailed(each.serial, "its mold has ended") for each in lost))

    def carries_out(self, order: actions.Fork, error: str | None = None) -> None:
        """A mold carries out an order, some time after it was given."""
        if order not in self.orders:
            return
        self.orders.remove(order)
        if error is None:
            self._begin(order)
        else:
            self.answers.append(events.ForkFailed(order.serial, error))
        answers, self.answers = self.answers, []
        self.tell(*answers)

    def loses_channel(self, proc: Proc) -> None:
        if proc.pid in self.procs and not proc.deaf:
            proc.deaf = True
            self.tell(events.ChannelLost(proc.serial))

    def config_checked(self, error: str | None) -> None:
        generation, self.checking = self.checking, None
        assert generation is not None
        self.tell(events.ConfigChecked(generation, error))

    def preflight_ended(self, error: str | None) -> None:
        assert self.preflighting
        self.preflighting = False
        self.tell(events.PreflightEnded(error))

    def execute(self) -> None:
        """Replace the supervisor by another program's, as the loop does when its inbox is empty."""
        if self.supervisor.upgrade is None:
            return  # a stop came first
        if self.orders:
            self.executing = True
            return  # a mold is forking
        error = self.execute_fails()
        if error is not None:
            self.tell(events.ExecuteFailed(error))
            return
        state = json.dumps(state_of(self.supervisor))
        self.supervisor = restored(json.loads(state))
        assert json.dumps(state_of(self.supervisor)) == state, "the state has changed on the way"
        # The sockets of other molds are closed, so they end.
        self.molds = {g: m for g, m in self.molds.items() if g in self.supervisor.molds}
        self.on_executed()
        if self.is_given_back():
            self.tell(events.GivenBack("the next program can't start"))
        else:
            self.upgrades += 1
            self.tell(events.Upgraded("upgraded"))

    # --- what happens to processes, for a driver to override --------------------------------------

    def fork_fails(self) -> bool:
        return False

    def on_fork(self, proc: Proc) -> None:
        """A process begins its life."""

    def on_asked(self, proc: Proc) -> None:
        """A process was told to end: it may obey."""

    def on_kill(self, proc: Proc, signal: str) -> None:
        """A process got a signal."""

    def on_fork_mold(self, mold: MoldProc) -> None:
        """A mold begins to import the application."""

    def on_make_mold(self, proc: Proc, generation: int) -> None:
        """A worker is to fork the mold of a new generation."""

    def on_adopt_mold(self, mold: MoldProc) -> None:
        """A worker has forked a mold."""

    def on_kill_mold(self, mold: MoldProc, signal: str) -> None:
        """A mold got a signal."""

    def has_forked(self, order: actions.Fork) -> bool:
        """Whether a mold that is killed for this order has carried it out, but not reported it."""
        return False

    def on_order(self, order: actions.Fork) -> None:
        """A worker was ordered from a mold, which forks it at once."""
        self.orders.remove(order)
        self._begin(order)

    def on_check(self) -> None:
        """A child process begins to read the configuration."""

    def on_preflight(self) -> None:
        """A child process begins to try a new program."""

    def execute_fails(self) -> str | None:
        """Return why a new program can't be executed, or None if it can."""
        return None

    def on_executed(self) -> None:
        """Another program has begun to run, and restored the state."""

    def is_given_back(self) -> bool:
        """Return whether the new program can't start, and executes the old one again."""
        return False

    def new_config(self) -> Policy | str:
        """Return the configuration that the arbiter reads, or why it can't."""
        return self.supervisor.policy

    # --- the loop's part --------------------------------------------------------------------------

    def perform(self, action: actions.Action) -> None:
        if isinstance(action, actions.Fork):
            self._fork(action)
        elif isinstance(action, actions.SendMessage):
            if not isinstance(action.message, ReopenLogs):
                assert isinstance(action.message, (Retire, Stop))
                proc = self._proc(action.serial)
                if proc is None:
                    # Its channel exists before its mold has forked it, and keeps the message.
                    self.unread[action.serial] = action.message
                else:
                    proc.asked = action.message
                    self.on_asked(proc)
        elif isinstance(action, actions.CancelFork):
            self._cancel_order(action.serial)
        elif isinstance(action, actions.KillWorker):
            assert self.supervisor.workers.get(action.serial) is not None, (
                "kill of an unknown worker"
            )
            proc = self._proc(action.serial)
            if proc is None:
                self._cancel_order(action.serial)
                proc = self._proc(action.serial)  # if it was forked after all
            if proc is not None:
                is_free = proc.asked is None and not (proc.ending or proc.deaf)
                if proc.ready and proc.hung_at is None and is_free:
                    self._check_kill(proc, action)
                proc.ending = True
                if proc.untouchable:
                    self.answers.append(events.KillFailed(proc.serial, action.signal))
                else:
                    self.on_kill(proc, action.signal)
        elif isinstance(action, actions.ForkMold):
            assert action.generation not in self.molds, "two molds of a generation"
            assert action.generation not in self.dropped
            self.last_pid += 1
            self.forks_since_ready += 1
            mold = self.molds[action.generation] = MoldProc(self.last_pid, action.generation)
            self.on_fork_mold(mold)
        elif isinstance(action, actions.MakeMold):
            assert action.generation not in self.molds
            assert action.generation not in self.supervisor.workers.generations()
            assert self.molds[action.old_generation].ready
            proc = self._proc(action.serial)
            assert proc is not None
            assert proc.generation == action.old_generation
            proc.next_mold = action.generation
            self.on_make_mold(proc, action.generation)
        elif isinstance(action, actions.AdoptMold):
            assert action.generation not in self.molds, "two molds of a generation"
            assert action.generation not in self.dropped
            mold = self.molds[action.generation] = MoldProc(action.pid, action.generation)
            self.on_adopt_mold(mold)
        elif isinstance(action, actions.KillMold):
            mold = self.molds.get(action.generation)
            if mold is not None:
                mold.killed = True
                self.on_kill_mold(mold, action.signal)
        elif isinstance(action, actions.CheckConfig):
            assert self.checking is None, "two checks at a time"
            self.checking = action.generation
            self.on_check()
        elif isinstance(action, actions.CancelCheck):
            self.checking = None
        elif isinstance(action, actions.LoadConfig):
            self._load(action)
        elif isinstance(action, actions.Preflight):
            assert not self.preflighting, "two preflights at a time"
            self.preflighting = True
            self.on_preflight()
        elif isinstance(action, actions.CancelPreflight):
            assert self.preflighting
            self.preflighting = False
        elif isinstance(action, actions.Execute):
            self.executing = True
        elif isinstance(action, actions.DropGeneration):
            assert action.generation not in {
                worker.generation for worker in self.supervisor.workers
            }
            assert action.generation != self.supervisor.generation
            self.molds.pop(action.generation, None)
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
        self.forks_since_ready += 1
        if self.fork_fails():
            self.answers.append(events.ForkFailed(action.serial, "no process can be had"))
            return
        if self.supervisor.policies[action.generation].preload:
            mold = self.molds.get(action.generation)
            assert mold is not None, "an order to no mold"
            assert mold.ready, "an order to a mold that is not ready"
            self.orders.append(action)
            self.on_order(action)
        else:
            self._begin(action)

    def _cancel_order(self, serial: int) -> None:
        for order in [each for each in self.orders if each.serial == serial]:
            self.orders.remove(order)
            if self.has_forked(order):
                self._begin(order)
            else:
                self.answers.append(events.ForkFailed(serial, "it is no longer needed"))
            mold = self.molds.get(order.generation)
            if mold is not None:
                mold.killed = True
                self.on_kill_mold(mold, "SIGKILL")

    def _begin(self, action: actions.Fork) -> None:
        self.last_pid += 1
        proc = Proc(self.last_pid, action.serial, action.slot, action.generation)
        proc.asked = self.unread.pop(proc.serial, None)
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
            if event.name == "ready":
                self.forks_since_ready = 0
            elif event.name == "draining":
                self.ready_serials.discard(event.serial)
        elif event.name == "scaled":
            self._check_scaling(event)
        elif event.name == "stopping" and event.data["code"]:
            self._note_giving_up()
        elif event.name.startswith(("reload_", "refork_")):
            begun = self.reloads[-1:] == ["reload_started"]
            # A stop ends a reload without an event for the reload.
            name = event.name.replace("refork_", "reload_")
            assert begun or name == "reload_started", (self.reloads, event)
            self.reloads.append(name)

    def _check_scaling(self, event: actions.RecordLifecycleEvent) -> None:
        """The load adds workers only if they fit into memory, and ends one at a time."""
        if event.reason == "autoscaling":
            target, before = event.data["workers"], event.data["before"]
            assert before - target <= 1, "more than one worker is taken away at a time"
            fit = len(self.ready_serials) + self.memory_left // 10
            assert target <= before or target <= fit, "more workers than fit into memory"

    def _note_giving_up(self) -> None:
        """A server ends by itself only if no worker is ready, and enough boots have failed."""
        limit = self.supervisor.policy.max_boot_failures
        assert not self.ready_serials, "a server that serves has given up"
        if self.ever_ready:
            assert limit, "a server that has served ended by itself"
            # A worker that was forked before the last one got ready may be the first that failed.
            assert self.forks_since_ready >= limit - 1, "a server has given up too early"

    def _policy(self, proc: Proc) -> Policy:
        return self.supervisor.policies[proc.generation]

    def _check_kill(self, proc: Proc, action: actions.KillWorker) -> None:
        """A worker that serves and was not told to end is killed only for what it does."""
        if "max_worker_memory_hard" in action.why:
            self._check_memory(proc, self._policy(proc).max_memory_hard_bytes)
        elif "request_timeout" in action.why:
            limit_s = self._policy(proc).request_timeout_s
            assert proc.busy_since is not None, f"{proc} works on nothing"
            assert self.now - proc.busy_since >= limit_s, f"{proc} was killed early"
        else:
            raise AssertionError(f"{proc} is healthy, and killed: {action.why}")

    def _check_memory(self, proc: Proc, limit: int) -> None:
        """A worker ends for its memory only if it has grown, and is near the limit."""
        assert proc.at_boot is not None
        assert proc.at_boot < limit, f"{proc} can't be smaller"
        assert proc.memory >= 0.9 * limit, f"{proc} has room left"

    def _load(self, action: actions.LoadConfig) -> None:
        config = self.new_config()
        if isinstance(config, str):
            self.inbox.append(events.ConfigFailed(action.generation, config))
        else:
            self.inbox.append(events.ConfigLoaded(action.generation, config))

    def _check_owners(self) -> None:
        """Each process beside the workers belongs to something that will end it."""
        supervisor = self.supervisor
        for generation, mold in self.molds.items():
            assert generation in supervisor.molds, f"{mold} has no owner"
            assert generation in supervisor.policies
        if self.checking is not None:
            reload = supervisor.reload
            assert reload is not None, "a check without a reload"
            assert (reload.generation, reload.phase) == (self.checking, Phase.CHECKING)
        assert not self.preflighting or supervisor.upgrade is not None

    def _check_lingering(self, event: events.Event) -> None:
        """Workers that keep WebSockets open are few, and gone in time."""
        supervisor = self.supervisor
        lingering = supervisor.workers.lingering()
        if supervisor.stopping is not None:
            assert not lingering, f"the stop waits for WebSockets after {event}"
        assert len(lingering) <= max(1, supervisor.count.target), (
            f"many workers linger after {event}"
        )
        for worker in supervisor.workers.draining():
            if worker.kill_at is None or worker.stop_asked_at is None or worker.signal_sent:
                continue
            grace_s = max(worker.grace_s, ABORT_S)
            if worker.lingering:
                grace_s += supervisor.policies[worker.generation].drain_websockets_s
            assert worker.lingered or worker.kill_at <= worker.stop_asked_at + grace_s + 1e-6

    def _proc(self, serial: int) -> Proc | None:
        return next((proc for proc in self.procs.values() if proc.serial == serial), None)

    # --- the invariants ---------------------------------------------------------------------------

    def check(self, event: events.Event) -> None:
        supervisor = self.supervisor
        workers = supervisor.workers
        if not self.inbox:
            known = {worker.pid for worker in workers if worker.pid is not None}
            assert known == set(self.procs), f"orphans or ghosts after {event}"
            unborn = {worker.serial for worker in workers if worker.pid is None}
            assert unborn == {order.serial for order in self.orders}, f"lost orders after {event}"
            recorded = {serial for serial, life in self.lives.items() if life[-1] != "exited"}
            assert recorded == {worker.serial for worker in workers} - unborn, (
                f"events miss a worker after {event}"
            )
            under_way = self.reloads[-1:] == ["reload_started"]
            assert self.preflighting <= (supervisor.upgrade is not None)
            assert supervisor.reload is None or supervisor.upgrade is None
            assert under_way == (supervisor.reload is not None) or supervisor.stopping is not None
        assert supervisor.count.low <= supervisor.count.target <= supervisor.count.most, (
            f"bounds after {event}"
        )
        live = workers.live()
        large = [worker for worker in live if worker.replace_reason == "MAX_MEMORY"]
        assert len(large) <= 1, f"more than one worker is replaced for its memory after {event}"
        for worker in large:
            proc = self._proc(worker.serial)
            if proc is not None:
                self._check_memory(proc, self._policy(proc).max_memory_bytes)
        desired = 0 if supervisor.paused else supervisor.count.target
        if supervisor.stopping is None:
            surge = max(1, supervisor.policy.reload_batch)
            assert len(live) <= desired + surge, f"too many workers after {event}"
            assert len(workers) <= supervisor.policy.capacity
        else:
            assert not live, f"a worker was not told of the stop after {event}"
        self.ever_ready = self.ever_ready or any(worker.ready for worker in live)
        if self.exit_code is not None and not self.stop_asked:
            assert self.exit_code in (3, 4)
        if self.exit_code is not None and self.stop_asked:
            assert self.exit_code in (0, 3, 4)
        for worker in workers:
            if worker.state is WorkerState.DRAINING:
                assert worker.kill_at is not None or worker.signal_sent == "SIGKILL", (
                    "no end in sight"
                )
        self.serving.check(event, supervisor)
        self.rollouts.check(event, supervisor)
        self._check_owners()
        self._check_lingering(event)
