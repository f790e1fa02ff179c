"""The end of a worker's interpreter, as a script has it, but not for longer than the worker may.

Python ends a process in steps: it lets executors finish what was submitted to them, waits for all
threads that are no daemons, and calls the functions of `atexit`. Among these is multiprocessing's,
which ends daemonic processes and waits for the others. Libraries and applications count on that.
The interpreter can't be left to do it: the code above the fork is the arbiter's, so a worker ends
by `os._exit`.

A second thread bounds it. It beats, or the arbiter would take the worker for hung. It reads the
channel, as a quick stop may be asked for meanwhile. And it cuts what is left shortly before the
arbiter would kill the worker, so that the log says what that was.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Any

from servo.ipc.channel import ChannelClosed
from servo.ipc.messages import ReopenLogs, Stop
from servo.shared_memory import row_layout
from servo.workers.threads import WorkerThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.workers.messages.mailbox import Mailbox

log = logging.getLogger("servo.error")

# A quick stop cuts what is open. This is for threads that are about to end anyway.
QUICK_S = 1.0
# So long before graceful_timeout is over, and never more than a tenth of it: to say what is cut.
MARGIN_S = 0.5
_NS = 1_000_000_000


def register_exit_functions() -> None:
    """Register again what the arbiter's modules had registered, and the fork has dropped.

    What the configuration file has registered is for the arbiter alone. These two are for every
    process: handlers that keep records back, and processes that multiprocessing has started.
    """
    atexit.register(logging.shutdown)
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        # Forget the arbiter's own children: this process can't wait for them.
        sys.modules["multiprocessing.process"]._children.clear()
        atexit.register(util._exit_function)


def grace_end_ns(graceful_timeout_s: float, asked_ns: int) -> int:
    """When a worker that was asked to end at `asked_ns` has to be done by itself, monotonic."""
    margin_s = min(MARGIN_S, graceful_timeout_s / 10)
    return asked_ns + int((graceful_timeout_s - margin_s) * _NS)


class PythonExit:
    """Ends the interpreter of a worker that has served its last request.

    mailbox      reads the channel
    channel_fd   the channel's descriptor
    row          the worker's row of the scoreboard
    reopen_logs  reopens the worker's log files
    end_ns       when to cut what has not ended by itself, in monotonic nanoseconds
    """

    def __init__(
        self,
        mailbox: Mailbox,
        channel_fd: int,
        row: memoryview,
        reopen_logs: Callable[[], None],
        end_ns: int,
    ) -> None:
        self._mailbox = mailbox
        self._channel: int | None = channel_fd
        self._row = row
        self._reopen_logs = reopen_logs
        self._end_ns = end_ns

    def run(self) -> None:
        """Wait for threads, and call the exit functions. May end the process instead."""
        self._mailbox.release_owner()
        threading.Thread(target=self._watch, name="servo-exit", daemon=True).start()
        # multiprocessing's own children call this at their end.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()

    def _watch(self) -> None:
        while (left_ns := self._end_ns - row_layout.now_ns()) > 0:
            self._row[row_layout.BEAT_NS] = row_layout.now_ns()
            poller = select.poll()
            if self._channel is not None and self._channel >= 0:
                poller.register(self._channel, select.POLLIN)
            if poller.poll(min(left_ns / 1e6, 1000)):
                self._read()
        self._cut()

    def _read(self) -> None:
        mailbox = self._mailbox
        try:
            messages = mailbox.on_wake() + mailbox.on_channel()
        except ChannelClosed:
            self._channel = None  # without an arbiter, the worker's alarm ends it
            return
        for message in messages:
            if isinstance(message, Stop) and message.quick:
                self._end_ns = min(self._end_ns, row_layout.now_ns() + int(QUICK_S * _NS))
            elif isinstance(message, ReopenLogs):
                self._reopen_logs()

    def _cut(self) -> None:
        children = running_children()
        names = [thread.name for thread in running_threads()]
        parts = [f"thread {name}" for name in names]
        parts += [f"process {child.name} (pid {child.pid})" for child in children]
        what = ", ".join(parts) or "a function of atexit"
        log.warning("The time to end is over, and this is cut: %s", what)
        for child in children:
            # Left alone, a pool's would wait for work until the machine is shut down.
            child.terminate()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(0)


def running_threads() -> list[threading.Thread]:
    """The threads that Python waits for at its end."""
    return [
        thread
        for thread in threading.enumerate()
        if not (
            thread.daemon
            or isinstance(thread, WorkerThread)
            or thread is threading.current_thread()
            or thread is threading.main_thread()
        )
    ]


def running_children() -> list[Any]:
    """The processes that the application has started by multiprocessing."""
    process = sys.modules.get("multiprocessing.process")
    return [] if process is None else list(process.active_children())
