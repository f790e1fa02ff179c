"""One pool process, from just after the fork to its exit code.

It boots like a worker: it becomes the configured user, changes to the application's directory, and
drops the modules of the configuration. Then it calls the pool's initializer, and runs tasks
(`servo.pools.task_server`) until the arbiter asks it to end. It imports no application; a task
imports the module of its function.

Its socket to the arbiter carries three things: `ready`, or the reason why it can't boot, and the
end of the stream, which asks it to end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.apps.loader import add_directory_of
from servo.errors import ServoError
from servo.ipc.messages import EXIT_APP
from servo.logs import error_log as log_module
from servo.pools.local import initialize
from servo.pools.places import places
from servo.pools.task_server import TaskServer
from servo.workers import inspection
from servo.workers.boot import describe, prepare_import, set_title, shorten
from servo.workers.fork_safety import reseed
from servo.workers.forks import IGNORED, do_nothing
from servo.workers.mold import MAX_FAILURE_CHARACTERS
from servo.workers.python_exit import register_exit_functions

if TYPE_CHECKING:
    from types import FrameType

    from servo.pools.board import Row
    from servo.settings.sources import Settings

READY = b"ready"
FAILED = b"failed:"


@dataclass(frozen=True, slots=True)
class PoolContext:
    """What a pool process gets from the arbiter.

    name      the pool's name
    slot      the process's place, 1 to N
    settings  the settings of the generation
    listener  the pool's listening socket
    order     the process's end of the socket to the arbiter
    row       its row of the pool's board
    dump_fd   the file for its stacks; -1 if there is none
    """

    name: str
    slot: int
    settings: Settings
    listener: socket.socket
    order: socket.socket
    row: Row
    dump_fd: int


def run_pool_process(context: PoolContext) -> int:
    """Run a pool process to its end. Returns its exit code.

    The caller must have just forked, and then reset the arbiter's signal handlers and closed the
    descriptors that the process does not need.
    """
    context.row.pid = os.getpid()
    set_title(f"servo: pool {context.name} {context.slot} [{context.settings.app}]")
    log_module.set_tap(None)
    register_exit_functions()
    _set_signals(context)
    try:
        _boot(context)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the arbiter gets it, and logs it
        text = str(error) if isinstance(error, ServoError) else describe_any(error)
        report = FAILED + shorten(text, MAX_FAILURE_CHARACTERS).encode("utf-8", "replace")
        with contextlib.suppress(OSError):  # the arbiter is gone
            context.order.send(report)
        return EXIT_APP
    with contextlib.suppress(OSError):  # the arbiter is gone: `run` notices it
        context.order.send(READY)
    TaskServer(context.listener, context.order.fileno(), context.row).run()
    # As at the exit of a Python script: wait for the threads that tasks have started.
    threading._shutdown()  # type: ignore[attr-defined]
    return 0


def describe_any(error: BaseException) -> str:
    """Describe why the process can't boot: the error in one line, and then its traceback."""
    if isinstance(error, Exception):
        return describe(error)
    return f"{type(error).__name__}: {error}"


def _set_signals(context: PoolContext) -> None:
    """Set the effects of signals. Those for a worker's other operations mean nothing here."""

    def end(_signum: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            context.order.shutdown(socket.SHUT_RD)

    for signum in IGNORED:
        signal.signal(signum, do_nothing)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGUSR1, lambda _signum, _frame: log_module.reopen_logs())
    # On SIGABRT, faulthandler prints the stacks of all threads, even if C code holds the
    # interpreter, and ends the process.
    faulthandler.enable(file=log_module.crash_fd(), all_threads=True)
    inspection.answer_signals(context.dump_fd)


def _boot(context: PoolContext) -> None:
    settings = context.settings
    places.enter(settings.pools)
    prepare_import(settings, forget_handlers=True)
    add_directory_of(settings.app)
    reseed()
    initialize(settings.pools[context.name].initializer)
