"""The number of usable CPUs, from the texts of /proc and /sys."""

from __future__ import annotations

import pytest

from servo.settings.cpus import auto_workers, count_cpus, cpu_quota, usable_cpus

V2_MOUNT = "31 23 0:28 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "32 31 0:29 {root} {point} rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"


def v2(group: str, root: str = "/", point: str = "/sys/fs/cgroup") -> dict[str, str]:
    return {
        "/proc/self/cgroup": f"0::{group}\n",
        "/proc/self/mountinfo": V2_MOUNT.format(root=root, point=point),
    }


def v1(group: str, root: str = "/") -> dict[str, str]:
    return {
        "/proc/self/cgroup": f"9:name=systemd:/\n4:cpu,cpuacct:{group}\n0::/elsewhere\n",
        "/proc/self/mountinfo": "24 1 0:1 / / rw - ext4 /dev/x rw\n"
        + V1_MOUNT.format(root=root, point="/sys/fs/cgroup/cpu,cpuacct"),
    }


def v1_limits(directory: str, quota: int, period: int = 100_000) -> dict[str, str]:
    return {
        f"{directory}/cpu.cfs_quota_us": f"{quota}\n",
        f"{directory}/cpu.cfs_period_us": f"{period}\n",
    }


V1 = "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        # Version 2: a container's own namespace, then a nested group whose parents count too.
        ({**v2("/"), "/sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ({**v2("/"), "/sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({**v2("/a/b"), "/sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                **v2("/a/b"),
                "/sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "/sys/fs/cgroup/a/cpu.max": "150000 100000",
            },
            1.5,
        ),
        (
            {
                **v2("/a/b"),
                "/sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "/sys/fs/cgroup/a/cpu.max": "300000 100000",
            },
            3.0,
        ),
        # Only the group itself is mounted, and its path is the host's.
        ({**v2("/docker/x", root="/docker/x"), "/sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
        ({**v2("/docker/x", root="/docker/y"), "/sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
        ({**v2("/a", point="/cg"), "/cg/a/cpu.max": "100000 50000"}, 2.0),
        # Without mountinfo, the usual mount point is assumed.
        ({"/sys/fs/cgroup/cpu.max": "100000 100000"}, 1.0),
        # Version 1.
        ({**v1("/"), **v1_limits(V1, 250_000)}, 2.5),
        ({**v1("/"), **v1_limits(V1, -1)}, None),
        ({**v1("/a/b"), **v1_limits(f"{V1}/a/b", 300_000), **v1_limits(f"{V1}/a", 100_000)}, 1.0),
        ({**v1("/docker/x", root="/docker/x"), **v1_limits(V1, 100_000, 200_000)}, 0.5),
        ({**v1("/docker/x"), **v1_limits(V1, 100_000)}, 1.0),
        ({**v1_limits("/sys/fs/cgroup/cpu", 700_000)}, 7.0),
        # An invalid quota counts as none.
        ({**v2("/"), "/sys/fs/cgroup/cpu.max": ""}, None),
        ({**v2("/"), "/sys/fs/cgroup/cpu.max": "1000 0"}, None),
        ({"/proc/self/cgroup": "garbage", "/proc/self/mountinfo": "garbage\n - \n"}, None),
    ],
)
def test_quota(files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(files.get) == quota


@pytest.mark.parametrize(
    ("affinity", "quota", "cpus"),
    [(8, None, 8), (8, 2.0, 2), (8, 2.1, 3), (8, 0.1, 1), (2, 16.0, 2), (0, None, 1)],
)
def test_usable(affinity: int, quota: float | None, cpus: int) -> None:
    assert usable_cpus(affinity, quota) == cpus


def test_workers() -> None:
    assert auto_workers(4, "sync") == 9
    assert auto_workers(4, "thread") == 4
    assert auto_workers(4, "async") == 4


def test_this_machine_has_some() -> None:
    assert count_cpus() >= 1
