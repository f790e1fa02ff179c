"""The arbiter's loop: it collects events, asks the supervisor, and performs what that decides.

Signals, the ends of processes, messages of workers and the passing of time all become events in one
inbox. `Supervisor.handle` answers each event with actions (fork this worker, send that message),
and a method of the `Arbiter` performs each kind of action. So a SIGHUP passes four places:
`SignalInbox`, the inbox, the supervisor's decision, and `_fork`.

The loop blocks in one call of epoll only. It runs no application code and starts no thread: a
process with threads must not fork workers.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from servo import __version__
from servo.arbiter import process_info
from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import TICK_S
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.facts_writer import FactsWriter
from servo.arbiter.generations import log_notes, policy_of
from servo.arbiter.message_router import MessageRouter
from servo.arbiter.operator import lifecycle_events
from servo.arbiter.operator.control_service import ControlService
from servo.arbiter.processes.config_check import ConfigCheck
from servo.arbiter.processes.guard import Guard, GuardedWorker
from servo.arbiter.processes.metrics import MetricsProcess
from servo.arbiter.processes.watcher import Watcher
from servo.arbiter.processes.workers import WorkerProcesses
from servo.arbiter.signals import at_foreground_of_terminal
from servo.errors import ServoError
from servo.logs import error_log as log_module

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
    from servo.arbiter.processes.child_table import ChildTable
    from servo.arbiter.processes.metrics import MetricsSockets
    from servo.arbiter.processes.workers import WorkerProcess
    from servo.arbiter.signals import SignalInbox
    from servo.net.listeners import Listener
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# If this many system calls fail unexpectedly within this many seconds, the arbiter would only spin,
# so it ends.
MAX_FAILURES = 50
FAILURES_S = 10.0


@dataclass(frozen=True, slots=True)
class Resources:
    """The things that a server has opened at its start; see `servo.arbiter.start`.

    generations      the settings of each generation of workers
    limit            the time limit for hooks
    report           tells the command that has started a daemon how the start went
    hook_server      the `server` that hooks get
    sockets          the application's listening sockets
    metrics_sockets  those of the metrics
    control_socket   the control socket
    scoreboard       the table that all processes share
    notifier         tells systemd how the server is
    signals          the arbiter's signals
    epoll            watches every descriptor of the loop
    table            the arbiter's children
    """

    generations: Generations
    limit: CodeLimit
    report: StartReport
    hook_server: HookServer
    sockets: Sockets
    metrics_sockets: MetricsSockets
    control_socket: ControlSocket
    scoreboard: Scoreboard
    notifier: SystemdNotifier
    signals: SignalInbox
    epoll: select.epoll
    table: ChildTable


class Arbiter:
    """Runs a server whose resources are open, until it is asked to stop."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._generations = resources.generations
        self._limit = resources.limit
        self._report = resources.report
        self._hook_server = resources.hook_server
        self._sockets = resources.sockets
        self._notifier = resources.notifier
        self._signals = resources.signals
        self._epoll = resources.epoll
        self._table = table = resources.table
        self.scoreboard = resources.scoreboard
        self._inbox: deque[Event] = deque()
        # Answers to the actions that are being performed. They go before the rest of the inbox, so
        # that the supervisor knows a worker's pid before it gets other events of the worker.
        self._answers: list[Event] = []
        self._exit_code: int | None = None
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._check: ConfigCheck | None = None
        self._watcher: Watcher | None = None
        settings = self.settings
        self.supervisor = Supervisor(policy_of(settings, self.scoreboard.capacity))
        self._facts = FactsWriter(self.scoreboard)
        table.own(self._facts, self._facts.close_in_child)
        self.workers = WorkerProcesses(
            self.scoreboard,
            table,
            self.enqueue,
            lambda serial, message: self._control.on_message(serial, message),
        )
        self.router = MessageRouter(self.workers, self._message_hook)
        self._control = ControlService(self, resources.control_socket, self._epoll)
        table.own(self._control, self._control.close_in_child)
        self._guard = Guard(table, self._guarded_workers, settings.user)
        self._epoll.register(self._signals.fileno(), select.EPOLLIN)
        self._hook_server.running = self

    # --- what the hook objects and the operators see ----------------------------------------------

    @property
    def settings(self) -> Settings:
        """The current generation's."""
        return self._generations.settings

    @property
    def listeners(self) -> list[Listener]:
        """The application's listening sockets."""
        return self._sockets.listeners

    @property
    def target(self) -> int:
        """The number of workers that the server should have."""
        return self.supervisor.target

    def hook_workers(self) -> dict[int, ArbiterHookWorker]:
        """The workers that were forked and not yet released, by pid."""
        return self.workers.hook_workers()

    def workers_by_slot(self) -> dict[int, ArbiterHookWorker]:
        """The workers that messages go to, by slot."""
        return self.router.by_slot()

    def broadcast(self, message: Any, topic: str) -> int:
        """Send a message to all workers; see `MessageRouter.broadcast`."""
        return self.router.broadcast(message, topic)

    def enqueue(self, event: Event) -> None:
        """Put an event into the inbox."""
        self._inbox.append(event)

    # --- the loop ---------------------------------------------------------------------------------

    def serve(self) -> int:
        """Serve until asked to stop; return the exit code.

        Raises OSError if system calls fail again and again.
        """
        self._start()
        next_tick = time.monotonic() + TICK_S
        while True:
            self._empty_inbox()
            if self._exit_code is not None:
                return self._exit_code
            due = min(next_tick, self.supervisor.wake_at())
            wake_at = min(due, self._control.wake_at(), self._notifier.wake_at())
            if self.router.is_behind:
                wake_at = 0.0
            for fd, mask in self._epoll.poll(max(0.0, wake_at - time.monotonic())):
                self._attempt(self._on_descriptor, fd, mask)
            self._attempt(self.router.route_waiting)
            self._attempt(self._control.tick, time.monotonic())
            if time.monotonic() >= due:
                next_tick = time.monotonic() + TICK_S
                self._tick()

    def close(self) -> None:
        """End all children but the workers, which finish when their channels are closed."""
        self._run_hook("on_exit", self._hook_server)
        for step in (
            self._cancel_check,
            self._stop_watcher,
            self.workers.close,
            self._table.stop_helpers,
            self._control.close,
        ):
            self._attempt(step)

    def _start(self) -> None:
        settings, resources = self.settings, self._resources
        process_info.set_title(f"servo: arbiter [{settings.proc_name or settings.app}]")
        log.info("Servo %s starts, its arbiter has pid %d", __version__, os.getpid())
        log_notes(*self._generations[1])
        for listener in self.listeners:
            log.info("Listening on %s", listener.name)
        if settings.reload:
            self._watcher = Watcher(settings, self._table, self.enqueue)
        self._table.keep_running(
            MetricsProcess(
                settings,
                self._table,
                resources.metrics_sockets,
                self.scoreboard,
                self._facts,
                self._sockets,
            )
        )
        self._table.keep_running(self._guard)
        self._table.tick(time.monotonic())
        self._run_hook("when_ready", self._hook_server)
        self.enqueue(events.Started())

    def _tick(self) -> None:
        """Once a second, and when the supervisor has something due."""
        self._attempt(self._read_signals)
        self._attempt(self._table.reap)
        self._attempt(self.router.log_drops)
        self._attempt(self._table.tick, time.monotonic())
        self._facts.renew()
        log_module.flush_logs()
        self._attempt(self._sockets.look_after)
        self.enqueue(events.Tick(*self.workers.heartbeats()))
        if self._notifier.is_on:
            totals = self.scoreboard.totals()
            self._notifier.tick(
                self.supervisor, totals.requests, totals.in_flight, time.monotonic()
            )

    def _attempt(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function, and log an OSError that it raises: the workers need their arbiter.

        Raises the OSError if that happens all the time.
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
            self._inbox.extendleft(reversed(self._answers))
            self._answers.clear()
        self._attempt(self._control.settle)
        self._facts.publish(self.supervisor)
        self._notifier.turn(self.supervisor, time.monotonic())

    def _on_descriptor(self, fd: int, mask: int) -> None:
        if fd == self._signals.fileno():
            self._read_signals()
        elif not self._table.on_ready(fd, mask):
            self._control.on_ready(fd, mask)

    def _read_signals(self) -> None:
        for name in self._signals.read():
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
        policy = policy_of(settings, self.scoreboard.capacity)
        self.enqueue(events.ConfigLoaded(generation, policy))

    def _adopt(self, action: actions.AdoptGeneration) -> None:
        self._generations.adopt(action.generation)

    def _drop(self, action: actions.DropGeneration) -> None:
        self._generations.drop(action.generation)

    # --- actions ----------------------------------------------------------------------------------

    def _fork(self, action: actions.Fork) -> None:
        settings, tls = self._generations[action.generation]
        worker = self.workers.prepare(action, settings, tls)
        worker.hook_worker.send_by = self.router.send_to_worker
        self._run_hook("pre_fork", self._hook_server, worker.hook_worker, settings=settings)
        try:
            self.workers.fork(worker, self._sockets, self._hook_server)
        except (OSError, ServoError) as error:
            self._answers.append(events.ForkFailed(action.serial, str(error)))
        else:
            self._guard.add(_guarded(worker))
            self._answers.append(events.Forked(action.serial, worker.pid))

    def _send(self, action: actions.SendMessage) -> None:
        self.workers.send(action.serial, action.message)

    def _kill(self, action: actions.KillWorker) -> None:
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
        log_module.reopen_logs()
        self._table.reopen_logs()

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

    def _answered(self, action: actions.CommandAnswered) -> None:
        self._control.answered(action)

    def _exit(self, action: actions.Exit) -> None:
        self._exit_code = action.code

    # --- the rest ---------------------------------------------------------------------------------

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
        return [_guarded(worker) for worker in self.workers if not worker.reaped]

    def _stop_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher = None


def _guarded(worker: WorkerProcess) -> GuardedWorker:
    return GuardedWorker(worker.pid, worker.settings.graceful_timeout)


_PERFORM: dict[type[Action], Callable[[Arbiter, Any], None]] = {
    actions.Fork: Arbiter._fork,
    actions.SendMessage: Arbiter._send,
    actions.KillWorker: Arbiter._kill,
    actions.Release: Arbiter._release,
    actions.CheckConfig: Arbiter._check_config,
    actions.CancelCheck: Arbiter._cancel_check,
    actions.LoadConfig: Arbiter._load_config,
    actions.AdoptGeneration: Arbiter._adopt,
    actions.DropGeneration: Arbiter._drop,
    actions.CloseSlot: Arbiter._close_slot,
    actions.CloseListeners: Arbiter._close_listeners,
    actions.ReopenLogFiles: Arbiter._reopen_logs,
    actions.WorkerCountChanged: Arbiter._count_changed,
    actions.Log: Arbiter._log,
    actions.RecordLifecycleEvent: Arbiter._record,
    actions.CommandAnswered: Arbiter._answered,
    actions.Exit: Arbiter._exit,
}
