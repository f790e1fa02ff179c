"""Shows operators what a worker does: its stacks, its requests, its log lines.

A worker normally answers on its channel to the arbiter. If its only thread is busy, the arbiter
sends a signal (`servo.workers.query_signals`), and the worker writes into its dump file. Log lines
go to the arbiter as they are logged, whether an operator asks for them or not.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from servo.ipc.channel import ChannelClosed
from servo.ipc.messages import LogRecords
from servo.logs.error_log import message_of
from servo.workers.query_signals import REQUESTS_SIGNAL, STACK_SIGNAL

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType

    from servo.ipc.channel import Channel, SharedChannel

log = logging.getLogger("servo.error")

# Characters of a report's stacks. It has to fit a frame of the channel (1 MiB) even if JSON needs
# six bytes for each.
MAX_STACKS_CHARACTERS = 128 << 10
# Characters of one stack. The end is kept: it has the innermost calls.
MAX_STACK_CHARACTERS = 16 << 10
# Requests of a report, and bytes of the target of one.
MAX_REQUESTS = 200
MAX_TARGET = 500

# Log lines, and their characters, that a worker sends in a second. Further ones are only counted.
MAX_RECORDS = 200
MAX_RECORDS_CHARACTERS = 64 << 10
# Characters of one log line.
MAX_RECORD_CHARACTERS = 8192


class LogTap:
    """Sends the records of the error log to the arbiter, for operators who ask for them.

    The thread that logs a line sends it at once: the last line before a worker gets stuck is the
    one that an operator looks for. So each line costs a message, and the lines of a second are
    limited. A record that can't be sent at once waits until the worker's next sweep.

    clock     returns monotonic seconds

    on_first  called, in any thread, when a first record has to wait
    channel   to the arbiter
    """

    on_first: Callable[[], None] | None = None
    channel: SharedChannel | None = None

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._records: deque[list[Any]] = deque()
        self._second = clock()
        self._taken = 0
        self._characters = 0
        self._lost = 0
        # Reentrant: a signal's handler may log amid a line of its own thread.
        self._lock = threading.RLock()
        self._passing = threading.Lock()

    def __call__(self, record: logging.LogRecord) -> None:
        """Send a record, or keep it for later; count it if there are too many in this second."""
        text = message_of(record)
        if len(text) > MAX_RECORD_CHARACTERS:
            text = text[:MAX_RECORD_CHARACTERS] + " …"
        with self._lock:
            is_first = not self.waiting
            if self._has_room(len(text)):
                self._records.append([record.created, record.levelname.lower(), text])
            else:
                self._lost += 1
        self.pass_on()
        if is_first and self.waiting and self.on_first is not None:
            self.on_first()

    def _has_room(self, characters: int) -> bool:
        now = self._clock()
        if now - self._second >= 1.0:
            self._second = now
            self._taken = self._characters = 0
        self._taken += 1
        self._characters += characters
        return self._taken <= MAX_RECORDS and self._characters <= MAX_RECORDS_CHARACTERS

    @property
    def waiting(self) -> bool:
        """Whether records, or a count of lost ones, wait to be sent."""
        return bool(self._records or self._lost)

    def pass_on(self) -> None:
        """Send the records that wait, unless another thread does or the channel is full."""
        # If another thread is sending, or this is a signal handler inside it, leave the record to
        # that thread: it checks for further records after it has released the lock.
        while self._records and self.channel is not None:
            if not self._passing.acquire(blocking=False):
                return
            try:
                if not self._send_records(self.channel):
                    return
            finally:
                self._passing.release()

    def _send_records(self, channel: SharedChannel) -> bool:
        with self._lock:
            records, self._records = self._records, deque()
        try:
            sent = channel.send_if_free(LogRecords(list(records)))
        except ChannelClosed:
            self.channel = None  # not logged: the line would come here again
            return False
        if not sent:
            with self._lock:
                self._records.extendleft(reversed(records))
        return sent

    def send(self, channel: Channel) -> None:
        """Send all records and the count of lost ones, unless the arbiter is behind with reading.

        Raises ChannelClosed if the arbiter is gone.
        """
        if channel.wants_write and not channel.flush():
            return
        with self._lock:
            records, self._records = list(self._records), deque()
            lost, self._lost = self._lost, 0
        if records or lost:
            channel.send(LogRecords(records, lost))

    def send_last(self, channel: Channel) -> None:
        """Do as `send`, but ignore that the arbiter is gone."""
        try:
            self.send(channel)
        except ChannelClosed:
            log.debug("The last log lines are not sent: the arbiter is gone")


def stacks(loop: asyncio.AbstractEventLoop | None) -> dict[str, Any]:
    """Return the stacks of all threads and of the tasks of an event loop, innermost call last.

    loop  the event loop; None if there is none
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    budget = MAX_STACKS_CHARACTERS
    threads, tasks, left_out = [], [], 0
    for ident, frame in frames.items():
        text = "".join(traceback.format_list(_relevant_frames(frame)))[-MAX_STACK_CHARACTERS:]
        budget -= len(text)
        if budget < 0:
            left_out += 1
        else:
            threads.append({"name": names.get(ident, f"thread {ident}"), "stack": text})
    for task in _tasks_of(loop):
        text = "".join(traceback.format_list(task_frames(task)))[-MAX_STACK_CHARACTERS:]
        budget -= len(text)
        if budget < 0:
            left_out += 1
        else:
            tasks.append({"name": task.get_name(), "stack": text})
    return {"threads": threads, "tasks": tasks, "left_out": left_out}


