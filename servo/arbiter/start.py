"""Opens the resources of a server, runs it, and closes them at its end: `run_server`.

All steps that can fail come before the first worker: a port may be taken, a certificate missing, a
pidfile locked. At this time the command's terminal can still show the error. When the server ends,
the resources are closed in the reverse order.
"""

from __future__ import annotations

import logging
import os
import select
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from servo.arbiter.daemon import StartReport
from servo.arbiter.generations import (
    Generations,
    apply_environment,
    check_preload,
    counts_by_class,
    hand_over_logs,
)
from servo.arbiter.hook_objects import HookServer
from servo.arbiter.limit import CodeLimit
from servo.arbiter.listeners import Sockets
from servo.arbiter.loop import Arbiter, Resources
from servo.arbiter.notify import SystemdNotifier
from servo.arbiter.operator.control_service import ControlSocket
from servo.arbiter.pidfile import PidFile
from servo.arbiter.processes import spawn
from servo.arbiter.processes.child_table import ChildTable
from servo.arbiter.processes.dashboard import DashboardResources
from servo.arbiter.processes.metrics import MetricsSockets
from servo.arbiter.signals import SignalInbox
from servo.cluster.counters import install
from servo.errors import INTERNAL_ERROR, ConfigError, ServoError
from servo.logs import error_log as log_module
from servo.logs.standard_streams import prints_never_block
from servo.shared_memory.counters import CounterTable, CounterTableError
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.registry import import_ahead

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.reexec import Command, Inheritance
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

# How many processes can use counters besides one for each row of the scoreboard: the arbiter, and
# processes that the application forks.
COUNTING_HELPERS = 64
# Seconds to wait for a slow reader of the log to take the last lines.
LAST_LINES_S = 1.0


@dataclass(frozen=True, slots=True)
class _Program:
    """The arguments of `run_server`, and the object that reports the outcome of the start."""

    settings: Settings
    reload_settings: Callable[[], Settings]
    command: Command | None
    report: StartReport = field(default_factory=StartReport)


@dataclass(frozen=True, slots=True)
class _Held:
    """The resources that an upgrade passes to the next program; see `Resources`."""

    pidfile: PidFile | None
    control_socket: ControlSocket
    sockets: Sockets
    metrics_sockets: MetricsSockets
    dashboard: DashboardResources
    scoreboard: Scoreboard
    counters: CounterTable


def run_server(
    settings: Settings,
    reload_settings: Callable[[], Settings],
    command: Command | None = None,
    inheritance: Inheritance | None = None,
) -> int:
    """Run a server until a stop is requested. Returns the exit code.

    settings         the settings at the start
    reload_settings  reads the settings again at a reload; raises ConfigError
    command          the command line to repeat at an upgrade; None: upgrades are refused
    inheritance      the state that the previous program has left; None at a start

    Raises ServoError if the server can't start: a port is taken, the pidfile is locked, …
    """
    program = _Program(settings, reload_settings, command)
    report = program.report
    with ExitStack() as last:
        last.callback(log_module.drain_logs, LAST_LINES_S)
        try:
            with ExitStack() as opened:
                code = _run(program, inheritance, opened, last)
        except ServoError as error:
            report.ended(error.exit_code, str(error))
            raise
        except Exception:
            report.ended(INTERNAL_ERROR, traceback.format_exc())
            raise
        report.ended(code)
        return code


def _run(
    program: _Program, inheritance: Inheritance | None, opened: ExitStack, last: ExitStack
) -> int:
    try:
        if inheritance is None:
            arbiter = Arbiter(_open(program, opened))
        else:
            arbiter = _take_over(program, inheritance, opened)
        opened.callback(arbiter.close)
        # From here on, signals only write a byte for the arbiter's loop. They could not interrupt a
        # blocked print, which would block the server.
        last.enter_context(prints_never_block())
        return arbiter.serve()
    except ServoError:
        raise
    except Exception:
        # The workers notice the arbiter's end, finish their requests, and exit.
        log.critical("The arbiter ends because of an error in its own code", exc_info=True)
        raise


