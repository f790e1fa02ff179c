"""Opens the sockets that Servo listens on: binds them, or takes them over from systemd.

`bind_all` opens all of them, or raises a BindError that names the address, the reason and, if
possible, the remedy. The arbiter opens the listeners and the workers inherit them, so a port stays
open when a worker is restarted. Listeners are non-blocking, and closed on exec.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from servo.errors import BindError
from servo.net.address import (
    AbstractAddress,
    Address,
    FdAddress,
    TCPAddress,
    UnixAddress,
    parse_address,
)
from servo.net.port_owner import describe_port_owner, describe_unix_owner
from servo.net.stored_sockets import StoredSockets, is_store_name, store_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

log = logging.getLogger("servo.error")

# sd_listen_fds(3): the first descriptor that systemd passes.
_SYSTEMD_FIRST_FD = 3
# How many seconds to wait for the lock of a directory. Binding takes microseconds, so a server
# never holds the lock for that long.
_LOCK_WAIT_S = 2.0
_LOCK_POLL_S = 0.02


class BindSettings(Protocol):
    """The settings that this module reads. `user` and `group` are ids, or None to keep ours."""

    @property
    def bind(self) -> Sequence[str]: ...
    @property
    def backlog(self) -> int: ...
    @property
    def reuse_port(self) -> bool: ...
    @property
    def umask(self) -> int | None: ...
    @property
    def user(self) -> int | None: ...
    @property
    def group(self) -> int | None: ...


@dataclass(eq=False)
class Listener:
    """A listening stream socket.

    socket     the socket, in non-blocking mode
    address    its address; for port 0, with the port that the kernel chose
    name       its name for people: "http://127.0.0.1:8000", "unix:/run/app.sock"
    requested  the address from the settings
    label      systemd's name for the socket (FileDescriptorName=), or ""
    identity   (device, inode) of the socket file, if this process has created it; else None
    owner_pid  the process that may unlink that file
    """

    socket: socket.socket
    address: Address
    name: str
    requested: Address
    label: str = ""
    identity: tuple[int, int] | None = None
    owner_pid: int = -1

    def __repr__(self) -> str:
        return f"<Listener {self.name} fd={self.fileno()}>"

    def fileno(self) -> int:
        """The socket's descriptor; -1 if it is closed."""
        return self.socket.fileno()

    def close(self, *, unlink: bool = True) -> None:
        """Close this process's copy of the socket.

        unlink  whether to remove the socket file, too (see the method `unlink`)

        Removes the file first, so that clients find no socket instead of one that refuses
        connections. A file that can't be removed is logged; the next start removes it as stale.
        """
        if unlink:
            try:
                self.unlink()
            except OSError as error:
                log.warning("Can't remove the socket file of %s: %s", self.name, error)
        try:
            self.socket.close()
        except OSError as error:  # the descriptor is closed despite the error (close(2))
            log.warning("Closing %s failed: %s", self.name, error)

    def unlink(self) -> None:
        """Remove the socket file, if this process has created it and it is still the same file.

        Raises OSError if it can't be removed.
        """
        address = self.address
        if self.identity is None or not isinstance(address, UnixAddress):
            return
        if self.owner_pid != os.getpid():
            return
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(address.path)
            if (status.st_dev, status.st_ino) == self.identity:
                os.unlink(address.path)
        self.identity = None

    @property
    def stored_as(self) -> str:
        """The socket's name in systemd's store; "" if this process did not bind the socket."""
        if isinstance(self.requested, FdAddress):
            return ""
        return store_name(str(self.address), self.identity)

    @property
    def is_lost(self) -> bool:
        """Whether this process's socket file was removed or replaced."""
        address = self.address
        if self.identity is None or not isinstance(address, UnixAddress):
            return False
        try:
            status = os.lstat(address.path)
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self.identity

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the socket as JSON values, for `from_state` after an upgrade.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        path = os.path.abspath(self.address.path) if isinstance(self.address, UnixAddress) else None
        return {
            "fd": pass_on(self.fileno()),
            "name": self.name,
            "requested": str(self.requested),
            "label": self.label,
            "identity": self.identity if self.owner_pid == os.getpid() else None,
            "path": path,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], take: Callable[[int], int]) -> Listener:
        """Take over a listening socket from this process's previous program, after an upgrade.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it

        Raises KeyError, TypeError, ValueError, OSError or ConfigError for an invalid state.
        """
        sock = socket.socket(fileno=take(int(state["fd"])))
        path, identity = state["path"], state["identity"]
        return cls(
            sock,
            # The path that the kernel reports is relative to the working directory at the bind, so
            # use the absolute one if it is known.
            UnixAddress(str(path)) if path is not None else _address_of(sock),
            str(state["name"]),
            parse_address(state["requested"]),
            str(state["label"]),
            (int(identity[0]), int(identity[1])) if identity is not None else None,
            os.getpid() if identity is not None else -1,
        )

    def sibling(self, backlog: int) -> Listener:
        """Open another socket on the same port, with its own accept queue (reuse_port).

        backlog  the length of the queue

        Raises BindError unless this is a TCP listener that was bound with reuse_port.
        """
        address = self.address
        if not isinstance(address, TCPAddress) or not self.socket.getsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEPORT
        ):
            raise BindError(f"can't open a second listener for {self.name} without SO_REUSEPORT")
        target = (self.socket.family, self.socket.getsockname())
        v6_only = self.socket.family == socket.AF_INET6 and bool(
            self.socket.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        )
        sock = _listen_tcp(target, address, backlog, reuse_port=True, v6_only=v6_only)
        return Listener(sock, address, self.name, self.requested, self.label)


