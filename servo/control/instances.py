"""Finds the running servers and their control sockets.

Each server holds a lock (flock) on a small file beside its socket as long as it lives. The lock
shows whether the server is alive. The pid does not, because in containers every arbiter is PID 1.
If a process finds a lock file that is not locked, it removes the file and the socket beside it.

In /tmp, anybody can make a directory with our name, and a lock file in it that names any socket. So
directories and files are trusted only if they belong to this user or to root. And a socket is only
removed if it is in its lock's directory and no process listens on it.

A systemd service with `RuntimeDirectory=servo` has its files in /run/servo. This directory belongs
to the service's user. Only root can make directories in /run, so root also searches the directories
of other users there. But the owner of such a directory may write any file into it. So root trusts a
lock file only if it belongs to the same user and names a socket beside it, and uses the socket only
if a process of that user listens on it.
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
    from collections.abc import Callable, Iterable, Mapping

log = logging.getLogger("servo.error")

# sun_path is 108 bytes with its NUL (unix(7)).
MAX_SOCKET_PATH = 107
# The parent of systemd's runtime directories. Only root can make directories in it.
SERVICES = Path("/run")
# The parents of other users' runtime directories: /run/user/<uid>/servo, /tmp/servo-<uid>.
USERS = Path("/run/user")
TEMPORARY = Path("/tmp")  # noqa: S108
_NAME = "servo"
_NAME_LENGTH = 48
# /<name>-<pid>.<number>.sock
_FILE_NAME_LENGTH = _NAME_LENGTH + 20
_UNSAFE = re.compile(r"[^A-Za-z0-9._]+")


class InstanceError(ServoError):
    """Raised if a runtime directory, a lock or a control socket can't be made or used."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A running server, from its lock file.

    name     `--name`, or the app
    pid      its arbiter's process id, in the server's own PID namespace
    socket   the path of its control socket
    owner    the user whose process must be the server; None: any user
    """

    name: str
    pid: int
    socket: str
    owner: int | None = None


def directories(environ: Mapping[str, str], uid: int) -> list[Path]:
    """The runtime directories that a user's servers may use, the preferred one first.

    environ   the environment, with $RUNTIME_DIRECTORY and $XDG_RUNTIME_DIR if they are set
    uid       the user's id
    """
    places = [Path(f"/run/user/{uid}", _NAME), SERVICES / _NAME, Path(f"/tmp/{_NAME}-{uid}")]  # noqa: S108
    own = environ.get("XDG_RUNTIME_DIR")
    if own and os.path.isabs(own):
        places.insert(0, Path(own, _NAME))
    # systemd sets this variable for RuntimeDirectory=. Only use names that `search_directories`
    # finds: a server that was started by another service may have inherited that service's
    # directory.
    given = [Path(each) for each in environ.get("RUNTIME_DIRECTORY", "").split(":")]
    places[:0] = [each for each in given if each.is_absolute() and _is_of_servo(each.name)]
    return list(dict.fromkeys(places))


def search_directories(environ: Mapping[str, str], uid: int) -> list[Path]:
    """The directories in which a user's servers may be: `directories`, and those of services.

    These are named `servo-<name>` and lie beside a directory named `servo`.

    environ   the environment, as for `directories`
    uid       the user's id
    """
    places = directories(environ, uid)
    parents = dict.fromkeys(place.parent for place in places if place.name == _NAME)
    for parent in parents:
        with suppress(OSError):  # the user may have no right to read the directory
            places += sorted(parent.glob(f"{_NAME}-*"))
    return list(dict.fromkeys(places))


def other_users_directories() -> list[Path]:
    """The runtime directories of other users; [] unless this process runs as root."""
    places = [*USERS.glob(f"*/{_NAME}"), *TEMPORARY.glob(f"{_NAME}-*")]
    return sorted(place for place in places if _other_user(place) is not None)


def _is_of_servo(name: str) -> bool:
    return name == _NAME or name.startswith(f"{_NAME}-")


def make_directory(environ: Mapping[str, str], uid: int, *, shared: bool = False) -> Path:
    """Find or make the runtime directory for a server's files, and return it.

    environ   the environment, with $XDG_RUNTIME_DIR if it is set
    uid       the user's id, to whom the directory must belong
    shared    whether other users may read it: then its mode is 0755, else 0700

    Raises InstanceError if none of the possible directories can be used.
    """
    problems = []
    for place in directories(environ, uid):
        # Don't make the parent: the system makes it (/run/user/<uid>).
        if not os.path.isdir(place.parent):
            continue
        if not _protects_names(place.parent, uid):
            # The owner of the parent could replace our directory. After `su`, and sometimes after
            # `sudo`, $XDG_RUNTIME_DIR still names the directory of another user.
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
    """A file with the description of a server, locked as long as the server lives.

    path   the file's path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the held lock as JSON values, for `from_state`.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {"path": str(self.path), "fd": pass_on(self._fd)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], take: Callable[[int], int]) -> Lock:
        """Take over the lock of this process's previous program, after an upgrade.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it
        """
        lock = cls(Path(state["path"]))
        lock._fd = take(int(state["fd"]))
        return lock

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
        """Close this process's descriptor, because any open copy would keep the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def new_lock(directory: Path, name: str, pid: int) -> Lock:
    """Make and acquire a new lock, named `<name>-<pid>.lock`.

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

    Ignores directories and lock files that belong to other users than this process's user and root.
    But root also finds the servers of other users in the directories of services, and in
    `other_users_directories`, from which it removes nothing.

    places   the runtime directories to search
    """
    found: dict[str, Instance] = {}
    for place in places:
        is_trusted = _is_trusted(place)
        owner = None if is_trusted else _service_user(place)
        may_clean = is_trusted or owner is not None
        if not may_clean:
            owner = _other_user(place)
        if not is_trusted and owner is None:
            continue
        try:
            paths = sorted(place.glob("*.lock"))
        except OSError:
            continue
        for path in paths:
            instance = _read_instance(path, owner, may_clean)
            if instance is not None:
                found.setdefault(instance.socket, instance)
    return sorted(found.values(), key=lambda instance: (instance.name, instance.pid))


def _read_instance(path: Path, owner: int | None, may_clean: bool) -> Instance | None:
    """Read a lock file. Returns None if its server is dead, or the file can't be trusted.

    path        the lock file's path
    owner       the user whose directory this is, if it is one of a service or of another user
    may_clean   whether to remove the files of a dead server
    """
    try:
        # Without O_NONBLOCK, opening a FIFO of another user would wait for a writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags)
    except OSError:
        return None  # the file has been removed, or this user may not read it
    try:
        status = os.fstat(fd)
        trusted = (0, os.geteuid()) if owner is None else (owner,)
        if status.st_uid not in trusted or not stat.S_ISREG(status.st_mode):
            return None
        values = _description(fd)
        if owner is not None and values is not None and not _is_beside(values["socket"], path):
            return None
        if _lock(fd):
            if may_clean and _is_at(path, fd):
                _remove_dead(path, values)
            return None
    except OSError:
        return None  # the file can't be read or locked, so its server can't be examined
    finally:
        os.close(fd)
    if values is None:
        return None  # the server is starting and has not written its description yet
    return Instance(printable_line(values["name"]), values["pid"], values["socket"], owner)


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
    """Remove the files of a dead server. This process must hold its lock.

    path     the lock file's path
    values   its description, if it has one
    """
    if values is not None and _is_beside(values["socket"], path):
        remove_socket(values["socket"])
    with suppress(OSError):  # it belongs to another user, or the file system is read-only
        path.unlink()


def _is_beside(path: str, lock: Path) -> bool:
    return os.path.dirname(path) == str(lock.parent)


def remove_socket(path: str) -> None:
    """Remove a socket file if no server listens on it. Any other file stays."""
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
    # Check the parent, too: its owner could have put this directory in the place of ours.
    is_protected = _protects_names(place.parent, os.geteuid())
    return stat.S_ISDIR(found.st_mode) and is_private(found) and is_protected


def _service_user(place: Path) -> int | None:
    """The user of the service with this directory; None unless this process runs as root.

    Only root can make a directory in `SERVICES`, so the directory itself can be trusted.
    """
    if os.geteuid() != 0 or place.parent != SERVICES or not _protects_names(SERVICES, 0):
        return None
    try:
        found = place.lstat()
    except OSError:
        return None
    is_closed = not found.st_mode & 0o022
    return found.st_uid if stat.S_ISDIR(found.st_mode) and is_closed else None


def _other_user(place: Path) -> int | None:
    """The other user whose runtime directory this is; None unless this process runs as root.

    The user could put a link in the place of the directory at any time. So believe only files of
    this user, connect only to processes of this user, and remove nothing.
    """
    if os.geteuid() != 0:
        return None
    if place.name == _NAME and place.parent.parent == USERS:
        text, parents = place.parent.name, [USERS, place.parent]
    elif place.parent == TEMPORARY:
        text, parents = place.name.removeprefix(f"{_NAME}-"), [TEMPORARY]
    else:
        return None
    uid = int(text) if text.isascii() and text.isdecimal() else 0
    if uid == 0 or not all(_protects_names(each, uid) for each in parents):
        return None
    try:
        found = place.lstat()
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022
    return uid if is_own else None


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
