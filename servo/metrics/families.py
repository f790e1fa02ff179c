"""Everything there is to measure, read from shared memory and the kernel, under its names.

`Reader.read` looks at the whole server once; `families` puts what it saw into metrics, as
Prometheus names them, and `status` into one JSON object. Nothing here needs prometheus-client.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from servo import __version__
from servo.logs.entry_counts import LOG_LEVELS
from servo.metrics import accept_queue, procfs
from servo.shared_memory.row_layout import (
    LATENCY_BOUNDS_S,
    METHODS,
    STATE_NAMES,
    STATUS_CODES,
    now_ns,
)
from servo.shared_memory.scoreboard import MOST_GROWTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from servo.metrics.accept_queue import Queue
    from servo.metrics.arbiter_facts import Facts, ServerFacts
    from servo.metrics.procfs import CPU, Memory
    from servo.shared_memory.scoreboard import RowSnapshot, Scoreboard, Totals

# The kernel walks a process's page tables to say its memory, which takes milliseconds a gigabyte:
# not more often than this, and not for more than a tenth of the time.
PROCESS_AGE_S = 1.0
_PROCESS_SHARE = 10
# The arbiter writes a word each second; one that has not for so long does nothing any more.
ARBITER_SILENT_S = 10.0

# The fields of `Totals` that only grow.
_COUNTED = (
    *("requests", "statuses", "bytes_in", "bytes_out", "accepted", "shed", "latency_sum_us"),
    *("latency", "methods", "codes", "log"),
)
_CLASS_NAMES = ("1xx", "2xx", "3xx", "4xx", "5xx")
_CODE_NAMES = (*map(str, STATUS_CODES), *(f"other {name}" for name in _CLASS_NAMES))


class ListenerInfo(NamedTuple):
    """A listener of the server's: its name for people, and what `getsockname` says."""

    name: str
    address: tuple[str, int] | str | bytes


