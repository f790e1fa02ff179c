"""The arbiter's loop: it collects events, passes them to the supervisor, and performs its actions.

Signals, exits of processes, messages of workers and ticks of the clock all become events in one
inbox. `Supervisor.handle` answers each event with actions (fork a worker, send a message), and a
method of `Arbiter` performs each kind of action. So a SIGHUP passes through four places:
`SignalInbox`, the inbox, the supervisor, and `_fork`.

The loop blocks only in epoll. It runs no application code, and starts no threads, because a process
with threads must not fork workers.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from servo import __version__
from servo.arbiter import process_info, reexec
from servo.arbiter.certificate_renewal import CertificateRenewal
from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import TICK_S
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.core.supervisor_state import restored, state_of
from servo.arbiter.facts_writer import FactsWriter
from servo.arbiter.generations import log_notes, policy_of
from servo.arbiter.load_meter import LoadMeter
from servo.arbiter.memory_meter import MemoryMeter
from servo.arbiter.message_router import MessageRouter
from servo.arbiter.operator import lifecycle_events
from servo.arbiter.operator.control_service import ControlService
from servo.arbiter.processes.config_check import ConfigCheck
from servo.arbiter.processes.dashboard import DashboardProcess
from servo.arbiter.processes.guard import Guard, GuardedWorker
from servo.arbiter.processes.metrics import MetricsProcess
from servo.arbiter.processes.mold import MoldProcesses
from servo.arbiter.processes.old_workers import OldWorkers
from servo.arbiter.processes.pool import Pools
from servo.arbiter.processes.preflight import Preflight
from servo.arbiter.processes.watcher import Watcher
from servo.arbiter.processes.workers import WorkerProcesses
from servo.arbiter.reexec import UpgradeError
from servo.arbiter.signals import at_foreground_of_terminal
from servo.arbiter.upgrade_state import Handover, OldWorker, UpgradeState
from servo.errors import ConfigError, ServoError
from servo.ipc.channel import frame_of
from servo.ipc.messages import MakeMold, Retire
from servo.logs import error_log as log_module
from servo.net.tls_switch import wants_tls
from servo.settings.schema import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.actions import Action
    from servo.arbiter.core.events import Event
    from servo.arbiter.daemon import StartReport
    from servo.arbiter.generations import Generations
    from servo.arbiter.hook_objects import ArbiterHookWorker, HookServer
    from servo.arbiter.limit import CodeLimit
    from servo.arbiter.listeners import Sockets
    from servo.arbiter.notify import SystemdNotifier
    from servo.arbiter.operator.control_service import ControlSocket
    from servo.arbiter.pidfile import PidFile
    from servo.arbiter.processes.child_table import ChildTable
    from servo.arbiter.processes.dashboard import DashboardResources
    from servo.arbiter.processes.metrics import MetricsSockets
    from servo.arbiter.processes.workers import WorkerProcess
    from servo.arbiter.reexec import Command, Inheritance
    from servo.arbiter.signals import SignalInbox
    from servo.net.listeners import Listener
    from servo.settings.sources import Settings
    from servo.shared_memory.counters import CounterTable
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# If MAX_FAILURES system calls fail unexpectedly within FAILURES_S seconds, the arbiter ends: it
# would only fail again and again.
MAX_FAILURES = 50
FAILURES_S = 10.0

# Before an upgrade, wait this many seconds for slow readers of the log: lines that are still in the
# arbiter's memory are lost.
_DRAIN_LOGS_S = 1.0


@dataclass(frozen=True, slots=True)
class Resources:
    """The open resources of a server; see `servo.arbiter.start`.

    generations      the settings of each generation of workers
    limit            the time limit for hooks
    report           reports the outcome of the start to the command that started a daemon
    hook_server      the `server` argument of hooks
    sockets          the application's listening sockets
    metrics_sockets  the listening sockets of the metrics
    dashboard        the sockets and files of the dashboard
    control_socket   the control socket
    pidfile          the locked pidfile, or None
    scoreboard       the memory that all processes share
    counters         the table of `servo.cluster`'s counters
    notifier         reports the server's state to systemd
    signals          the arbiter's signals
    epoll            watches every descriptor of the loop
    table            the arbiter's children
    command          the command to run again in an upgrade, or None
    """

    generations: Generations
    limit: CodeLimit
    report: StartReport
    hook_server: HookServer
    sockets: Sockets
    metrics_sockets: MetricsSockets
    dashboard: DashboardResources
    control_socket: ControlSocket
    pidfile: PidFile | None
    scoreboard: Scoreboard
    counters: CounterTable
    notifier: SystemdNotifier
    signals: SignalInbox
    epoll: select.epoll
    table: ChildTable
    command: Command | None


class Arbiter:
    """Runs a server, with its open resources, until a stop is requested.

    resources     the open resources
    inheritance   the state of the previous program, after an upgrade; None at a start

    Raises LookupError, TypeError, ValueError, OSError or ServoError for an invalid inheritance.
    """

    _metrics: MetricsProcess | None = None

    def __init__(self, resources: Resources, inheritance: Inheritance | None = None) -> None:
        self._resources = resources
        self._generations = resources.generations
        self._limit = resources.limit
        self._report = resources.report
        self._hook_server = resources.hook_server
        self._sockets = resources.sockets
        self._notifier = resources.notifier
        self.signals = resources.signals
        self._epoll = resources.epoll
        self._table = table = resources.table
        self.scoreboard = resources.scoreboard
        self._inbox: deque[Event] = deque()
        # The events that answer the current actions. The supervisor gets them before the rest of
        # the inbox: it must know a worker's pid before it gets other events of the worker. Failed
        # forks come last, because the supervisor must know all pids when it decides about a
        # failure.
        self._answers: list[Event] = []
        self._exit_code: int | None = None
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._check: ConfigCheck | None = None
        self._watcher: Watcher | None = None
        self._preflight: Preflight | None = None
        # The new interpreter, if an upgrade waits until the inbox is empty.
        self._execute_python: str | None = None
        self._old_workers: OldWorkers | None = None
        settings = self.settings
        state = inheritance.state if inheritance is not None else None
        if state is None:
            self.supervisor = Supervisor(policy_of(settings, self.scoreboard.capacity))
            self._facts = FactsWriter(self.scoreboard)
        else:
            self.supervisor = restored(state.section("supervisor"))
            self._facts = FactsWriter(self.scoreboard, state.section("facts"))
        self._predecessor = state
        table.own(self._facts, self._facts.close_in_child)
        self.workers = WorkerProcesses(
            self.scoreboard,
            table,
            self.enqueue,
            lambda serial, message: self._control.on_message(serial, message),
        )
        self._memory_meter = MemoryMeter()
        self._load_meter = LoadMeter(self._sockets.addresses)
        self.molds = MoldProcesses(
            table, self.scoreboard, self.workers, self.enqueue, self._on_forked_by_mold
        )
        self.router = MessageRouter(self.workers, self._message_hook)
        self._control: ControlService = ControlService(self, resources.control_socket, self._epoll)
        table.own(self._control, self._control.close_in_child)
        self._certificates = CertificateRenewal(self._generations, self.workers.send_to_generation)
        self._guard = Guard(table, self._guarded_workers, settings.user)
        self.pools = Pools(
            table, self.workers.ran_out_of_memory, self._guard.add, self._renew_metrics
        )
        table.own(self.pools, self.pools.close_in_child)
        self._epoll.register(self.signals.fileno(), select.EPOLLIN)
        self._hook_server.running = self
        if inheritance is not None:
            self._restore(inheritance)

    def _restore(self, inheritance: Inheritance) -> None:
        """Continue from the state of this process's previous program, after an upgrade."""
        state = inheritance.state
        for each in state.section("workers"):
            worker = self.workers.adopt(each, inheritance.take, *self._generations.first)
            worker.hook_worker.send_by = self.router.send_to_worker
        molds = state.inner.get("molds", [])  # older versions lack it
        self.molds.restore(molds, inheritance.take, self.settings.user)
        pools = state.inner.get("pools")  # older versions lack it
        if pools is not None:
            generation = self.supervisor.generation
            self.pools.restore(pools, inheritance.take, generation, self.settings)
        self._control.restore(state.section("control"))
        self._notifier.restore(state.section("notifier"))
        self._guard.succeed(inheritance.take(state.guard))

    def outlast(self, state: UpgradeState) -> None:
        """Let old workers finish after new ones are ready, because their state can't be read.

        state   the readable part of the previous program's state
        """
        self._predecessor = state
        self._old_workers = OldWorkers(state.workers, state.retire)
        self._table.own(self._old_workers, self._old_workers.close)
        self._end_helpers(state)
        self._guard.succeed(state.guard)

    # --- for hook objects and operators -----------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """The settings of the current generation."""
        return self._generations.settings

    @property
    def listeners(self) -> list[Listener]:
        """The application's listening sockets."""
        return self._sockets.listeners

    @property
    def target(self) -> int:
        """The number of workers that the server should have."""
        return self.supervisor.count.target

    def hook_workers(self) -> dict[int, ArbiterHookWorker]:
        """The workers that were forked and not yet released, by pid."""
        return self.workers.hook_workers()

    def workers_by_slot(self) -> dict[int, ArbiterHookWorker]:
        """Slot -> the worker that gets messages to this slot."""
        return self.router.by_slot()

    def broadcast(self, message: Any, topic: str) -> int:
        """Send a message to all workers; see `MessageRouter.broadcast`."""
        return self.router.broadcast(message, topic)

    def enqueue(self, event: Event) -> None:
        """Put an event into the inbox."""
        self._inbox.append(event)

    # --- the loop ---------------------------------------------------------------------------------

    def serve(self) -> int:
        """Serve until a stop is requested. Returns the exit code.

        Raises OSError if system calls fail again and again.
        """
        self._start()
        next_tick = time.monotonic() + TICK_S
        while True:
            self._empty_inbox()
            # Wait for molds: a worker that is just being forked can't be passed to the new program.
            may_execute = self._exit_code is None and not self.molds.are_forking
            if self._execute_python is not None and may_execute:
                self._execute_upgrade(self._execute_python)
            if self._exit_code is not None:
                return self._exit_code
            due = min(next_tick, self.supervisor.wake_at())
            load_at = self._load_meter.wake_at(self.supervisor.is_autoscaled)
            wake_at = min(due, load_at, self._control.wake_at(), self._notifier.wake_at())
            if self.router.is_behind:
                wake_at = 0.0
            for fd, mask in self._epoll.poll(max(0.0, wake_at - time.monotonic())):
                self._attempt(self._on_descriptor, fd, mask)
            self._attempt(self.router.route_waiting)
            self._attempt(self._control.tick, time.monotonic())
            if time.monotonic() >= load_at:
                self._attempt(self._measure_load)
            if time.monotonic() >= due:
                next_tick = time.monotonic() + TICK_S
                self._tick()

    def close(self) -> None:
        """End all children. Workers finish their requests after their channels are closed."""
        self._run_hook("on_exit", self._hook_server)
        for step in (
            self._cancel_check,
            self._cancel_preflight,
            self._stop_watcher,
            self._close_old_workers,
            self.molds.close,
            self.workers.close,
            self._close_pools,
            self._table.stop_helpers,
            self._control.close,
        ):
            self._attempt(step)

    def _start(self) -> None:
        settings, resources = self.settings, self._resources
        process_info.set_title(f"servo: arbiter [{settings.proc_name or settings.app}]")
        if self._predecessor is None:
            log.info("Servo %s starts, its arbiter has pid %d", __version__, os.getpid())
        log_notes(*self._generations.first)
        for listener in self.listeners:
            log.info("Listening on %s", listener.name)
        if settings.reload:
            self._watcher = Watcher(settings, self._table, self.enqueue)
        self._metrics = MetricsProcess(
            settings,
            self._table,
            resources.metrics_sockets,
            self.scoreboard,
            self._facts,
            self._sockets,
        )
        self._table.keep_running(self._metrics)
        self._table.keep_running(self._guard)
        self._dashboard = DashboardProcess(
            settings, self._table, resources.dashboard, self._control, lambda: self._generations.tls
        )
        self._table.keep_running(self._dashboard)
        if self._predecessor is None:
            resources.dashboard.announce(settings, secure=self._generations.tls is not None)
        self._start_pools()  # before the metrics process, which inherits their boards
        self._table.tick(time.monotonic())
        self._run_hook("when_ready", self._hook_server)
        if self._predecessor is None or self._old_workers is not None:
            self.enqueue(events.Started())
        else:
            self._resume(self._predecessor)

    def _renew_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.renew()

    def _start_pools(self) -> None:
        generation, now = self.supervisor.generation, time.monotonic()
        try:
            self.pools.load(generation, self.settings, now)
        except OSError as error:
            raise ConfigError(f"the pools can't be started: {error}") from error
        self.pools.adopt(generation, now)

    def _resume(self, state: UpgradeState) -> None:
        """Begin to run after an upgrade, with the previous program's restored state."""
        self._end_helpers(state)
        before = dict(state.section("settings"))
        for name, value in _fixed_settings(self.settings).items():
            if before.get(name, value) != value:
                log.warning("%s has changed: this takes a restart, not an upgrade", name)
        if state.returned:
            self.enqueue(events.GivenBack(state.returned))
        else:
            now = f"Servo {__version__} on Python {reexec.python_version()}"
            text = f"upgraded: {now} has taken the place of {state.program}, pid {os.getpid()}"
            self.enqueue(events.Upgraded(text))
        # Reap the children that ended during the upgrade.
        self._attempt(self._table.reap)

    def _tick(self) -> None:
        """Send a Tick to the supervisor. Called once a second, and when a limit is due."""
        self._attempt(self._read_signals)
        self._attempt(self._table.reap)
        self._attempt(self.router.log_drops)
        self._attempt(self._table.tick, time.monotonic())
        self._attempt(self._certificates.tick, time.monotonic())
        self._attempt(self.molds.tick, time.monotonic())
        self._attempt(partial(self.pools.tick, time.monotonic(), ending=self.supervisor.ending))
        self._facts.renew()
        log_module.flush_logs()
        self._attempt(self._sockets.look_after)
        self._count_responses()
        self.enqueue(events.Tick(*self.workers.heartbeats()))
        if self._old_workers is not None:
            if self.supervisor.served or self.supervisor.ending:
                self._old_workers.retire(time.monotonic())
            self._old_workers.tick(time.monotonic())
        self._measure_memory()
        if self._notifier.is_on:
            totals = self.scoreboard.totals()
            self._notifier.tick(
                self.supervisor, totals.requests, totals.in_flight, time.monotonic()
            )

    def _measure_load(self) -> None:
        load = self._load_meter.measure(self.supervisor.workers, self.workers.row_of)
        self.enqueue(events.LoadMeasured(load))

    def _count_responses(self) -> None:
        policies = self.supervisor.policies.values()
        if any(policy.bake_time_s or policy.refork_after for policy in policies):
            rows = self.scoreboard.snapshot()
            counts = {row.serial: (row.requests, row.statuses[4]) for row in rows}
            self.enqueue(events.ResponsesCounted(counts))

    def _measure_memory(self) -> None:
        supervisor = self.supervisor
        sizes = self._memory_meter.measure(supervisor.workers, supervisor.policies)
        if sizes:
            self.enqueue(events.MemoryMeasured(sizes))

    def _attempt(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function. An OSError is only logged, because the workers need the arbiter.

        Raises the OSError if such errors come again and again.
        """
        try:
            function(*args)
        except OSError:
            now = time.monotonic()
            if len(self._failures) == MAX_FAILURES and now - self._failures[0] < FAILURES_S:
                raise
            self._failures.append(now)
            log.exception("A system call failed; the arbiter goes on")

    def _empty_inbox(self) -> None:
        while self._inbox and self._exit_code is None:
            for action in self.supervisor.handle(self._inbox.popleft(), time.monotonic()):
                self._attempt(_PERFORM[type(action)], self, action)
            self._answers.sort(key=_is_failed_fork)
            self._inbox.extendleft(reversed(self._answers))
            self._answers.clear()
        self._attempt(self._control.settle)
        self._facts.publish(self.supervisor)
        self._notifier.turn(self.supervisor, time.monotonic())

    def _on_descriptor(self, fd: int, mask: int) -> None:
        if fd == self.signals.fileno():
            self._read_signals()
        elif not self._table.on_ready(fd, mask):
            self._control.on_ready(fd, mask)

    def _read_signals(self) -> None:
        for name in self.signals.read():
            self._on_signal(name)
        self._limit.signals_read()

    def _on_signal(self, name: str) -> None:
        if name == "SIGCHLD":
            self._table.reap()
        elif name == "SIGWINCH" and at_foreground_of_terminal():
            log.debug("SIGWINCH ignored: it comes from a resized terminal, not from an operator")
        else:
            if name == "SIGHUP":
                self._notifier.on_reload_signal()
            self.enqueue(events.SignalReceived(name))

    # --- configuration ----------------------------------------------------------------------------

    def _check_config(self, action: actions.CheckConfig) -> None:
        generation = action.generation
        try:
            self._check = ConfigCheck(
                self._table, generation, self._generations.read, self._on_checked
            )
        except OSError as error:
            self.enqueue(events.ConfigChecked(generation, f"can't fork: {error}"))

    def _on_checked(self, event: events.ConfigChecked) -> None:
        self._check = None
        self.enqueue(event)

    def _cancel_check(self, _action: actions.CancelCheck | None = None) -> None:
        if self._check is not None:
            self._check.kill()
            self._check = None

    def _load_config(self, action: actions.LoadConfig) -> None:
        generation = action.generation
        try:
            error = self._generations.load(generation)
        except OSError as failure:
            error = str(failure)
        if error is not None:
            self.enqueue(events.ConfigFailed(generation, error))
            return
        settings, _ = self._generations[generation]
        self._run_hook("on_reload", self._hook_server, settings=settings)
        try:
            self.pools.load(generation, settings, time.monotonic())
        except OSError as failure:
            self.enqueue(events.ConfigFailed(generation, f"pools: {failure}"))
            return
        policy = policy_of(settings, self.scoreboard.capacity)
        self.enqueue(events.ConfigLoaded(generation, policy))

    def _adopt(self, action: actions.AdoptGeneration) -> None:
        self._generations.adopt(action.generation)
        self.pools.adopt(action.generation, time.monotonic())

    def _drop(self, action: actions.DropGeneration) -> None:
        self.molds.drop(action.generation)
        self._generations.drop(action.generation)
        self.pools.drop(action.generation)

    # --- upgrades ---------------------------------------------------------------------------------

    def _start_preflight(self, action: actions.Preflight) -> None:
        try:
            if self._resources.command is None:
                raise UpgradeError("the command that has started this server is not known")
            python = reexec.interpreter(action.python)
            self._preflight = Preflight(
                self._table,
                self._resources.command,
                python,
                wants_tls(self.settings),
                self._on_preflight_ended,
            )
        except UpgradeError as error:
            self.enqueue(events.PreflightEnded(str(error)))
        except OSError as error:
            self.enqueue(events.PreflightEnded(f"can't fork: {error}"))

    def _on_preflight_ended(self, event: events.PreflightEnded) -> None:
        self._preflight = None
        self.enqueue(event)

    def _cancel_preflight(self, _action: actions.CancelPreflight | None = None) -> None:
        if self._preflight is not None:
            self._preflight.kill()
            self._preflight = None

    def _execute(self, action: actions.Execute) -> None:
        self._execute_python = action.python

    def _execute_upgrade(self, python: str) -> None:
        """Replace this program, unless a new event has arrived. The inbox must be empty."""
        self._execute_python = None
        assert self._resources.command is not None
        with reexec.signals_blocked() as mask:
            self._attempt(self._read_signals)
            while self._inbox or self.router.is_behind:
                self._empty_inbox()
                self._attempt(self.router.route_waiting)
            if self.supervisor.upgrade is None or self._exit_code is not None:
                return
            if self.molds.are_forking:
                self._execute_python = python
                return
            self._run_hook("pre_exec", self._hook_server)
            log_module.drain_logs(_DRAIN_LOGS_S)
            try:
                state = self._state(mask)
                reexec.execute(self._resources.command, reexec.interpreter(python), state)
            except UpgradeError as error:
                self.enqueue(events.ExecuteFailed(str(error)))
        self._empty_inbox()

    def _state(self, signal_mask: list[int]) -> UpgradeState:
        """Collect the state for the next program.

        signal_mask   the signals that were blocked before the upgrade, by number
        """
        handover = Handover()
        pass_on = handover.pass_on
        resources, pidfile = self._resources, self._resources.pidfile
        inner = {
            "supervisor": state_of(self.supervisor),
            "workers": self.workers.to_state(pass_on),
            "molds": self.molds.to_state(self.supervisor.generation, pass_on),
            "pools": self.pools.to_state(pass_on),
            "scoreboard": self.scoreboard.to_state(pass_on),
            "counters": resources.counters.to_state(pass_on),
            "facts": self._facts.facts.to_state(),
            "pidfile": pidfile.to_state(pass_on) if pidfile is not None else None,
            "control_socket": resources.control_socket.to_state(pass_on),
            "control": self._control.to_state(),
            "dashboard": resources.dashboard.to_state(pass_on),
            "notifier": self._notifier.to_state(),
            "settings": _fixed_settings(self.settings),
            "takeover_s": self.settings.boot_timeout,
        }
        return UpgradeState(
            servo=__version__,
            python=reexec.python_version(),
            signal_mask=signal_mask,
            listeners=self._sockets.to_state(pass_on),
            metrics_listeners=resources.metrics_sockets.to_state(pass_on),
            workers=[
                OldWorker(
                    worker.pid,
                    worker.fileno(),
                    worker.settings.graceful_timeout,
                    worker.channel.unsent if worker.channel is not None else b"",
                )
                for worker in self.workers
            ],
            retire=frame_of(Retire("replaced")),
            command=resources.command.to_state() if resources.command is not None else {},
            helpers=[each.pid for each in (self._watcher, self._dashboard) if each and each.pid],
            guard=self._guard.to_state(pass_on),
            inner=inner,
            descriptors=sorted(handover.descriptors),
        )

    def _end_helpers(self, state: UpgradeState) -> None:
        """Kill the previous program's children that would not notice its end."""
        for pid in state.helpers:
            process_info.send_signal(pid, signal.SIGKILL)

    def _close_pools(self) -> None:
        stopping = self.supervisor.stopping
        graceful = stopping is not None and not stopping.quick
        self.pools.close(self.settings.graceful_timeout if graceful else 0.0)

    def _close_old_workers(self) -> None:
        if self._old_workers is not None:
            self._old_workers.close()

    # --- actions ----------------------------------------------------------------------------------

    def _fork(self, action: actions.Fork) -> None:
        settings, tls = self._generations[action.generation]
        worker = self.workers.prepare(action, settings, tls)
        worker.hook_worker.send_by = self.router.send_to_worker
        self._run_hook("pre_fork", self._hook_server, worker.hook_worker, settings=settings)
        try:
            # Don't ask the settings: after an upgrade they may be newer than the generation.
            if self.supervisor.policies[action.generation].preload:
                self.molds.order(worker, self._sockets)
                return
            self.workers.fork(worker, self._sockets, self._hook_server)
        except (OSError, ServoError) as error:
            self._answers.append(events.ForkFailed(action.serial, str(error)))
        else:
            self._guard.add(_guarded(worker))
            self._answers.append(events.Forked(action.serial, worker.pid))

    def _on_forked_by_mold(self, worker: WorkerProcess) -> None:
        self._guard.add(_guarded(worker))
        for message in self._certificates.files_for(worker.generation):
            self.workers.send(worker.serial, message)

    def _send(self, action: actions.SendMessage) -> None:
        self.workers.send(action.serial, action.message)

    def _fork_mold(self, action: actions.ForkMold) -> None:
        settings, tls = self._generations[action.generation]
        self.molds.start(action.generation, settings, tls, self._hook_server)

    def _make_mold(self, action: actions.MakeMold) -> None:
        self._generations.copy(action.old_generation, action.generation)
        self.pools.copy(action.old_generation, action.generation)
        self._certificates.copy(action.old_generation, action.generation)
        worker = self.workers.get(action.serial)
        assert worker is not None
        self.molds.expect(action.generation, worker)
        self.workers.send(action.serial, MakeMold(action.generation))

    def _adopt_mold(self, action: actions.AdoptMold) -> None:
        self.molds.adopt(action.generation, action.pid)

    def _kill_mold(self, action: actions.KillMold) -> None:
        self.molds.kill(action.generation, action.signal)

    def _cancel_fork(self, action: actions.CancelFork) -> None:
        self.molds.cancel(action.serial)

    def _kill(self, action: actions.KillWorker) -> None:
        self.molds.cancel(action.serial)
        if not self.workers.kill(action.serial, action.signal):
            self.enqueue(events.KillFailed(action.serial, action.signal))

    def _release(self, action: actions.Release) -> None:
        hook_worker = self.workers.release(action.serial)
        if hook_worker is not None:
            hook_worker.alive = False
            self._run_hook("child_exit", self._hook_server, hook_worker)

    def _close_slot(self, action: actions.CloseSlot) -> None:
        self._sockets.close_slot(action.slot)

    def _close_listeners(self, _action: actions.CloseListeners) -> None:
        self._stop_watcher()
        self._sockets.close()

    def _reopen_logs(self, _action: actions.ReopenLogFiles) -> None:
        self._control.on_logs_reopened(log_module.reopen_logs())
        self._table.reopen_logs()
        self.molds.reopen_logs()
        self.pools.reopen_logs()

    def _count_changed(self, action: actions.WorkerCountChanged) -> None:
        self._run_hook("nworkers_changed", self._hook_server, action.new, action.old)

    def _log(self, action: actions.Log) -> None:
        self._report.on_log(action)
        log.log(log_module.LEVELS[action.level], "%s", action.text)

    def _record(self, action: actions.RecordLifecycleEvent) -> None:
        self._report.on_log(action)
        event = lifecycle_events.event_of(action, time.time())
        level = log_module.LEVELS[action.level]
        log.log(level, "%s", action.text, extra={"event": event.as_log_values()})
        self._run_hook("on_event", self._hook_server, event)
        self._control.on_event(event)
        self._facts.count(action)
        if action.name == "ready" and action.serial is not None:
            self._measure_ready_worker(action.serial)

    def _measure_ready_worker(self, serial: int) -> None:
        """Measure a worker's memory before its requests increase it (see `core.memory_limits`)."""
        worker = self.supervisor.workers.get(serial)
        if worker is not None:
            policy = self.supervisor.policies[worker.generation]
            if sizes := self._memory_meter.at_ready(worker, policy):
                self.enqueue(events.MemoryMeasured(sizes))

    def _answered(self, action: actions.CommandAnswered) -> None:
        self._control.answered(action)

    def _exit(self, action: actions.Exit) -> None:
        self._exit_code = action.code

    # --- helpers ----------------------------------------------------------------------------------

    def _run_hook(self, name: str, *args: Any, settings: Settings | None = None) -> None:
        hook = getattr((settings or self.settings).hooks, name)
        if hook is None:
            return
        try:
            self._limit.call(self.settings.hook_timeout, hook, *args)
        except Exception:
            log.exception("The %s hook failed", name)

    def _message_hook(self) -> Callable[[Any, Any, str], Any] | None:
        hook = self.settings.hooks.on_message
        if hook is None:
            return None
        return partial(self._limit.call, self.settings.hook_timeout, hook, self._hook_server)

    def _guarded_workers(self) -> list[GuardedWorker]:
        old = self._old_workers.left() if self._old_workers is not None else ()
        return [
            *(_guarded(worker) for worker in self.workers if worker.pid and not worker.reaped),
            *(GuardedWorker(worker.pid, worker.grace_s) for worker in old),
            *self.pools.guarded(),
        ]

    def _stop_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher = None


def _is_failed_fork(event: Event) -> bool:
    return isinstance(event, events.ForkFailed)


def _guarded(worker: WorkerProcess) -> GuardedWorker:
    return GuardedWorker(worker.pid, worker.settings.graceful_timeout)


def _fixed_settings(settings: Settings) -> dict[str, str]:
    """The settings that need a restart, as text: neither a reload nor an upgrade applies them."""
    return {
        name: settings.show(name) for name, setting in SETTINGS.items() if not setting.reloadable
    }


_PERFORM: dict[type[Action], Callable[[Arbiter, Any], None]] = {
    actions.Fork: Arbiter._fork,
    actions.SendMessage: Arbiter._send,
    actions.CancelFork: Arbiter._cancel_fork,
    actions.KillWorker: Arbiter._kill,
    actions.Release: Arbiter._release,
    actions.CheckConfig: Arbiter._check_config,
    actions.CancelCheck: Arbiter._cancel_check,
    actions.LoadConfig: Arbiter._load_config,
    actions.Preflight: Arbiter._start_preflight,
    actions.CancelPreflight: Arbiter._cancel_preflight,
    actions.Execute: Arbiter._execute,
    actions.AdoptGeneration: Arbiter._adopt,
    actions.DropGeneration: Arbiter._drop,
    actions.ForkMold: Arbiter._fork_mold,
    actions.MakeMold: Arbiter._make_mold,
    actions.AdoptMold: Arbiter._adopt_mold,
    actions.KillMold: Arbiter._kill_mold,
    actions.CloseSlot: Arbiter._close_slot,
    actions.CloseListeners: Arbiter._close_listeners,
    actions.ReopenLogFiles: Arbiter._reopen_logs,
    actions.WorkerCountChanged: Arbiter._count_changed,
    actions.Log: Arbiter._log,
    actions.RecordLifecycleEvent: Arbiter._record,
    actions.CommandAnswered: Arbiter._answered,
    actions.Exit: Arbiter._exit,
}
