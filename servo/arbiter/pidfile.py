"""The pidfile: held by a lock, so that a stale one is told from a live one even where every arbiter
is PID 1.

It is made under a name of its own and then put in its place, so no symbolic link is followed that
another user may have put there: opened by its name, whatever the link leads to would be emptied.
"""

from __future__ import annotations

import fcntl
import os
import stat

from servo.errors import ConfigError


class PidFile:
    """A file with the arbiter's pid, locked (flock) while the arbiter lives."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._shown = path
        self._fd = -1

    def check(self) -> None:
        """Raise the ConfigError of a path where no file can be made. None is left."""
        try:
            fd, temporary = self._make()
            os.close(fd)
            os.unlink(temporary)
        except OSError as error:
            raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error

    def acquire(self) -> None:
        """Take the lock; a stale file is taken over. Raises ConfigError for a live one."""
        try:
            fd, temporary = self._make()
        except OSError as error:
            raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while not self._is_at_path(fd):
                self._put(temporary)
        except BaseException as error:
            os.close(fd)
            if os.path.lexists(temporary):
                os.unlink(temporary)
            if isinstance(error, OSError):
                raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error
            raise
        self._fd = fd

    def _make(self) -> tuple[int, str]:
        """A new file beside the path; its descriptor and its own path. Raises OSError."""
        directory, name = os.path.split(self.path)
        if os.path.isdir(self.path):
            raise IsADirectoryError(0, "Is a directory")
        temporary = os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(4).hex()}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(temporary, flags, 0o644), temporary

    def _put(self, temporary: str) -> None:
        """Put our file in its place, if no live server's is there. Raises ConfigError, OSError."""
        try:
            os.link(temporary, self.path)  # fails if there is any file
        except FileExistsError:
            self._replace(temporary)
        else:
            os.unlink(temporary)

    def _replace(self, temporary: str) -> None:
        """Replace what is there; meanwhile its lock is ours, so of two that start one waits."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            stale = os.open(self.path, flags)
        except FileNotFoundError:
            return  # it has just gone: try again
        except OSError:
            if not os.path.islink(self.path):
                raise
            os.rename(temporary, self.path)  # replaces the link, not what it leads to
            return
        try:
            if not stat.S_ISREG(os.fstat(stale).st_mode):
                raise ConfigError(f"pidfile {self._shown} exists and is no file; not touched")
            try:
                fcntl.flock(stale, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                text = os.pread(stale, 32, 0).decode("ascii", "backslashreplace").strip()
                owner = f"the running server with pid {text}" if text else "a server that starts"
                raise ConfigError(f"pidfile {self._shown} belongs to {owner}") from None
            if self._is_at_path(stale):
                os.rename(temporary, self.path)
        finally:
            os.close(stale)

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
            there = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(fd))
