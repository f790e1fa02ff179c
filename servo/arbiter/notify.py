"""Reports the server's state to systemd: `Type=notify` and `Type=notify-reload` (sd_notify(3)).

systemd passes the path of a datagram socket in NOTIFY_SOCKET. A service sends short lines to it:

* READY=1 when it serves. systemd then starts the units that depend on it.
* RELOADING=1 before and READY=1 after a reload. `systemctl reload` waits for this READY=1.
* STOPPING=1 when it stops.
* EXTEND_TIMEOUT_USEC while the server starts, reloads or stops, so that systemd does not give up.
* WATCHDOG=1 from the arbiter's loop. If the loop hangs, systemd restarts the service.
* STATUS, the line that `systemctl status` shows.
* FDSTORE=1 with a copy of each listening socket. If systemd restarts the service after a crash, it
  passes the sockets to the new server (see `servo.net.stored_sockets`).

Servo implements the protocol itself, because the protocol is small, and because the libraries for
it can't send MONOTONIC_USEC, which `notify-reload` needs.
"""

from __future__ import annotations

import logging
import os
import socket
from array import array
from typing import TYPE_CHECKING, Any

from servo.arbiter.core.worker_table import WorkerState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

    from servo.arbiter.core.supervisor import Supervisor
    from servo.net.listeners import Listener

log = logging.getLogger("servo.error")

# Seconds that each EXTEND_TIMEOUT_USEC asks for. The line is sent every second while it is needed,
# so if the server hangs, systemd ends it 10 s later.
EXTENSION_S = 10
_NEVER = float("inf")
_STARTING = (WorkerState.SPAWNED, WorkerState.BOOTING)


class SystemdNotifier:
    """Sends the state of the server to systemd. Without NOTIFY_SOCKET it does nothing.

    environ   the environment. systemd's variables are removed from it, because they are for this
              process, not for the workers
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        self._sock: socket.socket | None = None
        if self._address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._sock.setblocking(False)
        # systemd 254 and later says here how many descriptors it keeps. An older one does not; it
        # ignores the descriptors that it does not keep.
        self._may_store = environ.pop("FDSTORE", "") != "0"
        self._stored: list[str] = []
        self._watchdog_s = _watchdog_s(environ)
        self._watchdog_due = 0.0 if self._sock is not None and self._watchdog_s else _NEVER
        self._is_ready = False
        self._is_reloading = False
        self._is_stopping = False
        self._reload_asked = False
        self._status = ""
        self._requests = 0
        self._ticked_at = 0.0
        self._has_failed = False

    @property
    def is_on(self) -> bool:
        """Whether systemd wants the state."""
        return self._sock is not None

    def to_state(self) -> dict[str, Any]:
        """Return the state that systemd knows as JSON values, for `restore`."""
        return {"ready": self._is_ready, "reloading": self._is_reloading}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of this process's previous program, after an upgrade.

        state  the result of that program's `to_state`
        """
        self._is_ready = bool(state["ready"])
        self._is_reloading = bool(state["reloading"])

    def wake_at(self) -> float:
        """The next time for `turn`, in monotonic seconds; infinity if there is none."""
        return self._watchdog_due

    def store(self, listeners: Iterable[Listener], forgotten: Iterable[str]) -> None:
        """Let systemd keep the listening sockets during a crash. Called when the program starts.

        listeners   the sockets; those that systemd itself has opened are left out
        forgotten   the names of sockets in systemd's store that are no longer needed
        """
        if self._sock is None:
            return
        for name in forgotten:
            self._send(["FDSTOREREMOVE=1", f"FDNAME={name}"])
        if not self._may_store:
            return
        for listener in listeners:
            name = listener.stored_as
            if name:
                # If systemd already keeps the socket, it does not make a second copy.
                self._send(["FDSTORE=1", f"FDNAME={name}"], listener.fileno())
                self._stored.append(name)

    def on_reload_signal(self) -> None:
        """Note a SIGHUP. With `notify-reload`, systemd waits for READY=1 even without a reload."""
        self._reload_asked = True

    def turn(self, supervisor: Supervisor, now: float) -> None:
        """Send the changes of the state. Called after each turn of the loop.

        supervisor   the server's state
        now          monotonic seconds
        """
        if self._sock is None:
            return
        lines: list[str] = []
        if now >= self._watchdog_due:
            self._watchdog_due = now + self._watchdog_s
            lines.append("WATCHDOG=1")
        if supervisor.ending:
            if not self._is_stopping:
                self._is_stopping = True
                lines.append("STOPPING=1")
                self._forget_stored()
        elif not self._is_ready:
            self._is_ready = _is_up(supervisor)
            if self._is_ready:
                lines.append("READY=1")
        else:
            lines += self._reload_lines(supervisor, now)
        self._send(lines)

    def tick(self, supervisor: Supervisor, requests: int, in_flight: int, now: float) -> None:
        """Send the status line and ask for more time, once a second.

        supervisor   the server's state
        requests     the number of requests answered so far
        in_flight    the number of running requests
        now          monotonic seconds
        """
        if self._sock is None:
            return
        lines = []
        starting = any(worker.state in _STARTING for worker in supervisor.workers)
        # Always extend the time of a reload: each of its phases has its own limit.
        if self._is_stopping or self._is_reloading or (starting and not self._is_ready):
            lines.append(f"EXTEND_TIMEOUT_USEC={EXTENSION_S * 1_000_000}")
        passed_s = now - self._ticked_at if self._ticked_at else 0.0
        rate = (requests - self._requests) / passed_s if passed_s > 0 else 0.0
        self._ticked_at, self._requests = now, requests
        status = status_line(supervisor, rate, in_flight)
        if status != self._status:
            self._status = status
            lines.append(f"STATUS={status}")
        self._send(lines)

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _reload_lines(self, supervisor: Supervisor, now: float) -> list[str]:
        lines = []
        is_reloading = supervisor.reload is not None
        if not self._is_reloading and (is_reloading or self._reload_asked):
            # systemd compares this with the time of its SIGHUP. Both are on CLOCK_MONOTONIC.
            lines += ["RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}"]
            self._is_reloading = True
        if self._is_reloading and not is_reloading:
            self._is_reloading = False
            # Send it in its own datagram: READY=1 in the same one would override RELOADING=1.
            self._send(lines)
            lines = ["READY=1"]
        self._reload_asked = False
        return lines

    def _forget_stored(self) -> None:
        """Let systemd close its copies. Otherwise clients would wait for the stopped server."""
        for name in self._stored:
            self._send(["FDSTOREREMOVE=1", f"FDNAME={name}"])
        self._stored = []

    def _send(self, lines: list[str], fd: int = -1) -> None:
        """Send a datagram of these lines and, unless it is -1, a copy of a descriptor."""
        if not lines or self._sock is None:
            return
        data = "\n".join(lines).encode()
        try:
            if fd < 0:
                self._sock.sendto(data, self._address)
            else:
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))
                self._sock.sendmsg([data], [rights], 0, self._address)
        except OSError as error:
            # The socket may be full or gone. Log this once, and continue without systemd.
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            log.log(level, "systemd can't be notified: %s", error)


