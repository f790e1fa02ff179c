"""Tells systemd how the server is: `Type=notify` and `Type=notify-reload` (sd_notify(3)).

systemd passes the path of a datagram socket in NOTIFY_SOCKET. A service sends short lines to it:
READY=1 once it serves, so that systemd starts what depends on it only then; RELOADING=1 and READY=1
around a reload, so that `systemctl reload` waits for its end; STOPPING=1 when it stops. While a
worker boots or drains, EXTEND_TIMEOUT_USEC keeps systemd from giving up. WATCHDOG=1 is sent by the
arbiter's loop: if the loop hangs, systemd restarts the service. STATUS is the line that `systemctl
status` shows.

The protocol is so small that it is written here. The libraries for it can't send MONOTONIC_USEC,
without which `notify-reload` does not work.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

from servo.arbiter.core.worker_table import WorkerState

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from servo.arbiter.core.supervisor import Supervisor

log = logging.getLogger("servo.error")

# Seconds that each EXTEND_TIMEOUT_USEC asks for. It is sent every second while there is a reason,
# so a server that hangs is still ended 10 s later.
EXTENSION_S = 10
_NEVER = float("inf")
_STARTING = (WorkerState.SPAWNED, WorkerState.BOOTING)


class SystemdNotifier:
    """Sends the state of the server to systemd. Without NOTIFY_SOCKET it does nothing.

    environ   the environment. The variables are removed from it: they are for this process, and
              not for the workers
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        self._sock: socket.socket | None = None
        if self._address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._sock.setblocking(False)
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
        """Whether systemd wants to be told."""
        return self._sock is not None

    def wake_at(self) -> float:
        """The next time for `turn`, in monotonic seconds; infinity if there is none."""
        return self._watchdog_due

    def on_reload_signal(self) -> None:
        """SIGHUP has come. With `notify-reload` systemd waits for an answer to it in any case."""
        self._reload_asked = True

    def turn(self, supervisor: Supervisor, now: float) -> None:
        """Send what has changed; called after each turn of the loop.

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
        requests     answered so far
        in_flight    requests that are being answered
        now          monotonic seconds
        """
        if self._sock is None:
            return
        lines = []
        starting = any(worker.state in _STARTING for worker in supervisor.workers)
        if self._is_stopping or (starting and (not self._is_ready or self._is_reloading)):
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
            # CLOCK_MONOTONIC, which `now` is as well: systemd compares it with its SIGHUP's time.
            lines += ["RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}"]
            self._is_reloading = True
        if self._is_reloading and not is_reloading:
            self._is_reloading = False
            # A datagram of its own: READY=1 in the same one would hide RELOADING=1.
            self._send(lines)
            lines = ["READY=1"]
        self._reload_asked = False
        return lines

    def _send(self, lines: list[str]) -> None:
        if not lines or self._sock is None:
            return
        try:
            self._sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            # The socket may be full, or gone. Log that once, and go on without systemd.
            level = logging.DEBUG if self._has_failed else logging.WARNING
            self._has_failed = True
            log.log(level, "systemd can't be notified: %s", error)


def status_line(supervisor: Supervisor, rate: float, in_flight: int) -> str:
    """The line for `systemctl status`.

    supervisor   the server's state
    rate         requests a second
    in_flight    requests that are being answered
    """
    ready = sum(worker.ready for worker in supervisor.workers.live())
    if supervisor.ending:
        left = _counted(len(supervisor.workers), "worker")
        return f"Stopping: {left} left, {_counted(in_flight, 'request')} open"
    workers = f"{ready} of {supervisor.target} workers ready"
    if supervisor.reload is not None:
        return f"Reloading to generation {supervisor.last_generation}: {workers}"
    if supervisor.paused:
        return "Paused: no workers run (SIGWINCH); SIGHUP brings them back"
    if not supervisor.served:
        return f"Starting: {workers}"
    return f"{workers}, {rate:.0f} requests/s, {in_flight} open"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _is_up(supervisor: Supervisor) -> bool:
    """Whether the start is over: a worker serves, and none of the others is still starting."""
    return supervisor.served and not any(worker.state in _STARTING for worker in supervisor.workers)


def _address(text: str) -> str:
    """The address of NOTIFY_SOCKET: a path, or an abstract name after "@"."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else ""


def _watchdog_s(environ: MutableMapping[str, str]) -> float:
    """Half the time within which systemd wants a sign of life (sd_watchdog_enabled(3)); 0: none."""
    usec = environ.pop("WATCHDOG_USEC", "")
    pid = environ.pop("WATCHDOG_PID", "")
    if not usec.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(usec) / 2e6
