"""The pidfile: held by a lock, so that a stale one is told from a live one even where every arbiter
is PID 1.

It is made under a name of its own and then put in its place, so no symbolic link is followed that
another user may have put there: opened by its name, whatever the link leads to would be emptied.
Its directory is opened once and all names are looked up in it, for the same reason.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from servo.errors import ConfigError
from servo.logs.error_log import safe
from servo.safe_files import open_parent

# What link(2) says of a file system without hard links (vfat, some network mounts).
_NO_HARD_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


class PidFile:
    """A file with the arbiter's pid, locked (flock) while the arbiter lives."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._shown = path
        self._fd = -1
        self._directory = -1
        self._name = ""

    def check(self) -> None:
        """Raise the ConfigError of a path where no file can be made. None is left."""
        try:
            fd, temporary = self._make()
            os.close(fd)
            os.unlink(temporary, dir_fd=self._directory)
        except OSError as error:
            raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error
        finally:
            self.close_in_child()

    def acquire(self) -> None:
        """Take the lock; a stale file is taken over. Raises ConfigError for a live one."""
        temporary = ""
        try:
            self._fd, temporary = self._make()
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            while not self._is_at_path(self._fd):
                self._put(temporary)
        except BaseException as error:
            if temporary and self._exists(temporary):
                os.unlink(temporary, dir_fd=self._directory)
            self.close_in_child()
            if isinstance(error, OSError):
                raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error
            raise

    def _make(self) -> tuple[int, str]:
        """A new file beside the path: its descriptor and its name. Raises OSError."""
        self._directory, self._name = open_parent(self.path)
        if self._exists(self._name) and stat.S_ISDIR(self._status().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = f".{self._name}.{os.getpid()}.{os.urandom(4).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(temporary, flags, 0o644, dir_fd=self._directory), temporary

    def _put(self, temporary: str) -> None:
        """Put our file in its place, if no live server's is there. Raises ConfigError, OSError."""
        try:
            # Unlike rename() it fails if there is any file.
            os.link(temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileExistsError:
            self._replace(temporary)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # Of two that start in the same instant without any file, both may go on.
            if self._exists(self._name):
                self._replace(temporary)
            else:
                self._rename(temporary)
        else:
            os.unlink(temporary, dir_fd=self._directory)

    def _replace(self, temporary: str) -> None:
        """Replace what is there; meanwhile its lock is ours, so of two that start one waits."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            stale = os.open(self._name, flags, dir_fd=self._directory)
        except FileNotFoundError:
            return  # it has just gone: try again
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self._rename(temporary)  # replaces the link, not what it leads to
            return
        try:
            if not stat.S_ISREG(os.fstat(stale).st_mode):
                raise ConfigError(f"pidfile {self._shown} exists and is no file; not touched")
            try:
                fcntl.flock(stale, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Another user may have written it, for root's terminal.
                text = safe(os.pread(stale, 32, 0).strip())
                owner = f"the running server with pid {text}" if text else "a server that starts"
                raise ConfigError(f"pidfile {self._shown} belongs to {owner}") from None
            if self._is_at_path(stale):
                self._rename(temporary)
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
            os.unlink(self._name, dir_fd=self._directory)
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's copy: the lock lives as long as any copy is open."""
        for fd in (self._fd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._fd = self._directory = -1

    def _rename(self, temporary: str) -> None:
        os.rename(temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _status(self) -> os.stat_result:
        return os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _is_at_path(self, fd: int) -> bool:
        try:
            return os.path.samestat(self._status(), os.fstat(fd))
        except FileNotFoundError:
            return False
