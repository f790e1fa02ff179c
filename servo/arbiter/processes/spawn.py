"""The system calls behind every child process: fork it, wait for it, end it with its parent.

A forked child is a copy of the arbiter, with its signal handlers, its exit functions, its buffered
output and its open descriptors. `fork` makes an independent process of that copy before any other
code runs in it. `ChildTable` decides which descriptors the child closes.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, TextIO

from servo.arbiter.signals import reset_in_child
from servo.logs.error_log import forget_pending
from servo.logs.standard_streams import restore_prints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = logging.getLogger("servo.error")


def fork(main: Callable[[], int], close: Callable[[], None]) -> int:
    """Fork a child that runs `main` and exits with its result; return its pid. Raises OSError.

    main    runs in the child once everything else is set up
    close   runs in the child first, and closes the descriptors that are the arbiter's alone

    All signals are blocked from before the fork until the child's handlers are set. A signal that
    arrived in between would be written to the arbiter's socket, and stop the server.
    """
    flush_output()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    # The garbage collector writes into every object that it examines, and each write would copy a
    # page that the child shares with the arbiter. Frozen objects are left out.
    gc.freeze()
    try:
        pid = os.fork()
        if pid == 0:
            _live(main, close, mask)
        return pid
    finally:
        gc.unfreeze()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reap() -> Iterator[tuple[int, int]]:
    """Wait for each process that has ended: its pid and its exit code. Never blocks.

    The exit code of a process that a signal has ended is the signal's negative number.
    """
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def wait(pid: int) -> int:
    """Block until one child has ended; its exit code, as in `reap`."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_within(pid: int, limit_s: float) -> bool:
    """Wait for the end of one child, for `limit_s` seconds at most. False if it has not ended."""
    end = time.monotonic() + limit_s
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
    except ChildProcessError:
        log.debug("Process %d was reaped elsewhere", pid)
    return True


def die_with(parent: int) -> None:
    """Have the kernel end this child when its parent dies (Linux; elsewhere nothing happens).

    parent   the pid of the process that forked this one
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG, see prctl(2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0) != 0:
        log.debug("prctl(PR_SET_PDEATHSIG) failed: %s", os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:  # the parent died before the call of prctl
        os._exit(1)


def _live(main: Callable[[], int], close: Callable[[], None], mask: Iterable[int]) -> None:
    """Run the child from its first instruction to its last.

    This never returns, because the caller of `fork` would go on as a second arbiter.
    """
    code = 1
    try:
        # Exit functions of the arbiter and of its config file run once, in the arbiter.
        atexit._clear()
        reset_in_child()
        restore_prints()
        forget_pending()
        close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = main()
        # os._exit runs no exit functions, but the app's libraries count on theirs.
        atexit._run_exitfuncs()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # the child must not go on as an arbiter, whatever the error
        log.exception("Process %d ends by an unexpected error", os.getpid())
    finally:
        flush_output()
        os._exit(code)


def flush_output() -> None:
    """Write the output that is still buffered in the standard streams."""
    _flush(sys.stdout)
    _flush(sys.stderr)


def _flush(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError) as error:  # its reader is gone, or it is closed
        log.debug("An output stream can't be flushed: %s", error)
