"""A server's own control socket and its files: the socket, its lock, and its description."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.control import instances
from servo.control.instances import InstanceError, Lock
from servo.control.server import BACKLOG
from servo.safe_files import check_appendable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_READABLE = 0o644
_PRIVATE = 0o600


class Endpoint:
    """The listening control socket, and the locks that show that its server is alive.

    It is set up in two steps, because a daemon's pid isn't known at first. `__init__` binds the
    socket if its path was given. `announce` writes a description of the server into the runtime
    directory. If no path was given, `announce` first binds a socket in that directory, whose name
    contains the server's name and pid.

    path     the socket's path; None: a path in the runtime directory
    mode     the permission bits of the socket file
    shared   whether other users may use the socket, and so may read its description

    Raises InstanceError.
    """

    def __init__(self, path: str | None, mode: int, *, shared: bool) -> None:
        self.path = ""
        self.sock: socket.socket | None = None
        self._mode = mode
        self._shared = shared
        self._locks: list[Lock] = []
        self._owner = os.getpid()
        self._identity: tuple[int, int] | None = None
        self._chosen = Path(path).absolute() if path is not None else None
        self._name = ""
        self._is_announced = False
        self._environ: Mapping[str, str] = {}
        if self._chosen is not None:
            self._bind_at(self._chosen)

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the socket and its files as JSON values, for `from_state` after an upgrade.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {
            "fd": pass_on(self.sock.fileno() if self.sock is not None else -1),
            "path": self.path,
            "chosen": None if self._chosen is None else str(self._chosen),
            "mode": self._mode,
            "shared": self._shared,
            "identity": self._identity,
            "name": self._name,
            "locks": [lock.to_state(pass_on) for lock in self._locks],
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], take: Callable[[int], int], environ: Mapping[str, str]
    ) -> Endpoint:
        """Take over the announced socket of this process's previous program, after an upgrade.

        state     the result of that program's `to_state`
        take      claims a descriptor from the previous program, and returns it
        environ   see `announce`

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        endpoint = cls(None, int(state["mode"]), shared=bool(state["shared"]))
        fd, identity, chosen = take(int(state["fd"])), state["identity"], state["chosen"]
        endpoint.sock = socket.socket(fileno=fd) if fd >= 0 else None
        endpoint.path = str(state["path"])
        endpoint._chosen = None if chosen is None else Path(chosen)
        endpoint._identity = None if identity is None else (int(identity[0]), int(identity[1]))
        endpoint._name, endpoint._environ = str(state["name"]), environ
        endpoint._locks = [Lock.from_state(each, take) for each in state["locks"]]
        endpoint._is_announced = endpoint.sock is not None
        return endpoint

    def announce(self, name: str, environ: Mapping[str, str]) -> socket.socket:
        """Describe the server in the runtime directory, and return the listening socket.

        If the socket's path was given, a failure is ignored, because operators know the path.

        name      the server's name
        environ   the environment, which determines the runtime directory

        Raises InstanceError.
        """
        if self._is_announced:
            assert self.sock is not None
            return self.sock
        self._owner = os.getpid()
        self._name, self._environ = name, environ
        try:
            self._list()
        except InstanceError:
            if self._chosen is None:
                self.close()
                raise
        assert self.sock is not None
        self._is_announced = True
        return self.sock

    @property
    def is_whole(self) -> bool:
        """Whether the socket's file and the lock files are still in place."""
        if self.sock is None:
            return False
        try:
            return _identity_of(self.path) == self._identity and all(
                lock.is_in_place for lock in self._locks
            )
        except OSError:
            return True  # if the files can't be examined, they can't be made again

    def renew(self) -> socket.socket:
        """Make the socket and its files again, and return the new listening socket.

        Raises InstanceError.
        """
        self.close()
        if self._chosen is not None:
            self._bind_at(self._chosen)
        return self.announce(self._name, self._environ)

    def close(self) -> None:
        """Close the socket and remove its files. In a child of the server, only close it.

        A newer file of another server at the same path stays.
        """
        if self.sock is not None:
            self.sock.close()
            if os.getpid() == self._owner and self._is_ours():
                instances.remove_socket(self.path)
        for lock in self._locks:
            lock.release()
        self.sock = None
        self._locks = []
        self._is_announced = False

    def close_in_child(self) -> None:
        """Close a forked child's copies of the descriptors."""
        if self.sock is not None:
            self.sock.close()
        for lock in self._locks:
            lock.close_in_child()

    def _is_ours(self) -> bool:
        try:
            return _identity_of(self.path) == self._identity
        except OSError:
            return False

    def _list(self) -> None:
        uid = os.geteuid()
        place = instances.make_directory(self._environ, uid, shared=self._shared)
        instances.instances([place])  # removes files that dead servers have left
        lock = instances.new_lock(place, self._name, self._owner)
        self._locks.append(lock)
        if self.sock is None:
            self._bind(lock.path.with_suffix(".sock"))
        description: dict[str, Any] = {"name": self._name, "pid": self._owner, "socket": self.path}
        lock.write(description, _READABLE if self._shared else _PRIVATE)

    def _bind_at(self, path: Path) -> None:
        lock = Lock(_lock_path(path))
        if not lock.acquire():
            raise InstanceError(f"{path} belongs to a server that is running")
        self._locks.append(lock)
        try:
            self._bind(path)
        except InstanceError:
            lock.release()
            raise

    def _bind(self, path: Path) -> None:
        _check_length(path)
        _check_place(path)
        # This process holds the lock, so a socket at the path belongs to a dead server.
        instances.remove_socket(str(path))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~self._mode)
        try:
            sock.bind(str(path))
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise InstanceError(f"{path}: {error.strerror}") from error
        finally:
            os.umask(before)
        self.sock = sock
        self.path = str(path)
        try:
            self._identity = _identity_of(self.path)
        except OSError as error:
            raise InstanceError(f"{path}: {error.strerror}") from error


def check_path(path: str) -> None:
    """Check that a control socket can be made at a path, without making a file.

    Raises InstanceError.
    """
    _check_length(Path(path).absolute())
    lock = _lock_path(Path(path).absolute())
    try:
        check_appendable(str(lock))
    except OSError as error:
        raise InstanceError(f"{lock}: {error.strerror}") from error
    _check_place(Path(path).absolute())


def is_in_private_tmp(path: str, mounts: str = "/proc/self/mountinfo") -> bool:
    """Whether a path is in a /tmp of this service alone: systemd's PrivateTmp=.

    path     the absolute path
    mounts   the file that lists this process's mounts (proc(5))
    """
    try:
        lines = Path(mounts).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    # The fourth field is the mounted directory, and the fifth is the mount point.
    fields = [line.split() for line in lines]
    places = {each[4] for each in fields if len(each) > 4 and "/systemd-private-" in each[3]}
    return any(path.startswith(f"{place}/") for place in places)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > instances.MAX_SOCKET_PATH:
        raise InstanceError(
            f"{path} is longer than a socket's path may be ({instances.MAX_SOCKET_PATH} bytes)"
        )


def _check_place(path: Path) -> None:
    """Refuse a path at which there is something else than a socket: it may be of use."""
    try:
        is_free = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:  # there is nothing, or `bind` gives the reason
        return
    if not is_free:
        raise InstanceError(
            f"{path} is there already, and no socket: remove it, or name a new path"
        )


def _identity_of(path: str) -> tuple[int, int] | None:
    """The device and inode of the file at a path; None if there is none.

    Raises OSError if the system can't answer.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
