"""The directories of this process's cgroups, from the texts of /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.settings.cgroups import read_file, v1_directories, v2_directories

V2 = "31 23 0:28 {root} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.mark.parametrize(
    ("group", "root", "directories"),
    [
        ("/", "/", ["/sys/fs/cgroup"]),
        ("/a/b", "/", ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]),
        ("/docker/x", "/docker/x", ["/sys/fs/cgroup"]),
        ("/docker/x", "/docker", ["/sys/fs/cgroup/x", "/sys/fs/cgroup"]),
    ],
)
def test_the_group_and_its_ancestors(group: str, root: str, directories: list[str]) -> None:
    both = {"/proc/self/mountinfo": V2.format(root=root) + V1.format(root=root)}
    files = {**both, "/proc/self/cgroup": f"4:cpuset,memory:{group}\n0::{group}\n"}
    assert list(v2_directories(files.get)) == directories
    in_v1 = [each.replace("/sys/fs/cgroup", "/sys/fs/cgroup/memory") for each in directories]
    assert list(v1_directories(files.get, "memory")) == in_v1


def test_without_proc_the_usual_mount_points_are_assumed() -> None:
    assert list(v2_directories({}.get)) == ["/sys/fs/cgroup"]
    assert list(v1_directories({}.get, "cpu")) == ["/sys/fs/cgroup/cpu"]


def test_a_file_that_cannot_be_read_has_no_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert read_file(str(tmp_path / "file")) == "text"
    assert read_file(str(tmp_path / "none")) is None
