"""The current state of the server for operators, as JSON values."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any

from servo import __version__
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.reload import Phase
from servo.metrics import accept_queue, saturation
from servo.metrics.histograms import quantile
from servo.settings.schema import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.arbiter.core.supervisor import Supervisor
    from servo.arbiter.core.worker_table import WorkerEntry
    from servo.arbiter.operator.lifecycle_events import LifecycleEvent
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import RowSnapshot, Scoreboard, Totals

# The period, in seconds, for computing requests per second.
RATE_WINDOW_S = 5.0

# The reasons of exits that nobody asked for, and that the server repairs with a new worker.
FAULTS = frozenset(
    reason.name.lower()
    for reason in (
        *(ExitReason.NO_HEARTBEAT, ExitReason.REQUEST_TIMEOUT, ExitReason.BOOT_FAILED),
        *(ExitReason.BOOT_TIMEOUT, ExitReason.CRASHED, ExitReason.EXITED, ExitReason.LEFT),
        *(ExitReason.OUT_OF_MEMORY, ExitReason.MAX_MEMORY, ExitReason.MAX_MEMORY_HARD),
        *(ExitReason.UNHEALTHY, ExitReason.ROW_OVERWRITTEN),
    )
)

_PHASES = {
    Phase.REFORKING: "waiting for a worker to fork the next mold",
    Phase.CHECKING: "reading the configuration",
    Phase.LOADING: "reading the configuration",
    Phase.CANARY: "waiting for its first worker",
    Phase.ROLLING: "replacing the workers",
}


class Rates:
    """Computes requests per second, of each worker and in total, from counters."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[int, int], int]] = deque()

    def look(self, now: float, rows: dict[int, int], total: int) -> None:
        """Note the current counters of answered requests.

        now    monotonic seconds
        rows   each worker's count, by serial
        total  the server's count
        """
        self._looks.append((now, rows, total))
        while len(self._looks) > 2 and now - self._looks[1][0] >= RATE_WINDOW_S:
            self._looks.popleft()

    def of(self, serial: int) -> float:
        """The rate of the worker with this serial, over the period or since its first request."""
        start, before = 0.0, 0
        for time, rows, _ in self._looks:
            if serial in rows:
                start, before = start or time, before if start else rows[serial]
                break
            start = time
        if not start or len(self._looks) < 2:
            return 0.0
        end, after, _ = self._looks[-1]
        return (
            round((after.get(serial, before) - before) / (end - start), 1) if end > start else 0.0
        )

    def total(self) -> float:
        """The rate of the whole server."""
        if len(self._looks) < 2:
            return 0.0
        (start, _, before), (end, _, after) = self._looks[0], self._looks[-1]
        return round((after - before) / (end - start), 1) if end > start else 0.0


def state_of(supervisor: Supervisor) -> str:
    """The state of the server in a word or two."""
    if supervisor.stopping is not None:
        return "stopping"
    if supervisor.reload is not None:
        return "reloading"
    if supervisor.paused:
        return "paused"
    if supervisor.held:
        return "waiting for a change"
    return "running" if supervisor.served else "starting"


def status(
    supervisor: Supervisor,
    scoreboard: Scoreboard,
    settings: Settings,
    rates: Rates,
    listeners: list[str],
    started_at: float,
    now: float,
    last_reload: LifecycleEvent | None,
    now_ns: int,
    addresses: Sequence[tuple[str, int] | str | bytes],
) -> dict[str, Any]:
    """The state of the server as a whole.

    listeners   the addresses that the server listens on
    started_at  when the server started, in seconds since the epoch
    now         seconds since the epoch
    now_ns      monotonic nanoseconds
    addresses   the listeners' addresses, in the form of `getsockname`
    """
    totals = scoreboard.totals()
    reload = supervisor.reload
    rows = scoreboard.snapshot()
    queues = accept_queue.queues(addresses)
    import platform  # imported here, to keep the server's start fast

    return {
        "name": name_of(settings),
        "pid": os.getpid(),
        "app": settings.app,
        "worker_class": settings.worker_class,
        "state": state_of(supervisor),
        "phase": _PHASES[reload.phase] if reload is not None else "",
        "generation": supervisor.generation,
        "version": __version__,
        "python": platform.python_version(),
        "started_at": round(started_at, 3),
        "uptime_s": round(now - started_at, 3),
        "listeners": listeners,
        "workers": _worker_counts(supervisor, rows, now_ns),
        **_saturation(rows, totals, now_ns),
        "accept_queue": _accept_queue(queues),
        "accept_queues": [queue and queue._asdict() for queue in queues],
        "requests": totals.requests,
        "requests_per_s": rates.total(),
        "in_flight": totals.in_flight,
        "connections": totals.connections,
        "statuses": dict(zip(("1xx", "2xx", "3xx", "4xx", "5xx"), totals.statuses, strict=True)),
        "p50_s": quantile(totals.latency, 0.5),
        "p99_s": quantile(totals.latency, 0.99),
        "latency": list(totals.latency),
        "last_reload": last_reload.as_dict() if last_reload is not None else None,
        "directory": settings.chdir,
    }


