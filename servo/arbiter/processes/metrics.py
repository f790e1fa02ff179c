"""The metrics process: a child that serves metrics over HTTP and sends them to statsd.

Scrapers may be slow or hostile, and a statsd server's name may not resolve, so the arbiter leaves
all of that to a process of its own. The arbiter binds the socket, forks the process, and starts
another one if it ends. It never accepts a connection on that socket. The process reads the numbers
from the scoreboard's shared memory, where the workers and the arbiter write them.

The process ends when a pipe from the arbiter is at its end, so it never outlives the arbiter.
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
from servo.arbiter.processes import spawn
from servo.arbiter.processes.child import RestartDelay
from servo.errors import ConfigError
from servo.logs import error_log as log_module
from servo.net.listeners import bind_all
from servo.net.privileges import become

if TYPE_CHECKING:
    from servo.arbiter.facts_writer import FactsWriter
    from servo.arbiter.listeners import Sockets
    from servo.arbiter.processes.child_table import ChildTable
    from servo.net.listeners import Listener
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

_BACKLOG = 64
# When the server ends, the process has this long to send its last datagrams.
_END_S = 1.0


def check_metrics(settings: Settings) -> None:
    """Raise ConfigError if a package that the settings need for metrics is missing."""
    if settings.metrics_bind is None:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError(
            "metrics_bind needs prometheus-client: pip install 'servo-server[standard]'"
        )


class MetricsSockets:
    """The listening sockets of `metrics_bind`; none if it is not set.

    settings   also say who owns the file of a Unix socket

    Raises ConfigError and BindError.
    """

    def __init__(self, settings: Settings) -> None:
        check_metrics(settings)
        self.listeners: list[Listener] = []
        if settings.metrics_bind is not None:
            self.listeners = bind_all(_Bind.of(settings), {})

    def take_ownership(self) -> None:
        """Let this process remove the socket files at its end. A daemon did not bind them."""
        for listener in self.listeners:
            listener.owner_pid = os.getpid()

    def close(self) -> None:
        """Close the sockets, and remove their files."""
        for listener in self.listeners:
            listener.close()

    def close_in_child(self) -> None:
        """Close this process's copies only."""
        for listener in self.listeners:
            listener.close(unlink=False)


class MetricsProcess:
    """The metrics process, seen from the arbiter. There is none if the settings ask for no metrics.

    settings     where to serve metrics and where to send them
    table        forks the process
    sockets      the metrics' own
    scoreboard   the workers' numbers
    facts        the arbiter's numbers
    served       the application's sockets, whose accept queues the process measures
    """

    def __init__(
        self,
        settings: Settings,
        table: ChildTable,
        sockets: MetricsSockets,
        scoreboard: Scoreboard,
        facts: FactsWriter,
        served: Sockets,
    ) -> None:
        self.pid = 0
        self._settings = settings
        self._table = table
        self._sockets = sockets
        self._scoreboard = scoreboard
        self._facts = facts
        # Asked now, because the process closes its copies of these sockets.
        self._served = [(each.name, each.socket.getsockname()) for each in served.listeners]
        self._is_wanted = bool(sockets.listeners) or settings.statsd_host is not None
        self._end_fd = -1
        self._delay = RestartDelay()
        for listener in sockets.listeners:
            log.info("Metrics are served on %s", listener.name)

    def tick(self, now: float) -> None:
        """Start the process if it is wanted, does not run, and its restart is due.

        now   monotonic seconds
        """
        if not self._is_wanted or self.pid or not self._delay.is_over(now):
            return
        try:
            self._start()
        except OSError as error:
            log.error("The metrics process can't be forked: %s", error)
            self._delay.start_failed(now)
        else:
            self._delay.started(now)

    def reopen_logs(self) -> None:
        """Have the process reopen its log files."""
        if self.pid:
            process_info.send_signal(self.pid, signal.SIGUSR1, self._settings.user)

    def fileno(self) -> int:
        """The pipe whose end tells the process to end; -1 while there is no process."""
        return self._end_fd

    def on_ready(self, _mask: int) -> None:
        """The process has closed its end of the pipe: it is exiting, and `on_exit` follows."""
        self._table.unwatch(self)

    def on_exit(self, code: int) -> None:
        """The process has ended although nobody asked it to; `tick` starts another."""
        pid, self.pid = self.pid, 0
        self._table.remove(self)
        self.close_in_child()
        self._delay.ended(time.monotonic())
        how = f"by {process_info.signal_name(-code)}" if code < 0 else f"with code {code}"
        log.error("The metrics process (pid %d) ended %s; another follows", pid, how)

    def stop(self) -> None:
        """End the process and wait for its end: for 1 s, and for 1 s more after a SIGKILL."""
        self._is_wanted = False
        self._table.remove(self)
        self.close_in_child()
        # A process that waits for a dead disk does not end by SIGKILL either; it is left behind.
        if (
            self.pid
            and not spawn.wait_within(self.pid, _END_S)
            and process_info.send_signal(self.pid, signal.SIGKILL, self._settings.user)
        ):
            spawn.wait_within(self.pid, _END_S)
        self.pid = 0

    def close_in_child(self) -> None:
        """Close this process's copy of the pipe."""
        if self._end_fd >= 0:
            os.close(self._end_fd)
            self._end_fd = -1

    def _start(self) -> None:
        reader, self._end_fd = os.pipe2(os.O_CLOEXEC)
        arbiter = os.getpid()
        keep = (self._sockets, self._scoreboard)
        try:
            self._table.start(self, lambda: self._main(reader, arbiter), keep=keep)
        except OSError:
            self.close_in_child()
            raise
        finally:
            os.close(reader)

    def _main(self, end_fd: int, arbiter: int) -> int:
        """Run in the process itself.

        end_fd    the pipe whose end is the arbiter's
        arbiter   its pid
        """
        # Imported here because only this process needs them: the arbiter stays small.
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
                listeners=[listener.socket for listener in self._sockets.listeners],
                reader=Reader(self._scoreboard, self._facts.facts, served),
                end_fd=end_fd,
                arbiter_pid=arbiter,
                directory=os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None,
                statsd=statsd,
            )
        )


@dataclass(frozen=True)
class _Bind:
    """The settings that `bind_all` reads, for the metrics' socket."""

    bind: list[str]
    umask: int | None
    user: int | None
    group: int | None
    backlog: int = _BACKLOG
    reuse_port: bool = False

    @classmethod
    def of(cls, settings: Settings) -> _Bind:
        return cls([settings.metrics_bind], settings.umask, settings.user, settings.group)
