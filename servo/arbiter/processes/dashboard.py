"""The dashboard process: a child that serves the page for operators.

The arbiter binds the socket, forks the process, and starts another one if it ends. It never accepts
a connection on that socket. The process asks the arbiter for its figures over socket pairs, in the
protocol of the control socket; it may use only the commands in `_READS` and, with
`dashboard_control`, `_CHANGES`. The process ends when the arbiter closes its ends of the pairs. So
it outlives neither the arbiter nor, in an upgrade, the arbiter's program.

Two files in memory, which have no name, outlive the process: one has its history, the other the
key that signs its cookies. All workers get a copy of the arbiter's memory, but not of these files.
For the same reason the arbiter keeps only a hash of the token.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import secrets
import signal
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from servo.arbiter import process_info
from servo.arbiter.processes import spawn
from servo.arbiter.processes.child import RestartDelay
from servo.arbiter.reexec import nameless_file
from servo.errors import ConfigError
from servo.logs import error_log as log_module
from servo.net.address import TCPAddress, UnixAddress, parse_address
from servo.net.listeners import Listener, bind_all
from servo.net.privileges import become

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from servo.arbiter.processes.child_table import ChildTable
    from servo.control.server import Caller
    from servo.net.tls import TLS
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

NAME = "dashboard"
MIN_TOKEN = 16  # characters
_READS = frozenset(("status", "workers", "pools", "events"))
_CHANGES = frozenset(("stack", "reload", "scale", "restart-worker"))
_LINKS = 3
_BACKLOG = 64
# A client that doesn't read is noticed when this buffer is full. By default it may have megabytes.
_SEND_BUFFER = 32_768
_MODE_BITS = 0o177  # the umask for a Unix socket: only its owner may connect
# When the server ends, the process has this many seconds to close its connections.
_HANG_UP_S = 1.0


def check_dashboard(settings: Settings) -> None:
    """Raise ConfigError if the dashboard's settings can't be used. Binds nothing."""
    _address(settings)
    _token_of_file(settings)


class DashboardResources:
    """The sockets and files of the dashboard; none if it is not wanted.

    settings   has the address, the token, and the owner of a Unix socket's file

    listeners  the listening sockets
    digest     the SHA-256 of the token; b"" if none is asked for

    Raises ConfigError and BindError.
    """

    def __init__(self, settings: Settings) -> None:
        self.listeners: list[Listener] = []
        self.digest = b""
        self.history = self.key = -1
        self._token = ""  # one that was made here, until it is logged
        address = _address(settings)
        if address is None:
            return
        token = _token_of_file(settings)
        if isinstance(address, TCPAddress):
            if not token:
                token = self._token = secrets.token_urlsafe(24)
            self.digest = hashlib.sha256(token.encode()).digest()
        self.listeners = bind_all(_Bind([str(address)]), {})
        for listener in self.listeners:
            listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.history = nameless_file("servo-dashboard-history")
        self.key = nameless_file("servo-dashboard-key")

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the resources as JSON values, for `from_state` after an upgrade.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {
            "listeners": [listener.to_state(pass_on) for listener in self.listeners],
            "digest": self.digest.hex(),
            "history": pass_on(self.history),
            "key": pass_on(self.key),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any] | None, take: Callable[[int], int]
    ) -> DashboardResources:
        """Take over the resources of this process's previous program.

        state   the result of that program's `to_state`; None from a version without a dashboard
        take    claims a descriptor from the previous program, and returns it

        Raises KeyError, TypeError, ValueError or OSError for an invalid state.
        """
        resources = cls.__new__(cls)
        values = state or {"listeners": [], "digest": "", "history": -1, "key": -1}
        resources.listeners = [Listener.from_state(each, take) for each in values["listeners"]]
        resources.digest = bytes.fromhex(values["digest"])
        resources.history = take(int(values["history"]))
        resources.key = take(int(values["key"]))
        resources._token = ""
        return resources

    def announce(self, settings: Settings, *, secure: bool) -> None:
        """Log the address, with the token if it was made here. Call this at the server's start.

        secure  whether the server uses TLS
        """
        if not self.listeners:
            return
        address = self.listeners[0].address
        if not isinstance(address, TCPAddress):
            log.info("The dashboard is at %s", address)
            return
        scheme = "https" if secure else "http"
        url = f"{scheme}://{address}/"
        if not self._token:
            log.info("The dashboard is at %s, its token in %s", url, settings.dashboard_token_file)
            return
        # Users with read access to the control socket must not get the token from there.
        shown = f"The dashboard is at {url}; the error log has the address with its token"
        log.info("The dashboard is at %s?token=%s", url, self._token, extra={"shown": shown})
        self._token = ""

    def take_ownership(self) -> None:
        """Let this process remove the socket files when it ends, although its parent bound them."""
        for listener in self.listeners:
            listener.owner_pid = os.getpid()

    def close(self) -> None:
        """Close the sockets and files, and remove the sockets' files."""
        self._close(unlink=True)

    def close_in_child(self) -> None:
        """Close this process's copies, and keep the sockets' files."""
        self._close(unlink=False)

    def _close(self, *, unlink: bool) -> None:
        for listener in self.listeners:
            listener.close(unlink=unlink)
        for fd in (self.history, self.key):
            if fd >= 0:
                os.close(fd)
        self.history = self.key = -1


