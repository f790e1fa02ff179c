"""The system calls for child processes: fork them, wait for them, end them with their parent.

A forked child is a copy of the arbiter, with its signal handlers, its exit functions, its buffered
output and its open descriptors. `fork` first detaches the copy from the arbiter, and then runs the
child's code. `ChildTable` decides which descriptors the child closes.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn, TextIO

from servo.arbiter import process_info
from servo.arbiter.signals import reset_in_child
from servo.logs.error_log import forget_pending
from servo.logs.standard_streams import restore_prints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

log = logging.getLogger("servo.error")


def fork(main: Callable[[], int], close: Callable[[], None]) -> int:
    """Fork a child that runs `main` and exits with its result. Returns its pid. Raises OSError.

    main    runs in the child after its set-up
    close   runs in the child first, and closes the descriptors that only the arbiter may have

    All signals are blocked from before the fork until the child has set its handlers. Otherwise a
    signal to the child would be written to the arbiter's socket, and might stop the server.
    """
    flush_output()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    # The garbage collector writes into every object that it examines, and each write makes a copy
    # of a page that the child shares with the arbiter. It does not examine frozen objects.
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
    """Yield the pid and exit code of each process that has ended. Never blocks.

    If a signal has ended the process, the code is minus the signal's number.
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
    """Block until a child has ended. Returns its exit code, as in `reap`."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_within(pid: int, limit_s: float) -> bool:
    """Wait at most `limit_s` seconds for the end of a child. Returns False if it has not ended."""
    end = time.monotonic() + limit_s
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
    except ChildProcessError:
        log.debug("Process %d was reaped elsewhere", pid)
    return True


def end_within(pid: int, limit_s: float, user: int | None) -> None:
    """Wait for the end of a child; if it has not ended after a time, kill it and wait once more.

    Even SIGKILL does not end a process that waits for a dead disk, so the second wait is limited,
    too.

    pid      the child; 0: none
    limit_s  the length of each wait in seconds
    user     the uid that the child runs as, for a message; None: that of this process
    """
    if (
        pid
        and not wait_within(pid, limit_s)
        and process_info.send_signal(pid, signal.SIGKILL, user)
    ):
        wait_within(pid, limit_s)


def is_child(pid: int) -> bool:
    """Whether a process is a child of this one, running or not yet reaped."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return False
    return True


def adopt_orphans() -> str | None:
    """Become the parent of all orphaned descendants, as PID 1 is. Returns None, or the error.

    Then this process can wait for them like for its own children (Linux only).
    """
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no PR_SET_CHILD_SUBREAPER"
    import ctypes

    set_child_subreaper = 36  # PR_SET_CHILD_SUBREAPER, see prctl(2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_child_subreaper, 1, 0, 0, 0) != 0:
        return f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(ctypes.get_errno())}"
    return None


def die_with(parent: int) -> None:
    """Let the kernel end this child when its parent dies. Only on Linux.

    parent   the pid of the process that forked this one
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG, see prctl(2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0) != 0:
        log.debug("prctl(PR_SET_PDEATHSIG) failed: %s", os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:  # the parent died before the call to prctl
        os._exit(1)


def _live(main: Callable[[], int], close: Callable[[], None], mask: Iterable[int]) -> NoReturn:
    """Run the child from its first instruction to its last."""

    def begin() -> int:
        # Functions that the arbiter or its configuration file has registered must not run here.
        atexit._clear()
        reset_in_child()
        restore_prints()
        forget_pending()
        close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return main()

    run_to_exit(begin)


def run_to_exit(main: Callable[[], int]) -> NoReturn:
    """Run a function as the code of a forked process, and exit with its result.

    Never returns: otherwise the code after the fork would run in two processes.
    """
    code = 1
    try:
        code = main()
        # os._exit runs no atexit functions, but the app's libraries rely on theirs.
        atexit._run_exitfuncs()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # the child must never continue as an arbiter
        log.exception("Process %d ends by an unexpected error", os.getpid())
    finally:
        flush_output()
        os._exit(code)


def flush_output() -> None:
    """Write the buffered output of the standard streams."""
    _flush(sys.stdout)
    _flush(sys.stderr)


def _flush(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError) as error:  # the stream has no reader, or is closed
        log.debug("An output stream can't be flushed: %s", error)