def bind_all(
    settings: BindSettings,
    environ: MutableMapping[str, str] | None = None,
    stored: StoredSockets | None = None,
) -> list[Listener]:
    """Listen on every address of `settings.bind`, or on systemd's sockets if it has passed any.

    settings  the addresses, and how to open them
    environ   the environment variables; by default those of this process
    stored    is filled with the sockets that systemd kept during a crash; matching ones are used

    Removes LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES from the environment: they are meant for this
    process, not for its children. Raises BindError, or ConfigError for a malformed address; if so,
    all sockets are closed.
    """
    passed = _systemd_fds(os.environ if environ is None else environ)
    inherited = [(fd, label) for fd, label in passed if not is_store_name(label)]
    stored = StoredSockets() if stored is None else stored
    for fd, label in passed:
        if is_store_name(label):
            stored.add(fd, label)
    listeners: list[Listener] = []
    try:
        if inherited:
            listeners += [
                _adopt(FdAddress(fd), settings.backlog, f"systemd's socket {label or fd}", label)
                for fd, label in inherited
            ]
            stored.close_rest()
            return listeners
        addresses = [parse_address(text) for text in settings.bind]
        for position, address in enumerate(addresses):
            if address in addresses[:position] and getattr(address, "port", None) != 0:
                raise BindError(f"{address} is listed twice in bind")
            listeners += _bind(address, addresses, settings, stored)
    except BaseException:
        for listener in listeners:
            listener.close()
        stored.leave()
        raise
    stored.close_rest()
    return listeners


def _bind(
    address: Address, all_of: list[Address], settings: BindSettings, stored: StoredSockets
) -> list[Listener]:
    if isinstance(address, TCPAddress):
        return _bind_tcp(address, all_of, settings, stored)
    if isinstance(address, UnixAddress):
        return [_bind_unix(address, settings, stored)]
    if isinstance(address, AbstractAddress):
        return [_bind_abstract(address, settings.backlog, stored)]
    return [_adopt(address, settings.backlog, str(address))]


# --- TCP ----------------------------------------------------------------------------------------


def _bind_tcp(
    address: TCPAddress, all_of: list[Address], settings: BindSettings, stored: StoredSockets
) -> list[Listener]:
    """Open a listener for each address of the host name.

    Leaves out addresses that this machine doesn't have, such as `localhost`'s ::1 without IPv6. At
    least one must remain.
    """
    listeners: list[Listener] = []
    missing: BindError | None = None
    # On Linux [::] also accepts IPv4 connections, and operators expect this. But if 0.0.0.0 is
    # bound on the same port, too, [::] must accept only IPv6.
    v6_only = TCPAddress("0.0.0.0", address.port) in all_of  # noqa: S104
    targets = _resolve(address)
    if address.port == 0:
        # Port 0: bind only one address, because the kernel would choose a different port for each.
        del targets[1:]
    for target in targets:
        kept = stored.take_tcp(
            *target, backlog=settings.backlog, reuse_port=settings.reuse_port, v6_only=v6_only
        )
        try:
            sock = kept or _listen_tcp(
                target,
                address,
                settings.backlog,
                reuse_port=settings.reuse_port,
                v6_only=v6_only,
            )
        except BindError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _NO_SUCH_INTERFACE:
                missing = error
                continue
            for listener in listeners:
                listener.close()
            raise
        bound = _address_of(sock)
        listeners.append(Listener(sock, bound, _name(bound), address))
    if not listeners and missing is not None:
        raise missing
    return listeners


_NO_SUCH_INTERFACE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

_Target = tuple[int, tuple[str | int, ...]]


