"""A server's own control socket: bound, guarded by its lock, listed in the runtime directory."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servo.control import instances
from servo.control.instances import InstanceError, Lock
from servo.control.server import BACKLOG

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
        self._chosen = path is not None
        if path is not None:
            self._bind_at(Path(path).absolute())

    def announce(self, name: str, environ: Mapping[str, str]) -> socket.socket:
        """Let `servoctl` find this server; the listening socket. Raises InstanceError."""
        self._owner = os.getpid()
        uid = os.geteuid()
        try:
            place = instances.make_directory(environ, uid, shared=self._shared)
            instances.instances([place])  # removes what dead servers left
            self._locks.append(instances.new_lock(place, name, self._owner))
        except InstanceError:
            if self.sock is None:
                raise
            return self.sock  # its users know the path
        lock = self._locks[-1]
        if self.sock is None:
            self._bind(lock.path.with_suffix(".sock"))
        assert self.sock is not None
        description: dict[str, Any] = {"name": name, "pid": self._owner, "socket": self.path}
        lock.write(description, _READABLE if self._shared else _PRIVATE)
        return self.sock

    def close(self) -> None:
        """Close the socket and remove the files; in another process than ours, only close."""
        if self.sock is not None:
            self.sock.close()
        if os.getpid() == self._owner and self.sock is not None:
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

    def _bind_at(self, path: Path) -> None:
        lock = Lock(path.with_name(path.name + ".lock"))
        if not lock.acquire():
            raise InstanceError(f"{path} belongs to a server that runs")
        self._locks.append(lock)
        try:
            self._bind(path)
        except InstanceError:
            lock.release()
            raise

    def _bind(self, path: Path) -> None:
        if len(os.fsencode(path)) > instances.MAX_SOCKET_PATH:
            raise InstanceError(f"{path} is longer than a socket's path can be")
        # The lock is ours: what lies there is a dead server's.
        instances.remove_socket(str(path))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o777 & ~self._mode)
        try:
            sock.bind(str(path))
            os.chmod(path, self._mode)
            sock.listen(BACKLOG)
        except OSError as error:
            sock.close()
            raise InstanceError(f"{path}: {error.strerror}") from error
        finally:
            os.umask(before)
        self.sock = sock
        self.path = str(path)
