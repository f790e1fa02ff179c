"""How many CPUs this process may use: its affinity, and the quota of its cgroups (v2 and v1).

Everything but `count_cpus` is a pure function over the texts of /proc and /sys.
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
    """The workers that `auto` means: 2n+1 where a worker serves one request at a time, else n."""
    return 2 * cpus + 1 if worker_class == "sync" else cpus


def count_cpus() -> int:
    """The CPUs that this process may use, at least 1."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        affinity = os.cpu_count() or 1
    return usable_cpus(affinity, cpu_quota(_read))


def usable_cpus(affinity: int, quota: float | None) -> int:
    """The whole CPUs in an affinity and a quota; a part of one counts (as the JVM and Go do)."""
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


def cpu_quota(read: Read) -> float | None:
    """The least CPU quota of this process's cgroups and of all above them; None: unlimited."""
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
    return quota / over if quota > 0 and over > 0 else None  # v1 says -1 for unlimited


def _group(read: Read, controller: str) -> str:
    """This process's cgroup (proc_pid_cgroup(5)): lines `id:controllers:path`, v2's has none."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and controller in parts[1].split(","):
            return parts[2]
    return "/"


def _mount(read: Read, kind: str, controller: str = "") -> tuple[str, str] | None:
    """(mount point, the cgroup mounted there) by proc_pid_mountinfo(5)."""
    for line in (read("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or len(types) < 3 or types[0] != kind:
            continue
        if not controller or controller in types[2].split(","):
            return fields[4], fields[3]
    return None


def _ancestors(mount: tuple[str, str], group: str) -> Iterator[str]:
    """The directories of a cgroup and of all above it that are mounted.

    A container may see its group's path as the host does while only that group is mounted.
    """
    point, root = mount
    try:
        path = PurePosixPath(group).relative_to(root)
    except ValueError:
        path = PurePosixPath(group.lstrip("/"))
    for part in (path, *path.parents):
        yield str(PurePosixPath(point) / part)