def _resolve(address: TCPAddress) -> list[_Target]:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise BindError(f"can't bind {address}: no address for {address.host}: {error}") from error
    targets: dict[_Target, None] = {
        (family, cast("tuple[str | int, ...]", sockaddr)): None
        for family, _, _, _, sockaddr in found
    }
    return [
        (family, sockaddr)
        for family, sockaddr in targets
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


def _listen_tcp(
    target: _Target,
    address: TCPAddress,
    backlog: int,
    *,
    reuse_port: bool,
    v6_only: bool,
) -> socket.socket:
    family, sockaddr = target
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # On Linux accepted sockets inherit this, which saves a system call for each connection.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if v6_only and family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(sockaddr)
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _tcp_error(error, address, sockaddr) from error
    return sock


def _tcp_error(error: OSError, address: TCPAddress, sockaddr: tuple[str | int, ...]) -> BindError:
    # A host name may have several addresses, so say which one failed.
    where = str(address)
    if sockaddr[0] != address.host:
        where += f" ({sockaddr[0]})"
    if error.errno == errno.EADDRINUSE:
        owner = describe_port_owner(address.port)
        return BindError(f"{where} is already in use{f' by {owner}' if owner else ''}")
    if error.errno in (errno.EACCES, errno.EPERM) and address.port < 1024:
        return BindError(
            f"can't bind {where}: permission denied; ports below 1024 need root or "
            "CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return BindError(f"can't bind {where}: no interface of this machine has that address")
    if error.errno == errno.EAFNOSUPPORT:
        return BindError(f"can't bind {where}: this machine has no IPv6")
    return BindError(f"can't bind {where}: {error.strerror or error}")


# --- Unix sockets -------------------------------------------------------------------------------


def _bind_unix(address: UnixAddress, settings: BindSettings, stored: StoredSockets) -> Listener:
    """Bind and listen. Replaces the stale socket file of a dead server.

    If two servers start at the same time, both may find the stale file. The first would replace it,
    and the second would then remove the new file. So the directory is locked until the new socket
    listens.
    """
    with _locked(os.path.dirname(address.path) or ".", address):
        kept = stored.take_file(address.path, settings.backlog)
        if kept is not None:
            sock, identity = kept
            return Listener(sock, address, str(address), address, "", identity, os.getpid())
        _remove_stale(address)
        return _bind_file(address, settings)


@contextlib.contextmanager
def _locked(directory: str, address: UnixAddress) -> Iterator[None]:
    """Lock a directory itself (flock), which leaves no lock file."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        # The directory can't be read, or doesn't exist. Continue without the lock: if binding is
        # not possible, bind() raises the error.
        yield
        return
    try:
        _lock(fd, directory, address)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, directory: str, address: UnixAddress) -> None:
    """Wait for the lock, but continue without it after _LOCK_WAIT_S.

    Any user who can read a directory can hold its lock forever, but this must not keep the server
    from starting. Without the lock, the only danger is that two servers start at the same time.
    """
    end = time.monotonic() + _LOCK_WAIT_S
    while not _try_lock(fd):
        if time.monotonic() >= end:
            log.warning(
                "Binding %s without a lock: another process has locked the directory %s for %g s",
                address,
                directory,
                _LOCK_WAIT_S,
            )
            return
        time.sleep(_LOCK_POLL_S)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.debug("Can't lock the directory of a Unix socket: %s", error)
    return True


def _bind_file(address: UnixAddress, settings: BindSettings) -> Listener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    identity = None
    try:
        # Set the file's mode by the umask at bind(). A later chmod would be too late: clients could
        # connect before it.
        before = None if settings.umask is None else os.umask(settings.umask)
        try:
            sock.bind(address.path)
        finally:
            if before is not None:
                os.umask(before)
        status = os.lstat(address.path)
        identity = (status.st_dev, status.st_ino)
        _give_to_workers(address.path, settings.user, settings.group)
        sock.listen(settings.backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if identity is not None:
            os.unlink(address.path)
        raise _unix_error(error, address) from error
    return Listener(sock, address, str(address), address, "", identity, os.getpid())


def _remove_stale(address: UnixAddress) -> None:
    """Remove a socket file on which no process listens. Raises BindError for anything else."""
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unix_error(error, address) from error
    if not stat.S_ISSOCK(mode):
        raise BindError(f"can't bind {address}: the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            pass
        except FileNotFoundError:
            return
        except BlockingIOError:
            # The accept queue is full, so a process must be listening.
            raise BindError(f"{address} is already in use by a running server") from None
        except OSError as error:
            raise BindError(
                f"can't bind {address}: the socket exists and can't be probed: {error.strerror}"
            ) from error
        else:
            raise _in_use(address, probe)
    try:
        os.unlink(address.path)
    except OSError as error:
        raise BindError(
            f"can't bind {address}: can't remove a dead server's socket: {error.strerror}"
        ) from error


def _in_use(address: Address, probe: socket.socket) -> BindError:
    """The error for an address that `probe` could connect to."""
    owner = describe_unix_owner(probe)
    by = f", {owner}" if owner else ""
    return BindError(f"{address} is already in use by a running server{by}")


def _give_to_workers(path: str, user: int | None, group: int | None) -> None:
    """Make the workers' user the owner of the socket file, unless this process has the same user.

    If other users can write to the directory, one of them may have replaced the file, and a chown
    by path would change the owner of their file. So the file is opened (with O_PATH, because a
    socket can't be opened otherwise), checked, and its owner is changed through the descriptor.
    """
    uid = -1 if user is None or user == os.geteuid() else user
    gid = -1 if group is None or group == os.getegid() else group
    if uid != -1 or gid != -1:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                raise OSError(errno.EBUSY, "another process has put a file in its place")
            link = f"/proc/self/fd/{fd}"  # fchown() refuses descriptors of O_PATH
            os.chown(link if os.path.exists(link) else path, uid, gid, follow_symlinks=True)
        finally:
            os.close(fd)


def _unix_error(error: OSError, address: UnixAddress) -> BindError:
    directory = os.path.dirname(address.path) or "."
    if error.errno == errno.ENOENT:
        return BindError(f"can't bind {address}: the directory {directory} does not exist")
    if error.errno in (errno.EACCES, errno.EPERM):
        return BindError(f"can't bind {address}: permission denied in {directory}")
    return BindError(f"can't bind {address}: {error.strerror or error}")


def _bind_abstract(address: AbstractAddress, backlog: int, stored: StoredSockets) -> Listener:
    kept = stored.take_abstract(address.name, backlog)
    if kept is not None:
        return Listener(kept, address, str(address), address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(b"\0" + os.fsencode(address.name))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise BindError(f"{address} is already in use by a running server") from error
        raise BindError(f"can't bind {address}: {error.strerror or error}") from error
    return Listener(sock, address, str(address), address)


# --- inherited sockets --------------------------------------------------------------------------


def _systemd_fds(environ: MutableMapping[str, str]) -> list[tuple[int, str]]:
    """The descriptors that systemd has passed, with their names (sd_listen_fds(3)).

    Raises BindError.
    """
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    environ.pop("LISTEN_PID", None)
    count = environ.pop("LISTEN_FDS", "0")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdecimal():
        raise BindError(f"LISTEN_FDS is {count!r}, not a number")
    names += [""] * (int(count) - len(names))
    return [(_SYSTEMD_FIRST_FD + i, names[i]) for i in range(int(count))]


def _adopt(requested: FdAddress, backlog: int, what: str, label: str = "") -> Listener:
    """Make a listener from an open descriptor. Raises BindError unless it is a bound stream socket.

    requested  the descriptor
    backlog    the length of the accept queue
    what       the source of the descriptor, for messages
    label      systemd's name for the socket, or ""
    """
    fd = requested.fd
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as error:
        raise BindError(f"{what}: file descriptor {fd} is not open") from error
    if not is_socket:
        raise BindError(f"{what}: file descriptor {fd} is not a socket")
    sock = socket.socket(fileno=fd)
    try:
        address = _check_adopted(sock, what)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            sock.listen(backlog)
        if isinstance(address, TCPAddress):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        sock.set_inheritable(False)
    except BaseException as error:
        # Leave the descriptor open, because this process has not opened it.
        sock.detach()
        if isinstance(error, OSError):
            raise BindError(f"{what}: can't listen: {error.strerror or error}") from error
        raise
    return Listener(sock, address, _name(address), requested, label)


def _check_adopted(sock: socket.socket, what: str) -> Address:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        raise BindError(f"{what} is neither a TCP nor a Unix socket (family {sock.family!r})")
    if sock.type != socket.SOCK_STREAM:
        raise BindError(f"{what} is not a stream socket (ListenStream= in systemd)")
    try:
        sock.getpeername()
    except OSError as error:
        # On some systems getpeername of a listening socket fails with EINVAL.
        if error.errno not in (errno.ENOTCONN, errno.EINVAL):
            raise
    else:
        raise BindError(f"{what} is a connection, not a listening socket (Accept=no in systemd)")
    if not sock.getsockname() or (sock.family != socket.AF_UNIX and not sock.getsockname()[1]):
        raise BindError(f"{what} is not bound to an address")
    return _address_of(sock)


def _address_of(sock: socket.socket) -> Address:
    where = sock.getsockname()
    if sock.family != socket.AF_UNIX:
        return TCPAddress(where[0], where[1])
    if isinstance(where, bytes):
        return AbstractAddress(os.fsdecode(where[1:]))
    return UnixAddress(where)


def _name(address: Address) -> str:
    return f"http://{address}" if isinstance(address, TCPAddress) else str(address)
