"""Counts the CPUs that this process may use: its affinity and its cgroups' quota (v1 and v2).

All functions except `count_cpus` are pure: they get the texts of /proc and /sys from a function
that is passed to them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[str], "str | None"]  # a file's text, or None if it can't be read


def auto_workers(cpus: int, worker_class: str) -> int:
    """The number of workers for `auto`: 2n+1 for class "sync", n for the other classes.

    A `sync` worker serves one request at a time and is idle while that waits for a database, so
    there are more of them than CPUs. gunicorn recommends 2n+1, too.

    cpus           how many CPUs may be used
    worker_class   the class's name
    """
    return 2 * cpus + 1 if worker_class == "sync" else cpus


def count_cpus() -> int:
    """The number of CPUs that this process may use, at least 1."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        affinity = os.cpu_count() or 1
    return usable_cpus(affinity, cpu_quota(_read))


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


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _v2_quotas(read: Read) -> Iterator[float]:
    mount = _mount(read, "cgroup2") or ("/sys/fs/cgroup", "/")
    for directory in _ancestors(mount, _group(read, "")):
        limit, _, period = (read(f"{directory}/cpu.max") or "max").strip().partition(" ")
        quota = _ratio(limit, period)
        if quota is not None:
            yield quota


def _v1_quotas(read: Read) -> Iterator[float]:
    mount = _mount(read, "cgroup", "cpu") or ("/sys/fs/cgroup/cpu", "/")
    for directory in _ancestors(mount, _group(read, "cpu")):
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


def _group(read: Read, controller: str) -> str:
    """The path of this process's cgroup for a controller; "" stands for cgroup v2.

    /proc/self/cgroup has lines `id:controllers:path`; that of v2 has no controllers
    (proc_pid_cgroup(5)).
    """
    for line in (read("/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and controller in parts[1].split(","):
            return parts[2]
    return "/"


def _mount(read: Read, kind: str, controller: str = "") -> tuple[str, str] | None:
    """The mount point of a cgroup hierarchy and the cgroup mounted there, or None.

    See proc_pid_mountinfo(5).
    """
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or len(types) < 3 or types[0] != kind:
            continue
        if not controller or controller in types[2].split(","):
            return fields[4], fields[3]
    return None


def _ancestors(mount: tuple[str, str], group: str) -> Iterator[str]:
    """The directories of a cgroup and of its ancestors, as far as they are mounted.

    In a container, /proc/self/cgroup may have the host's path of the group while only that group
    is mounted.
    """
    point, root = mount
    try:
        path = PurePosixPath(group).relative_to(root)
    except ValueError:
        path = PurePosixPath(group.lstrip("/"))
    for part in (path, *path.parents):
        yield str(PurePosixPath(point) / part)
