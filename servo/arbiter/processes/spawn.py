"""Forking a child that shares nothing of the arbiter's by accident."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, TextIO

from servo.arbiter.signals import reset_in_child
from servo.logs.error_log import forget_pending
from servo.logs.standard_streams import prints_as_before

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger("servo.error")


def fork(main: Callable[[], int], close: Callable[[], None]) -> int:
    """Fork a child that runs `main` and exits with its result; return its pid. Raises OSError.

    `close` runs in the child first: it closes what is the arbiter's alone. All signals are blocked
    from before the fork until the child's handlers are set: one that arrived in between would
    be written to the arbiter's socket, and stop the server.
    """
    flush_output()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    # The child's collector writes to all that it looks at. So it leaves alone what is ours, or each
    # page of it would be copied.
    gc.freeze()
    try:
        pid = os.fork()
        if pid == 0:
            _live(main, close, mask)
        return pid
    finally:
        gc.unfreeze()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def die_with(parent: int) -> None:
    """Have the kernel end this child when its parent dies (Linux; elsewhere nothing happens)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    set_death_signal = 1  # PR_SET_PDEATHSIG, see prctl(2)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(set_death_signal, int(signal.SIGKILL), 0, 0, 0) != 0:
        log.debug("prctl(PR_SET_PDEATHSIG) failed: %s", os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:  # it died before
        os._exit(1)


def _live(main: Callable[[], int], close: Callable[[], None], mask: Iterable[int]) -> None:
    """The child's whole life. Never returns: the code above the fork is the arbiter's."""
    code = 1
    try:
        # What the arbiter, or its config file, has registered is to run once, in the arbiter.
        atexit._clear()
        reset_in_child()
        prints_as_before()
        forget_pending()
        close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = main()
        # os._exit runs none of the exit functions that the app's libraries count on.
        atexit._run_exitfuncs()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # whatever it is, the child must not go on as an arbiter
        log.exception("Process %d ends by an unexpected error", os.getpid())
    finally:
        flush_output()
        os._exit(code)


def flush_output() -> None:
    """Write what waits in the standard streams."""
    _flush(sys.stdout)
    _flush(sys.stderr)


def _flush(stream: TextIO | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError) as error:  # its reader is gone, or it is closed
        log.debug("An output stream can't be flushed: %s", error)
