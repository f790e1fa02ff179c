"""A log's destination: a descriptor that keeps its number while the file behind it changes.

A full disk or a stuck reader must neither take the server down nor go unnoticed: what can't be
written is dropped in whole lines and counted, and the count is told when writing works again.
"""

from __future__ import annotations

import os
import select
import stat
from typing import TYPE_CHECKING

from servo.errors import ConfigError
from servo.observe.trial import try_to_write

if TYPE_CHECKING:
    from collections.abc import Callable

# What may wait for a non-blocking pipe or terminal whose reader is behind.
MAX_PENDING_BYTES = 1 << 20
# pipe(7): a write of at most PIPE_BUF bytes is atomic; a longer one mixes with other processes'.
_PIPE_BUF_BYTES = getattr(select, "PIPE_BUF", 512)
_NEWLINE = 10


class LogFile:
    """An append-only file by its path, or a standard descriptor by its number.

    `on_trouble` is called with a sentence when lines begin to be lost, and when that is over.
    Raises ConfigError when the file can't be opened.
    """

    def __init__(self, path: str | None, fd: int = -1) -> None:
        # The application may change the directory before the file is reopened.
        self.path = None if path is None else os.path.abspath(path)
        self.fd = fd if self.path is None else _open(self.path)
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
        return self.path or {1: "stdout", 2: "stderr"}.get(self.fd, f"descriptor {self.fd}")

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
                written = os.write(self.fd, self._portion(data))
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

    def drain(self, timeout_s: float) -> None:
        """Block up to `timeout_s` while something waits: for a process that is about to end."""
        poller = select.poll()
        poller.register(self.fd, select.POLLOUT)
        while self._pending and poller.poll(timeout_s * 1000):
            self.write(b"")

    def reopen(self) -> str:
        """Open the path anew under the same descriptor. "" or why the old file stays in use.

        The number must not change: faulthandler writes to it from a signal handler, and would
        else write into whatever file gets that number next.
        """
        if self.path is None:
            return ""
        try:
            fresh = _open(self.path)
        except ConfigError as error:
            return str(error)
        os.dup2(fresh, self.fd, inheritable=False)
        os.close(fresh)
        self._is_pipe = _is_pipe(self.fd)
        self._mid_line = self._torn = False
        return ""

    def chown(self, uid: int, gid: int) -> None:
        """Give a file of ours to the workers' user, who has to reopen it. Raises OSError."""
        if self.path is not None and stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.fchown(self.fd, uid, gid)

    def close(self) -> None:
        """Close what was opened by its path; the standard descriptors stay."""
        if self.path is not None and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _portion(self, data: bytes) -> bytes:
        """As much of `data` as one write may carry: whole lines up to PIPE_BUF for a pipe."""
        if not self._is_pipe or len(data) <= _PIPE_BUF_BYTES:
            return data
        end = data.rfind(b"\n", 0, _PIPE_BUF_BYTES) + 1
        # A line that is longer than that can't be written in one piece anyway.
        return data[: end or data.find(b"\n") + 1 or len(data)]

    def _keep(self, data: bytes) -> None:
        if len(data) <= MAX_PENDING_BYTES:
            self._pending = data
            return
        # The oldest lines go: the newest tell what is happening.
        end = data.find(b"\n", len(data) - MAX_PENDING_BYTES) + 1
        self._lose(data[:end], "its reader does not keep up")
        self._pending = b"\n" + data[end:] if self._torn else data[end:]
        self._torn = False

    def _lose(self, data: bytes, reason: str) -> None:
        # The newline that ends a torn line is none of the lines.
        self.lost += data.count(b"\n") - self._torn
        self._torn = self._mid_line
        if not self._in_trouble:
            self._in_trouble = True
            self._tell(f"Lines of the log {self.name} are being lost: {reason}")

    def _tell(self, sentence: str) -> None:
        if self.on_trouble is not None:
            self.on_trouble(sentence)


def check_log_file(path: str) -> None:
    """Raise the ConfigError that a LogFile of this path would raise; no file is made."""
    try:
        try_to_write(path)
    except OSError as error:
        raise _unopened(os.path.abspath(path), error) from error


def _open(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
    try:
        return os.open(path, flags, 0o644)
    except OSError as error:
        raise _unopened(path, error) from error


def _unopened(path: str, error: OSError) -> ConfigError:
    return ConfigError(f"can't open the log file {path}: {error.strerror}")


def _is_pipe(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        # A closed stdout: each write will fail, and be counted and told of.
        return False