@dataclass
class Family:
    """One metric.

    kind     "counter" (the name is without `_total`), "gauge", "info" or "histogram"
    samples  (values of the labels, value)
    buckets  of a histogram: (upper bound, how many are no greater)
    sum      of what a histogram has counted
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    samples: Sequence[tuple[tuple[str, ...], float]] = ()
    buckets: Sequence[tuple[float, int]] = ()
    sum: float = 0.0


@dataclass(frozen=True)
class Processes:
    """CPU and memory. `memory` is by pid; the arbiter and all its children are in it."""

    cpu: CPU | None
    memory: dict[int, Memory]


@dataclass(frozen=True)
class Snapshot:
    """The server at one moment. `queues` are in the order of `listeners`."""

    facts: ServerFacts
    totals: Totals
    rows: list[RowSnapshot]
    processes: Processes
    listeners: Sequence[ListenerInfo]
    queues: list[Queue | None]
    drops: int
    overflows: int | None
    now_ns: int

    @property
    def live(self) -> bool:
        """Whether the arbiter does its work."""
        return self.facts.beat_age_s < ARBITER_SILENT_S

    @property
    def not_ready(self) -> str:
        """Why no request should be sent here; "" when nothing speaks against it."""
        return why_not_ready(self.facts, self.rows)


def why_not_ready(facts: ServerFacts, rows: Iterable[RowSnapshot]) -> str:
    """Why no request should be sent here; "" when nothing speaks against it."""
    if facts.state != "serving":
        return f"the server is {facts.state}"
    if facts.beat_age_s >= ARBITER_SILENT_S:
        return f"the arbiter has done nothing for {facts.beat_age_s:.0f} s"
    if not any(row.state == "ready" for row in rows):
        return "no worker is ready"
    return ""


class Reader:
    """Looks at the server. `listeners` are those that clients of the application reach."""

    def __init__(
        self,
        scoreboard: Scoreboard,
        facts: Facts,
        listeners: Sequence[ListenerInfo],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scoreboard = scoreboard
        self.facts = facts
        self.listeners = listeners
        self._clock = clock
        self._processes = Processes(None, {})
        self._look_again_at = 0.0
        self._drops = _Growing()
        self._totals: Totals | None = None

    def read(self, *, processes: bool = True, queues: bool = True) -> Snapshot:
        """What there is to see; of what the kernel would have to be asked for, what is wanted."""
        facts = self.facts.read()
        found: list[Queue | None] = [None] * len(self.listeners)
        if queues:
            found = accept_queue.queues([listener.address for listener in self.listeners])
            told = [queue.drops or 0 for queue in found if queue is not None]
            if told:
                self._drops.see(sum(told))
        return Snapshot(
            facts=facts,
            totals=self._growing(self.scoreboard.totals()),
            rows=self.scoreboard.snapshot(),
            processes=self._look_at_processes(facts.pid) if processes else self._processes,
            listeners=self.listeners,
            queues=found,
            drops=self._drops.total,
            overflows=accept_queue.overflows() if queues else None,
            now_ns=now_ns(),
        )

    def _growing(self, totals: Totals) -> Totals:
        """Counters don't go back: not what is calculated of two words that a worker writes, nor
        while the arbiter has not yet put right what somebody has written over."""
        if self._totals is not None:
            now, before = totals._asdict(), self._totals._asdict()
            grown = {name: _grown(now[name], before[name]) for name in _COUNTED}
            totals = totals._replace(**grown)
        self._totals = totals
        return totals

    def _look_at_processes(self, arbiter: int) -> Processes:
        now = self._clock()
        if now >= self._look_again_at:
            before = self._processes.cpu
            cpu = procfs.cpu_of_family(arbiter)
            if cpu is not None and before is not None:
                # The arbiter's children may change all the while that they are counted.
                cpu = procfs.CPU(max(cpu.user, before.user), max(cpu.system, before.system))
            found = ((pid, procfs.memory_of(pid)) for pid in _family(arbiter))
            memory = {pid: size for pid, size in found if size is not None}
            self._processes = Processes(cpu or before, memory)
            took = self._clock() - now
            self._look_again_at = now + max(PROCESS_AGE_S, _PROCESS_SHARE * took)
        return self._processes


def _grown(now: Any, before: Any) -> Any:
    """A counter, or each of several, unless it went back or grew beyond belief."""
    if isinstance(now, tuple):
        return tuple(map(_grown, now, before))
    return now if 0 <= now - before < MOST_GROWTH else before


def families(seen: Snapshot) -> Iterator[Family]:
    """The metrics of what was seen. Names and labels are part of the public interface."""
    yield from _server(seen)
    yield from _requests(seen.totals)
    yield from _workers(seen)
    yield from _processes(seen)
    yield from _queues(seen)


def status(seen: Snapshot) -> dict[str, Any]:
    """The same for people and scripts: one JSON object."""
    facts, totals = seen.facts, seen.totals
    return {
        "version": __version__,
        "pid": facts.pid,
        "state": facts.state,
        "live": seen.live,
        "ready": not seen.not_ready,
        "not_ready": seen.not_ready or None,
        "started_at": round(facts.started_at, 3),
        "generation": facts.generation,
        "workers_target": facts.target,
        "reloads": {
            "under_way": facts.reloading,
            "started": facts.reloads_started,
            "finished": facts.reloads_finished,
            "rolled_back": facts.reloads_rolled_back,
            "last_ended_at": round(facts.reloaded_at, 3) or None,
            "last_finished": facts.reloaded_well if facts.reloaded_at else None,
        },
        "exits": {reason: count for reason, count in facts.exits.items() if count},
        "requests": {
            "total": totals.requests,
            "by_class": dict(zip(_CLASS_NAMES, totals.statuses, strict=True)),
            "in_flight": totals.in_flight,
            "shed": totals.shed,
        },
        "connections": {"open": totals.connections, "accepted": totals.accepted},
        "bytes": {"in": totals.bytes_in, "out": totals.bytes_out},
        "listeners": [
            {
                "name": listener.name,
                "waiting": queue.waiting if queue is not None else None,
                "limit": queue.limit if queue is not None else None,
            }
            for listener, queue in zip(seen.listeners, seen.queues, strict=True)
        ],
        "workers": [_worker_status(row, seen) for row in seen.rows],
    }


def _worker_status(row: RowSnapshot, seen: Snapshot) -> dict[str, Any]:
    memory = seen.processes.memory.get(row.pid)
    return {
        "slot": row.slot,
        "serial": row.serial,
        "pid": row.pid,
        "generation": row.generation,
        "state": row.state,
        "age_s": round((seen.now_ns - row.started_ns) / 1e9, 3),
        "requests": row.requests,
        "in_flight": row.in_flight,
        "oldest_request_s": round(_oldest_s(row, seen.now_ns), 3),
        "connections": row.connections,
        "lag_s": row.lag_us / 1e6,
        "resident_bytes": memory.resident if memory is not None else None,
        "proportional_bytes": memory.proportional if memory is not None else None,
    }


# --- the metrics --------------------------------------------------------------------------------


def _server(seen: Snapshot) -> Iterator[Family]:
    import platform  # not needed before somebody asks

    facts = seen.facts
    yield Family(
        "servo_build",
        "info",
        "What runs here.",
        ("version", "python", "implementation"),
        [((__version__, platform.python_version(), platform.python_implementation()), 1)],
    )
    yield _gauge("servo_start_time_seconds", "When the server started.", facts.started_at)
    yield _gauge("servo_live", "1 while the arbiter does its work.", seen.live)
    yield _gauge("servo_ready", "1 while requests are welcome.", not seen.not_ready)
    yield _gauge(
        "servo_generation",
        "The release that serves: 1, and more with each reload.",
        facts.generation,
    )
    yield _gauge("servo_reload_under_way", "1 while workers are being replaced.", facts.reloading)
    yield Family(
        "servo_reloads",
        "counter",
        "Reloads by their outcome.",
        ("outcome",),
        [(("finished",), facts.reloads_finished), (("rolled_back",), facts.reloads_rolled_back)],
    )
    if facts.reloaded_at:
        yield _gauge(
            "servo_last_reload_time_seconds", "When the last reload ended.", facts.reloaded_at
        )
        yield _gauge(
            "servo_last_reload_success", "1 if it was not rolled back.", facts.reloaded_well
        )
    entries = map(sum, zip(facts.log, seen.totals.log, strict=True))
    yield Family(
        "servo_log_entries",
        "counter",
        "Entries of the error log; exception: those with a traceback, which count as nothing else.",
        ("level",),
        [((level,), count) for level, count in zip(LOG_LEVELS, entries, strict=True)],
    )


def _requests(totals: Totals) -> Iterator[Family]:
    yield Family(
        "servo_requests",
        "counter",
        "Requests answered, refused ones included.",
        ("method", "status"),
        [
            ((method, name), count)
            for method, counts in zip(METHODS, totals.methods, strict=True)
            for name, count in zip(_CLASS_NAMES, counts, strict=True)
            # A series that was never counted is not worth its line, but for the usual ones.
            if count or (method == "GET" and name != "1xx")
        ],
    )
    yield Family(
        "servo_responses",
        "counter",
        "The same requests by the response's exact status.",
        ("code",),
        [
            ((code,), count)
            for code, count in zip(_CODE_NAMES, totals.codes, strict=True)
            if count or code == "200"
        ],
    )
    counted = 0
    buckets = []
    for bound, count in zip(LATENCY_BOUNDS_S, totals.latency, strict=True):
        counted += count
        buckets.append((bound, counted))
    yield Family(
        "servo_request_duration_seconds",
        "histogram",
        "From the request's being complete to the response's; requests that reached the app.",
        buckets=buckets,
        sum=totals.latency_sum_us / 1e6,
    )
    yield _gauge("servo_requests_in_flight", "Requests that the app has now.", totals.in_flight)
    yield _counter("servo_requests_shed", "Requests refused by limit_concurrency.", totals.shed)
    yield _gauge("servo_connections", "Open connections.", totals.connections)
    yield _counter("servo_connections_accepted", "Connections ever accepted.", totals.accepted)
    yield _counter("servo_request_body_bytes", "Bytes of request bodies.", totals.bytes_in)
    yield _counter("servo_response_body_bytes", "Bytes of response bodies.", totals.bytes_out)


def _workers(seen: Snapshot) -> Iterator[Family]:
    facts, rows = seen.facts, seen.rows
    states = [row.state for row in rows]
    yield Family(
        "servo_workers",
        "gauge",
        "Worker processes by state.",
        ("state",),
        [((state,), states.count(state)) for state in STATE_NAMES[1:-1]],
    )
    yield _gauge("servo_workers_target", "How many workers are asked for.", facts.target)
    yield _counter("servo_worker_spawns", "Workers ever forked.", facts.spawned)
    yield Family(
        "servo_worker_exits",
        "counter",
        "Workers that ended, by reason.",
        ("reason",),
        [((reason,), count) for reason, count in facts.exits.items()],
    )
    yield _by_slot(
        "servo_worker_requests_in_flight",
        "Requests that a worker's app has now.",
        rows,
        lambda row: row.in_flight,
    )
    yield _by_slot(
        "servo_worker_connections",
        "Open connections of a worker.",
        rows,
        lambda row: row.connections,
    )
    yield _by_slot(
        "servo_worker_oldest_request_seconds",
        "How long a worker's oldest request has been running, to a second.",
        rows,
        lambda row: _oldest_s(row, seen.now_ns),
        max,
    )
    yield _by_slot(
        "servo_worker_loop_lag_seconds",
        "How late the event loop was at its last look, once a second (async workers).",
        rows,
        lambda row: row.lag_us / 1e6,
        max,
    )


def _processes(seen: Snapshot) -> Iterator[Family]:
    processes = seen.processes
    if processes.cpu is not None:
        yield Family(
            "servo_cpu_seconds",
            "counter",
            "CPU time of the arbiter and all its children, those that have ended included.",
            ("mode",),
            [(("user",), processes.cpu.user), (("system",), processes.cpu.system)],
        )
    memory = processes.memory
    slots = {row.pid: str(row.slot) for row in seen.rows}
    names = {seen.facts.pid: "arbiter", **{pid: f"worker {slot}" for pid, slot in slots.items()}}
    for name, what, help in (
        ("servo_resident_memory_bytes", "resident", "Resident memory, by process."),
        (
            "servo_proportional_memory_bytes",
            "proportional",
            "Memory with shared pages divided among those who share them: what may be summed up.",
        ),
    ):
        sums: dict[str, int] = {}
        for pid, sizes in memory.items():
            size = getattr(sizes, what)
            if size is not None:
                process = names.get(pid, "other")
                sums[process] = sums.get(process, 0) + size
        yield Family(
            name, "gauge", help, ("process",), [((key,), sums[key]) for key in sorted(sums)]
        )


def _queues(seen: Snapshot) -> Iterator[Family]:
    known = [
        (listener.name, queue)
        for listener, queue in zip(seen.listeners, seen.queues, strict=True)
        if queue is not None
    ]
    yield Family(
        "servo_accept_queue_length",
        "gauge",
        "Connections that wait to be accepted.",
        ("listener",),
        [((name,), queue.waiting) for name, queue in known],
    )
    yield Family(
        "servo_accept_queue_limit",
        "gauge",
        "How many may wait; the kernel drops what comes then.",
        ("listener",),
        [((name,), queue.limit) for name, queue in known],
    )
    yield _counter(
        "servo_accept_queue_drops",
        "Connections that the kernel dropped at the server's TCP listeners: a full queue, mostly.",
        seen.drops,
    )
    if seen.overflows is not None:
        yield _counter(
            "servo_netns_listen_overflows",
            "How often any TCP accept queue of this network namespace was full (ListenOverflows).",
            seen.overflows,
        )


# --- parts --------------------------------------------------------------------------------------


class _Growing:
    """The increases of a count that goes back when a socket is closed: `total` never does."""

    def __init__(self) -> None:
        self.total = 0
        self._last = 0

    def see(self, value: int) -> None:
        """The count is `value` now."""
        self.total += max(value - self._last, 0)
        self._last = value


def _family(arbiter: int) -> list[int]:
    return [arbiter, *procfs.children_of(arbiter)]


def _gauge(name: str, help: str, value: float) -> Family:
    return Family(name, "gauge", help, (), [((), float(value))])


def _counter(name: str, help: str, value: float) -> Family:
    return Family(name, "counter", help, (), [((), float(value))])


def _by_slot(
    name: str,
    help: str,
    rows: Iterable[RowSnapshot],
    value: Callable[[RowSnapshot], float],
    join: Callable[[list[float]], float] = sum,
) -> Family:
    """A gauge of each slot; during a replacement two workers have the same."""
    by_slot: dict[int, list[float]] = {}
    for row in rows:
        by_slot.setdefault(row.slot, []).append(value(row))
    samples = [((str(slot),), float(join(by_slot[slot]))) for slot in sorted(by_slot)]
    return Family(name, "gauge", help, ("slot",), samples)


def _oldest_s(row: RowSnapshot, now: int) -> float:
    return max(now - row.oldest_start_ns, 0) / 1e9 if row.oldest_start_ns else 0.0
