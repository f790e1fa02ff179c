"""Signals as data: each one that arrives is a byte on a socket, read in the arbiter's loop.

The C-level handler writes the byte, so nothing is lost while Python code runs. Some 270 signals
fill the socket. The loop looks for dead children anyway, and signals that ask for a stop are
counted by their Python handlers as well.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
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

    on_stop   called at once, amid whatever runs, when a signal asks for a stop
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

    def install(self) -> None:
        """Take the signals over. Only the main thread can."""
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for signum in HANDLED:
            handler = self._stop if signum in STOPPING else _noted
            self._before[signum] = signal.signal(signum, handler)

    def _stop(self, signum: int, _frame: FrameType | None) -> None:
        """The byte is on the socket already; code that hangs must not keep it from being read."""
        self._stops_handled += 1
        self._last_stop = signal.Signals(signum)
        self._on_stop()

    def fileno(self) -> int:
        """For a selector."""
        return self._reader.fileno()

    def read(self) -> list[str]:
        """The names of the signals since the last call, in the order of their arrival.

        To be called when the socket is readable, and about once a second: what finds it full leaves
        no byte.
        """
        # Counted before the read: the bytes of all these were written before.
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
        """Give the signals back."""
        if self._before:
            signal.set_wakeup_fd(self._old_fd)
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close the sockets only: a forked child has handlers of its own."""
        self._reader.close()
        self._writer.close()


def reset_in_child() -> None:
    """Undo the arbiter's handlers, while all signals are blocked.

    Until the child installs its own, a signal for the whole group (`pkill -HUP servo`, Ctrl-C,
    systemd's TERM) must neither end it nor reach the arbiter's socket.
    """
    signal.set_wakeup_fd(-1)
    for signum in HANDLED:
        signal.signal(signum, signal.SIG_IGN)
    # A child's own children can be waited for only so.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def at_foreground_of_terminal() -> bool:
    """True when a resized terminal window sends this process SIGWINCH."""
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


def _noted(_signum: int, _frame: FrameType | None) -> None:
    """The byte is on the socket already."""
