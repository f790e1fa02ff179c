"""Shows operators the stacks and requests of a worker.

A worker normally answers on its channel to the arbiter. If its only thread is busy, the arbiter
sends a signal (`servo.workers.query_signals`), and the worker writes into its dump file.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

from servo.workers.query_signals import REQUESTS_SIGNAL, STACK_SIGNAL

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import FrameType


log = logging.getLogger("servo.error")

# Characters of all stacks in a report. The report must fit into a message (1 MiB) even if JSON
# needs six bytes for each character.
MAX_STACKS_CHARACTERS = 128 << 10
# Characters of one stack. A longer one loses its beginning, because the innermost calls are at the
# end.
MAX_STACK_CHARACTERS = 16 << 10
# Requests in a report, and bytes of each request's target.
MAX_REQUESTS = 200
MAX_TARGET = 500


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
    """Return a thread's stack without the frames of the worker's boot and of this module."""
    summary = traceback.extract_stack(frame)
    names = [each.name for each in summary]
    start = names.index("run_worker") + 1 if "run_worker" in names else 0
    end = len(names)
    if names[-1:] == ["stacks"] and "on_channel" in names:
        end = names.index("on_channel")
    return list(summary[start:end])


def print_tasks(fd: int) -> None:
    """Write the stacks of asyncio's tasks to a file: waiting coroutines are in no thread's stack.

    fd  the file's descriptor
    """
    # Use `getattr`, because asyncio may be half imported: its import may be the code that hangs.
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
    import asyncio  # already loaded, as a loop runs

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
    """Describe the running requests, oldest first.

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
    """Log the requests that a stop is about to cut off, oldest first.

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
    """Let the interpreter call the Python handlers of signals that have arrived.

    The interpreter calls them when it enters a Python function, but not when it enters a compiled
    one. So this module must not be compiled.
    """


def answer_signals(dump_fd: int) -> None:
    """Dump all stacks on STACK_SIGNAL, by faulthandler, even if the interpreter is stuck.

    dump_fd  the descriptor of the file to write to; -1 if there is none
    """
    if STACK_SIGNAL and dump_fd >= 0:
        faulthandler.register(STACK_SIGNAL, file=dump_fd, all_threads=True, chain=False)


def answer_requests_signal(report: Callable[[], dict[str, Any]], dump_fd: int) -> None:
    """Make the main thread write its requests to a file when it gets REQUESTS_SIGNAL.

    report   returns the requests, as `running` does
    dump_fd  the file's descriptor; -1 if there is none
    """
    if not REQUESTS_SIGNAL or dump_fd < 0:
        return

    def on_signal(_signum: int, _frame: FrameType | None) -> None:
        try:
            os.write(dump_fd, json.dumps(report()).encode() + b"\n")
        except Exception:
            # The signal handler runs inside the application's code, which must not get the
            # exception.
            log.exception("Requests can't be reported")

    signal.signal(REQUESTS_SIGNAL, on_signal)
