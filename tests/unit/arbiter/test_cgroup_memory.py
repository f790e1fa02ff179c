"""Limits and use of memory, from the texts of /proc and /sys."""

from __future__ import annotations

import pytest

from servo.arbiter.cgroup_memory import bytes_of, memory_left, memory_limit

V2 = {
    "/proc/self/cgroup": "0::/a/b\n",
    "/proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    "/sys/fs/cgroup/a/b/memory.max": "max\n",
    "/sys/fs/cgroup/a/memory.max": "1000000\n",
    "/sys/fs/cgroup/a/memory.current": "600000\n",
    "/sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 100000\nactive_file 7\n",
}
V1 = {
    "/proc/self/cgroup": "4:memory:/x\n0::/\n",
    "/proc/self/mountinfo": "32 31 0:29 / /cg/memory rw - cgroup cgroup rw,memory\n",
    "/cg/memory/x/memory.limit_in_bytes": "2000000\n",
    "/cg/memory/x/memory.usage_in_bytes": "1500000\n",
    "/cg/memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 200000\n",
    "/cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
}
MACHINE = {"/proc/meminfo": "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   300 kB\n"}


@pytest.mark.parametrize(
    ("files", "limit", "left"),
    [
        (V2, 1_000_000, 500_000),
        (V1, 2_000_000, 700_000),
        (MACHINE, 8000 * 1024, 300 * 1024),
        ({**V2, **MACHINE}, 1_000_000, 300 * 1024),
        ({}, None, None),
    ],
)
def test_the_lowest_limit_counts(
    files: dict[str, str], limit: int | None, left: int | None
) -> None:
    assert memory_limit(files.get) == limit
    assert memory_left(files.get) == left


def test_a_group_above_its_limit_has_nothing_left() -> None:
    assert memory_left({**V2, "/sys/fs/cgroup/a/memory.current": "2000000"}.get) == 0


def test_settings_in_bytes() -> None:
    assert bytes_of(512, 1000) == 512
    assert bytes_of("25%", 1000) == 250
    assert bytes_of("25%", None) == 0


def test_this_machine_has_some() -> None:
    limit, left = memory_limit(), memory_left()
    assert limit is not None
    assert left is not None
    assert 0 < left < limit
