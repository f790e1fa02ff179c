"""The destination of a log: a file, or standard output or error.

Rotation. A tool such as logrotate renames the log file and signals the server. The server opens the
path again, which creates a new file, and `dup2` puts the new file under the old descriptor. The
descriptor's number must not change, because faulthandler has stored it.

Slow readers. Standard output is often a pipe (to a container runtime or `tee`) or a terminal. If
its reader stops, an ordinary write blocks, and the whole server would wait. So no write here
blocks:

* A pipe or a terminal is opened a second time through /proc/self/fd/N with O_NONBLOCK. The flag is
  never set on the inherited descriptor: it belongs to the open file, which other programs share,
  such as the shell.
* If opening it again is not allowed (the pipe belongs to another user), `poll` is called before
  each write, and each write is short enough to fit.
* A socket gets its data with MSG_DONTWAIT.

Lost lines. Lines that can't be written at once wait in memory, up to MAX_PENDING_BYTES. Above this,
and when a write fails (a full disk), whole lines are dropped and counted. One message reports that
lines begin to be lost. When writing works again, another one reports how many lines were lost.

Whole lines. Several processes write to one pipe. A write of up to PIPE_BUF bytes is atomic. A
longer one could be cut if the pipe is nearly full, and another process's line would follow the
first part. So a longer line waits until the pipe has room for all of it.
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

# How many bytes may wait in memory for a slow reader.
MAX_PENDING_BYTES = 1 << 20
# A write of up to PIPE_BUF bytes is atomic; a longer one can mix with writes of other processes
# (pipe(7)).
_PIPE_BUF_BYTES = getattr(select, "PIPE_BUF", 512)
_NEWLINE = 10


class LogFile:
    """An append-only file, or a standard descriptor.

    path      the file's path; None for a standard descriptor
    standard  the number of the standard descriptor (1 or 2)

    fd          the descriptor for writing
    on_trouble  called with a sentence when lines begin to be lost, and when writing works again

    Raises ConfigError if the file can't be opened.
    """

    def __init__(self, path: str | None, standard: int = -1) -> None:
        # The application may change the directory before the file is reopened.
        self.path = None if path is None else os.path.abspath(path)
        self.standard = standard
        self._opened: Opened | None = None
        self._has_copy = False
        self._may_block = False
        self._is_draining = False
        self._socket: socket.socket | None = None
        self.fd = standard if self.path is None else self._open(self.path)
        self.follow_standard()
        self.lost = 0
        self.on_trouble: Callable[[str], None] | None = None
        self._is_losing = False
        self._pending = b""
        self._mid_line = False  # whether the last written byte was not a newline
        self._torn = False  # whether the rest of a partly written line was lost
        self._is_pipe = _is_pipe(self.fd)

    def __repr__(self) -> str:
        return f"<LogFile {self.name} fd={self.fd}>"

    @property
    def name(self) -> str:
        """The path, "stdout" or "stderr", for messages."""
        number = self.standard
        return self.path or {1: "stdout", 2: "stderr"}.get(number, f"descriptor {number}")

    @property
    def pending(self) -> bool:
        """Whether data waits for a slow reader. The next `write` tries again."""
        return bool(self._pending)

    def write(self, data: bytes) -> None:
        """Append whole lines. Data that doesn't fit waits, up to MAX_PENDING_BYTES.

        data  lines with their newlines; b"" only retries the waiting data
        """
        if self._torn:
            # End the torn line, or the next line would look like its continuation.
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
                self._keep_pending(data)
                return
            except OSError as error:
                self._drop(data, error.strerror or str(error))
                return
            self._torn = False
            self._mid_line = data[written - 1] != _NEWLINE
            data = data[written:]
        if self._is_losing:
            self._is_losing = False
            lost, self.lost = self.lost, 0
            self._report(f"The log {self.name} can be written again; {lost} lines were lost")

    def forget_pending(self) -> None:
        """In a forked process: drop waiting data and counts. The parent writes and reports them."""
        self._pending = b""
        self.lost = 0
        self._is_losing = self._mid_line = self._torn = False

    def drain(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds for a slow reader, before the process ends."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        end = time.monotonic() + timeout_s
        self._is_draining = True
        while self._pending and poller.poll(max(end - time.monotonic(), 0.0) * 1000):
            self.write(b"")
        self._is_draining = False

    def reopen(self) -> str:
        """Open the path again under the same descriptor. Returns "" or the error.

        The descriptor's number must not change: faulthandler has stored it, and writes to it from a
        signal handler. If it were closed, the application's next file could get the same number.
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
        """Make the workers' user the owner, so that workers can reopen the file. Raises OSError.

        uid  the new owner, -1 to keep the owner
        gid  the new group, -1 to keep the group

        Does nothing if another user may have chosen the file (see servo.safe_files).
        """
        opened = self._opened
        if opened is None or not stat.S_ISREG(os.fstat(self.fd).st_mode):
            return
        if opened._replace(fd=self.fd).may_be_given_to(uid, gid):
            os.fchown(self.fd, uid, gid)

    def follow_standard(self) -> None:
        """Follow the standard descriptor after it was redirected, as in a daemon."""
        if self.path is None:
            self._close_copies()
            copy = non_blocking_copy(self.standard)
            self._has_copy = copy >= 0
            self.fd = copy if self._has_copy else self.standard
            self._socket = _socket_at(self.standard)
            self._is_pipe = _is_pipe(self.fd)
            self._may_block = not self._has_copy and (self._is_pipe or os.isatty(self.fd))

    def close(self) -> None:
        """Close the descriptors that this object opened. The standard descriptors stay open."""
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
            raise _open_error(path, error) from error
        return self._opened.fd

    def _portion(self, data: bytes) -> bytes:
        """The part of `data` for the next write.

        For a pipe these are whole lines up to PIPE_BUF bytes, or one longer line. Raises
        BlockingIOError if the longer line may not fit.
        """
        if len(data) <= _PIPE_BUF_BYTES or not (self._is_pipe or self._may_block):
            return data
        end = data.rfind(b"\n", 0, _PIPE_BUF_BYTES) + 1
        if end:
            return data[:end]
        if self._may_block:
            return data[:_PIPE_BUF_BYTES]
        line = data[: data.find(b"\n") + 1 or len(data)]
        # Don't check the room if a line is partly written, or if the process is about to end.
        if not (self._mid_line or self._is_draining or _pipe_takes(self.fd, len(line))):
            raise BlockingIOError(errno.EAGAIN, "the pipe might cut this line")
        return line

    def _keep_pending(self, data: bytes) -> None:
        if len(data) <= MAX_PENDING_BYTES:
            self._pending = data
            return
        # Drop the oldest lines: the newest ones show the current state.
        end = data.find(b"\n", len(data) - MAX_PENDING_BYTES) + 1
        self._count_lost(data[:end])
        self._pending = b"\n" + data[end:] if self._torn else data[end:]
        self._torn = False
        self._report_loss("its reader does not keep up")

    def _drop(self, data: bytes, reason: str) -> None:
        self._count_lost(data)
        self._report_loss(reason)

    def _count_lost(self, data: bytes) -> None:
        # A newline at the beginning of the data, which ended a torn line, doesn't count as a line.
        self.lost += data.count(b"\n") - self._torn
        self._torn = self._mid_line

    def _report_loss(self, reason: str) -> None:
        """Report lost lines. Call this last, because `on_trouble` may write to this file."""
        if not self._is_losing:
            self._is_losing = True
            self._report(f"Lines of the log {self.name} are being lost: {reason}")

    def _report(self, sentence: str) -> None:
        if self.on_trouble is not None:
            self.on_trouble(sentence)


def check_log_file(path: str) -> None:
    """Raise the ConfigError that a LogFile of this path would raise. Creates no file.

    A FIFO without a reader is accepted, because a reader may open it before the server starts.
    """
    try:
        check_appendable(path)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return
        raise _open_error(os.path.abspath(path), error) from error


def _open_error(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"can't open the log file {path}: {error.strerror}")


def non_blocking_copy(fd: int) -> int:
    """Open the pipe or terminal of `fd` a second time, without blocking. Returns -1 on failure.

    It fails for other kinds of files, for a pipe without a reader (writing to it fails at once, so
    it never blocks), and for a terminal or pipe of another user (after `su`).
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
    """Return a new descriptor for the file of `fd`, with blocking writes.

    `print` needs this: the `fd` of a FIFO is non-blocking, and with a slow reader `print` would
    raise BlockingIOError.
    """
    if not _is_pipe(fd):
        return os.dup(fd)
    copy = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(copy, True)
    return copy


def _socket_at(fd: int) -> socket.socket | None:
    """A socket object for a copy of `fd`, if it is a socket, as systemd's journal is."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        return socket.socket(fileno=os.dup(fd))
    except OSError:
        return None


def _pipe_takes(fd: int, size: int) -> bool:
    """Whether `size` bytes may be written now: they fit, or the pipe is empty."""
    capacity = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    queued = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    # The kernel stores pages, and a page may be partly filled. But it merges two neighbouring pages
    # if both fit into one. So `queued` bytes use less than twice their size.
    return not queued or capacity - 2 * queued - _PIPE_BUF_BYTES >= size


def _require_room(fd: int) -> None:
    """Raise BlockingIOError if a write of up to PIPE_BUF bytes would block."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError(errno.EAGAIN, "there is no room")


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        # Standard output is closed. Each write will fail, and count its lines as lost.
        return False
