"""The process that serves metrics, as the arbiter sees it: its socket, its life, what it is told.

The arbiter binds, forks and restarts it, and writes what only the arbiter knows into shared memory.
It never accepts a connection there, and never sends a datagram.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.arbiter import process_info
from servo.arbiter.core.backoff import Backoff
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.processes import spawn
from servo.errors import ConfigError
from servo.logs import error_log as log_module
from servo.logs.entry_counts import count_log
from servo.metrics import arbiter_facts as facts_module
from servo.metrics.arbiter_facts import Facts
from servo.net.listeners import bind_all
from servo.net.privileges import become

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.core.actions import RecordLifecycleEvent
    from servo.arbiter.core.supervisor import Supervisor
    from servo.arbiter.listeners import Sockets
    from servo.net.listeners import Listener
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

REASONS = tuple(reason.name.lower() for reason in ExitReason)

_BACKLOG = 64
# At the end, the process has this long to send its last datagrams.
_END_S = 1.0
# A process that lived for so long was no failure at birth.
_PROVED_S = 5.0


class Metrics:
    """All that the arbiter does for metrics; nothing but the shared words where they are off."""

    facts: Facts

    def __init__(self) -> None:
        self.pid = 0
        self.listeners: list[Listener] = []
        self._wanted = False
        self._end_fd = -1
        self._forked_at = 0.0
        self._backoff = Backoff()

    @staticmethod
    def check(settings: Settings) -> None:
        """Raise ConfigError where something is missing."""
        if settings.metrics_bind is None:
            return
        if importlib.util.find_spec("prometheus_client") is None:
            raise ConfigError(
                "metrics_bind needs prometheus-client: pip install 'servo-server[standard]'"
            )

    def prepare(self, settings: Settings) -> None:
        """Bind. Raises ConfigError and BindError: to be called while there is a terminal."""
        self.check(settings)
        if settings.metrics_bind is not None:
            self.listeners = bind_all(_Bind.of(settings), {})
        self._wanted = bool(self.listeners) or settings.statsd_host is not None

    def start(
        self,
        settings: Settings,
        scoreboard: Scoreboard,
        sockets: Sockets,
        close_inherited: Callable[[], None],
    ) -> None:
        """Begin to write, and fork the process.

        sockets          by which the application is reached
        close_inherited  closes, in a child, what is the arbiter's alone
        """
        self.facts = Facts(scoreboard.arbiter_words, REASONS)
        self.facts.begin(os.getpid())
        count_log(self.facts.words, facts_module.LOG_0)
        self._settings = settings
        self._sockets = sockets
        self._close_inherited = close_inherited
        self._scoreboard = scoreboard
        # In the process itself the sockets will be closed.
        self._served = [(each.name, each.socket.getsockname()) for each in sockets.listeners]
        for listener in self.listeners:
            listener.owner_pid = os.getpid()  # not the one that bound, if that was not a daemon yet
            log.info("Metrics are served on %s", listener.name)
        self.tick(time.monotonic())

    # --- what is told ---------------------------------------------------------------------------

    def settle(self, supervisor: Supervisor) -> None:
        """A turn of the loop is over: publish how things are."""
        reload = supervisor.reload is not None
        self.facts.publish(_state(supervisor), supervisor.generation, supervisor.target, reload)

    def renew(self) -> None:
        """Once a second: write everything anew, in case that somebody has written over it."""
        self.facts.renew()

    def happened(self, event: RecordLifecycleEvent) -> None:
        """Count a lifecycle event."""
        self.facts.happened(event.name, event.reason)

    # --- its life -------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Fork the process if there is to be one, and is none, and it is not too soon."""
        if not self._wanted or self.pid or now < self._backoff.not_before:
            return
        self._forked_at = now
        try:
            self._fork()
        except OSError as error:
            log.error("The metrics process can't be forked: %s", error)
            self._backoff.failed(now, now)

    def reaped(self, pid: int, code: int) -> bool:
        """A child was reaped. False if it was not this one."""
        if not self.pid or pid != self.pid:
            return False
        now = time.monotonic()
        self.pid = 0
        self._close_end()
        if now - self._forked_at >= _PROVED_S:
            self._backoff.reset()
        self._backoff.failed(self._forked_at, now)
        how = f"by {process_info.signal_name(-code)}" if code < 0 else f"with code {code}"
        log.error("The metrics process (pid %d) ended %s; another follows", pid, how)
        return True

    def reopen_logs(self) -> None:
        """Have it reopen its log files."""
        if self.pid:
            process_info.send_signal(self.pid, signal.SIGUSR1, self._settings.user)

    def close(self) -> None:
        """End the process, and give the socket up."""
        self._wanted = False
        self._close_end()
        if self.pid:
            self._wait()
        for listener in self.listeners:
            listener.close()

    def close_in_child(self) -> None:
        """In a forked child: close our copies, and count its log entries nowhere."""
        self._close_end()
        for listener in self.listeners:
            listener.close(unlink=False)
        count_log(None)

    def _fork(self) -> None:
        reader, self._end_fd = os.pipe2(os.O_CLOEXEC)
        arbiter = os.getpid()

        def close() -> None:
            # Not by `close_in_child`: here the sockets of the metrics are wanted, others are not.
            listeners, self.listeners = self.listeners, []
            self._close_inherited()
            self.listeners = listeners
            # Held open, they would keep clients waiting for nobody during a stop.
            self._sockets.close()

        try:
            self.pid = spawn.fork(lambda: self._run(reader, arbiter), close)
        except OSError:
            self._close_end()
            raise
        finally:
            os.close(reader)

    def _run(self, end_fd: int, arbiter: int) -> int:
        """The process itself."""
        # What nobody else needs is loaded here: the arbiter stays small.
        from servo.metrics.exporter import ExporterSetup, export
        from servo.metrics.families import ListenerInfo, Reader
        from servo.metrics.statsd import StatsdClient

        settings = self._settings
        served = [
            ListenerInfo(name, where[:2] if isinstance(where, tuple) else where)
            for name, where in self._served
        ]
        process_info.set_title("servo: metrics")
        signal.signal(signal.SIGUSR1, lambda _signum, _frame: log_module.reopen_logs())
        become(settings.user, settings.group, settings.initgroups)
        statsd = None
        if settings.statsd_host is not None:
            statsd = StatsdClient(
                settings.statsd_host,
                settings.statsd_prefix,
                settings.dogstatsd_tags,
                settings.enable_backlog_metric,
            )
        return export(
            ExporterSetup(
                listeners=[listener.socket for listener in self.listeners],
                reader=Reader(self._scoreboard, self.facts, served),
                end_fd=end_fd,
                arbiter_pid=arbiter,
                directory=os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None,
                statsd=statsd,
            )
        )

    def _close_end(self) -> None:
        if self._end_fd >= 0:
            os.close(self._end_fd)
            self._end_fd = -1

    def _wait(self) -> None:
        # The server is over: nothing else is to be done meanwhile.
        end = time.monotonic() + _END_S
        killed = False
        try:
            while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                if time.monotonic() >= end:
                    # One that waits for a dead disk doesn't end by SIGKILL either.
                    if killed or not process_info.send_signal(
                        self.pid, signal.SIGKILL, self._settings.user
                    ):
                        break
                    killed, end = True, time.monotonic() + _END_S
                time.sleep(0.01)
        except ChildProcessError:
            log.debug("The metrics process was reaped elsewhere")
        self.pid = 0


@dataclass(frozen=True)
class _Bind:
    """What `bind_all` wants to know, for the socket of the metrics."""

    bind: list[str]
    umask: int | None
    user: int | None
    group: int | None
    backlog: int = _BACKLOG
    reuse_port: bool = False

    @classmethod
    def of(cls, settings: Settings) -> _Bind:
        return cls([settings.metrics_bind], settings.umask, settings.user, settings.group)


def _state(supervisor: Supervisor) -> int:
    if supervisor.stopping is not None:
        return facts_module.STOPPING
    if supervisor.pending_stop is not None:
        return facts_module.LEAVING
    if supervisor.paused:
        return facts_module.PAUSED
    return facts_module.SERVING if supervisor.served else facts_module.STARTING
