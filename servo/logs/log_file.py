"""The destination of a log: a file, or standard output or error.

Rotation. A tool such as logrotate renames the log file and signals the server, which opens the path
again and so creates a new file. `dup2` puts the new file behind the old descriptor. The number must
not change, because faulthandler has kept it.

Slow readers. Standard output often is a pipe (to a container runtime or `tee`) or a terminal. When
its reader stops, an ordinary write blocks, and the whole server would stand still for its log. So
no write here waits. A pipe or a terminal is opened a second time through /proc/self/fd/N with
O_NONBLOCK; the flag is never set on the inherited descriptor, because it belongs to the open file,
which other programs share (the shell, for instance). If the second opening is not allowed (the pipe
belongs to another user), `poll` comes before each write, and each write is short enough to fit. A
socket is written to with MSG_DONTWAIT.

Lost lines. Lines that don't fit wait in memory, up to MAX_PENDING_BYTES. Beyond that, and when a
write fails (a full disk), whole lines are dropped and counted. Two messages say when lines begin to
be lost, and how many were lost once writing works again.

Whole lines. Several processes write to one pipe. A write of up to PIPE_BUF bytes goes in whole or
not at all. A longer one could be cut where the pipe is full, and another process's line would
continue it. So a longer line waits until the pipe surely has room for all of it.
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

# How much may wait in memory for a slow reader.
MAX_PENDING_BYTES = 1 << 20
# A write of up to PIPE_BUF bytes is atomic; a longer one can mix with other processes' (pipe(7)).
_PIPE_BUF_BYTES = getattr(select, "PIPE_BUF", 512)
_NEWLINE = 10


class LogFile:
    """An append-only file, or a standard descriptor.

    path      of the file; None for a standard descriptor
    standard  the number of that descriptor (1 or 2)

    `fd` is the descriptor that is written to. `on_trouble` is called with a sentence when lines
    begin to be lost, and when writing works again. Raises ConfigError if the file can't be opened.
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
        self._mid_line = False  # the last byte that was written was not a newline
        self._torn = False  # the beginning of a line was written, and its rest was lost
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
        """Append whole lines. Data for which there is no room waits, up to MAX_PENDING_BYTES.

        data  lines with their newlines; b"" only retries what waits
        """
        if self._torn:
            # End the torn line, or the next one would read as its continuation.
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
        """Wait up to `timeout_s` seconds for a slow reader, because the process is about to end."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        end = time.monotonic() + timeout_s
        self._is_draining = True
        while self._pending and poller.poll(max(end - time.monotonic(), 0.0) * 1000):
            self.write(b"")
        self._is_draining = False

    def reopen(self) -> str:
        """Open the path again behind the same descriptor. Returns "" or why that failed.

        The number must not change: faulthandler has kept it and writes to it from a signal
        handler. Were it closed, the next file that the application opens could get the number.
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
        """Give the file to the workers' user, so that workers can reopen it. Raises OSError.

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
        """Call this after the standard descriptor was redirected; a daemon leaves its terminal."""
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
        """The part of `data` that the next write may carry.

        For a pipe that is whole lines up to PIPE_BUF bytes, or one longer line. Raises
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
        # A line that is partly written has to be continued, and a process that ends can't wait.
        if not (self._mid_line or self._is_draining or _pipe_takes(self.fd, len(line))):
            raise BlockingIOError(errno.EAGAIN, "the pipe might cut this line")
        return line

    def _keep_pending(self, data: bytes) -> None:
        if len(data) <= MAX_PENDING_BYTES:
            self._pending = data
            return
        # Drop the oldest lines: the newest say what is happening now.
        end = data.find(b"\n", len(data) - MAX_PENDING_BYTES) + 1
        self._count_lost(data[:end])
        self._pending = b"\n" + data[end:] if self._torn else data[end:]
        self._torn = False
        self._report_loss("its reader does not keep up")

    def _drop(self, data: bytes, reason: str) -> None:
        self._count_lost(data)
        self._report_loss(reason)

    def _count_lost(self, data: bytes) -> None:
        # `write` has put a newline before the data to end a torn line. It doesn't count as a line.
        self.lost += data.count(b"\n") - self._torn
        self._torn = self._mid_line

    def _report_loss(self, reason: str) -> None:
        """Callers call this last, because `on_trouble` may write to this very file."""
        if not self._is_losing:
            self._is_losing = True
            self._report(f"Lines of the log {self.name} are being lost: {reason}")

    def _report(self, sentence: str) -> None:
        if self.on_trouble is not None:
            self.on_trouble(sentence)


def check_log_file(path: str) -> None:
    """Raise the ConfigError that a LogFile of this path would raise. Creates no file.

    A FIFO without a reader passes, because the reader may come before the server starts.
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
    """Open the pipe or terminal behind `fd` a second time, without blocking. -1 if that fails.

    It fails for other kinds of files, for a pipe whose reader is gone (writing to it fails at once,
    so it never blocks), and for a terminal or pipe of another user (after `su`).
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
    """Return a new descriptor for the file behind `fd`, with writes that block.

    `print` needs one: a FIFO's `fd` is non-blocking, and `print` would raise BlockingIOError when
    the reader is slow.
    """
    if not _is_pipe(fd):
        return os.dup(fd)
    copy = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)
    os.set_blocking(copy, True)
    return copy


def _socket_at(fd: int) -> socket.socket | None:
    """A socket object for a copy of `fd`, if that is a socket (systemd's journal is one)."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return None
        return socket.socket(fileno=os.dup(fd))
    except OSError:
        return None


def _pipe_takes(fd: int, size: int) -> bool:
    """Whether to write `size` bytes at once: they fit, or the pipe is empty and can't fit more."""
    capacity = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    queued = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
    # The kernel stores pages, not bytes, and a page may be partly filled. Two neighbouring pages
    # are more than half full together, or the kernel would have merged them: so `queued` bytes
    # take up less than twice their size.
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
        # Standard output is closed. Each write will fail, and its lines will be counted as lost.
        return False
