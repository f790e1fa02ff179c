"""Counts the CPUs that this process may use: its affinity and its cgroups' quota (v1 and v2).

The functions except `count_cpus` do no I/O themselves: they take the function that reads files of
/proc and /sys as an argument.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from servo.settings.cgroups import Read, read_file, v1_directories, v2_directories

if TYPE_CHECKING:
    from collections.abc import Iterator


def auto_workers(cpus: int, worker_class: str) -> int:
    """The number of workers for `auto`: 2n+1 for class "sync", n for the other classes.

    A `sync` worker runs one request at a time, and is idle while the request waits for a database.
    So there are more `sync` workers than CPUs; gunicorn also recommends 2n+1.

    cpus           the number of usable CPUs
    worker_class   the class's name
    """
    return 2 * cpus + 1 if worker_class == "sync" else cpus


def count_cpus() -> int:
    """The number of CPUs that this process may use, at least 1."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        affinity = os.cpu_count() or 1
    return usable_cpus(affinity, cpu_quota(read_file))


def usable_cpus(affinity: int, quota: float | None) -> int:
    """The number of whole CPUs under both limits, at least 1.

    A fraction counts as a whole CPU, as in the JVM and in Go.

    affinity   how many CPUs the affinity mask allows
    quota      how many CPUs' time the cgroups allow; None: no limit
    """
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpu_quota(read: Read) -> float | None:
    """The smallest CPU quota of this process's cgroups and their ancestors, in CPUs.

    read   returns a file's text, or None if it can't be read

    Returns None if there is no limit.
    """
    quotas = [*_v2_quotas(read), *_v1_quotas(read)]
    return min(quotas, default=None)


def _v2_quotas(read: Read) -> Iterator[float]:
    for directory in v2_directories(read):
        limit, _, period = (read(f"{directory}/cpu.max") or "max").strip().partition(" ")
        quota = _ratio(limit, period)
        if quota is not None:
            yield quota


def _v1_quotas(read: Read) -> Iterator[float]:
    for directory in v1_directories(read, "cpu"):
        quota = _ratio(
            read(f"{directory}/cpu.cfs_quota_us") or "",
            read(f"{directory}/cpu.cfs_period_us") or "",
        )
        if quota is not None:
            yield quota


def _ratio(limit: str, period: str) -> float | None:
    try:
        quota, over = int(limit), int(period)
    except ValueError:  # "max", or no such file
        return None
    return quota / over if quota > 0 and over > 0 else None  # -1 means "no limit" in v1
