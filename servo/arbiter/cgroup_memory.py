"""The memory that this server may use, and the part of it that is left.

The limits are those of the server's cgroups (v1 and v2) and of the machine. The functions do no I/O
themselves: they take the function that reads files of /proc and /sys as an argument.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from servo.settings.cgroups import read_file, v1_directories, v2_directories

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo.settings.cgroups import Read

# cgroup v1 shows "no limit" as the largest multiple of the page size that fits into 63 bits.
_NO_LIMIT = 1 << 60


def memory_limit(read: Read = read_file) -> int | None:
    """The memory limit in bytes: the limit of the server's cgroups or else the machine's memory.

    read   returns a file's text, or None if it can't be read

    Returns None if the limit is unknown.
    """
    limits = [limit for limit, _ in _groups(read)]
    return min(limits, default=_machine(read, "MemTotal"))


def memory_left(read: Read = read_file) -> int | None:
    """The bytes of memory that are left below the limits of the cgroups and the machine.

    read   see `memory_limit`

    File pages that the kernel can drop don't count as used. Returns None if the limits are unknown.
    """
    left = [max(0, limit - used) for limit, used in _groups(read)]
    available = _machine(read, "MemAvailable")
    return min(left if available is None else [*left, available], default=None)


def bytes_of(value: int | str, limit: int | None) -> int:
    """A memory setting in bytes.

    value   bytes, or a percentage such as "25%"
    limit   the result of `memory_limit`; if it is None, a percentage means no limit

    Returns 0 for no limit.
    """
    if isinstance(value, int):
        return value
    return (limit or 0) * int(value.removesuffix("%")) // 100


def _groups(read: Read) -> Iterator[tuple[int, int]]:
    """The limit and the use, in bytes, of each cgroup with a limit."""
    for directories, limit_name, used_name, droppable in (
        (v2_directories(read), "memory.max", "memory.current", "inactive_file"),
        (
            v1_directories(read, "memory"),
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        for directory in directories:
            limit = _number(read(f"{directory}/{limit_name}"))
            if limit is None or limit >= _NO_LIMIT:
                continue
            used = _number(read(f"{directory}/{used_name}")) or 0
            dropped = _line(read(f"{directory}/memory.stat"), rf"^{droppable} (\d+)$")
            yield limit, max(0, used - (dropped or 0))


def _machine(read: Read, name: str) -> int | None:
    kib = _line(read("/proc/meminfo"), rf"^{name}:\s+(\d+) kB$")
    return kib * 1024 if kib is not None else None


def _line(text: str | None, pattern: str) -> int | None:
    match = re.search(pattern, text or "", re.MULTILINE)
    return int(match[1]) if match else None


def _number(text: str | None) -> int | None:
    plain = (text or "").strip()
    return int(plain) if plain.isdecimal() else None
