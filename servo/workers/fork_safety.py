"""Finds what must not be shared by a fork: threads, open connections, random number generators.

A forked process has no copies of its parent's other threads. It shares the parent's connections,
and its generators return the same numbers. A mold looks for threads and connections after it has
imported the application, and logs a warning for each: only the application can fix them. A worker
seeds the generators again (`reseed`).

`check_descriptors` finds an application that has closed the connection to the arbiter.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from servo.errors import AppImportError

if TYPE_CHECKING:
    from servo.ipc.channel import Channel

log = logging.getLogger("servo.error")

# How many stack frames of a thread a warning shows.
_FRAMES = 3


def warn_of_threads(where: str) -> None:
    """Log a warning for each other thread: it will not exist in forked processes.

    where  where the threads were started, such as "while the app was imported"
    """
    frames = sys._current_frames()
    for thread in threading.enumerate():
        if thread is threading.current_thread():
            continue
        frame = frames.get(thread.ident or 0)
        stack = "".join(traceback.format_stack(frame)[-_FRAMES:]) if frame is not None else ""
        log.warning(
            "The thread %s was started %s, and does not exist in the workers that are forked from "
            "it; start it in the post_worker_init hook or in the lifespan\n%s",
            thread.name,
            where,
            stack.rstrip(),
        )


def check_descriptors(ours: socket.socket | Channel) -> None:
    """Raise AppImportError if the application has closed the connection to the arbiter.

    ours  the socket or channel to the arbiter

    The arbiter can't get the reason, and the log may be closed, too. So this function writes the
    reason to the standard error.
    """
    try:
        is_socket = stat.S_ISSOCK(os.fstat(ours.fileno()).st_mode)
    except OSError:
        is_socket = False
    if not is_socket:
        text = (
            "the app has closed the descriptors of its process while it was imported, like a "
            "program that becomes a daemon (os.closerange); Servo needs them"
        )
        with contextlib.suppress(OSError):  # it may be closed, too
            os.write(2, f"servo: error: {text}\n".encode())
        raise AppImportError(text)


def open_sockets() -> dict[int, str]:
    """The open sockets of this process: descriptor -> the kernel's name of the socket."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor for the listing is closed by now
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:"):
                found[int(entry)] = name
    return found


def warn_of_sockets(before: dict[int, str]) -> None:
    """Log a warning for each newly opened socket: all workers would use it at the same time.

    before   the result of `open_sockets` before the application was imported
    """
    known = set(before.values())
    for fd, name in sorted(open_sockets().items()):
        if name not in known:
            log.warning(
                "A socket (%s) was opened while the app was imported, and all workers share it; "
                "open it in the post_worker_init hook or in the lifespan, or close it after the "
                "import",
                _describe(fd),
            )


def _describe(fd: int) -> str:
    """Describe a socket for people, by the address of its other end or else by its own."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        for word, get in (("connected to", sock.getpeername), ("bound to", sock.getsockname)):
            with contextlib.suppress(OSError):
                address = _text(get())
                if address:
                    return f"{word} {address}"
        return f"descriptor {fd}, without an address; an event loop has such sockets"


def _text(address: object) -> str:
    if isinstance(address, tuple):
        host, port = address[:2]
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    if isinstance(address, bytes):
        return os.fsdecode(address).replace("\0", "@")
    return str(address)


def reseed() -> None:
    """In a worker: seed the random generators that would give all workers the same numbers.

    Python's own generator seeds itself after a fork. numpy's global generator does not. Generators
    that the application has made on import can't be found.
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