def _open(program: _Program, opened: ExitStack) -> Resources:
    """Open all resources, and add the functions that close them to `opened`."""
    settings = program.settings
    limit = CodeLimit()
    generations = Generations(settings, program.reload_settings, limit)
    hook_server = HookServer(settings)
    _prepare_process(settings)
    _run_on_starting(settings, hook_server)
    # Write buffered output now, because each child would write its copy of it again. If nobody
    # reads the output, the write blocks. Here it only blocks the start, and a signal still ends the
    # server; in a child that the arbiter waits for (to fork the guard), it would block the arbiter.
    spawn.flush_output()
    secure = generations.read_certificates() is not None
    pidfile = PidFile(settings.pidfile) if settings.pidfile else None
    if pidfile is not None:
        pidfile.acquire()
        _close_at_end(opened, pidfile.release)
    control_socket = ControlSocket(settings)
    _close_at_end(opened, control_socket.close)
    sockets = Sockets(settings, secure)
    _close_at_end(opened, sockets.close)
    metrics_sockets = MetricsSockets(settings)
    _close_at_end(opened, metrics_sockets.close)
    dashboard = DashboardResources(settings)
    _close_at_end(opened, dashboard.close)
    if settings.daemon:
        _detach(settings, program.report)
        sockets.take_ownership()
        metrics_sockets.take_ownership()
        dashboard.take_ownership()
        hook_server.pid = os.getpid()
    if pidfile is not None:
        pidfile.write()
    scoreboard = Scoreboard(_capacity(settings), settings.worker_tmp_dir)
    _close_at_end(opened, scoreboard.close)
    counters = _new_counters(settings, scoreboard, opened)
    held = _Held(pidfile, control_socket, sockets, metrics_sockets, dashboard, scoreboard, counters)
    resources = _resources(program, generations, limit, hook_server, held, opened)
    resources.signals.install()
    return resources


def _take_over(program: _Program, inheritance: Inheritance, opened: ExitStack) -> Arbiter:
    """Take over the resources of the previous program; `opened` gets the functions to close them.

    If the program's state can't be read, only the listening sockets are taken over. The old workers
    then finish their requests, and new ones boot.
    """
    state, settings = inheritance.state, program.settings
    limit = CodeLimit()
    hook_server = HookServer(settings)
    _prepare_process(settings)
    _run_on_starting_again(settings, hook_server, limit)
    spawn.flush_output()
    arbiter = _restore(program, limit, hook_server, inheritance, opened)
    if arbiter is None:
        log_module.set_tap(None)
        hook_server.running = None
        inheritance.discard_copies()
        held = _hold_listeners(program, inheritance, opened)
        generations = Generations(settings, program.reload_settings, limit)
        generations.read_certificates()
        resources = _resources(program, generations, limit, hook_server, held, opened)
        arbiter = Arbiter(resources)
        arbiter.outlast(state)
    arbiter.signals.install(state.signal_mask)
    return arbiter


def _restore(
    program: _Program,
    limit: CodeLimit,
    hook_server: HookServer,
    inheritance: Inheritance,
    opened: ExitStack,
) -> Arbiter | None:
    """Restore everything that the previous program has left. If this fails, log it; return None."""
    state, settings = inheritance.state, program.settings
    # If the state can't be read, don't close what was restored: closing would remove files.
    trial = ExitStack()
    try:
        generation = int(state.section("supervisor")["generation"])
        generations = Generations(settings, program.reload_settings, limit, generation)
        generations.read_certificates()
        held = _hold_inherited(settings, inheritance, trial)
        resources = _resources(program, generations, limit, hook_server, held, trial)
        arbiter = Arbiter(resources, inheritance)
    except (LookupError, TypeError, ValueError, OSError, ServoError) as error:
        log.error(
            "The state that %s has left can't be read: %s. Its workers finish their requests, and "
            "new ones boot; the counters start at 0",
            state.program,
            error,
        )
        return None
    inheritance.close_originals()
    opened.push(trial.pop_all().__exit__)
    return arbiter


