"""Starts a server, and closes it at its end: `run_server`.

Everything that can go wrong at a start is done here, before the first worker: a taken port, a
missing certificate, a locked pidfile. The command's terminal is still there then to show the error.
Everything is closed again in the reverse order, however the server ends.
"""

from __future__ import annotations

import logging
import os
import select
import traceback
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from servo.arbiter.daemon import StartReport
from servo.arbiter.generations import (
    Generations,
    apply_environment,
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
from servo.arbiter.processes.metrics import MetricsSockets
from servo.arbiter.signals import SignalInbox
from servo.errors import ConfigError, ServoError
from servo.logs import error_log as log_module
from servo.logs.standard_streams import prints_never_block
from servo.shared_memory.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

# Seconds that a slow reader of the log has for the last lines.
LAST_LINES_S = 1.0


def run_server(settings: Settings, reload_settings: Callable[[], Settings]) -> int:
    """Run a server until it is asked to stop; return the exit code.

    settings         those to start with
    reload_settings  reads them anew at a reload; raises ConfigError

    Raises ServoError if the server can't start: a port is taken, the pidfile is locked, …
    """
    report = StartReport()
    with ExitStack() as last:
        last.callback(log_module.drain_logs, LAST_LINES_S)
        try:
            with ExitStack() as opened:
                code = _run(settings, reload_settings, report, opened, last)
        except ServoError as error:
            report.ended(error.exit_code, str(error))
            raise
        except Exception:
            report.ended(1, traceback.format_exc())
            raise
        report.ended(code)
        return code


def _run(
    settings: Settings,
    reload_settings: Callable[[], Settings],
    report: StartReport,
    opened: ExitStack,
    last: ExitStack,
) -> int:
    try:
        arbiter = Arbiter(_open(settings, reload_settings, report, opened))
        opened.callback(arbiter.close)
        # The arbiter's own handlers take the signals from here on, so a print must not block.
        last.enter_context(prints_never_block())
        return arbiter.serve()
    except ServoError:
        raise
    except Exception:
        # The workers notice that the arbiter is gone, finish their requests, and exit.
        log.critical("The arbiter ends by an error of its own", exc_info=True)
        raise


def _open(
    settings: Settings,
    reload_settings: Callable[[], Settings],
    report: StartReport,
    opened: ExitStack,
) -> Resources:
    """Open everything; `opened` closes it again."""
    limit = CodeLimit()
    generations = Generations(settings, reload_settings, limit)
    hook_server = HookServer(settings)
    _prepare_process(settings, hook_server)
    tls = generations.read_certificates()
    pidfile = PidFile(settings.pidfile) if settings.pidfile else None
    if pidfile is not None:
        pidfile.acquire()
        _close_at_end(opened, pidfile.release)
    control_socket = ControlSocket(settings)
    _close_at_end(opened, control_socket.close)
    sockets = Sockets(settings, tls is not None)
    _close_at_end(opened, sockets.close)
    metrics_sockets = MetricsSockets(settings)
    _close_at_end(opened, metrics_sockets.close)
    if settings.daemon:
        _detach(settings, report)
        sockets.take_ownership()
        metrics_sockets.take_ownership()
        hook_server.pid = os.getpid()
    if pidfile is not None:
        pidfile.write()
    scoreboard = Scoreboard(_capacity(settings), settings.worker_tmp_dir)
    _close_at_end(opened, scoreboard.close)
    epoll = select.epoll()
    _close_at_end(opened, epoll.close)
    signals = SignalInbox(limit.stop)
    _close_at_end(opened, signals.close)
    signals.install()
    notifier = SystemdNotifier(os.environ)
    _close_at_end(opened, notifier.close)
    table = ChildTable(epoll)
    for resource in (signals, control_socket, metrics_sockets, report):
        table.own(resource, resource.close_in_child)
    table.own(notifier, notifier.close)
    table.own(sockets, sockets.close)
    table.own(scoreboard, scoreboard.close)
    if pidfile is not None:
        table.own(pidfile, pidfile.close_in_child)
    return Resources(
        generations=generations,
        limit=limit,
        report=report,
        hook_server=hook_server,
        sockets=sockets,
        metrics_sockets=metrics_sockets,
        control_socket=control_socket,
        scoreboard=scoreboard,
        notifier=notifier,
        signals=signals,
        epoll=epoll,
        table=table,
    )


def _prepare_process(settings: Settings, hook_server: HookServer) -> None:
    """Set the environment and the logs up, and run the `on_starting` hook."""
    apply_environment(settings)
    log_module.setup_logging(settings)
    hand_over_logs(settings)
    _run_on_starting(settings, hook_server)
    # Buffered output would be written by each child as well, and the arbiter waits for one of them
    # (the parent of the guard). If its reader has stopped, only the start waits, and a signal ends
    # the server.
    spawn.flush_output()


def _run_on_starting(settings: Settings, hook_server: HookServer) -> None:
    hook = settings.hooks.on_starting
    if hook is None:
        return
    try:
        # Without a time limit: nothing waits for this hook, and signals still end the process.
        hook(hook_server)
    except (Exception, SystemExit) as error:
        text = traceback.format_exc()
        raise ConfigError(f"the on_starting hook failed: {error}\n{text}") from error


def _detach(settings: Settings, report: StartReport) -> None:
    if not log_module.outlives_terminal():
        log.warning("The log ends here: a daemon has no terminal (see --error-logfile)")
    report.detach(settings.boot_timeout)


def _capacity(settings: Settings) -> int:
    """The number of worker processes that the scoreboard has rows for.

    During a reload the old and the new generation run at once, and those that drain still have
    their rows.
    """
    most = max([settings.worker_count, *counts_by_class(settings).values()])
    return int(max(settings.scoreboard_size, 2 * most + settings.reload_batch))


def _close_at_end(opened: ExitStack, close: Callable[[], object]) -> None:
    opened.callback(partial(_close, close))


def _close(close: Callable[[], object]) -> None:
    try:
        close()
    except OSError:
        log.exception("A system call failed at the end of the server")
