"""Finds the directories of this process's cgroups (v1 and v2), with the files of its limits.

The limits of ancestors also apply, so each function returns the group and its ancestors. The
functions except `read_file` do no I/O themselves: they take the function that reads files of /proc
and /sys as an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Returns a file's text, or None if it can't be read.
Read = Callable[[str], "str | None"]


def read_file(path: str) -> str | None:
    """The text of a file; None if it can't be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def v2_directories(read: Read) -> Iterator[str]:
    """The directories of this process's cgroup of version 2, the innermost first."""
    mount = _mount(read, "cgroup2") or ("/sys/fs/cgroup", "/")
    return _ancestors(mount, _group(read, ""))


def v1_directories(read: Read, controller: str) -> Iterator[str]:
    """The directories of this process's cgroup of version 1, the innermost first.

    controller   "cpu" or "memory", for example
    """
    mount = _mount(read, "cgroup", controller) or (f"/sys/fs/cgroup/{controller}", "/")
    return _ancestors(mount, _group(read, controller))


def _group(read: Read, controller: str) -> str:
    """The path of this process's cgroup for a controller; "" means cgroup v2.

    /proc/self/cgroup has lines `id:controllers:path`. The line of v2 has no controllers
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
    """The mounted directories of a cgroup and its ancestors.

    In a container, /proc/self/cgroup may have the host's path of the group, but only the group
    itself is mounted.
    """
    point, root = mount
    try:
        path = PurePosixPath(group).relative_to(root)
    except ValueError:
        path = PurePosixPath(group.lstrip("/"))
    for part in (path, *path.parents):
        yield str(PurePosixPath(point) / part)
