"""The listening sockets that systemd keeps if a server crashes (sd_notify(3), FDSTORE).

The arbiter sends systemd a copy of each socket that it has bound. If the arbiter dies, systemd
still has the sockets: clients can connect, and wait in the accept queue. When systemd restarts the
server, it passes the sockets like those of a socket unit, but under the names from the arbiter. The
server uses each socket that matches an address of `bind`.

The configuration may have changed, so a socket matches only if a newly bound one would be the same:
it must have the same family, address and SO_REUSEPORT, and a Unix socket the same file. Other
sockets are closed, and removed from systemd's store.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("servo.error")

_PREFIX = "servo-listener-"
# systemd allows 255 printable characters and no colon.
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_MAX_NAME = 200


def store_name(address: str, identity: tuple[int, int] | None) -> str:
    """The name of a socket in systemd's store.

    address    the address, as text
    identity   (device, inode) of a Unix socket's file; None for other sockets
    """
    # The kernel does not report the inode of a Unix socket's file, so put it into the name.
    if identity is not None:
        return f"{_PREFIX}file-{identity[0]}-{identity[1]}"
    return _PREFIX + _UNSAFE.sub("_", address)[:_MAX_NAME]


def is_store_name(name: str) -> bool:
    """Whether a descriptor with this name comes from a server's store, not from a socket unit."""
    return name.startswith(_PREFIX)


class StoredSockets:
    """The sockets from systemd's store. Each one is taken once, or closed at the end.

    forgotten   the names of closed sockets, to remove from the store
    """

    def __init__(self) -> None:
        self._sockets: list[tuple[str, socket.socket]] = []
        self.forgotten: list[str] = []

    def add(self, fd: int, name: str) -> None:
        """Add an inherited descriptor. Close it if it is not a listening socket.

        fd     the descriptor
        name   its name in the store
        """
        try:
            is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        except OSError as error:
            log.warning("systemd has passed no socket as %s: %s", name, error)
            self.forgotten.append(name)
            return
        if not is_socket:
            os.close(fd)
            self.forgotten.append(name)
            return
        self._sockets.append((name, socket.socket(fileno=fd)))

    def take_tcp(
        self,
        family: int,
        sockaddr: tuple[str | int, ...],
        *,
        backlog: int,
        reuse_port: bool,
        v6_only: bool,
    ) -> socket.socket | None:
        """The listening socket of a TCP address, or None.

        family, sockaddr   the address, from `getaddrinfo`
        backlog            the length of the accept queue
        reuse_port         whether it must have SO_REUSEPORT; if False, it must not have it
        v6_only            the same for IPV6_V6ONLY, if the family is IPv6
        """

        def fits(_name: str, sock: socket.socket) -> bool:
            if sock.family != family or sock.getsockname() != sockaddr:
                return False
            if bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)) != reuse_port:
                return False
            if family != socket.AF_INET6:
                return True
            return bool(sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)) == v6_only

        return self._take(fits, backlog)

    def take_file(self, path: str, backlog: int) -> tuple[socket.socket, tuple[int, int]] | None:
        """The listening Unix socket of a path with its file's (device, inode), or None.

        path      the path, as in `bind`
        backlog   the length of the accept queue
        """
        try:
            status = os.lstat(path)
        except OSError:
            return None  # without the file, no client can reach the socket
        identity = (status.st_dev, status.st_ino)
        wanted = store_name("", identity)
        sock = self._take(lambda name, sock: name == wanted and sock.getsockname() == path, backlog)
        return None if sock is None else (sock, identity)

    def take_abstract(self, name: str, backlog: int) -> socket.socket | None:
        """The listening Unix socket of an abstract name, or None.

        name      the name, without the @
        backlog   the length of the accept queue
        """
        wanted = b"\0" + os.fsencode(name)
        return self._take(lambda _name, sock: sock.getsockname() == wanted, backlog)

    def close_rest(self) -> None:
        """Close the sockets that were not taken, and add their names to `forgotten`."""
        for name, sock in self._sockets:
            log.info("%s is closed: no address of bind is its own", name)
            self.forgotten.append(name)
            sock.close()
        self._sockets = []

    def leave(self) -> None:
        """Leave the remaining sockets in the store for the next start: this one has failed."""
        for _, sock in self._sockets:
            sock.detach()
        self._sockets = []

    def _take(
        self, fits: Callable[[str, socket.socket], bool], backlog: int
    ) -> socket.socket | None:
        for entry in self._sockets:
            name, sock = entry
            try:
                if not _listens(sock) or not fits(name, sock):
                    continue
                sock.listen(backlog)  # again, because the setting may have changed
                sock.setblocking(False)
                sock.set_inheritable(False)
            except OSError as error:
                log.warning("%s can't be used: %s", name, error)
                continue
            self._sockets.remove(entry)
            return sock
        return None


def _listens(sock: socket.socket) -> bool:
    return sock.type == socket.SOCK_STREAM and bool(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    )
