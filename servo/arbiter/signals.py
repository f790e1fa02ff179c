"""Turns signals into data: each one becomes a byte on a socket, which the arbiter's loop reads.

Python's C code writes the byte (`signal.set_wakeup_fd`), so a signal is noted even while other
Python code runs. After about 270 unread signals the socket is full, and further signals write no
byte. This does no harm: the loop looks for dead children every second anyway, and a Python handler
also counts the signals that ask for a stop.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

HANDLED = (
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class SignalInbox:
    """Catches the arbiter's signals from `install` to `close`.

    on_stop   called at once, in the middle of any Python code, when a signal asks for a stop
    """

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self._on_stop = on_stop
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before: dict[signal.Signals, Any] = {}
        self._old_fd = -1
        self._stops_handled = 0
        self._stops_read = 0
        self._last_stop = signal.SIGTERM

    def install(self, mask: Iterable[int] | None = None) -> None:
        """Set the handlers. Works in the main thread only.

        mask   the signals to leave blocked, by number; None changes nothing. Pending signals that
               are not in the mask now arrive
        """
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in HANDLED:
            handler = self._stop if signum in STOPPING else _ignore
            self._before[signum] = signal.signal(signum, handler)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _stop(self, signum: int, _frame: FrameType | None) -> None:
        """Interrupt code that hangs, because otherwise the loop would never read the byte."""
        self._stops_handled += 1
        self._last_stop = signal.Signals(signum)
        self._on_stop()

    def fileno(self) -> int:
        """The socket on which signals arrive."""
        return self._reader.fileno()

    def read(self) -> list[str]:
        """The names of the signals since the last call, in the order of their arrival.

        Call this when the socket is readable and about once a second, because a signal that finds
        the socket full leaves no byte.
        """
        # Take the count before reading the socket: these signals have written their bytes already.
        handled = self._stops_handled
        try:
            data = self._reader.recv(4096)
        except BlockingIOError:
            data = b""
        names = [signal.Signals(number).name for number in data]
        self._stops_read += sum(number in STOPPING for number in data)
        if self._stops_read < handled and len(data) < 4096:
            self._stops_read = handled
            names.append(self._last_stop.name)
        return names

    def close(self) -> None:
        """Restore the handlers from before `install`."""
        if self._before:
            signal.set_wakeup_fd(self._old_fd)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's copies of the sockets. `reset_in_child` resets the handlers."""
        self._reader.close()
        self._writer.close()


def reset_in_child() -> None:
    """Ignore the arbiter's signals in a newly forked child. The caller has blocked all signals.

    A signal may go to all processes of the server (`pkill -HUP servo`, Ctrl-C, systemd's TERM).
    Before the child has its own handlers, such a signal must neither end the child nor reach the
    arbiter's socket.
    """
    signal.set_wakeup_fd(-1)
    for signum in HANDLED:
        signal.signal(signum, signal.SIG_IGN)
    # Don't ignore SIGCHLD: the child could not wait for its own children.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def at_foreground_of_terminal() -> bool:
    """Whether this process gets SIGWINCH when its terminal's window is resized."""
    try:
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False  # no controlling terminal
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(fd)


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    """Do nothing: the byte on the socket is enough."""
