"""Reads CPU time and memory of processes from /proc. On systems without /proc it finds nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

_TICKS_S = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)
# Children may start and end during a count. After this many attempts, the last count is used.
_ATTEMPTS = 5


class Memory(NamedTuple):
    """The memory of a process, in bytes.

    resident      RSS: all pages in memory
    proportional  PSS: shared pages are divided among the processes that share them; None if the
                  kernel doesn't say (a process of another user)
    """

    resident: int
    proportional: int | None


class CPU(NamedTuple):
    """The CPU time of a process and its ended children, in seconds."""

    user: float
    system: float


def children_of(pid: int) -> list[int]:
    """The unreaped children of a process's main thread, including zombies."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def memory_of(pid: int) -> Memory | None:
    """The memory of a process; None if it has ended."""
    resident = resident_of(pid)
    return None if resident is None else Memory(resident, proportional_of(pid))


def resident_of(pid: int) -> int | None:
    """The RSS of a process in bytes; None if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return None


def proportional_of(pid: int) -> int | None:
    """The PSS of a process in bytes; None if it has ended, or if the kernel doesn't say."""
    try:
        match = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_bytes())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def cpu_of(pid: int) -> CPU | None:
    """The CPU time of a process and its ended children; None if it has ended."""
    times = _cpu_times(pid)
    if times is None:
        return None
    user, system, user_below, system_below = times
    return CPU(user + user_below, system + system_below)


def cpu_without_children(pid: int) -> CPU | None:
    """The CPU time of a process itself; None if it has ended.

    For the arbiter: when it reaps a worker, the time of the worker's whole life would count as used
    in this moment.
    """
    times = _cpu_times(pid)
    return None if times is None else CPU(times[0], times[1])


def _cpu_times(pid: int) -> list[float] | None:
    """utime, stime, cutime and cstime (proc_pid_stat(5)) in seconds; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # The fields up to the command's name, which may contain spaces, were cut off, so the first one
    # here is the state.
    return [int(field) / _TICKS_S for field in fields[11:15]]


def cpu_with_children(pid: int) -> CPU | None:
    """The CPU time of a process and all its children, including ended ones.

    When a child is reaped, the kernel adds its time to the parent's count of its children's time.
    If this happens while we add up the times, the child is missed or counted twice. The parent's
    count has then changed, so we start again.
    """
    total = None
    for _ in range(_ATTEMPTS):
        before = _children_cpu(pid)
        own = cpu_of(pid)
        if own is None:
            return total
        user, system = own
        for child in children_of(pid):
            used = cpu_of(child)
            if used is not None:
                user += used.user
                system += used.system
        total = CPU(user, system)
        if _children_cpu(pid) == before:
            break
    return total


def _children_cpu(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[13:15]
    except OSError:
        return []


def waited_ns() -> int:
    """Nanoseconds for which this process's main thread was ready to run but waited for a CPU.

    0 if the kernel doesn't report it.
    """
    try:
        return int(Path("/proc/self/schedstat").read_bytes().split()[1])
    except (OSError, IndexError):
        return 0
