"""A log's destination: a descriptor that keeps its number while the file behind it changes.

A full disk or a reader that has stopped must neither hold a process up nor go unnoticed. So no
write here waits: a pipe or a terminal gets a non-blocking descriptor of its own, and a socket is
written to with MSG_DONTWAIT. O_NONBLOCK belongs to the open file, which other programs share (the
shell's terminal, the pipe of a container), so it is never set on a descriptor that was given to us:
/proc/self/fd/N is opened anew. Where that is not allowed (the pipe belongs to another user), each
write is preceded by a poll and is so short that it fits. Lines that do not fit are dropped whole
and counted, and the count is logged when writing works again.

Several processes write to one pipe. A write of up to PIPE_BUF bytes goes in whole or not at all. A
longer line could be cut where the pipe is full, and another process's line would continue it: so
it waits until the pipe surely has room for all of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import sys
import termios
import time
from typing import TYPE_CHECKING

from servo.errors import ConfigError
from servo.safe_files import Opened, check_appendable, open_to_append

if TYPE_CHECKING:
    from collections.abc import Callable

# What may wait for a non-blocking pipe or terminal whose reader is behind.
MAX_PENDING_BYTES = 1 << 20
# pipe(7): a write of at most PIPE_BUF bytes is atomic; a longer one mixes with other processes'.
_PIPE_BUF_BYTES = getattr(select, "PIPE_BUF", 512)
_NEWLINE = 10


class LogFile:
    """An append-only file by its path, or a standard descriptor by its number.

    path      of the file; None for a standard descriptor
    standard  the number of that descriptor (1 or 2)

    fd        the descriptor that is written to
    `on_trouble` is called with a sentence when lines begin to be lost, and when that is over.
    Raises ConfigError when the file can't be opened.
    """

    def __init__(self, path: str | None, standard: int = -1) -> None:
        # The application may change the directory before the file is reopened.
        self.path = None if path is None else os.path.abspath(path)
        self.standard = standard
        self._opened: Opened | None = None
        self._has_copy = False
        self._may_block = False
        self._ends = False
        self._socket: socket.socket | None = None
        self.fd = standard if self.path is None else self._open(self.path)
        self.follow_standard()
        self.lost = 0
        self.on_trouble: Callable[[str], None] | None = None
        self._in_trouble = False
        self._pending = b""
        self._mid_line = False  # the last byte written was no newline
        self._torn = False  # ... and the rest of that line was lost
        self._is_pipe = _is_pipe(self.fd)

    def __repr__(self) -> str:
        return f"<LogFile {self.name} fd={self.fd}>"

    @property
    def name(self) -> str:
        """For messages: the path, "stdout" or "stderr"."""
        number = self.standard
        return self.path or {1: "stdout", 2: "stderr"}.get(number, f"descriptor {number}")

    @property
    def pending(self) -> bool:
        """Whether something waits for the descriptor to take it; a `write` tries again."""
        return bool(self._pending)

    def write(self, data: bytes) -> None:
        """Append whole lines. What the descriptor can't take now waits, within a bound."""
        if self._torn:
            # Or our first line would read as the rest of the one that was cut.
            data = b"\n" + data
        if self._pending:
            data = self._pending + data
            self._pending = b""
        while data:
            try:
                if self._socket is None:
                    portion = self._portion(data)
                    if self._may_block:
                        _require_room(self.fd)
                    written = os.write(self.fd, portion)
                else:
                    written = self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._keep(data)
                return
            except OSError as error:
                self._lose(data, error.strerror or str(error))
                return
            self._torn = False
            self._mid_line = data[written - 1] != _NEWLINE
            data = data[written:]
        if self._in_trouble:
            self._in_trouble = False
            lost, self.lost = self.lost, 0
            self._tell(f"The log {self.name} is written again; {lost} lines were lost")

    def forget_pending(self) -> None:
        """In a forked process: the process that it was forked from writes what waits, and reports
        what was lost."""
        self._pending = b""
        self.lost = 0
        self._in_trouble = self._mid_line = self._torn = False

    def drain(self, timeout_s: float) -> None:
        """Block up to `timeout_s` while something waits: for a process that is about to end."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        end = time.monotonic() + timeout_s
        self._ends = True
        while self._pending and poller.poll(max(end - time.monotonic(), 0.0) * 1000):
            self.write(b"")
        self._ends = False

    def reopen(self) -> str:
        """Open the path anew under the same descriptor. "" or why the old file stays in use.

        The number must not change: faulthandler writes to it from a signal handler, and would
        else write into whatever file gets that number next.
        """
        if self.path is None:
            return ""
        try:
            fresh = self._open(self.path)
        except ConfigError as error:
            return str(error)
        os.dup2(fresh, self.fd, inheritable=False)
        os.close(fresh)
        self._is_pipe = _is_pipe(self.fd)
        self._mid_line = self._torn = False
        return ""

    def chown(self, uid: int, gid: int) -> None:
        """Give the file to the workers' user, who has to reopen it. Raises OSError.

        Only if another user can't have chosen the file: see safe_files.
        """
        opened = self._opened
        if opened is None or not stat.S_ISREG(os.fstat(self.fd).st_mode):
            return
        if opened._replace(fd=self.fd).may_be_given_to(uid, gid):
            os.fchown(self.fd, uid, gid)

    def follow_standard(self) -> None:
        """The standard descriptor leads elsewhere now: a daemon has left its terminal."""
        if self.path is None:
            self._close_copies()
            copy = non_blocking_copy(self.standard)
            self._has_copy = copy >= 0
            self.fd = copy if self._has_copy else self.standard
            self._socket = _socket_at(self.standard)
            self._is_pipe = _is_pipe(self.fd)
            self._may_block = not self._has_copy and (self._is_pipe or os.isatty(self.fd))

    def close(self) -> None:
        """Close what was opened here; the standard descriptors stay."""
        self._close_copies()
        if self.path is not None and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _close_copies(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._has_copy:
            os.close(self.fd)
            self._has_copy = False
            self.fd = self.standard

    def _open(self, path: str) -> int:
        try:
            self._opened = open_to_append(path)
        except OSError as error:
            raise _unopened(path, error) from error
        return self._opened.fd

    def _portion(self, data: bytes) -> bytes:
        """As much of `data` as one write may carry: whole lines up to PIPE_BUF for a pipe, or one
        longer line. Raises BlockingIOError when that finds no room."""
        if len(data) <= _PIPE_BUF_BYTES or not (self._is_pipe or self._may_block):
            return data
        end = data.rfind(b"\n", 0, _PIPE_BUF_BYTES) + 1
        if end:
            return data[:end]
        if self._may_block:
            return data[:_PIPE_BUF_BYTES]
        line = data[: data.find(b"\n") + 1 or len(data)]
        # What is begun is continued; a process that ends has no time to wait for a better moment.
        if not (self._mid_line or self._ends or _pipe_takes(self.fd, len(line))):
            raise BlockingIOError(errno.EAGAIN, "the pipe might cut this line")
        return line

    def _keep(self, data: bytes) -> None:
        if len(data) <= MAX_PENDING_BYTES:
            self._pending = data
            return
        # The oldest lines go: the newest tell what is happening.
        end = data.find(b"\n", len(data) - MAX_PENDING_BYTES) + 1
        self._count_lost(data[:end])
        self._pending = b"\n" + data[end:] if self._torn else data[end:]
        self._torn = False
        self._complain("its reader does not keep up")

    def _lose(self, data: bytes, reason: str) -> None:
        self._count_lost(data)
        self._complain(reason)

    def _count_lost(self, data: bytes) -> None:
        # The newline that ends a torn line is none of the lines.
        self.lost += data.count(b"\n") - self._torn
        self._torn = self._mid_line

    def _complain(self, reason: str) -> None:
        """Comes last: `on_trouble` may write to this very file."""
        if not self._in_trouble:
            self._in_trouble = True
            self._tell(f"Lines of the log {self.name} are being lost: {reason}")

    def _tell(self, sentence: str) -> None:
        if self.on_trouble is not None:
            self.on_trouble(sentence)


def check_log_file(path: str) -> None:
    """Raise the ConfigError that a LogFile of this path would raise; no file is made.

    A FIFO passes: its reader may come before the server starts.
    """
    try:
        check_appendable(path)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return
        raise _unopened(os.path.abspath(path), error) from error


def _unopened(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"can't open the log file {path}: {error.strerror}")


def non_blocking_copy(fd: int) -> int:
    """A non-blocking descriptor of our own for the pipe or terminal behind `fd`; else -1.

    -1 also where it can't be opened anew: a pipe whose reader is gone (writing to it fails at
    once, so it blocks nobody), or a terminal of another user (after `su`).
    """
    try:
        kind = os.fstat(fd).st_mode
        if not stat.S_ISFIFO(kind) and not os.isatty(fd):
            return -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return -1


def blocking_copy(fd: int) -> int:
    """A descriptor for the same file that waits in a write, as what an application prints to must.

    A FIFO of ours is non-blocking: `print` would raise BlockingIOError when its reader is slow.
    """
    if not _is_pipe(fd):
        return os.dup(fd)
    copy = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(copy, True)
    return copy


def _socket_at(fd: int) -> socket.socket | None:
    """A socket object for a copy of the descriptor, if it is a socket (systemd's journal)."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        return socket.socket(fileno=os.dup(fd))
    except OSError:
        return None


def _pipe_takes(fd: int, size: int) -> bool:
    """Whether one write of `size` bytes goes into the pipe whole, or could never do so."""
    capacity = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    queued = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    # The kernel counts pages, not bytes. Two neighbours are more than half full, or they would
    # have been merged.
    return not queued or capacity - 2 * queued - _PIPE_BUF_BYTES >= size


def _require_room(fd: int) -> None:
    """Raise BlockingIOError unless a write of up to PIPE_BUF bytes finds room, or fails at once."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError(errno.EAGAIN, "there is no room")


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        # A closed stdout: each write will fail, and be counted and told of.
        return False
