"""A server's own control socket: bound, guarded by its lock, listed in the runtime directory."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.control import instances
from servo.control.instances import InstanceError, Lock
from servo.control.server import BACKLOG
from servo.safe_files import check_appendable

if TYPE_CHECKING:
    from collections.abc import Mapping

_READABLE = 0o644
_PRIVATE = 0o600


class Endpoint:
    """The listening socket, and the locks that say it is alive.

    Made in two steps, as a daemon's pid is known only late: `__init__` binds a socket whose path
    was given; `announce` lists it, or binds the one that goes by name and pid.

    path     where the socket is to be; None: in the runtime directory
    mode     of the socket file
    shared   other users may use it: its description can be read by them

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
        self._environ: Mapping[str, str] = {}
        if self._chosen is not None:
            self._bind_at(self._chosen)

    def announce(self, name: str, environ: Mapping[str, str]) -> socket.socket:
        """Let `servoctl` find this server; the listening socket. Raises InstanceError."""
        self._owner = os.getpid()
        self._name, self._environ = name, environ
        try:
            self._list()
        except InstanceError:
            if self._chosen is None:
                self.close()
                raise
            # Its users know the path.
        assert self.sock is not None
        return self.sock

    @property
    def is_whole(self) -> bool:
        """Whether the socket's file, and those that say whose it is, are where they were made."""
        if self.sock is None:
            return False
        try:
            return _identity_of(self.path) == self._identity and all(
                lock.is_there for lock in self._locks
            )
        except OSError:
            return True  # where nothing can be looked at, nothing can be made anew

    def renew(self) -> socket.socket:
        """Make anew what somebody has removed; the new listening socket. Raises InstanceError."""
        self.close()
        if self._chosen is not None:
            self._bind_at(self._chosen)
        return self.announce(self._name, self._environ)

    def close(self) -> None:
        """Close the socket and remove the files; in another process than ours, only close."""
        if self.sock is not None:
            self.sock.close()
            # Another server's may lie there, if somebody has removed ours.
            if os.getpid() == self._owner and self._is_ours():
                instances.remove_socket(self.path)
        for lock in self._locks:
            lock.release()
        self.sock = None
        self._locks = []

    def close_in_child(self) -> None:
        """In a forked child: close this process's copies."""
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
        instances.instances([place])  # removes what dead servers left
        lock = instances.new_lock(place, self._name, self._owner)
        self._locks.append(lock)
        if self.sock is None:
            self._bind(lock.path.with_suffix(".sock"))
        description: dict[str, Any] = {"name": self._name, "pid": self._owner, "socket": self.path}
        lock.write(description, _READABLE if self._shared else _PRIVATE)

    def _bind_at(self, path: Path) -> None:
        lock = Lock(_lock_path(path))
        if not lock.acquire():
            raise InstanceError(f"{path} belongs to a server that runs")
        self._locks.append(lock)
        try:
            self._bind(path)
        except InstanceError:
            lock.release()
            raise

    def _bind(self, path: Path) -> None:
        _check_length(path)
        # The lock is ours: what lies there is a dead server's.
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
    """Raise the InstanceError of a path where no socket can be. No file is made."""
    _check_length(Path(path).absolute())
    lock = _lock_path(Path(path).absolute())
    try:
        check_appendable(str(lock))
    except OSError as error:
        raise InstanceError(f"{lock}: {error.strerror}") from error


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _check_length(path: Path) -> None:
    if len(os.fsencode(path)) > instances.MAX_SOCKET_PATH:
        raise InstanceError(f"{path} is longer than a socket's path can be")


def _identity_of(path: str) -> tuple[int, int] | None:
    """Which file lies there; None for no file. Raises OSError when nobody can tell."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
