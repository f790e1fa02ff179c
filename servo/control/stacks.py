"""Writes the stacks of a worker as text, and tells its idle threads from the busy ones.

A thread of the server is busy if it runs code of the app, even if this code waits. A thread that
the app has started is idle if it waits in a function of Python's library for threads and queues.
Compiled modules have no frames in a stack, so the frames of the server alone prove nothing.
"""

from __future__ import annotations

import re
from typing import Any

# A frame in the two forms: of traceback (`line 3, in f`) and of faulthandler (`line 3 in f`).
_FRAME = re.compile(r'^  File "([^"\n]*)", line \d+,? in (.*)$', re.MULTILINE)
_OWN = re.compile(r"/servo/(?:apps|workers|ipc|shared_memory|logs|arbiter|net|http|metrics)/")
# The modules of Python, and uvloop, in which a thread without work waits.
_WAITING = re.compile(
    r"(?:/python3[\d.]*t?/(?:threading|queue|selectors|sched|concurrent/futures/\w+|asyncio/\w+)\.py"
    r"|/uvloop/\w+\.\w+)$"
)


def stack_lines(result: dict[str, Any]) -> list[str]:
    """The stacks of a worker's threads and tasks as lines, from the server's answer to "stack"."""
    parts = [f"worker {result['slot']} (pid {result['pid']}), {result['state']}"]
    if "text" in result:
        parts.append("\nIt is busy and does not answer; its threads, most recent call first:\n")
        dumps = result["text"].rstrip().split("\n\n")
        idle = {dump: is_idle(dump, innermost_first=True) for dump in dumps}
        # Leave out the frames from run_worker on: they belong to the start of the worker.
        for dump in sorted(dumps, key=lambda dump: idle[dump]):
            text = dump.partition(" in run_worker\n")[0].rpartition("\n")[0] or dump
            parts.append(re.sub(r"(?m):$", ", idle:", text, count=1) if idle[dump] else text)
        return "\n".join(parts).split("\n")
    mark_idle(result)
    for thread in sorted(result["threads"], key=lambda thread: thread["idle"]):
        idle_mark = ", idle" if thread["idle"] else ""
        parts.append(f"\nthread {thread['name']}{idle_mark}, most recent call last:")
        parts.append(thread["stack"].rstrip("\n"))
    for task in result["tasks"]:
        parts.append(f"\ntask {task['name']}, most recent await last:")
        parts.append(task["stack"].rstrip("\n") or "  (it is running, or has not started)")
    if result["left_out"]:
        parts.append(f"\n{result['left_out']} more stacks are not shown")
    return "\n".join(parts).split("\n")


def mark_idle(result: dict[str, Any]) -> None:
    """Add to each thread of an answer to "stack" whether it is idle.

    result   the answer; one of a busy worker is text, without a list of threads
    """
    for thread in result.get("threads", ()):
        is_main = thread["name"] == "MainThread"
        thread["idle"] = is_idle(thread["stack"], of_server=is_main)


def is_idle(stack: str, *, innermost_first: bool = False, of_server: bool = False) -> bool:
    """Whether a thread has nothing to do.

    stack             its stack as text
    innermost_first   whether the stack begins with the innermost call
    of_server         whether the server has started the thread, even if no frame shows it
    """
    files = [file for file, _function in _FRAME.findall(stack)]
    if innermost_first:
        files.reverse()
    if all(_OWN.search(file) or _WAITING.search(file) for file in files):
        return True
    is_servers = of_server or any(map(_OWN.search, files))
    return not is_servers and _WAITING.search(files[-1]) is not None
