"""The pidfile: a file with the arbiter's pid, locked while the arbiter lives.

The lock shows whether a file is stale. The pid does not: in a container every arbiter is PID 1.

Another user may have put a symbolic link at the path. Opening the path would follow the link, and
empty its target. So the file is made under a temporary name, and then linked to its place. Because
directories can be swapped, too, the directory is opened only once, and all names are looked up in
it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError
from servo.logs.error_log import safe
from servo.safe_files import open_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# The errors of link(2) on a file system without hard links (vfat, some network mounts).
_NO_HARD_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)


class PidFile:
    """A file with the arbiter's pid, locked (flock) while the arbiter lives.

    path  where it is, relative to the current directory
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._shown = path
        self._fd = -1
        self._directory = -1
        self._name = ""

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the file and its lock as JSON values, for `from_state` after an upgrade.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {
            "fd": pass_on(self._fd),
            "directory": pass_on(self._directory),
            "path": self.path,
            "name": self._name,
            "shown": self._shown,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], take: Callable[[int], int]) -> PidFile:
        """Take over the lock of this process's previous program, after an upgrade.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        pidfile = cls(str(state["path"]))
        pidfile._shown = str(state["shown"])
        pidfile._name = str(state["name"])
        pidfile._fd = take(int(state["fd"]))
        pidfile._directory = take(int(state["directory"]))
        return pidfile

    def check(self) -> None:
        """Raise ConfigError if no file can be made at the path. Leaves no file."""
        try:
            fd, temporary = self._make()
            os.close(fd)
            os.unlink(temporary, dir_fd=self._directory)
        except OSError as error:
            raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error
        finally:
            self.close_in_child()

    def acquire(self) -> None:
        """Take the lock, replacing a stale file. Raises ConfigError if another server has it."""
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
        """Make a new file beside the path; return its descriptor and name. Raises OSError."""
        self._directory, self._name = open_parent(self.path)
        if self._exists(self._name) and stat.S_ISDIR(self._status().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = f".{self._name}.{os.getpid()}.{os.urandom(4).hex()}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(temporary, flags, 0o644, dir_fd=self._directory), temporary

    def _put(self, temporary: str) -> None:
        """Put the new file at the path, unless the path has a live server's file.

        Raises ConfigError and OSError.
        """
        try:
            # Unlike rename(), link() fails if the file exists.
            os.link(temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except FileExistsError:
            self._replace(temporary)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            # Without link(), two servers that start at the same instant may both succeed.
            if self._exists(self._name):
                self._replace(temporary)
            else:
                self._rename(temporary)
        else:
            os.unlink(temporary, dir_fd=self._directory)

    def _replace(self, temporary: str) -> None:
        """Replace a stale file. Hold its lock meanwhile, so that only one server replaces it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            stale = os.open(self._name, flags, dir_fd=self._directory)
        except FileNotFoundError:
            return  # it was removed just now; `acquire` tries again
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            self._rename(temporary)  # replaces a symbolic link itself, not its target
            return
        try:
            if not stat.S_ISREG(os.fstat(stale).st_mode):
                raise ConfigError(f"pidfile {self._shown} exists and is not a regular file")
            try:
                fcntl.flock(stale, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Another user may have written the text, with escape sequences for a terminal.
                text = safe(os.pread(stale, 32, 0).strip())
                owner = (
                    f"the running server with pid {text}" if text else "a server that is starting"
                )
                raise ConfigError(f"pidfile {self._shown} belongs to {owner}") from None
            if self._is_at_path(stale):
                self._rename(temporary)
        finally:
            os.close(stale)

    def write(self) -> None:
        """Write this process's pid. Raises ConfigError if this fails, such as on a full disk."""
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise ConfigError(f"pidfile {self._shown}: {error.strerror}") from error

    def release(self) -> None:
        """Remove the file, unless it was replaced, and give up the lock."""
        if self._fd < 0:
            return
        if self._is_at_path(self._fd):
            os.unlink(self._name, dir_fd=self._directory)
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's copies, because any open copy would keep the lock."""
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