class ChildServer(Protocol):
    """The part of the control service that the dashboard needs; see there."""

    def attach(self, sock: socket.socket, name: str, commands: frozenset[str]) -> Caller: ...

    def detach(self, caller: Caller) -> None: ...


class DashboardProcess:
    """The arbiter's side of the dashboard process; a `Helper`.

    settings    has `dashboard_control`, and the user that the process runs as
    table       forks the process
    resources   the sockets and files of the dashboard
    control     serves the process's connections
    tls         returns the current TLS contexts; None without TLS
    """

    def __init__(
        self,
        settings: Settings,
        table: ChildTable,
        resources: DashboardResources,
        control: ChildServer,
        tls: Callable[[], TLS | None],
    ) -> None:
        self.pid = 0
        self._settings = settings
        self._table = table
        self._resources = resources
        self._control = control
        self._tls = tls
        self._is_wanted = bool(resources.listeners)
        self._is_plain = not any(
            isinstance(each.address, TCPAddress) for each in resources.listeners
        )
        self._callers: list[Caller] = []
        self._ends: list[socket.socket] = []  # the arbiter's, until they are attached
        self._delay = RestartDelay()
        # The certificates that the process serves with, and whether it ends to get others.
        self._digest: object = None
        self._is_renewing = False

    def tick(self, now: float) -> None:
        """Start the process if it does not run and its restart is due; see `Helper`.

        If the certificates have changed, the process is replaced, because it serves with those that
        it was forked with. The next one has its history, and browsers connect again by themselves.
        """
        if not self._is_wanted:
            return
        if self.pid:
            if not self._is_renewing and self._digest != self._current_digest():
                self._is_renewing = True
                self._detach()
        elif self._delay.is_over(now):
            try:
                self._start()
            except OSError as error:
                log.error("The dashboard process can't be forked: %s", error)
                self._detach()
                self._delay.start_failed(now)
            else:
                self._delay.started(now)

    def reopen_logs(self) -> None:
        """Make the process reopen its log files."""
        if self.pid:
            process_info.send_signal(self.pid, signal.SIGUSR1, self._settings.user)

    def fileno(self) -> int:
        """-1: the control server watches the connections."""
        return -1

    def on_ready(self, _mask: int) -> None:
        """Never called: there is no descriptor."""

    def on_exit(self, code: int) -> None:
        """Log that the process has ended unexpectedly; `tick` starts another."""
        pid, self.pid = self.pid, 0
        self._table.remove(self)
        self._detach()
        if self._is_renewing:
            self._is_renewing = False
            log.info("The dashboard process (pid %d) is replaced: new certificates", pid)
            return
        self._delay.ended(time.monotonic())
        how = f"by {process_info.signal_name(-code)}" if code < 0 else f"with code {code}"
        log.error("The dashboard process (pid %d) ended %s; another follows", pid, how)

    def stop(self) -> None:
        """End the process. Waits up to 1 s, and 1 s more after a SIGKILL."""
        self._is_wanted = False
        self._table.remove(self)
        self._detach()
        spawn.end_within(self.pid, _HANG_UP_S, self._settings.user)
        self.pid = 0

    def close_in_child(self) -> None:
        """Close this process's copies of the arbiter's ends that are not attached yet."""
        for end in self._ends:
            end.close()
        self._ends = []

    def _current_digest(self) -> object:
        tls = None if self._is_plain else self._tls()
        return None if tls is None else tls.digest

    def _detach(self) -> None:
        for caller in self._callers:
            self._control.detach(caller)
        self._callers = []
        self.close_in_child()

    def _start(self) -> None:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(_LINKS)]
        self._ends = [ours for ours, _ in pairs]
        links = [theirs for _, theirs in pairs]
        arbiter = os.getpid()
        self._digest = self._current_digest()
        try:
            main = lambda: self._main(links, arbiter)  # noqa: E731
            self._table.start(self, main, keep=(self._resources,))
        finally:
            for link in links:
                link.close()
        commands = _READS | _CHANGES if self._settings.dashboard_control else _READS
        while self._ends:
            self._callers.append(self._control.attach(self._ends[0], NAME, commands))
            del self._ends[0]

    def _main(self, links: list[socket.socket], arbiter: int) -> int:
        """Run the process.

        links     the process's ends of the connections
        arbiter   the arbiter's pid
        """
        # Imported here to keep the arbiter small: only this process needs it.
        from servo.dashboard.process import DashboardSetup, serve_dashboard

        settings, resources = self._settings, self._resources
        log_module.set_tap(None)
        process_info.set_title("servo: dashboard")
        # Until the event loop has its own handler: the default action would end the process.
        signal.signal(signal.SIGUSR1, lambda _signum, _frame: log_module.reopen_logs())
        tls = None if self._is_plain else self._tls()
        become(settings.user, settings.group, settings.initgroups)
        spawn.die_with(arbiter)
        return serve_dashboard(
            DashboardSetup(
                listeners=resources.listeners,
                links=links,
                digest=resources.digest,
                control=settings.dashboard_control,
                history=resources.history,
                key=resources.key,
                tls=tls,
            )
        )


