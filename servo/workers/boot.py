"""One worker process, from just after the fork to its exit code.

The arbiter forks, closes the descriptors that the child must not have, and calls `run_worker`. This
function

1. turns the forked copy of the arbiter into a worker: signals, log, channel, mailbox;
2. gives up privileges, imports the application, and makes the `Worker` for its interface (if a mold
   has forked the process, the mold has already given up privileges and imported the application);
3. lets the worker serve until the arbiter asks it to end and its last request is answered;
4. ends the interpreter as Python ends a script (see `python_exit`), and returns the exit code.

If the worker fails before it is ready, it sends the arbiter a `BootFailed`. The arbiter logs the
reason, and decides whether to try again.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

from servo.apps.loader import prepare_import_path
from servo.cluster import messages, schedules
from servo.collector import tune_for_requests
from servo.errors import AppImportError, ServoError
from servo.ipc.channel import ChannelClosed, SharedChannel
from servo.ipc.messages import EXIT_APP, EXIT_BOOT, BootFailed, Booting, MoldForked
from servo.logs import app_output
from servo.logs import error_log as log_module
from servo.logs.entry_counts import count_log
from servo.net.privileges import become
from servo.pools.places import places
from servo.settings.sources import SLOT_VARIABLE, drop_config_modules
from servo.shared_memory import row_layout
from servo.shared_memory.output_rings import ACCESS, APP
from servo.workers import inspection
from servo.workers.fork_safety import check_descriptors, reseed, warn_of_threads
from servo.workers.forks import Forks
from servo.workers.messages.mailbox import Mailbox
from servo.workers.python_exit import PythonExit, forget_children, register_exit_functions
from servo.workers.query_signals import REQUESTS_SIGNAL
from servo.workers.registry import worker_for
from servo.workers.request.hooks import HookWorker

if TYPE_CHECKING:
    from types import FrameType

    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard
    from servo.workers.context import WorkerContext
    from servo.workers.worker import Worker

log = logging.getLogger("servo.error")

# A traceback of this many characters fits into a message (1 MiB) even if JSON escapes every
# character. A longer one loses its middle: its first line and its end name the error.
MAX_FAILURE_CHARACTERS = 60_000


def run_worker(context: WorkerContext) -> int:
    """Run a worker process to its end. Returns its exit code.

    context  the settings, sockets and memory that the arbiter has prepared

    The caller must have just forked, and then reset the arbiter's signal handlers and closed the
    descriptors that the worker does not need.
    """
    row = context.scoreboard.row(context.row_index)
    _set_up(context, row)
    try:
        worker = _boot(context)
    except AppImportError as error:
        text = f"{error}\n{error.details}".rstrip()
        return _boot_failed(context, "app", text, EXIT_APP)
    except ServoError as error:
        return _boot_failed(context, "boot", str(error), EXIT_BOOT)
    except Exception as error:  # noqa: BLE001  the arbiter gets the traceback, and logs it
        return _boot_failed(context, "boot", describe(error), EXIT_BOOT)
    tune_for_requests()
    try:
        worker.serve()
    except ServoError as error:
        if row[row_layout.STATE] != row_layout.STATE_BOOTING:
            raise
        return _boot_failed(context, "boot", str(error), EXIT_BOOT)
    finally:
        if worker.access is not None:
            worker.access.close()
        context.mailbox.close()
    if worker.next_mold:
        _fork_mold(context, worker)
    hooks = context.settings.hooks
    if hooks.worker_exit is not None:
        hooks.worker_exit(context.server, context.hook_worker)
    PythonExit(
        context.mailbox, context.channel.fileno(), row, worker.reopen_logs, worker.end_ns
    ).run()
    return 0


def _fork_mold(context: WorkerContext, worker: Worker) -> None:
    """Fork the next mold from this worker, which has drained, and tell the arbiter."""
    pid, problem = 0, worker.end_schedules() or worker.end_threads()
    try:
        if context.fork_mold is None:
            problem = "the worker has no socket for a mold"
        elif not problem:
            hook = context.settings.hooks.before_refork
            if hook is not None:
                hook(context.server, context.hook_worker)
            warn_of_threads("in a worker that forks the next mold")
            pid = context.fork_mold(worker.next_mold, worker.close_in_mold)
    except (Exception, SystemExit) as error:
        log.exception("The next mold can't be forked from this worker")
        problem = f"{type(error).__name__}: {error}"
    worker.tell(MoldForked(pid, problem.partition("\n")[0]))


def _set_up(context: WorkerContext, row: memoryview) -> None:
    """Turn the forked process into a worker, before any code of the user runs."""
    row[row_layout.PID] = os.getpid()
    row[row_layout.STATE] = row_layout.STATE_BOOTING
    row[row_layout.BEAT_NS] = row_layout.now_ns()
    # Set it before the first hook, because a hook may import the application.
    os.environ[SLOT_VARIABLE] = str(context.slot)
    context.hook_worker = HookWorker(context, row)
    count_log(row)
    keep_output(context.scoreboard, context.row_index)
    rings = context.scoreboard.output
    if rings is not None and context.fork_mold is None:
        # Its own rings are mapped. It can't write into those of others without the descriptor.
        rings.close()
    if context.app is None:
        register_exit_functions()
    else:
        # The mold has already registered Python's exit functions. Don't register them again: the
        # application has since registered its own.
        forget_children()
    _install_abort(context)
    inspection.answer_signals(context.dump_fd)
    set_title(f"servo: worker {context.slot} [{context.settings.app}]")
    context.channel = SharedChannel(context.channel)
    context.mailbox = Mailbox(context.channel, context.slot, context.serial, context.scoreboard)
    context.mailbox.may_control = context.settings.cluster_control
    context.forks = Forks(context.listeners, context.channel, context.mailbox)
    messages.install(context.mailbox)
    places.enter(context.settings.pools)


def _boot(context: WorkerContext) -> Worker:
    """Load the application, and make the worker that its interface needs."""
    settings = context.settings
    hooks = settings.hooks
    context.channel.send(Booting())
    hook_app = context.hook_worker.app
    if context.app is not None:
        hook_app.preset(context.app)
        reseed()
        if hooks.after_mold is not None:
            hooks.after_mold(context.server, context.hook_worker)
    if hooks.post_fork is not None:
        hooks.post_fork(context.server, context.hook_worker)
    if context.app is None:
        # If the post_fork hook has imported the application, keep the message handlers: some may
        # belong to the application.
        prepare_import(settings, forget_handlers=hook_app.callable is None)
    app = hook_app.take()
    check_descriptors(context.channel)
    kind = worker_for(settings, app)
    worker = kind(context, app)
    inspection.answer_requests_signal(worker.requests_report, context.dump_fd)
    context.forks.own(REQUESTS_SIGNAL)
    context.forks.in_child = worker.in_child
    context.hook_worker.attach(worker)
    if hooks.post_worker_init is not None:
        hooks.post_worker_init(context.hook_worker)
    return worker


def prepare_import(settings: Settings, *, forget_handlers: bool) -> None:
    """Do everything that comes before the import of the application.

    settings         the settings of the generation
    forget_handlers  whether to drop the message handlers and jobs that modules of the
                     configuration have registered: they were for the arbiter

    Raises ConfigError if the process can't become the configured user.
    """
    become(settings.user, settings.group, settings.initgroups)
    os.chdir(settings.directory)
    drop_config_modules(settings)
    if forget_handlers:
        messages.forget_handlers()
        schedules.forget_jobs()
    _import_own()
    prepare_import_path(settings)


def keep_output(scoreboard: Scoreboard, row: int, *, has_access_log: bool = True) -> None:
    """Keep the output of this process in shared memory, for operators.

    scoreboard      has the rings
    row             the row of this process in them
    has_access_log  whether this process serves requests
    """
    log_module.set_tap(None)  # the arbiter's own
    app_output.keep_in(None, None)
    rings = scoreboard.output
    if rings is None:
        return
    try:
        ring = rings.writer(row, APP)
        access_ring = rings.writer(row, ACCESS) if has_access_log else None
    except OSError as error:
        log.warning("servoctl logs can't show the output of this process: %s", error)
        return
    app_output.keep_in(ring, access_ring)
    app_output.install()
    log_module.set_tap(app_output.keep_record)


def _boot_failed(context: WorkerContext, kind: str, text: str, code: int) -> int:
    try:
        context.channel.send(BootFailed(kind, shorten(text, MAX_FAILURE_CHARACTERS)))
        while not context.channel.flush():
            context.channel.wait_writable(1.0)
    except ChannelClosed:
        log.error("This worker could not boot: %s", text)
    return code


def describe(error: Exception) -> str:
    """Describe an unexpected error: the error itself in the first line, and then its traceback.

    The arbiter gives the first line as the reason of a reload that is rolled back.
    """
    first = f"{type(error).__name__}: {error}".partition("\n")[0]
    return f"{first}\n{''.join(traceback.format_exception(error))}"


def shorten(text: str, most: int) -> str:
    """Shorten the text of a failure: keep the first line, and the end, which names the error.

    text  the text
    most  the most characters of the result
    """
    if len(text) <= most:
        return text
    first, _, rest = text.partition("\n")
    first = first[: most // 2]
    return f"{first}\n{rest[-(most - len(first) - 1) :]}"


def _install_abort(context: WorkerContext) -> None:
    """Handle SIGABRT, which the arbiter sends if the heartbeat stops: print all stacks, and end.

    The order matters: install the Python handler first. faulthandler's handler, in C, prints the
    threads' stacks even if the interpreter is stuck, and then calls the earlier handler. The other
    way round, the Python handler would replace faulthandler's.
    """

    def on_abort(_signum: int, _frame: FrameType | None) -> None:
        inspection.print_tasks(log_module.crash_fd())
        hook = context.settings.hooks.worker_abort
        if hook is not None:
            context.hook_worker.aborted = True
            hook(context.hook_worker)
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)

    # If a mold has enabled faulthandler already, `enable` does nothing, and `on_abort` would
    # replace faulthandler's handler. So disable faulthandler first.
    faulthandler.disable()
    signal.signal(signal.SIGABRT, on_abort)
    faulthandler.enable(file=log_module.crash_fd(), all_threads=True)


def _import_own() -> None:
    """Import the modules that the worker uses later, before it imports the application.

    After that, the application's directory comes first in the import path, and may contain its own
    `queue.py`. Later there may also be no free descriptor for opening a module.
    """
    import queue  # noqa: F401  not imported at the top, because the arbiter does not need it
    import tempfile  # noqa: F401


def set_title(title: str) -> None:
    """Set the title of this process, if setproctitle is installed."""
    if "setproctitle" in sys.modules or _can_import("setproctitle"):
        import setproctitle

        setproctitle.setproctitle(title)


def _can_import(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None