def _hold_inherited(settings: Settings, inheritance: Inheritance, opened: ExitStack) -> _Held:
    """Restore the previous program's sockets, pidfile and scoreboard; `opened` will close them."""
    state, take = inheritance.state, inheritance.take
    scoreboard = Scoreboard.from_state(state.section("scoreboard"), take)
    counters = _inherited_counters(settings, scoreboard, inheritance, opened)
    locked = state.section("pidfile")
    pidfile = PidFile.from_state(locked, take) if locked is not None else None
    control_socket = ControlSocket.from_state(settings, state.section("control_socket"), take)
    sockets = Sockets.from_state(state.listeners, take, settings.backlog)
    metrics_sockets = MetricsSockets.from_state(state.metrics_listeners, take)
    # Older versions lack it.
    dashboard = DashboardResources.from_state(state.inner.get("dashboard"), take)
    if pidfile is not None:
        _close_at_end(opened, pidfile.release)
    _close_at_end(opened, control_socket.close)
    _close_at_end(opened, sockets.close)
    _close_at_end(opened, metrics_sockets.close)
    _close_at_end(opened, dashboard.close)
    _close_at_end(opened, scoreboard.close)
    return _Held(pidfile, control_socket, sockets, metrics_sockets, dashboard, scoreboard, counters)


def _new_counters(settings: Settings, scoreboard: Scoreboard, opened: ExitStack) -> CounterTable:
    """Create the table of `servo.cluster`'s counters. All processes inherit it."""
    rows = scoreboard.capacity + COUNTING_HELPERS
    return _use_counters(CounterTable(settings.cluster_counters, rows), opened)


def _inherited_counters(
    settings: Settings, scoreboard: Scoreboard, inheritance: Inheritance, opened: ExitStack
) -> CounterTable:
    """Restore the previous program's table of counters; a new one if it has none of our layout."""
    state = inheritance.state.inner.get("counters")  # older versions lack it
    if state is None:
        return _new_counters(settings, scoreboard, opened)
    try:
        table = CounterTable.from_state(state, inheritance.take)
    except CounterTableError as error:
        log.warning("%s: the counters of servo.cluster start at 0", error)
        return _new_counters(settings, scoreboard, opened)
    return _use_counters(table, opened)


def _use_counters(table: CounterTable, opened: ExitStack) -> CounterTable:
    _close_at_end(opened, table.close)
    # No child closes the table (see ChildTable): all code of the user may use it, in the arbiter's
    # hooks, molds and workers, and in the processes that they fork.
    install(table)
    opened.callback(install, None)
    return table


def _hold_listeners(program: _Program, inheritance: Inheritance, opened: ExitStack) -> _Held:
    """Take over only the listening sockets, and open all other resources from scratch."""
    settings, state = program.settings, inheritance.state
    sockets = Sockets.from_state(state.listeners, inheritance.take, settings.backlog)
    _close_at_end(opened, sockets.close)
    metrics_sockets = MetricsSockets.from_state(state.metrics_listeners, inheritance.take)
    _close_at_end(opened, metrics_sockets.close)
    dashboard = _hold_dashboard(inheritance)
    _close_at_end(opened, dashboard.close)
    # Close all other descriptors. This also gives up the locks of the pidfile and of the control
    # socket, so that they can be taken below.
    channels = {worker.channel for worker in state.workers}
    inheritance.close_originals(but={*channels, state.guard})
    pidfile = PidFile(settings.pidfile) if settings.pidfile else None
    if pidfile is not None:
        pidfile.acquire()
        _close_at_end(opened, pidfile.release)
        pidfile.write()
    control_socket = ControlSocket(settings)
    _close_at_end(opened, control_socket.close)
    scoreboard = Scoreboard(_capacity(settings), settings.worker_tmp_dir)
    _close_at_end(opened, scoreboard.close)
    counters = _new_counters(settings, scoreboard, opened)
    return _Held(pidfile, control_socket, sockets, metrics_sockets, dashboard, scoreboard, counters)