@dataclass(frozen=True)
class _Bind:
    """The settings that `bind_all` reads. A socket's file stays that of the arbiter's user."""

    bind: list[str]
    umask: int | None = _MODE_BITS
    user: int | None = None
    group: int | None = None
    backlog: int = _BACKLOG
    reuse_port: bool = False


def _address(settings: Settings) -> TCPAddress | UnixAddress | None:
    """The address of `dashboard_bind`; None if it is not set. Raises ConfigError."""
    text = settings.dashboard_bind
    if text is None:
        return None
    try:
        address = parse_address(text)
    except ConfigError as error:
        raise ConfigError(str(error).replace("bind ", "dashboard_bind ", 1)) from None
    if isinstance(address, UnixAddress):
        return address
    if not isinstance(address, TCPAddress):
        raise ConfigError(f"dashboard_bind {text!r}: expected HOST:PORT or unix:/path")
    if not _is_loopback(address.host) and settings.dashboard_token_file is None:
        raise ConfigError(
            f"dashboard_bind {text!r} is not a loopback address: set dashboard_token_file to a "
            "file with a token, or bind 127.0.0.1"
        )
    return address


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token_of_file(settings: Settings) -> str:
    """The token in `dashboard_token_file`; "" if the setting is not set. Raises ConfigError."""
    if settings.dashboard_token_file is None:
        return ""
    path = Path(settings.directory) / settings.dashboard_token_file
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            line = file.readline(4096)
    except OSError as error:
        raise ConfigError(f"dashboard_token_file: can't read {path}: {error.strerror}") from error
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"dashboard_token_file: other users have access to {path}: run chmod 600 {path}"
        )
    token: str = line.decode("utf-8", "replace").strip()
    if len(token) < MIN_TOKEN:
        raise ConfigError(
            f"dashboard_token_file: the token in {path} has fewer than {MIN_TOKEN} characters; "
            "openssl rand -hex 32 makes a good one"
        )
    return token