def _worker_counts(
    supervisor: Supervisor, rows: Sequence[RowSnapshot], now_ns: int
) -> dict[str, int]:
    least, most = supervisor.count.bounds
    return {
        "target": supervisor.count.target,
        "least": least,
        "most": most,
        "ready": sum(entry.ready for entry in supervisor.workers.live()),
        "blocked": sum(saturation.blocked_s(row, now_ns) >= saturation.SHOWN_S for row in rows),
        "total": len(supervisor.workers),
    }


def _saturation(rows: Sequence[RowSnapshot], totals: Totals, now_ns: int) -> dict[str, Any]:
    used = saturation.server_utilisation(rows, now_ns)
    return {
        "utilisation": round(used, 3) if used is not None else None,
        "threads": _threads(saturation.server_threads(rows)),
        "thread_wait_p50_s": quantile(totals.thread_waits, 0.5),
        "thread_wait_p99_s": quantile(totals.thread_waits, 0.99),
        "queue_p50_s": quantile(totals.queue_times, 0.5),
        "queue_p99_s": quantile(totals.queue_times, 0.99),
        "thread_waits": list(totals.thread_waits),
        "queue_times": list(totals.queue_times),
    }


def _threads(threads: saturation.Threads | None) -> dict[str, int] | None:
    return None if threads is None else threads._asdict()


def _accept_queue(queues: Sequence[accept_queue.Queue | None]) -> dict[str, int] | None:
    """The connections that wait for a worker, and their limit, over all listeners.

    None if the kernel doesn't report them.
    """
    known = [queue for queue in queues if queue is not None]
    if not known:
        return None
    return {
        "waiting": sum(queue.waiting for queue in known),
        "limit": sum(queue.limit for queue in known),
    }


def workers(
    supervisor: Supervisor,
    scoreboard: Scoreboard,
    rates: Rates,
    last_exits: dict[int, LifecycleEvent],
    now: float,
) -> list[dict[str, Any]]:
    """A row for each worker that was forked and not yet reaped.

    last_exits  the last exit of each slot, by slot
    now         monotonic seconds
    """
    rows = {row.serial: row for row in scoreboard.snapshot()}
    entries = sorted(supervisor.workers, key=lambda entry: (entry.slot, entry.serial))
    return [
        _worker(entry, rows.get(entry.serial), rates, last_exits.get(entry.slot), now)
        for entry in entries
    ]


def _worker(
    entry: WorkerEntry,
    row: RowSnapshot | None,
    rates: Rates,
    last_exit: LifecycleEvent | None,
    now: float,
) -> dict[str, Any]:
    values: dict[str, Any] = {
        "slot": entry.slot,
        "pid": entry.pid,
        "serial": entry.serial,
        "generation": entry.generation,
        "state": entry.state.value,
        "age_s": round(now - entry.spawned_at, 3),
        "leaving": str(entry.stop_cause) if entry.stop_cause is not None else "",
        "last_exit": "",
    }
    if last_exit is not None:
        values["last_exit"] = last_exit.reason
        values["last_exit_text"] = last_exit.text
    if row is None:
        return values
    now_ns = int(now * 1e9)
    oldest = row.oldest_start_ns / 1e9
    values.update(
        threads=_threads(saturation.threads(row)),
        utilisation=round(saturation.utilisation(row, now_ns), 3),
        blocked_s=round(saturation.blocked_s(row, now_ns), 3),
        requests=row.requests,
        in_flight=row.in_flight,
        oldest_s=round(now - oldest, 3) if row.in_flight and oldest else 0.0,
        connections=row.connections,
        requests_per_s=rates.of(entry.serial),
        p50_s=quantile(row.latency, 0.5),
        p99_s=quantile(row.latency, 0.99),
        latency=list(row.latency),
        lag_s=round(saturation.lag_s(row, now_ns), 6),
        heartbeat_s=round(max(0.0, now - row.beat_ns / 1e9), 3) if row.beat_ns else None,
    )
    return values


def config(settings: Settings) -> list[dict[str, Any]]:
    """Every setting: its value as text (without secrets), its unit, and its source."""
    return [
        {
            "name": name,
            "value": settings.show(name),
            "unit": setting.unit,
            "source": settings.source(name),
        }
        for name, setting in SETTINGS.items()
    ]


def name_of(settings: Settings) -> str:
    """The name of this server for operators: `proc_name`, or the app."""
    name: str = settings.proc_name or settings.app
    return name
