"""The metrics process: a child that serves metrics over HTTP and sends them to statsd.

Scrapers may be slow or hostile, and the lookup of a statsd server may hang. So a separate process
does this work. The arbiter binds the socket, forks the process, and starts another one if it ends.
It never accepts a connection on that socket. The process reads the numbers from the scoreboard's
shared memory, where the workers and the arbiter write them.

The process reads a pipe from the arbiter, and ends when the arbiter's end is closed. So it never
outlives the arbiter.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.arbiter import process_info
from servo.arbiter.processes import spawn
from servo.arbiter.processes.child import RestartDelay
from servo.errors import ConfigError
from servo.logs import error_log as log_module
from servo.net.listeners import Listener, bind_all
from servo.net.privileges import become
from servo.pools.places import places, socket_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from servo.arbiter.facts_writer import FactsWriter
    from servo.arbiter.listeners import Sockets
    from servo.arbiter.processes.child_table import ChildTable
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

_BACKLOG = 64
# When the server ends, the process has this many seconds to send its last datagrams.
_END_S = 1.0


def check_metrics(settings: Settings) -> None:
    """Raise ConfigError if the settings need a package for metrics that is missing."""
    if settings.metrics_bind is None:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError(
            "metrics_bind needs prometheus-client: pip install 'servo-server[standard]'"
        )


class MetricsSockets:
    """The listening sockets of `metrics_bind`; none if it is not set.

    settings   has the addresses, and the owner of a Unix socket's file

    Raises ConfigError and BindError.
    """

    def __init__(self, settings: Settings) -> None:
        check_metrics(settings)
        self.listeners: list[Listener] = []
        if settings.metrics_bind is not None:
            self.listeners = bind_all(_Bind.of(settings), {})

    def to_state(self, pass_on: Callable[[int], int]) -> list[dict[str, Any]]:
        """Return the sockets as JSON values, for `from_state`; see `Listener.to_state`."""
        return [listener.to_state(pass_on) for listener in self.listeners]

    @classmethod
    def from_state(
        cls, state: Iterable[Mapping[str, Any]], take: Callable[[int], int]
    ) -> MetricsSockets:
        """Take over the sockets of the previous program; see `Listener.from_state`."""
        sockets = cls.__new__(cls)
        sockets.listeners = [Listener.from_state(each, take) for each in state]
        return sockets

    def take_ownership(self) -> None:
        """Let this process remove the socket files when it ends, although its parent bound them."""
        for listener in self.listeners:
            listener.owner_pid = os.getpid()

    def close(self) -> None:
        """Close the sockets, and remove their files."""
        for listener in self.listeners:
            listener.close()

    def close_in_child(self) -> None:
        """Close this process's copies, and keep the files."""
        for listener in self.listeners:
            listener.close(unlink=False)


class MetricsProcess:
    """The arbiter's side of the metrics process. Without metrics in the settings there is none.

    settings     where to serve metrics and where to send them
    table        forks the process
    sockets      the listening sockets for metrics
    scoreboard   the workers' numbers
    facts        the arbiter's numbers
    served       the application's sockets; the process measures their accept queues
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
        # Ask for the addresses now, because the process closes its copies of these sockets.
        self._served = [(each.name, each.socket.getsockname()) for each in served.listeners]
        self._is_wanted = bool(sockets.listeners) or settings.statsd_host is not None
        self._end_fd = -1
        self._delay = RestartDelay()
        for listener in sockets.listeners:
            log.info("Metrics are served on %s", listener.name)

    def tick(self, now: float) -> None:
        """Start the process if it is needed, does not run, and its restart is due.

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
        """Make the process reopen its log files."""
        if self.pid:
            process_info.send_signal(self.pid, signal.SIGUSR1, self._settings.user)

    def fileno(self) -> int:
        """The arbiter's end of the pipe; -1 without a process."""
        return self._end_fd

    def on_ready(self, _mask: int) -> None:
        """See ChildProcess. The process has closed its end of the pipe, and `on_exit` follows."""
        self._table.unwatch(self)

    def on_exit(self, code: int) -> None:
        """Log that the process has ended unexpectedly; `tick` starts another."""
        pid, self.pid = self.pid, 0
        self._table.remove(self)
        self.close_in_child()
        self._delay.ended(time.monotonic())
        how = f"by {process_info.signal_name(-code)}" if code < 0 else f"with code {code}"
        log.error("The metrics process (pid %d) ended %s; another follows", pid, how)

    def renew(self) -> None:
        """Replace the process at the next tick, because it does not know new pools."""
        if self.pid:
            self._table.remove(self)
            self.close_in_child()  # the process ends when it reads this
            self.pid = 0

    def stop(self) -> None:
        """End the process. Waits up to 1 s, and 1 s more after a SIGKILL."""
        self._is_wanted = False
        self._table.remove(self)
        self.close_in_child()
        spawn.end_within(self.pid, _END_S, self._settings.user)
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
        """Run the process.

        end_fd    the process's end of the pipe
        arbiter   the arbiter's pid
        """
        # Imported here to keep the arbiter small: only this process needs them.
        from servo.cluster.counters import installed
        from servo.metrics.exporter import ExporterSetup, export
        from servo.metrics.families import ListenerInfo, Reader
        from servo.metrics.pool_figures import PoolReader
        from servo.metrics.statsd import StatsdClient

        settings = self._settings
        served = [
            ListenerInfo(name, where[:2] if isinstance(where, tuple) else where)
            for name, where in self._served
        ]
        addresses = {name: socket_path(places.directory, name) for name in places.boards}
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
                reader=Reader(
                    self._scoreboard,
                    self._facts.facts,
                    served,
                    counters=installed(),
                    pools=PoolReader(places.boards, addresses) if addresses else None,
                ),
                end_fd=end_fd,
                arbiter_pid=arbiter,
                directory=os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None,
                statsd=statsd,
            )
        )


@dataclass(frozen=True)
class _Bind:
    """The settings that `bind_all` reads, with values for the metrics process's sockets."""

    bind: list[str]
    umask: int | None
    user: int | None
    group: int | None
    backlog: int = _BACKLOG
    reuse_port: bool = False

    @classmethod
    def of(cls, settings: Settings) -> _Bind:
        return cls([settings.metrics_bind], settings.umask, settings.user, settings.group)
