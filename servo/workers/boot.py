"""One worker process, from just after the fork to its exit code.

The arbiter forks, closes what the child must not have, and calls `run_worker`. That

1. turns the forked copy of the arbiter into a worker: signals, log, channel, mailbox,
2. gives up privileges, imports the application, and makes the `Worker` that its interface needs,
3. lets it serve, until it is told to end and has drained,
4. ends the interpreter as Python ends a script (see `python_exit`), and returns the exit code.

A failure before the worker is ready goes to the arbiter as `BootFailed`: the arbiter logs it, and
decides whether to try again.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from servo import cluster
from servo.apps.loader import prepare_import_path
from servo.errors import AppImportError, ServoError
from servo.ipc.channel import ChannelClosed, SharedChannel
from servo.ipc.messages import EXIT_APP, EXIT_BOOT, BootFailed, Booting
from servo.logs import error_log as log_module
from servo.logs.entry_counts import count_log
from servo.net.privileges import become
from servo.settings.sources import drop_config_modules
from servo.shared_memory import row_layout
from servo.workers import inspection
from servo.workers.forks import Forks
from servo.workers.messages.mailbox import Mailbox
from servo.workers.python_exit import PythonExit, register_exit_functions
from servo.workers.query_signals import REQUESTS_SIGNAL
from servo.workers.registry import worker_for
from servo.workers.request.hooks import HookWorker

if TYPE_CHECKING:
    from types import FrameType

    from servo.workers.context import WorkerContext
    from servo.workers.worker import Worker

log = logging.getLogger("servo.error")

# A traceback of this many characters fits a frame of the channel (1 MiB), however JSON writes it.
# The end of it says what went wrong.
MAX_FAILURE_CHARACTERS = 60_000


def run_worker(context: WorkerContext) -> int:
    """Run a worker process to its end. Returns its exit code.

    context   what the arbiter has prepared

    The caller has just forked, has reset the arbiter's signal handlers, and has closed all
    descriptors that are not the worker's.
    """
    row = context.scoreboard.row(context.row_index)
    tap = _set_up(context, row)
    try:
        worker = _boot(context)
        worker.tap = tap
    except AppImportError as error:
        text = f"{error}\n{error.details}".rstrip()
        return _boot_failed(context, "app", text, EXIT_APP)
    except ServoError as error:
        return _boot_failed(context, "boot", str(error), EXIT_BOOT)
    except Exception:  # noqa: BLE001  the arbiter gets the traceback, and logs it
        return _boot_failed(context, "boot", traceback.format_exc(), EXIT_BOOT)
    _tune_collector()
    try:
        worker.serve()
    except ServoError as error:
        if row[row_layout.STATE] != row_layout.STATE_BOOTING:
            raise
        return _boot_failed(context, "boot", str(error), EXIT_BOOT)
    finally:
        if worker.access is not None:
            worker.access.close()
        tap.send_last(context.channel)
        context.mailbox.close()
    hooks = context.settings.hooks
    if hooks.worker_exit is not None:
        hooks.worker_exit(context.server, context.hook_worker)
    PythonExit(
        context.mailbox, context.channel.fileno(), row, worker.reopen_logs, worker.end_ns
    ).run()
    tap.send_last(context.channel)
    return 0


def _set_up(context: WorkerContext, row: memoryview) -> inspection.LogTap:
    """Turn the forked process into a worker, before any code of the user runs in it."""
    row[row_layout.PID] = os.getpid()
    row[row_layout.STATE] = row_layout.STATE_BOOTING
    row[row_layout.BEAT_NS] = row_layout.now_ns()
    context.hook_worker = HookWorker(context, row)
    tap = _watch_log(row)
    register_exit_functions()
    _install_abort(context)
    inspection.answer_signals(context.dump_fd)
    _set_title(f"servo: worker {context.slot} [{context.settings.app}]")
    context.channel = tap.channel = SharedChannel(context.channel)
    context.mailbox = Mailbox(context.channel, context.slot, context.serial, context.scoreboard)
    context.forks = Forks(context.listeners, context.channel, context.mailbox)
    cluster.install(context.mailbox)
    return tap


def _boot(context: WorkerContext) -> Worker:
    """Load the application, and make the worker that its interface needs."""
    settings = context.settings
    hooks = settings.hooks
    context.channel.send(Booting())
    if hooks.post_fork is not None:
        hooks.post_fork(context.server, context.hook_worker)
    become(settings.user, settings.group, settings.initgroups)
    os.chdir(settings.directory)
    drop_config_modules(settings)
    # Drop the message handlers of the configuration's modules: they were for the arbiter. But if
    # the post_fork hook has imported the application, the handlers may be the application's.
    if context.hook_worker.app.callable is None:
        cluster.forget_handlers()
    _import_own()
    prepare_import_path(settings)
    app = context.hook_worker.app.take()
    kind = worker_for(settings, app)
    worker = kind(context, app)
    inspection.answer_requests_signal(worker.requests_report, context.dump_fd)
    context.forks.own(REQUESTS_SIGNAL)
    context.forks.in_child = worker.in_child
    context.hook_worker.attach(worker)
    if hooks.post_worker_init is not None:
        hooks.post_worker_init(context.hook_worker)
    return worker


def _watch_log(row: memoryview) -> inspection.LogTap:
    """Count the lines that this worker logs, and send them to the arbiter for operators."""
    tap = inspection.LogTap()
    log_module.set_tap(tap)
    count_log(row)
    return tap


def _boot_failed(context: WorkerContext, kind: str, text: str, code: int) -> int:
    try:
        context.channel.send(BootFailed(kind, text[-MAX_FAILURE_CHARACTERS:]))
        while not context.channel.flush():
            context.channel.wait_writable(1.0)
    except ChannelClosed:
        log.error("This worker could not boot: %s", text)
    return code


def _install_abort(context: WorkerContext) -> None:
    """Handle SIGABRT, which the arbiter sends if the heartbeat stops: print all stacks, and end.

    The order matters. faulthandler prints the threads' stacks in C, even if the interpreter is
    stuck, and then calls the handler that was installed before it. If the Python handler came
    second, it would replace faulthandler's.
    """

    def on_abort(_signum: int, _frame: FrameType | None) -> None:
        inspection.print_tasks(log_module.crash_fd())
        hook = context.settings.hooks.worker_abort
        if hook is not None:
            context.hook_worker.aborted = True
            hook(context.hook_worker)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)

    signal.signal(signal.SIGABRT, on_abort)
    faulthandler.enable(file=log_module.crash_fd(), all_threads=True)


def _import_own() -> None:
    """Import modules that the worker uses later, before the application can get in their way.

    The application's directory comes first in the import path from here on, and may contain a
    `queue.py` of its own. Later there may also be no free descriptor to open a module with.
    """
    import queue  # noqa: F401  the arbiter does not need them, so they are not imported yet
    import tempfile  # noqa: F401


def _tune_collector() -> None:
    """Exclude the objects that exist now from the search for cyclic garbage.

    Modules and classes are never garbage, and searching them takes a tenth of a request's time in
    frameworks that make many objects. `servo.__main__` makes the search rare as well.
    """
    gc.collect()
    gc.freeze()


def _set_title(title: str) -> None:
    if "setproctitle" in sys.modules or _can_import("setproctitle"):
        import setproctitle

        setproctitle.setproctitle(title)


def _can_import(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
