"""Tells idle threads of a worker from busy ones by their stacks.

A thread of the server is busy if it runs code of the app, even if this code waits. A thread that
the app has started is idle if it waits in a function of Python's library for threads and queues.
Compiled modules have no frames in a stack, so the frames of the server alone prove nothing.
"""

from __future__ import annotations

import re

# A frame in the two forms: of traceback (`line 3, in f`) and of faulthandler (`line 3 in f`).
_FRAME = re.compile(r'^  File "([^"\n]*)", line \d+,? in (.*)$', re.MULTILINE)
_OWN = re.compile(r"/servo/(?:apps|workers|ipc|shared_memory|logs|arbiter|net|http|metrics)/")
# The modules of Python, and uvloop, in which a thread without work waits.
_WAITING = re.compile(
    r"(?:/python3[\d.]*t?/(?:threading|queue|selectors|sched|concurrent/futures/\w+|asyncio/\w+)\.py"
    r"|/uvloop/\w+\.\w+)$"
)


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
