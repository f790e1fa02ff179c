"""The arbiter process: gathers events, asks the supervisor, performs what it says.

It never blocks but in one `epoll` call, runs no application code and starts no thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
import traceback
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from servo import __version__
from servo.arbiter import process_info
from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import TICK_S
from servo.arbiter.core.supervisor import Supervisor
from servo.arbiter.daemon import Launch
from servo.arbiter.generations import (
    Generations,
    apply_environment,
    counts_by_class,
    hand_over_logs,
    policy_of,
    tell_notes,
)
from servo.arbiter.hook_objects import ServerFacade
from servo.arbiter.limit import CodeLimit
from servo.arbiter.listeners import Sockets
from servo.arbiter.message_router import Post
from servo.arbiter.operator import lifecycle_events
from servo.arbiter.operator.control_service import Control
from servo.arbiter.pidfile import PidFile
from servo.arbiter.processes import spawn
from servo.arbiter.processes.config_check import ConfigCheck
from servo.arbiter.processes.guard import Guard, Watched
from servo.arbiter.processes.metrics import Metrics
from servo.arbiter.processes.watcher import Watcher
from servo.arbiter.processes.workers import Children
from servo.arbiter.signals import SignalInbox, at_foreground_of_terminal
from servo.errors import ConfigError, ServoError
from servo.ipc.messages import LogRecords, Report
from servo.logs import error_log as log_module
from servo.logs.standard_streams import prints_never_block
from servo.shared_memory.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.actions import Action
    from servo.arbiter.core.events import Event
    from servo.arbiter.processes.workers import Child
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

# So many unexpected failures of system calls within so many seconds are no accidents: the arbiter
# would only spin.
MOST_FAILURES = 50
FAILURES_S = 10.0
# How long the end waits for a slow reader of the log.
LAST_LINES_S = 1.0


class Arbiter:
    """Runs the server for these settings.

    settings         the ones to start with
    reload_settings  reads them anew, for a reload; raises ConfigError
    """

    supervisor: Supervisor
    sockets: Sockets
    children: Children
    post: Post
    scoreboard: Scoreboard

    def __init__(self, settings: Settings, reload_settings: Callable[[], Settings]) -> None:
        self._limit = CodeLimit()
        self._generations = Generations(settings, reload_settings, self._limit)
        self._inbox: deque[Event] = deque()
        self._answers: list[Event] = []
        self._exit_code: int | None = None
        self._failures: deque[float] = deque(maxlen=MOST_FAILURES)
        self._check: ConfigCheck | None = None
        self._watcher: Watcher | None = None
        self._pidfile = PidFile(settings.pidfile) if settings.pidfile else None
        self._metrics = Metrics()
        self._launch = Launch()
        self._guard = Guard(self._close_in_guard, settings.user)
        self._facade = ServerFacade(self)
        self._control = Control(self)

    @property
    def settings(self) -> Settings:
        """The current generation's."""
        return self._generations.settings

    def tell(self, event: Event) -> None:
        """Put an event into the inbox; what a worker has for operators goes straight to them."""
        if isinstance(event, events.MessageReceived) and isinstance(
            event.message, (LogRecords, Report)
        ):
            self._control.on_message(event.serial, event.message)
        else:
            self._inbox.append(event)

    def run(self) -> int:
        """Serve until asked to stop; the exit code.

        Raises ServoError when the server can't start: a port is taken, the pidfile is held, …
        """
        with contextlib.ExitStack() as stack:
            try:
                self._open()
                # From here on the arbiter's own handlers take the signals.
                stack.enter_context(prints_never_block())
                self._serve()
            except ServoError as error:
                self._close()
                self._launch.ended(error.exit_code, str(error))
                raise
            except Exception:
                # The terminal may be gone. The workers notice that the arbiter is, finish, and
                # exit.
                log.critical("The arbiter ends by an error of its own", exc_info=True)
                self._close()
                self._launch.ended(1, traceback.format_exc())
                raise
            self._close()
            assert self._exit_code is not None
            self._launch.ended(self._exit_code)
            return self._exit_code

    # --- start and end ----------------------------------------------------------------------------

    def _open(self) -> None:
        """All that may fail, while the terminal is there to tell it to."""
        settings = self.settings
        apply_environment(settings)
        log_module.setup_logging(settings)
        hand_over_logs(settings)
        if settings.hooks.on_starting is not None:
            try:
                # Without a limit: nothing waits for it, and the signals still end the process.
                settings.hooks.on_starting(self._facade)
            except (Exception, SystemExit) as error:
                text = traceback.format_exc()
                raise ConfigError(f"the on_starting hook failed: {error}\n{text}") from error
        # Each child would write what waits here, and the arbiter waits for one of them (the guard's
        # parent). Here a reader that has stopped holds up only the start, which a signal ends.
        spawn.flush_output()
        tls = self._generations.read_certificates()
        if self._pidfile is not None:
            self._pidfile.acquire()
        self._control.prepare(settings)
        self.sockets = Sockets(settings, tls is not None)
        self._metrics.prepare(settings)
        if settings.daemon:
            if not log_module.outlives_terminal():
                log.warning("The log ends here: a daemon has no terminal (see --error-logfile)")
            self._launch.detach(settings.boot_timeout)
            self.sockets.take_ownership()
            self._facade.pid = os.getpid()
        if self._pidfile is not None:
            self._pidfile.write()
        most = max([settings.worker_count, *counts_by_class(settings).values()])
        capacity = max(settings.scoreboard_size, 2 * most + settings.reload_batch)
        self.scoreboard = Scoreboard(capacity, settings.worker_tmp_dir)
        self.supervisor = Supervisor(policy_of(settings, capacity))
        self._oom = process_info.OutOfMemoryCounter()
        self._epoll = select.epoll()
        self._signals = SignalInbox(self._limit.stop)
        self.children = Children(self.scoreboard, self._epoll, self.tell, self._close_inherited)
        self.post = Post(self.children, self._message_hook)
        self._control.start(settings, self._epoll)
        self._signals.install()
        self._epoll.register(self._signals.fileno(), select.EPOLLIN)

    def _close(self) -> None:
        """Undo `_open`, as far as it got."""
        steps: list[Callable[[], object]] = []
        is_running = hasattr(self, "_signals")
        if is_running:
            self._run_hook("on_exit", self._facade)
            steps += [self._end_check, self._end_watcher, self.children.close]
        steps += [self._guard.close, self._metrics.close, self._control.close]
        if is_running:
            steps += [self._epoll.close, self._signals.close]
        if hasattr(self, "scoreboard"):
            steps.append(self.scoreboard.close)
        if hasattr(self, "sockets"):
            steps.append(self.sockets.close)
        if self._pidfile is not None:
            steps.append(self._pidfile.release)
        for step in steps:
            self._attempt(step)
        log_module.drain_logs(LAST_LINES_S)

    def _close_inherited(self) -> None:
        """In a forked child: close what is the arbiter's alone."""
        self._epoll.close()
        self._signals.close_in_child()
        self.children.close_in_child()
        self._control.close_in_child()
        self._metrics.close_in_child()
        self._launch.close_in_child()
        if self._check is not None:
            self._check.close()
        if self._watcher is not None:
            self._watcher.close_in_child()
        if self._pidfile is not None:
            self._pidfile.close_in_child()
        self._guard.close()

    def _close_in_guard(self) -> None:
        """In the guard, which must not keep the port open: close what workers have, too."""
        self._close_inherited()
        self.sockets.close()
        self.scoreboard.close()

    # --- the loop ---------------------------------------------------------------------------------

    def _serve(self) -> None:
        settings = self.settings
        process_info.set_title(f"servo: arbiter [{settings.proc_name or settings.app}]")
        log.info("Servo %s starts, its arbiter has pid %d", __version__, os.getpid())
        tell_notes(*self._generations[1])
        for listener in self.sockets.listeners:
            log.info("Listening on %s", listener.name)
        if settings.reload:
            self._watcher = Watcher(settings, self._close_inherited)
            self._epoll.register(self._watcher.fileno(), select.EPOLLIN)
        self._metrics.start(settings, self.scoreboard, self.sockets, self._close_inherited)
        self._look_after_guard()
        self._run_hook("when_ready", self._facade)
        self._inbox.append(events.Started())
        next_tick = time.monotonic() + TICK_S
        while True:
            self._empty_inbox()
            if self._exit_code is not None:
                return
            due = min(next_tick, self.supervisor.wake_at())
            wake_at = 0.0 if self.post.waiting else min(due, self._control.wake_at())
            for fd, mask in self._epoll.poll(max(0.0, wake_at - time.monotonic())):
                self._attempt(self._on_descriptor, fd, mask)
            self._attempt(self.post.deliver)
            self._attempt(self._control.tick, time.monotonic())
            if time.monotonic() >= due:
                next_tick = time.monotonic() + TICK_S
                self._tick()

    def _tick(self) -> None:
        """Once a second, and when something is due."""
        self._attempt(self._read_signals)
        self._attempt(self._reap)
        self._attempt(self.post.report)
        self._attempt(self._metrics.tick, time.monotonic())
        self._metrics.renew()
        log_module.flush_logs()
        self._attempt(self.sockets.look_after)
        self._attempt(self._look_after_guard)
        self._inbox.append(events.Tick(*self.children.heartbeats()))

    def _attempt(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function. A system call that fails in it where nothing is prepared for that is
        logged: whatever it was for, the workers need their arbiter more.

        Raises the OSError when that happens all the time.
        """
        try:
            function(*args)
        except OSError:
            now = time.monotonic()
            if len(self._failures) == MOST_FAILURES and now - self._failures[0] < FAILURES_S:
                raise
            self._failures.append(now)
            log.exception("A system call failed; the arbiter goes on")

    def _empty_inbox(self) -> None:
        while self._inbox and self._exit_code is None:
            for action in self.supervisor.handle(self._inbox.popleft(), time.monotonic()):
                self._attempt(_PERFORM[type(action)], self, action)
            # Before anything else, the supervisor is to know which pids there are.
            self._inbox.extendleft(reversed(self._answers))
            self._answers.clear()
        self._attempt(self._control.settle)
        self._metrics.settle(self.supervisor)

    def _on_descriptor(self, fd: int, mask: int) -> None:
        if fd == self._signals.fileno():
            self._read_signals()
        elif self._check is not None and fd == self._check.fileno():
            if not self._check.read():
                self._epoll.unregister(fd)  # its end is told by waitpid
        elif self._watcher is not None and fd == self._watcher.fileno():
            self._on_watcher(self._watcher)
        elif fd == self._guard.fileno():
            self._epoll.unregister(fd)
            self._guard.ended(time.monotonic())
        elif self._control.owns(fd):
            self._control.on_ready(fd, mask)
        else:
            self.children.on_channel(fd, mask)

    def _read_signals(self) -> None:
        for name in self._signals.read():
            self._on_signal(name)
        self._limit.obeyed()

    def _on_signal(self, name: str) -> None:
        if name == "SIGCHLD":
            self._reap()
        elif name == "SIGWINCH" and at_foreground_of_terminal():
            log.debug("SIGWINCH ignored: it tells of a resized terminal, not of an operator")
        else:
            self._inbox.append(events.SignalReceived(name))

    def _reap(self) -> None:
        """Wait for every dead child, strangers (as PID 1) included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            if self._check is not None and pid == self._check.pid:
                self._on_checked(self._check, code)
            elif self._watcher is not None and pid == self._watcher.pid:
                self._watcher.pid = 0
                self._end_watcher()
                log.warning("The watcher of source files has ended; changes go unnoticed now")
            elif self._metrics.reaped(pid, code):
                continue
            elif not self.children.read_last_words(pid):
                log.debug("Reaped process %d, which is no worker", pid)
            else:
                name = process_info.signal_name(-code) if code < 0 else ""
                out_of_memory = code == -signal.SIGKILL and self._oom.took_one()
                self._inbox.append(events.ChildExited(pid, code, name, out_of_memory))

    # --- configuration ----------------------------------------------------------------------------

    def _check_config(self, action: actions.CheckConfig) -> None:
        try:
            check = ConfigCheck(action.generation, self._generations.read, self._close_inherited)
        except OSError as error:
            self._inbox.append(events.ConfigChecked(action.generation, f"can't fork: {error}"))
            return
        self._check = check
        try:
            self._epoll.register(check.fileno(), select.EPOLLIN)
        except OSError:
            # Its text is read when it has ended; a long one holds it up until `boot_timeout`.
            log.exception("The check of the configuration can't be watched")

    def _on_checked(self, check: ConfigCheck, code: int) -> None:
        self._inbox.append(events.ConfigChecked(check.generation, check.result(code)))
        check.close()  # which also takes it out of the epoll
        self._check = None

    def _cancel_check(self, _action: actions.CancelCheck) -> None:
        self._end_check()

    def _end_check(self) -> None:
        if self._check is not None:
            self._check.cancel()
            self._check.close()
            self._check = None

    def _load_config(self, action: actions.LoadConfig) -> None:
        generation = action.generation
        try:
            error = self._generations.load(generation)
        except OSError as failure:
            error = str(failure)
        if error is not None:
            self._inbox.append(events.ConfigFailed(generation, error))
            return
        settings, _ = self._generations[generation]
        self._run_hook("on_reload", self._facade, settings=settings)
        policy = policy_of(settings, self.scoreboard.capacity)
        self._inbox.append(events.ConfigLoaded(generation, policy))

    def _adopt(self, action: actions.AdoptGeneration) -> None:
        self._generations.adopt(action.generation)

    def _drop(self, action: actions.DropGeneration) -> None:
        self._generations.drop(action.generation)

    # --- actions ----------------------------------------------------------------------------------

    def _fork(self, action: actions.Fork) -> None:
        settings, tls = self._generations[action.generation]
        child = self.children.prepare(action, settings, tls)
        child.facade.post = self.post.send_to
        self._run_hook("pre_fork", self._facade, child.facade, settings=settings)
        try:
            listeners = self.sockets.for_slot(action.slot)
            pid = self.children.fork(
                child, listeners, self.sockets.others(action.slot), self._facade
            )
        except (OSError, ServoError) as error:
            self._answers.append(events.ForkFailed(action.serial, str(error)))
        else:
            self._guard.watch(_watched(child))
            self._answers.append(events.Forked(action.serial, pid))

    def _send(self, action: actions.SendMessage) -> None:
        self.children.send(action.serial, action.message)

    def _kill(self, action: actions.KillWorker) -> None:
        if not self.children.kill(action.serial, action.signal):
            self._inbox.append(events.KillFailed(action.serial, action.signal))

    def _release(self, action: actions.Release) -> None:
        facade = self.children.release(action.serial)
        if facade is not None:
            facade.alive = False
            self._run_hook("child_exit", self._facade, facade)

    def _close_slot(self, action: actions.CloseSlot) -> None:
        self.sockets.close_slot(action.slot)

    def _close_listeners(self, _action: actions.CloseListeners) -> None:
        self._end_watcher()
        self.sockets.close()

    def _reopen_logs(self, _action: actions.ReopenLogFiles) -> None:
        log_module.reopen_logs()
        self._metrics.reopen_logs()

    def _count_changed(self, action: actions.WorkerCountChanged) -> None:
        self._run_hook("nworkers_changed", self._facade, action.new, action.old)

    def _log(self, action: actions.Log) -> None:
        self._launch.hear(action)
        log.log(log_module.LEVELS[action.level], "%s", action.text)

    def _record(self, action: actions.RecordLifecycleEvent) -> None:
        self._launch.hear(action)
        event = lifecycle_events.event_of(action, time.time())
        level = log_module.LEVELS[action.level]
        log.log(level, "%s", action.text, extra={"event": event.as_log_values()})
        self._run_hook("on_event", self._facade, event)
        self._control.on_event(event)
        self._metrics.happened(action)

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
        return partial(self._limit.call, self.settings.hook_timeout, hook, self._facade)

    def _on_watcher(self, watcher: Watcher) -> None:
        changes = watcher.read()
        if changes is None:
            self._epoll.unregister(watcher.fileno())  # its end is told by waitpid
            return
        self._inbox.extend(events.FileChanged(paths) for paths in changes)

    def _look_after_guard(self) -> None:
        workers = [_watched(child) for child in self.children if not child.reaped]
        if self._guard.tick(workers, time.monotonic()):
            self._epoll.register(self._guard.fileno(), select.EPOLLIN)

    def _end_watcher(self) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None


def _watched(child: Child) -> Watched:
    return Watched(child.pid, child.settings.graceful_timeout)


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
