"""Turns the server's answers into samples, one a second. Pure: no clock, no I/O.

A sample has the form that `docs/how-to/dashboard.md` describes. All counts are those of the
arbiter, over all workers that ever ran. So a worker's end loses none, and two samples of any age
can be subtracted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.metrics.histograms import RecentHistogram, quantile
from servo.metrics.saturation import SHOWN_S

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
# The percentiles cover the requests of this many seconds, as in `servoctl monit`.
RECENT_S = 5

_STATES = {"running": "serving"}
_HISTOGRAMS = ("latency", "thread_waits", "queue_times")
_UNKNOWN = (
    *("generation", "target", "rate", "p50", "p99", "p999", "classes", "in_flight", "use", "cpu"),
    *("memory", "loop_lag", "thread_wait_p99", "queue_time_p99"),
)


class Sampler:
    """Makes samples from successive answers of one server."""

    def __init__(self) -> None:
        self._at = 0.0
        self._counts: dict[str, int] = {}
        self._recent = {name: RecentHistogram(RECENT_S) for name in _HISTOGRAMS}
        self._latencies: dict[int, RecentHistogram] = {}
        self._tasks: dict[str, int] = {}  # the ended tasks of each pool

    def sample(
        self,
        number: int,
        now: float,
        at: float,
        status: dict[str, Any],
        workers: dict[str, Any],
        pools: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        """Make a sample.

        number    the sample's number
        now       seconds since the epoch
        at        monotonic seconds
        status    the answer to "status"
        workers   the answer to "workers", with the usage of CPU and memory
        pools     the pools in the answer to "pools"
        """
        elapsed_s = at - self._at
        counts = {"requests": status["requests"], **status["statuses"]}
        per_second = self._per_second(counts, at)
        recent = {}
        for name, histogram in self._recent.items():
            histogram.add(status[name])
            recent[name] = histogram.counts
        rows = workers["workers"]
        known, self._latencies = self._latencies, {}
        for row in rows:
            self._latencies[row["serial"]] = known.get(row["serial"]) or RecentHistogram(RECENT_S)
        processes = [workers, *rows]
        cpu = _sum([each.get("cpu_percent") for each in processes])
        return {
            "n": number,
            "time": round(now, 3),
            "state": _STATES.get(status["state"], status["state"]),
            "phase": status["phase"],
            "generation": status["generation"],
            "target": status["workers"]["target"],
            "rate": per_second["requests"],
            "p50": quantile(recent["latency"], 0.5),
            "p99": quantile(recent["latency"], 0.99),
            "p999": quantile(recent["latency"], 0.999),
            "classes": {name: per_second[name] for name in CLASSES},
            "in_flight": status["in_flight"],
            "use": status["utilisation"],
            "cpu": None if cpu is None else round(cpu / 100, 4),
            "memory": _sum([each.get("rss_bytes") for each in processes]),
            "loop_lag": max((row["lag_s"] for row in rows if "lag_s" in row), default=None),
            "thread_wait_p99": quantile(recent["thread_waits"], 0.99),
            "queue_time_p99": quantile(recent["queue_times"], 0.99),
            "accept_queue": _accept_queues(status),
            "total": counts,
            "workers": [self._worker(row) for row in rows],
            "pools": self._pools(pools, elapsed_s),
        }

    def lost(self, number: int, now: float) -> dict[str, Any]:
        """Make a sample of a second in which the server did not answer.

        number    the sample's number
        now       seconds since the epoch
        """
        return {
            "n": number,
            "time": round(now, 3),
            "state": "lost",
            "phase": "",
            **dict.fromkeys(_UNKNOWN),
            "total": self._counts or None,
            "accept_queue": [],
            "workers": [],
            "pools": [],
        }

    def _per_second(self, counts: dict[str, int], at: float) -> dict[str, float | None]:
        before, elapsed_s = self._counts, at - self._at
        self._counts, self._at = counts, at
        if not before or elapsed_s <= 0 or counts["requests"] < before["requests"]:
            return dict.fromkeys(counts)
        return {
            name: round(max(count - before[name], 0) / elapsed_s, 2)
            for name, count in counts.items()
        }

    def _pools(self, pools: Sequence[dict[str, Any]], elapsed_s: float) -> list[dict[str, Any]]:
        before, self._tasks = self._tasks, {}
        found = []
        for pool in pools:
            name, queue = pool["name"], pool["queue"] or {}
            processes = pool["processes"]
            ended = self._tasks[name] = sum(pool["tasks"].values())
            known = name in before and elapsed_s > 0
            found.append(
                {
                    "name": name,
                    "state": "failing" if pool["failure"] else "serving",
                    "workers": sum(each["state"] in ("idle", "busy") for each in processes),
                    "target": pool["workers"],
                    "busy": sum(each["state"] == "busy" for each in processes),
                    "queued": queue.get("waiting"),
                    "queue_limit": queue.get("limit"),
                    "rate": round(max(ended - before[name], 0) / elapsed_s, 2) if known else None,
                    "failed": pool["tasks"]["failed"],
                    "memory": _sum([each["rss"] for each in processes]),
                }
            )
        return found

    def _worker(self, row: dict[str, Any]) -> dict[str, Any]:
        recent = self._latencies[row["serial"]]
        if "latency" in row:
            recent.add(row["latency"])
        blocked_s, percent = row.get("blocked_s", 0.0), row.get("cpu_percent")
        return {
            "slot": row["slot"],
            "pid": row["pid"],
            "serial": row["serial"],
            "state": row["state"],
            "leaving": row["leaving"],
            "blocked": blocked_s if blocked_s >= SHOWN_S else None,
            "age": row["age_s"],
            "generation": row["generation"],
            "rate": row.get("requests_per_s"),
            "p99": quantile(recent.counts, 0.99),
            "cpu": None if percent is None else round(percent / 100, 4),
            "memory": row.get("rss_bytes"),
            "use": row.get("utilisation"),
            "in_flight": row.get("in_flight"),
            "lag": row.get("lag_s"),
            "requests": row.get("requests"),
            "last_exit": row.get("last_exit_text", ""),
        }


def _sum(values: list[Any]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _accept_queues(status: dict[str, Any]) -> list[dict[str, Any]]:
    queues = status["accept_queues"]
    if len(queues) != len(status["listeners"]):
        return []  # a stopping server has closed some of its listeners
    return [
        {"listener": name, "length": queue["waiting"], "limit": queue["limit"]}
        for name, queue in zip(status["listeners"], queues, strict=True)
        if queue is not None
    ]