def status_line(supervisor: Supervisor, rate: float, in_flight: int) -> str:
    """The line for `systemctl status`.

    supervisor   the server's state
    rate         requests per second
    in_flight    the number of running requests
    """
    ready = sum(worker.ready for worker in supervisor.workers.live())
    if supervisor.ending:
        left = _counted(len(supervisor.workers), "worker")
        return f"Stopping: {left} left, {_counted(in_flight, 'request')} open"
    workers = f"{ready} of {supervisor.count.target} workers ready"
    if supervisor.reload is not None:
        phase = supervisor.reload.phase.value
        return f"Reloading to generation {supervisor.last_generation}: {phase}; {workers}"
    if supervisor.paused:
        return "Paused: no workers run (SIGWINCH); SIGHUP brings them back"
    if supervisor.held:
        return "Waiting for a changed file: no worker could boot; see the log"
    if not supervisor.served:
        return f"Starting: {workers}"
    line = f"{workers}, {rate:.0f} requests/s, {in_flight} open"
    if supervisor.generation != supervisor.last_generation:
        return f"{line}; the reload to generation {supervisor.last_generation} was rolled back"
    return line


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _is_up(supervisor: Supervisor) -> bool:
    """Whether the start is complete: a worker is ready, and no worker is still booting."""
    return supervisor.served and not any(worker.state in _STARTING for worker in supervisor.workers)


def _address(text: str) -> str:
    """The address of NOTIFY_SOCKET: a path, or an abstract name after "@"."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog_s(environ: MutableMapping[str, str]) -> float:
    """The interval of WATCHDOG=1 in seconds, half of systemd's limit; 0 without a limit.

    See sd_watchdog_enabled(3).
    """
    usec = environ.pop("WATCHDOG_USEC", "")
    pid = environ.pop("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 2e6