def _hold_dashboard(inheritance: Inheritance) -> DashboardResources:
    """Take over the dashboard from a state of another version, of which this part may be readable.

    If it is not, the server runs without a dashboard. To bind the address again would fail: the
    previous program's dashboard process still has the socket.
    """
    try:
        state = inheritance.state.inner.get("dashboard")
        return DashboardResources.from_state(state, inheritance.take)
    except (LookupError, TypeError, ValueError, OSError) as error:
        log.error("There is no dashboard until the server is restarted: %s", error)
        return DashboardResources.from_state(None, int)


def _resources(
    program: _Program,
    generations: Generations,
    limit: CodeLimit,
    hook_server: HookServer,
    held: _Held,
    opened: ExitStack,
) -> Resources:
    """Open this program's own resources, and combine them with `held` into `Resources`.

    Also tell the child table what each new child has to close.
    """
    epoll = select.epoll()
    _close_at_end(opened, epoll.close)
    signals = SignalInbox(limit.stop)
    _close_at_end(opened, signals.close)
    notifier = SystemdNotifier(os.environ)
    _close_at_end(opened, notifier.close)
    notifier.store(held.sockets.listeners, held.sockets.forgotten)
    table = ChildTable(epoll)
    for resource in (
        *(signals, held.control_socket, held.metrics_sockets, held.dashboard, program.report),
    ):
        table.own(resource, resource.close_in_child)
    table.own(notifier, notifier.close)
    table.own(held.sockets, held.sockets.close)
    table.own(held.scoreboard, held.scoreboard.close)
    if held.pidfile is not None:
        table.own(held.pidfile, held.pidfile.close_in_child)
    return Resources(
        generations=generations,
        limit=limit,
        report=program.report,
        hook_server=hook_server,
        sockets=held.sockets,
        metrics_sockets=held.metrics_sockets,
        dashboard=held.dashboard,
        control_socket=held.control_socket,
        pidfile=held.pidfile,
        scoreboard=held.scoreboard,
        counters=held.counters,
        notifier=notifier,
        signals=signals,
        epoll=epoll,
        table=table,
        command=program.command,
    )


def _prepare_process(settings: Settings) -> None:
    """Set up the environment and the logs. Raises ConfigError."""
    check_preload(settings)
    apply_environment(settings)
    log_module.setup_logging(settings)
    hand_over_logs(settings)
    import_ahead(settings)


def _run_on_starting(settings: Settings, hook_server: HookServer) -> None:
    hook = settings.hooks.on_starting
    if hook is None:
        return
    try:
        # No time limit: nothing waits for this hook, and signals still end the process.
        hook(hook_server)
    except (Exception, SystemExit) as error:
        text = traceback.format_exc()
        raise ConfigError(f"the on_starting hook failed: {error}\n{text}") from error


def _run_on_starting_again(settings: Settings, hook_server: HookServer, limit: CodeLimit) -> None:
    """Run the `on_starting` hook after an upgrade, with a time limit.

    Workers are running and need their arbiter, so the hook must not take long, and its failure must
    not end the server.
    """
    hook = settings.hooks.on_starting
    if hook is None:
        return
    try:
        limit.call(settings.hook_timeout, hook, hook_server)
    except Exception:
        log.exception("The on_starting hook failed; the upgrade goes on")


def _detach(settings: Settings, report: StartReport) -> None:
    if not log_module.outlives_terminal():
        log.warning("The log ends here: a daemon has no terminal (see --error-logfile)")
    report.detach(settings.boot_timeout)


def _capacity(settings: Settings) -> int:
    """The number of rows of the scoreboard, one for each worker process.

    During a reload the workers of both generations have rows, and draining workers keep theirs.
    """
    most = max([settings.worker_count, settings.max_workers, *counts_by_class(settings).values()])
    # With drain_websockets, up to `workers` retired workers may linger, too.
    sets = 3 if settings.drain_websockets else 2
    return int(max(settings.scoreboard_size, sets * most + settings.reload_batch))


def _close_at_end(opened: ExitStack, close: Callable[[], object]) -> None:
    opened.callback(partial(_close, close))


def _close(close: Callable[[], object]) -> None:
    try:
        close()
    except OSError:
        log.exception("A system call failed at the end of the server")
