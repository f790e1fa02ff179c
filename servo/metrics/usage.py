"""Measures the use of CPU and memory of a server's processes, for operators' screens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.metrics.procfs import cpu_of, cpu_without_children, resident_of

if TYPE_CHECKING:
    from servo.metrics.procfs import CPU


def next_reading_at(planned: float, now: float, interval_s: float) -> float:
    """When to take the next reading, to keep a pace.

    planned      when the last reading was planned, in monotonic seconds
    now          monotonic seconds, after the last reading
    interval_s   the time between two readings, in seconds

    After a delay, the next reading is at least half an interval away. Rates over shorter times are
    wrong: the kernel counts CPU time in ticks of 10 ms, and a busy server answers late.
    """
    return max(planned + interval_s, now + interval_s / 2)


class Usage:
    """Adds the workers' use of CPU and memory to their rows.

    The CPU usage is that since the last call, so unlike `show.add_usage` this does not wait. The
    memory is the RSS: to read the PSS, the kernel would have to walk the page tables every second.
    """

    def __init__(self) -> None:
        self._before: dict[int, tuple[float, float]] = {}
        self._next: dict[int, tuple[float, float]] = {}

    def add(self, result: dict[str, Any], server_pid: int, now: float) -> None:
        """Add `cpu_percent` and `rss_bytes` to each row, and to the result itself those of the
        server's own process; None if they are unknown.

        result       the server's answer to "workers"
        server_pid   the server's pid as this process sees it. In another pid namespace it differs,
                     and there the pids of the workers belong to other processes
        now          monotonic seconds
        """
        here = result["server_pid"] == server_pid
        self._next = {}
        for row in (result, *result["workers"]):
            pid = server_pid if row is result else row["pid"]
            used = None
            if here and pid:
                used = cpu_without_children(pid) if row is result else cpu_of(pid)
            row["cpu_percent"], row["rss_bytes"] = self._measure(pid, used, now)
        self._before = self._next

    def _measure(self, pid: int, used: CPU | None, now: float) -> tuple[float | None, int | None]:
        if used is None:
            return None, None
        self._next[pid] = (now, sum(used))
        percent = None
        if pid in self._before:
            then, seconds = self._before[pid]
            percent = max(0.0, 100 * (sum(used) - seconds) / max(now - then, 0.001))
        return percent, resident_of(pid)
