"""Where control sockets lie, and which servers are behind them.

Each server holds a lock (flock) on a small file beside its socket, for as long as it lives. The
lock says whether a server is there, never its pid: in containers every arbiter is PID 1. Whoever
finds a file without its lock removes it, and the socket beside it.

In /tmp anybody can make a directory of the name that ours would have, with a lock file that names
any socket. So only directories and files of this user or of root are believed, and only a socket
beside its lock is removed, if nobody listens there.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.errors import ServoError
from servo.printable import printable_line
from servo.safe_files import is_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

log = logging.getLogger("servo.error")

# sun_path is 108 bytes with its NUL (unix(7)).
MAX_SOCKET_PATH = 107
_NAME_LENGTH = 48
# /<name>-<pid>.<number>.sock
_FILE_NAME_LENGTH = _NAME_LENGTH + 20
_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")


class InstanceError(ServoError):
    """A runtime directory or a lock can't be had."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A running server, as its lock file describes it.

    name     `--name`, or the app
    pid      as the server itself sees it
    socket   the path of its control socket
    """

    name: str
    pid: int
    socket: str


def directories(environ: Mapping[str, str], uid: int) -> list[Path]:
    """Where this user's servers may have put their files, the best place first."""
    places = [Path(f"/run/user/{uid}/servo"), Path("/run/servo"), Path(f"/tmp/servo-{uid}")]  # noqa: S108
    own = environ.get("XDG_RUNTIME_DIR")
    if own and os.path.isabs(own):
        places.insert(0, Path(own, "servo"))
    return list(dict.fromkeys(places))


def make_directory(environ: Mapping[str, str], uid: int, *, shared: bool = False) -> Path:
    """The runtime directory for a server's files, made if need be: this user's, mode 0700.

    shared   other users are to find what is in it: 0755

    Raises InstanceError when there is none.
    """
    why = []
    for place in directories(environ, uid):
        # What others made for us (/run/user) is used when it's there, and never made.
        if not os.path.isdir(place.parent):
            continue
        if not _keeps_names(place.parent, uid):
            # Its owner could put another directory in this one's place. $XDG_RUNTIME_DIR is
            # another user's after `su` and in some `sudo`.
            why.append(f"{place.parent} belongs to another user, or others can write it")
            continue
        if len(os.fsencode(place)) + _FILE_NAME_LENGTH > MAX_SOCKET_PATH:
            why.append(f"{place}: too long a path for a socket in it")
            continue
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            found = place.lstat()
        except OSError as error:
            why.append(f"{place}: {error.strerror}")
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
            # In /tmp anybody can make a directory of that name.
            why.append(f"{place} is not a directory of user {uid}")
            continue
        mode = 0o755 if shared else 0o700
        if stat.S_IMODE(found.st_mode) & 0o022 or (shared and stat.S_IMODE(found.st_mode) != mode):
            place.chmod(mode)
        return place
    raise InstanceError("; ".join(why) or "there is no place for it")


class Lock:
    """A file that describes a server, locked by it for life."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Take the lock, making the file. False when somebody has it. Raises InstanceError."""
        while self._fd < 0:
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                fd = os.open(self.path, flags, 0o600)
            except OSError as error:
                raise InstanceError(f"{self.path}: {error.strerror}") from error
            try:
                is_locked = _lock(fd)
                is_ours = is_locked and _is_at(self.path, fd)
            except OSError as error:
                os.close(fd)
                raise InstanceError(f"{self.path}: {error.strerror}") from error
            if not is_locked:
                os.close(fd)
                return False
            if is_ours:
                self._fd = fd
            else:
                os.close(fd)  # it was removed as stale between our open and our lock
        return True

    def write(self, values: Mapping[str, Any], mode: int) -> None:
        """Describe the server. Raises InstanceError."""
        try:
            os.fchmod(self._fd, mode)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(values).encode(), 0)
        except OSError as error:
            raise InstanceError(f"{self.path}: {error.strerror}") from error

    @property
    def is_there(self) -> bool:
        """Whether the file is still the one at its path. Raises OSError when nobody can tell."""
        return self._fd >= 0 and _is_at(self.path, self._fd)

    def release(self) -> None:
        """Remove the file, and give the lock up. A file that can't be removed stays, unlocked."""
        if self._fd >= 0:
            try:
                if _is_at(self.path, self._fd):
                    self.path.unlink()
            except OSError as error:
                log.warning("The lock file of the control socket stays: %s", error)
            self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's copy: the lock lives as long as any copy is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def new_lock(directory: Path, name: str, pid: int) -> Lock:
    """A lock of its own for a server of that name: `<name>-<pid>.lock`. Raises InstanceError."""
    stem = f"{safe_name(name)}-{pid}"
    number = 1
    while True:
        # Two containers that share a directory may both be PID 1.
        lock = Lock(directory / (f"{stem}.lock" if number == 1 else f"{stem}.{number}.lock"))
        if lock.acquire():
            return lock
        number += 1


