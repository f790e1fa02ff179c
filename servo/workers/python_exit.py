"""Ends a worker's interpreter as Python ends a script, but within the worker's time limit.

Python ends a process in steps: it lets executors finish their submitted jobs, waits for all threads
that are not daemons, and calls the functions of `atexit`. One of these is multiprocessing's, which
terminates daemonic processes and waits for the others. Libraries and applications rely on these
steps. But a worker was forked inside the arbiter's code, and must not return into it. So this
module takes the same steps, and then ends the process by `os._exit`.

Meanwhile a second thread, the guard, does the rest of the worker's work. It sends heartbeats, so
that the arbiter does not consider the worker hung. It reads the channel, because the arbiter may
ask for a quick stop. Shortly before the arbiter would kill the worker, the guard logs the threads
and processes that still run, and ends the process.
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

# Seconds that threads get to end by themselves in a quick stop.
QUICK_S = 1.0
# The guard ends the process this many seconds before the end of `graceful_timeout`, or a tenth of
# `graceful_timeout` if that is less.
MARGIN_S = 0.5
_NS = 1_000_000_000


def register_exit_functions() -> None:
    """Register two exit functions of the standard library again: a fork drops all of them.

    One flushes buffering log handlers, the other ends the processes of multiprocessing. Functions
    that the configuration file has registered are not called: they are for the arbiter.
    """
    atexit.register(logging.shutdown)
    forget_children()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        atexit.register(util._exit_function)


def forget_children() -> None:
    """Forget the processes that the parent had started by multiprocessing.

    This process can't wait for them, and multiprocessing would try to at its exit.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        process._children.clear()


def grace_end_ns(graceful_timeout_s: float, asked_ns: int) -> int:
    """When a stopping worker must have ended by itself, in monotonic nanoseconds.

    graceful_timeout_s  the setting, in seconds
    asked_ns            when the arbiter asked it to end, in monotonic nanoseconds
    """
    margin_s = min(MARGIN_S, graceful_timeout_s / 10)
    return asked_ns + int((graceful_timeout_s - margin_s) * _NS)


class PythonExit:
    """Ends the interpreter of a worker that has served its last request.

    mailbox      reads the channel
    channel_fd   the channel's descriptor
    row          the worker's row of the scoreboard
    reopen_logs  reopens the worker's log files
    end_ns       when to end the process at the latest, in monotonic nanoseconds
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
        """Wait for threads, and call the exit functions. Ends the process if it takes too long."""
        self._mailbox.release_owner()
        threading.Thread(target=self._watch, name="servo-exit", daemon=True).start()
        # Python has no public function for this. multiprocessing's children call this one, too.
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
            self._channel = None  # the arbiter is gone; SIGALRM will end the worker instead
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
        log.warning("The worker did not end in time, so this is cut off: %s", what)
        for child in children:
            # The process of a pool would otherwise wait for work forever.
            child.terminate()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(0)


def running_threads() -> list[threading.Thread]:
    """The threads that Python waits for when it exits."""
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
