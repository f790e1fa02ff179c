"""Finds the running servers and their control sockets.

Each server holds a lock (flock) on a small file beside its socket for as long as it lives. The lock
shows whether the server is alive; its pid can't, because in containers every arbiter is PID 1. A
process that finds a lock file which nobody has locked removes it and the socket beside it.

In /tmp, anybody can make a directory with the name of ours and put a lock file into it that names
any socket. So directories and files are trusted only if they belong to this user or to root, and a
socket is only removed if it is in its lock's directory and nobody listens on it.
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
    """A runtime directory, a lock or a control socket can't be made or used."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A running server, as its lock file describes it.

    name     `--name`, or the app
    pid      its arbiter's process id, as the server itself sees it
    socket   the path of its control socket
    """

    name: str
    pid: int
    socket: str


def directories(environ: Mapping[str, str], uid: int) -> list[Path]:
    """The runtime directories that a user's servers may use, the preferred one first.

    environ   the environment, with $XDG_RUNTIME_DIR if it is set
    uid       the user's id
    """
    places = [Path(f"/run/user/{uid}/servo"), Path("/run/servo"), Path(f"/tmp/servo-{uid}")]  # noqa: S108
    own = environ.get("XDG_RUNTIME_DIR")
    if own and os.path.isabs(own):
        places.insert(0, Path(own, "servo"))
    return list(dict.fromkeys(places))


def make_directory(environ: Mapping[str, str], uid: int, *, shared: bool = False) -> Path:
    """Find or make the runtime directory for a server's files, and return it.

    environ   the environment, with $XDG_RUNTIME_DIR if it is set
    uid       the user's id, to whom the directory must belong
    shared    whether other users may read it: then its mode is 0755, else 0700

    Raises InstanceError if none of the possible directories can be used.
    """
    problems = []
    for place in directories(environ, uid):
        # The parent is made by the system (/run/user/<uid>), never by this.
        if not os.path.isdir(place.parent):
            continue
        if not _protects_names(place.parent, uid):
            # Its owner could replace the directory by another one. After `su`, and sometimes after
            # `sudo`, $XDG_RUNTIME_DIR is that of another user.
            problems.append(f"{place.parent} belongs to another user, or others can write to it")
            continue
        if len(os.fsencode(place)) + _FILE_NAME_LENGTH > MAX_SOCKET_PATH:
            problems.append(f"{place}: the path is too long for a socket in it")
            continue
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            found = place.lstat()
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
            continue
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid:
            # In /tmp, anybody can make a directory of that name.
            problems.append(f"{place} is not a directory of user {uid}")
            continue
        mode = 0o755 if shared else 0o700
        if stat.S_IMODE(found.st_mode) & 0o022 or (shared and stat.S_IMODE(found.st_mode) != mode):
            place.chmod(mode)
        return place
    raise InstanceError("; ".join(problems) or "there is no runtime directory for it")


class Lock:
    """A file that describes a server and that the server keeps locked for as long as it lives.

    path   the file's path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self) -> bool:
        """Make the file if there is none, and lock it.

        Returns False if another process has locked it. Raises InstanceError.
        """
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
                os.close(fd)  # another process removed the file as stale before we locked it
        return True

    def write(self, values: Mapping[str, Any], mode: int) -> None:
        """Write the server's description into the file.

        values   the description: name, pid and socket
        mode     the file's permission bits

        Raises InstanceError.
        """
        try:
            os.fchmod(self._fd, mode)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps(values).encode(), 0)
        except OSError as error:
            raise InstanceError(f"{self.path}: {error.strerror}") from error

    @property
    def is_in_place(self) -> bool:
        """Whether the file is locked and still at its path.

        Raises OSError if the system can't answer.
        """
        return self._fd >= 0 and _is_at(self.path, self._fd)

    def release(self) -> None:
        """Remove the file and unlock it. A file that can't be removed stays, unlocked."""
        if self._fd >= 0:
            try:
                if _is_at(self.path, self._fd):
                    self.path.unlink()
            except OSError as error:
                log.warning("Can't remove the lock file of the control socket: %s", error)
            self.close_in_child()

    def close_in_child(self) -> None:
        """Close this process's descriptor; the lock lasts as long as any copy of it is open."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def new_lock(directory: Path, name: str, pid: int) -> Lock:
    """Make and acquire a lock that no other server has, named `<name>-<pid>.lock`.

    directory   the runtime directory
    name        the server's name
    pid         its arbiter's process id

    Raises InstanceError.
    """
    stem = f"{safe_name(name)}-{pid}"
    number = 1
    while True:
        # In two containers that share a directory, both arbiters may be PID 1.
        lock = Lock(directory / (f"{stem}.lock" if number == 1 else f"{stem}.{number}.lock"))
        if lock.acquire():
            return lock
        number += 1


def safe_name(name: str) -> str:
    """A server's name in a form that can be part of a file's name."""
    return _UNSAFE.sub("-", name).strip("-.")[:_NAME_LENGTH] or "servo"


def instances(places: Iterable[Path]) -> list[Instance]:
    """Find the running servers, sorted by name and pid, and remove the files of dead ones.

    Directories and lock files that belong neither to this process's user nor to root are ignored.

    places   the runtime directories to search
    """
    found: dict[str, Instance] = {}
    for place in places:
        if not _is_trusted(place):
            continue
        try:
            paths = sorted(place.glob("*.lock"))
        except OSError:
            continue
        for path in paths:
            instance = _read_instance(path)
            if instance is not None:
                found.setdefault(instance.socket, instance)
    return sorted(found.values(), key=lambda instance: (instance.name, instance.pid))


def _read_instance(path: Path) -> Instance | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None  # the file has been removed, or this user may not read it
    try:
        if os.fstat(fd).st_uid not in (0, os.geteuid()):
            return None
        values = _description(fd)
        if _lock(fd):
            if _is_at(path, fd):
                _remove_dead(path, values)
            return None
    except OSError:
        return None  # the file can't be read or locked, so its server can't be examined
    finally:
        os.close(fd)
    if values is None:
        return None  # the server is starting and has not written its description yet
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


def _remove_dead(path: Path, values: dict[str, Any] | None) -> None:
    """Remove the files of a dead server. This process holds its lock, so no server has it.

    path     the lock file's path
    values   its description, if it has one
    """
    if values is not None and os.path.dirname(values["socket"]) == str(path.parent):
        remove_socket(values["socket"])
    with suppress(OSError):  # it stays if it is another user's or on a read-only file system
        path.unlink()


def remove_socket(path: str) -> None:
    """Remove a socket file on which no server listens; any other file stays."""
    with suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode) and _is_abandoned(path):
            os.unlink(path)


def _is_abandoned(path: str) -> bool:
    """Whether no process listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # so that a full queue raises BlockingIOError instead of blocking
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _is_trusted(place: Path) -> bool:
    """Whether only this user and root can have put files into a directory."""
    try:
        found = place.lstat()
    except OSError:
        return False
    # The owner of the parent could have replaced our directory by this one.
    is_protected = _protects_names(place.parent, os.geteuid())
    return stat.S_ISDIR(found.st_mode) and is_private(found) and is_protected


def _protects_names(place: Path, uid: int) -> bool:
    """Whether only this user and root can rename or remove files that this user makes there."""
    try:
        found = place.stat()
    except OSError:
        return False
    others_write = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    return found.st_uid in (0, uid) and not others_write


def _lock(fd: int) -> bool:
    """Lock a file; False if another process has locked it.

    Raises OSError if the file system has no locks (ENOLCK).
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, fd: int) -> bool:
    """Whether a path still names an open file. Raises OSError if the system can't answer."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False
