"""The directory of the pools' sockets and boards: only the workers' user can search it.

It is in the system's directory for temporary files. Its lock (flock) shows that its server lives.
The lock also keeps systemd-tmpfiles from removing the files because of their age. A server that was
killed leaves its directory behind; the next server of the same user removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = logging.getLogger("servo.error")

_PREFIX = "servo-pools-"
# Until it is locked, a directory has another name. Otherwise another server would remove it.
_NEW_PREFIX = "servo-new-pools-"
# The longest path of a Unix socket has 107 bytes, and the name of a pool 32 characters.
_LONGEST_PATH = 107 - len(f"/{_PREFIX}xxxxxxxx/{'x' * 32}.sock")


class PoolDirectory:
    """The directory, from its creation to its removal.

    owner   the uid and gid that the workers run as; None for the user of this process

    path    its path

    Raises OSError.
    """

    def __init__(self, owner: tuple[int | None, int | None] = (None, None)) -> None:
        import tempfile  # imported here because few servers have pools

        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > _LONGEST_PATH:
            base = "/tmp"  # noqa: S108  mkdtemp makes a directory that only this user can search
        _remove_stale(base)
        new = tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=base)
        self._fd = _lock(new)
        if self._fd < 0:
            raise BlockingIOError(f"{new} is locked by another process")
        self._owner = owner
        self._pid = os.getpid()
        self.path = new.replace(_NEW_PREFIX, _PREFIX)
        os.rename(new, self.path)
        self.give_away(self.path)

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the directory as JSON values, for `from_state` after an upgrade.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {"path": self.path, "fd": pass_on(self._fd), "owner": list(self._owner)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], take: Callable[[int], int]) -> PoolDirectory:
        """Take over the directory of this process's previous program.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        directory = cls.__new__(cls)
        directory.path = str(state["path"])
        directory._fd = take(int(state["fd"]))
        directory._pid = os.getpid()
        user, group = state["owner"]
        directory._owner = user, group
        return directory

    def give_away(self, path: str) -> None:
        """Let the workers' user use a file of the directory. Raises OSError."""
        user, group = self._owner
        if os.geteuid() == 0 and (user is not None or group is not None):
            os.chown(
                path,
                -1 if user is None else user,
                -1 if group is None else group,
                follow_symlinks=False,
            )

    def close(self) -> None:
        """Remove the directory, if this process has made it."""
        if self._fd >= 0 and os.getpid() == self._pid:
            shutil.rmtree(self.path, ignore_errors=True)
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's copy of the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _remove_stale(base: str) -> None:
    """Remove the directories of servers that were killed."""
    for path in Path(base).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue
            fd = _lock(str(path))
            if fd >= 0:
                log.debug("Removing %s, because its server has ended", path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(fd)


def _lock(path: str) -> int:
    """Open and lock a directory. Returns the descriptor; -1 if another process has locked it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd
