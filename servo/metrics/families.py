"""Defines all metrics: the sources of their values, and their exported names.

`Reader.read` takes a snapshot of the whole server. `families` turns the snapshot into metrics with
Prometheus' names, and `status` turns it into one JSON object. "Family" is Prometheus' word for all
series of one name. Nothing here needs prometheus-client.

A counter must never decrease: Prometheus would assume a restart, and add the whole value again. But
a faulty worker may overwrite shared memory, and the kernel's counts for a socket or process
disappear when it is closed or ends. So the Reader keeps the last values, and ignores impossible
changes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from servo import __version__
from servo.logs.entry_counts import LOG_LEVELS
from servo.metrics import accept_queue, procfs, saturation
from servo.metrics.app_counters import AppCounters
from servo.shared_memory.row_layout import (
    LATENCY_BOUNDS_S,
    METHODS,
    STATE_NAMES,
    STATUS_CODES,
    now_ns,
)
from servo.shared_memory.scoreboard import MAX_GROWTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from servo.metrics.accept_queue import Queue
    from servo.metrics.app_counters import AppCounter
    from servo.metrics.arbiter_facts import Facts, ServerFacts
    from servo.metrics.pool_figures import PoolFigures, PoolReader
    from servo.metrics.procfs import CPU, Memory
    from servo.shared_memory.counters import CounterTable
    from servo.shared_memory.scoreboard import RowSnapshot, Scoreboard, Totals

# To report the memory of a process, the kernel walks its page tables, which takes milliseconds for
# each gigabyte. So values are read again only after this many seconds, or later: reading may take
# at most a tenth of the time.
PROCESS_AGE_S = 1.0
_PROCESS_SHARE = 10
# The arbiter's loop turns at least once a second. After this many seconds without a turn, the
# arbiter counts as dead.
ARBITER_SILENT_S = 10.0

# The fields of `Totals` that only grow, with the limit of their growth between two reads. A count
# that grows by more was overwritten: 1 << 40 requests take 127 days at 100,000 a second.
_MAX_COUNT_GROWTH = 1 << 40
_COUNTED = {
    **dict.fromkeys(("bytes_in", "bytes_out", "latency_sum_us"), MAX_GROWTH),
    **dict.fromkeys(("queue_sum_us", "wait_sum_us"), MAX_GROWTH),
    **dict.fromkeys(("requests", "statuses", "accepted", "shed", "log"), _MAX_COUNT_GROWTH),
    **dict.fromkeys(("latency", "methods", "codes"), _MAX_COUNT_GROWTH),
    **dict.fromkeys(("queue_times", "thread_waits"), _MAX_COUNT_GROWTH),
}
# The counters of servo.cluster itself.
_OWN_HELP = {
    "servo_schedule_runs": "Runs of jobs of cluster.every and cluster.cron that were started.",
    "servo_schedule_skipped": "Runs that were skipped, because the last one had not ended.",
    "servo_schedule_failures": "Runs that have ended with an exception.",
}
_CLASS_NAMES = ("1xx", "2xx", "3xx", "4xx", "5xx")
_CODE_NAMES = (*map(str, STATUS_CODES), *(f"other {name}" for name in _CLASS_NAMES))


class ListenerInfo(NamedTuple):
    """A listener of the server.

    name     its name for people
    address  its address, as `getsockname` returns it
    """

    name: str
    address: tuple[str, int] | str | bytes


@dataclass
class Family:
    """One metric: all series of one name.

    name     the name, without the `_total` of a counter
    kind     "counter", "gauge", "info" or "histogram"
    help     the text that Prometheus shows
    labels   the names of the labels
    samples  pairs of (the labels' values, the value)
    buckets  for a histogram: pairs of (upper bound, number of values up to it)
    sum      for a histogram: the sum of all values
    parts    for a histogram with labels: triples of (the labels' values, buckets, sum)
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    samples: Sequence[tuple[tuple[str, ...], float]] = ()
    buckets: Sequence[tuple[float, int]] = ()
    sum: float = 0.0
    parts: Sequence[tuple[tuple[str, ...], Sequence[tuple[float, int]], float]] = ()


@dataclass(frozen=True)
class Processes:
    """CPU time and memory of the arbiter and all its children.

    cpu     the CPU time of all together; None if unknown
    memory  the memory of each, by pid
    """

    cpu: CPU | None
    memory: dict[int, Memory]


@dataclass(frozen=True)
class Snapshot:
    """The server at one moment.

    facts      the arbiter's own state and counters
    totals     sums over all workers, including ended ones
    rows       the live workers
    processes  CPU time and memory, which may be a few seconds old
    listeners  the application's listeners
    queues     their accept queues, in the same order; None if unknown
    drops      connections that the kernel has dropped at these listeners
    overflows  full TCP accept queues in the network namespace; None if unknown
    now_ns     the time of the snapshot, on the monotonic clock
    counters   the application's counters (`servo.cluster`): their labels' names, and their values
               by the labels' values
    pools      the figures of the pools
    """

    facts: ServerFacts
    totals: Totals
    rows: list[RowSnapshot]
    processes: Processes
    listeners: Sequence[ListenerInfo]
    queues: list[Queue | None]
    drops: int
    overflows: int | None
    now_ns: int
    counters: Mapping[str, AppCounter] = field(default_factory=dict)
    pools: Sequence[PoolFigures] = ()

    @property
    def live(self) -> bool:
        """Whether the arbiter's loop turns."""
        return self.facts.heartbeat_age_s < ARBITER_SILENT_S

    @property
    def not_ready(self) -> str:
        """Why a balancer should send no requests; "" if the server is ready for them."""
        return why_not_ready(self.facts, self.rows)


def why_not_ready(facts: ServerFacts, rows: Iterable[RowSnapshot]) -> str:
    """Why a balancer should send no requests; "" if the server is ready for them."""
    if facts.state != "serving":
        return f"the server is {facts.state}"
    if facts.heartbeat_age_s >= ARBITER_SILENT_S:
        return f"the arbiter has been silent for {facts.heartbeat_age_s:.0f} s"
    if not any(row.state == "ready" for row in rows):
        return "no worker is ready"
    return ""


class Reader:
    """Takes snapshots of the server.

    scoreboard  the workers' rows
    facts       the arbiter's state and counters
    listeners   the application's listeners
    clock       returns monotonic seconds
    counters    the table of the application's counters, if there is one
    pools       reads the boards of the pools, if there are any
    """

    def __init__(
        self,
        scoreboard: Scoreboard,
        facts: Facts,
        listeners: Sequence[ListenerInfo],
        clock: Callable[[], float] = time.monotonic,
        counters: CounterTable | None = None,
        pools: PoolReader | None = None,
    ) -> None:
        self._pools = pools
        self._counters = AppCounters(counters) if counters is not None else None
        self.scoreboard = scoreboard
        self.facts = facts
        self.listeners = listeners
        self._clock = clock
        self._processes = Processes(None, {})
        self._next_read_at = 0.0
        self._drops = _IncreaseSum()
        self._totals: Totals | None = None

    def read(self, *, processes: bool = True, queues: bool = True) -> Snapshot:
        """Take a snapshot.

        processes  whether to read CPU time and memory; else the last ones are used
        queues     whether to read the accept queues; else they are None
        """
        facts = self.facts.read()
        found: list[Queue | None] = [None] * len(self.listeners)
        if queues:
            found = accept_queue.queues([listener.address for listener in self.listeners])
            dropped = [queue.drops or 0 for queue in found if queue is not None]
            if dropped:
                self._drops.update(sum(dropped))
        return Snapshot(
            facts=facts,
            totals=self._plausible_totals(self.scoreboard.totals()),
            rows=self.scoreboard.snapshot(),
            processes=self._read_processes(facts.pid) if processes else self._processes,
            listeners=self.listeners,
            queues=found,
            drops=self._drops.total,
            overflows=accept_queue.overflows() if queues else None,
            now_ns=now_ns(),
            counters=self._counters.read() if self._counters is not None else {},
            pools=self._pools.read() if self._pools is not None and queues else (),
        )

    def _plausible_totals(self, totals: Totals) -> Totals:
        """The totals, without counters that decrease or jump.

        Counters decrease or jump while a worker writes two words that belong together, and after a
        row was overwritten, until the arbiter has repaired it.
        """
        if self._totals is not None:
            now, before = totals._asdict(), self._totals._asdict()
            grown = {
                name: _plausible_growth(now[name], before[name], most)
                for name, most in _COUNTED.items()
            }
            totals = totals._replace(**grown)
        self._totals = totals
        return totals

    def _read_processes(self, arbiter: int) -> Processes:
        now = self._clock()
        if now >= self._next_read_at:
            before = self._processes.cpu
            cpu = procfs.cpu_with_children(arbiter)
            if cpu is not None and before is not None:
                # Children may start and end during the count, so the sum may be too small.
                cpu = procfs.CPU(max(cpu.user, before.user), max(cpu.system, before.system))
            found = ((pid, procfs.memory_of(pid)) for pid in _arbiter_and_children(arbiter))
            memory = {pid: size for pid, size in found if size is not None}
            self._processes = Processes(cpu or before, memory)
            took = self._clock() - now
            self._next_read_at = now + max(PROCESS_AGE_S, _PROCESS_SHARE * took)
        return self._processes


def _plausible_growth(now: Any, before: Any, most: int) -> Any:
    """The new value of a counter (or a tuple of them); the old one if it fell or grew by `most`."""
    if isinstance(now, tuple):
        return tuple(_plausible_growth(n, b, most) for n, b in zip(now, before, strict=True))
    return now if 0 <= now - before < most else before


def families(seen: Snapshot) -> Iterator[Family]:
    """The metrics of a snapshot. Their names and labels are part of the public interface."""
    yield from _server(seen)
    yield from _requests(seen.totals)
    yield from _workers(seen)
    yield from _saturation(seen)
    yield from _processes(seen)
    yield from _queues(seen)
    yield from _pools(seen.pools)
    yield from _app_counters(seen)


def status(seen: Snapshot) -> dict[str, Any]:
    """The content of /status.json."""
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
        "workers_min": facts.least,
        "workers_max": facts.most,
        "reloads": {
            "under_way": facts.reloading,
            "started": facts.reloads_started,
            "finished": facts.reloads_finished,
            "rolled_back": facts.reloads_rolled_back,
            "last_ended_at": round(facts.last_reload_at, 3) or None,
            "last_finished": facts.last_reload_succeeded if facts.last_reload_at else None,
        },
        "reforks": {
            "finished": facts.reforks_finished,
            "rolled_back": facts.reforks_rolled_back,
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
        "utilisation": _rounded(saturation.server_utilisation(seen.rows, seen.now_ns)),
        "threads": _threads_status(saturation.server_threads(seen.rows)),
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
        "utilisation": round(saturation.utilisation(row, seen.now_ns), 3),
        "threads": _threads_status(saturation.threads(row)),
        "blocked_s": round(saturation.blocked_s(row, seen.now_ns), 3),
        "lag_s": round(saturation.lag_s(row, seen.now_ns), 6),
        "resident_bytes": memory.resident if memory is not None else None,
        "proportional_bytes": memory.proportional if memory is not None else None,
    }


def _threads_status(threads: saturation.Threads | None) -> dict[str, int] | None:
    return None if threads is None else threads._asdict()


# --- the metrics --------------------------------------------------------------------------------


def _server(seen: Snapshot) -> Iterator[Family]:
    import platform  # imported here, because few processes need it

    facts = seen.facts
    yield Family(
        "servo_build",
        "info",
        "Versions of Servo and Python.",
        ("version", "python", "implementation"),
        [((__version__, platform.python_version(), platform.python_implementation()), 1)],
    )
    yield _gauge("servo_start_time_seconds", "When the server started.", facts.started_at)
    yield _gauge("servo_live", "1 while the arbiter's loop turns.", seen.live)
    yield _gauge("servo_ready", "1 while the server wants requests.", not seen.not_ready)
    yield _gauge(
        "servo_generation",
        "Generation of the release that serves: 1, and one more with each reload.",
        facts.generation,
    )
    yield _gauge("servo_reload_under_way", "1 while a reload replaces workers.", facts.reloading)
    yield Family(
        "servo_reloads",
        "counter",
        "Reloads by their outcome.",
        ("outcome",),
        [(("finished",), facts.reloads_finished), (("rolled_back",), facts.reloads_rolled_back)],
    )
    yield Family(
        "servo_reforks",
        "counter",
        "Reforks (refork_after) by their outcome.",
        ("outcome",),
        [(("finished",), facts.reforks_finished), (("rolled_back",), facts.reforks_rolled_back)],
    )
    if facts.last_reload_at:
        yield _gauge(
            "servo_last_reload_time_seconds", "When the last reload ended.", facts.last_reload_at
        )
        yield _gauge(
            "servo_last_reload_success",
            "1 if the last reload was not rolled back.",
            facts.last_reload_succeeded,
        )
    entries = map(sum, zip(facts.log, seen.totals.log, strict=True))
    yield Family(
        "servo_log_entries",
        "counter",
        "Entries of the error log. Those with a traceback count as exception only.",
        ("level",),
        [((level,), count) for level, count in zip(LOG_LEVELS, entries, strict=True)],
    )


def _requests(totals: Totals) -> Iterator[Family]:
    yield Family(
        "servo_requests",
        "counter",
        "Answered requests, refused ones included.",
        ("method", "status"),
        [
            ((method, name), count)
            for method, counts in zip(METHODS, totals.methods, strict=True)
            for name, count in zip(_CLASS_NAMES, counts, strict=True)
            # Leave out series with the value zero, except the usual ones.
            if count or (method == "GET" and name != "1xx")
        ],
    )
    yield Family(
        "servo_responses",
        "counter",
        "Answered requests by the exact status of the response.",
        ("code",),
        [
            ((code,), count)
            for code, count in zip(_CODE_NAMES, totals.codes, strict=True)
            if count or code == "200"
        ],
    )
    yield _histogram(
        "servo_request_duration_seconds",
        "Time from a complete request to a complete response, for requests that reached the app.",
        totals.latency,
        totals.latency_sum_us,
    )
    yield _histogram(
        "servo_request_queue_seconds",
        "Time from X-Request-Start of a trusted proxy to Servo, for requests with this field.",
        totals.queue_times,
        totals.queue_sum_us,
    )
    yield _gauge(
        "servo_requests_in_flight", "Requests that the app is working on.", totals.in_flight
    )
    yield _counter("servo_requests_shed", "Requests refused by limit_concurrency.", totals.shed)
    yield _gauge("servo_connections", "Open connections.", totals.connections)
    yield _counter("servo_connections_accepted", "Accepted connections.", totals.accepted)
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
    yield _gauge("servo_workers_target", "How many workers there should be.", facts.target)
    yield _gauge("servo_workers_min", "The least workers that the load may ask for.", facts.least)
    yield _gauge("servo_workers_max", "The most workers that the load may ask for.", facts.most)
    yield _counter("servo_worker_spawns", "Forked workers.", facts.spawned)
    yield Family(
        "servo_worker_exits",
        "counter",
        "Ended workers, by reason.",
        ("reason",),
        [((reason,), count) for reason, count in facts.exits.items()],
    )
    yield _by_slot(
        "servo_worker_requests_in_flight",
        "Requests that a worker's app is working on.",
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


def _saturation(seen: Snapshot) -> Iterator[Family]:
    rows = seen.rows
    used = saturation.server_utilisation(rows, seen.now_ns)
    if used is not None:
        yield _gauge(
            "servo_utilisation",
            "How much of the ready workers was in use during the last 5 s, from 0 to 1.",
            used,
        )
    yield _by_slot(
        "servo_worker_utilisation",
        "How much of a worker was in use during the last 5 s, from 0 to 1.",
        rows,
        lambda row: saturation.utilisation(row, seen.now_ns),
        max,
    )
    pool = saturation.server_threads(rows)
    if pool is not None:
        yield Family(
            "servo_threads",
            "gauge",
            "Threads that run the app, by state.",
            ("state",),
            [(("busy",), pool.busy), (("idle",), pool.idle)],
        )
        yield _gauge(
            "servo_requests_waiting_for_thread",
            "Requests that wait because all threads of their worker are busy.",
            pool.waiting,
        )
    if pool is not None or any(seen.totals.thread_waits):
        yield _histogram(
            "servo_thread_wait_seconds",
            "Time that requests waited for a thread, for requests that found all threads busy.",
            seen.totals.thread_waits,
            seen.totals.wait_sum_us,
        )
    yield _by_slot(
        "servo_worker_blocked_seconds",
        "How long a worker has been unable to serve its sockets; 0 if it is not blocked.",
        rows,
        lambda row: saturation.blocked_s(row, seen.now_ns),
        max,
    )
    yield _by_slot(
        "servo_worker_loop_lag_seconds",
        "How late the event loop of an async worker ran its last check, once a second.",
        rows,
        lambda row: saturation.lag_s(row, seen.now_ns),
        max,
    )


def _processes(seen: Snapshot) -> Iterator[Family]:
    processes = seen.processes
    if processes.cpu is not None:
        yield Family(
            "servo_cpu_seconds",
            "counter",
            "CPU time of the arbiter and all its children, ended ones included.",
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
            "Memory by process, shared pages divided among the processes that share them (PSS).",
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
        "Connections that wait for a worker to accept them.",
        ("listener",),
        [((name,), queue.waiting) for name, queue in known],
    )
    yield Family(
        "servo_accept_queue_limit",
        "gauge",
        "How many connections may wait. The kernel drops any more.",
        ("listener",),
        [((name,), queue.limit) for name, queue in known],
    )
    yield _counter(
        "servo_accept_queue_drops",
        "Connections that the kernel dropped at the TCP listeners, mostly for a full queue.",
        seen.drops,
    )
    if seen.overflows is not None:
        yield _counter(
            "servo_netns_listen_overflows",
            "How often any TCP accept queue of this network namespace was full (ListenOverflows).",
            seen.overflows,
        )


# --- parts --------------------------------------------------------------------------------------


class _IncreaseSum:
    """Turns a count that drops when a socket is closed into a counter: the sum of its increases."""

    def __init__(self) -> None:
        self.total = 0
        self._last = 0

    def update(self, value: int) -> None:
        """Note the current count."""
        self.total += max(value - self._last, 0)
        self._last = value


def _arbiter_and_children(arbiter: int) -> list[int]:
    return [arbiter, *procfs.children_of(arbiter)]


def _gauge(name: str, help: str, value: float) -> Family:
    return Family(name, "gauge", help, (), [((), float(value))])


def _counter(name: str, help: str, value: float) -> Family:
    return Family(name, "counter", help, (), [((), float(value))])


def _histogram(name: str, help: str, counts: Sequence[int], sum_us: int) -> Family:
    counted = 0
    buckets = []
    for bound, count in zip(LATENCY_BOUNDS_S, counts, strict=True):
        counted += count
        buckets.append((bound, counted))
    return Family(name, "histogram", help, buckets=buckets, sum=sum_us / 1e6)


def _by_slot(
    name: str,
    help: str,
    rows: Iterable[RowSnapshot],
    value: Callable[[RowSnapshot], float],
    join: Callable[[list[float]], float] = sum,
) -> Family:
    """A gauge with one series for each slot.

    During a replacement two workers have the same slot. `join` combines their values.
    """
    by_slot: dict[int, list[float]] = {}
    for row in rows:
        by_slot.setdefault(row.slot, []).append(value(row))
    samples = [((str(slot),), float(join(by_slot[slot]))) for slot in sorted(by_slot)]
    return Family(name, "gauge", help, ("slot",), samples)


def _pools(pools: Sequence[PoolFigures]) -> Iterator[Family]:
    if not pools:
        return
    yield Family(
        "servo_pool_tasks",
        "counter",
        "Tasks of a pool by outcome.",
        ("pool", "outcome"),
        [((p.name, outcome), count) for p in pools for outcome, count in p.tasks.items()],
    )
    yield Family(
        "servo_pool_task_duration_seconds",
        "histogram",
        "How long the tasks of a pool ran.",
        ("pool",),
        parts=[((p.name,), p.durations, p.busy_s) for p in pools],
    )
    yield Family(
        "servo_pool_processes",
        "gauge",
        "Processes of a pool by state.",
        ("pool", "state"),
        [((p.name, state), count) for p in pools for state, count in p.processes.items()],
    )
    for name, text, values in (
        ("length", "Tasks that wait for a process of a pool.", [p.waiting for p in pools]),
        ("limit", "How many tasks of a pool may wait.", [p.limit for p in pools]),
    ):
        yield Family(
            f"servo_pool_queue_{name}",
            "gauge",
            text,
            ("pool",),
            [
                ((p.name,), value)
                for p, value in zip(pools, values, strict=True)
                if value is not None
            ],
        )


def _app_counters(seen: Snapshot) -> Iterator[Family]:
    for name, counter in seen.counters.items():
        help = "A counter of the application (servo.cluster)."
        if name in _OWN_HELP:
            help = _OWN_HELP[name]
        yield Family(name, "counter", help, counter.labels, list(counter.values.items()))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _oldest_s(row: RowSnapshot, now: int) -> float:
    return max(now - row.oldest_start_ns, 0) / 1e9 if row.oldest_start_ns else 0.0
