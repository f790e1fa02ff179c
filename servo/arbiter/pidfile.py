"""The pidfile: held by a lock, so that a stale one is told from a live one even where every arbiter
is PID 1."""

from __future__ import annotations

import fcntl
import os

from servo.errors import ConfigError
from servo.observe.trial import try_to_write


class PidFile:
    """A file with the arbiter's pid, locked (flock) while the arbiter lives."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._shown = path
        self._fd = -1

    def check(self) -> None:
        """Raise the ConfigError of a path that can't be written to. No file is made."""
        try:
            try_to_write(self.path)
        except OSError as error:
            raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error

    def acquire(self) -> None:
        """Take the lock; a stale file is taken over. Raises ConfigError for a live one."""
        while self._fd < 0:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                os.close(fd)
                owner = f"the running server with pid {text}" if text else "a server that starts"
                raise ConfigError(f"pidfile {self._shown} belongs to {owner}") from None
            except OSError as error:
                os.close(fd)
                raise ConfigError(f"pidfile {self._shown} can't be locked: {error}") from error
            if self._is_at_path(fd):
                self._fd = fd
            else:
                # Its last owner has removed it between our open and our lock.
                os.close(fd)

    def write(self) -> None:
        """Write this process's pid. Raises ConfigError: a full disk, say."""
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error

    def release(self) -> None:
        """Remove the file if it is still ours, and give up the lock."""
        if self._fd < 0:
            return
        if self._is_at_path(self._fd):
            os.unlink(self.path)
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's copy: the lock lives as long as any copy is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _is_at_path(self, fd: int) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))