def _relevant_frames(frame: FrameType) -> list[traceback.FrameSummary]:
    """Return a thread's stack without the frames of the worker's boot and of this answer."""
    summary = traceback.extract_stack(frame)
    names = [each.name for each in summary]
    start = names.index("run_worker") + 1 if "run_worker" in names else 0
    end = len(names)
    if names[-1:] == ["stacks"] and "on_channel" in names:
        end = names.index("on_channel")
    return list(summary[start:end])


def print_tasks(fd: int) -> None:
    """Write the stacks of asyncio's tasks to a file. No thread's stack shows waiting coroutines.

    fd  the file's descriptor
    """
    # With `getattr`, because the code that hangs may be the import of asyncio.
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    loop = running() if running is not None else None
    if loop is None:
        return
    tasks = _tasks_of(loop)
    with os.fdopen(os.dup(fd), "w", encoding="utf-8", errors="backslashreplace") as file:
        print(f"{len(tasks)} asyncio tasks:", file=file)
        for task in tasks:
            print(f"{task!r}:", file=file)
            traceback.print_list(task_frames(task), file=file)


def _tasks_of(loop: asyncio.AbstractEventLoop | None) -> set[asyncio.Task[Any]]:
    if loop is None:
        return set()
    import asyncio  # it is loaded, as there is a loop

    return asyncio.all_tasks(loop)


def task_frames(task: asyncio.Task[Any]) -> list[traceback.FrameSummary]:
    """Return the frames of a task, outermost first. `Task.get_stack` has only the outermost one."""
    frames: list[traceback.FrameSummary] = []
    awaiting: Any = task.get_coro()
    while awaiting is not None:
        frame = getattr(awaiting, "cr_frame", None) or getattr(awaiting, "ag_frame", None)
        if frame is not None:
            frames += traceback.StackSummary.extract([(frame, frame.f_lineno)])
        awaiting = getattr(awaiting, "cr_await", None) or getattr(awaiting, "ag_await", None)
    return frames


def running(requests: list[tuple[int, str, bytes, str]], now_ns: int) -> dict[str, Any]:
    """Describe the requests that the application has, the oldest first.

    requests  (start in monotonic nanoseconds, method, target, client)
    now_ns    monotonic nanoseconds
    """
    rows = [
        {
            "method": method,
            "target": target[:MAX_TARGET].decode("latin-1"),
            "client": client,
            "seconds": round((now_ns - start) / 1e9, 3),
        }
        for start, method, target, client in sorted(requests)
    ]
    return {"requests": rows[:MAX_REQUESTS], "total": len(rows)}


def log_unfinished(requests: list[tuple[int, str, bytes, str]], now_ns: int) -> None:
    """Log the requests that a stop still waits for, the oldest first, before they are cut off.

    requests  as for `running`
    now_ns    monotonic nanoseconds
    """
    if not requests:
        return
    rows = running(requests, now_ns)["requests"]
    shown = ", ".join(
        f"{row['method']} {row['target']!a} ({row['seconds']:.1f} s)" for row in rows[:5]
    )
    more = f" and {len(requests) - 5} more" if len(requests) > 5 else ""
    log.warning("graceful_timeout is almost over, and these are unfinished: %s%s", shown, more)


def let_handlers_run() -> None:
    """Do nothing, so that the interpreter calls the Python handlers of signals that have arrived.

    It does that when it enters a Python function. A compiled function does not count, so this
    module must not be compiled.
    """


def answer_signals(dump_fd: int) -> None:
    """Dump all stacks on STACK_SIGNAL. faulthandler does so even if the interpreter is stuck.

    dump_fd  the file to write to; -1 if there is none
    """
    if STACK_SIGNAL and dump_fd >= 0:
        faulthandler.register(STACK_SIGNAL, file=dump_fd, all_threads=True, chain=False)


def answer_requests_signal(report: Callable[[], dict[str, Any]], dump_fd: int) -> None:
    """Have the main thread write down its requests when a signal asks for them.

    report   returns the requests, as `running` does
    dump_fd  the file to write to; -1 if there is none
    """
    if not REQUESTS_SIGNAL or dump_fd < 0:
        return

    def on_signal(_signum: int, _frame: FrameType | None) -> None:
        try:
            os.write(dump_fd, json.dumps(report()).encode() + b"\n")
        except Exception:
            # This runs inside the application's code, which must not get the exception.
            log.exception("Requests can't be reported")

    signal.signal(REQUESTS_SIGNAL, on_signal)