def safe_name(name: str) -> str:
    """A server's name as a part of a file's name."""
    return _UNSAFE.sub("-", name).strip("-.")[:_NAME_LENGTH] or "servo"


def instances(places: Iterable[Path]) -> list[Instance]:
    """Every live server in these directories, by name and pid; what dead ones left is removed.

    Directories and lock files of users other than this process's and root are passed over.
    """
    found: dict[str, Instance] = {}
    for place in places:
        if not _is_believed(place):
            continue
        try:
            paths = sorted(place.glob("*.lock"))
        except OSError:
            continue
        for path in paths:
            instance = _examine(path)
            if instance is not None:
                found.setdefault(instance.socket, instance)
    return sorted(found.values(), key=lambda instance: (instance.name, instance.pid))


def _examine(path: Path) -> Instance | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None  # gone meanwhile, or another user's
    try:
        if os.fstat(fd).st_uid not in (0, os.geteuid()):
            return None
        values = _description(fd)
        if _lock(fd):
            if _is_at(path, fd):
                _remove(path, values)
            return None
    except OSError:
        return None  # its disk fails: nothing can be told of it
    finally:
        os.close(fd)
    if values is None:
        return None  # it is just starting
    return Instance(printable_line(values["name"]), values["pid"], values["socket"])


def _description(fd: int) -> dict[str, Any] | None:
    try:
        values = json.loads(os.pread(fd, 65_536, 0))
        kinds = {"name": str, "pid": int, "socket": str}
        if all(isinstance(values[name], kind) for name, kind in kinds.items()):
            return dict(values)
    except (ValueError, KeyError, TypeError):
        return None
    return None


def _remove(path: Path, values: dict[str, Any] | None) -> None:
    """Its lock is ours, so nobody lives there."""
    if values is not None and os.path.dirname(values["socket"]) == str(path.parent):
        remove_socket(values["socket"])
    with suppress(OSError):  # another user's, or a read-only place: it stays for its owner
        path.unlink()


def remove_socket(path: str) -> None:
    """Remove a socket file that no server listens on any more; anything else stays."""
    with suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and _refuses(path):
            os.unlink(path)


def _refuses(path: str) -> bool:
    """Whether nobody listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue says BlockingIOError
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _is_believed(place: Path) -> bool:
    """Whether only this user or root can have put files into a directory."""
    try:
        found = place.lstat()
    except OSError:
        return False
    # As its parent's owner, another user could have put it there in place of ours.
    kept = _keeps_names(place.parent, os.geteuid())
    return stat.S_ISDIR(found.st_mode) and is_private(found) and kept


def _keeps_names(place: Path, uid: int) -> bool:
    """Whether nobody but this user and root can rename or remove what this user makes there."""
    try:
        found = place.stat()
    except OSError:
        return False
    others_write = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return found.st_uid in (0, uid) and not others_write


def _lock(fd: int) -> bool:
    """False when somebody has it. Raises OSError where there are no locks (ENOLCK)."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, fd: int) -> bool:
    """Whether a path still leads to an open file. Raises OSError when nobody can tell."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False
