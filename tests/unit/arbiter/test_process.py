"""The kernel's counters of processes killed for memory."""

from __future__ import annotations

from pathlib import Path

from servo.arbiter.process import OutOfMemoryCounter, signal_name


def counter(tmp_path: Path, own: str, file: str, text: str) -> tuple[OutOfMemoryCounter, Path]:
    (tmp_path / "own").write_text(own)
    path = tmp_path / "root" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return OutOfMemoryCounter(str(tmp_path / "root"), str(tmp_path / "own")), path


def test_version_2(tmp_path: Path) -> None:
    watch, file = counter(tmp_path, "0::/app\n", "app/memory.events", "oom 5\noom_kill 3\n")
    assert not watch.took_one()
    file.write_text("oom 9\noom_kill 5\noom_group_kill 0\n")
    assert [watch.took_one() for _ in range(3)] == [True, True, False]


def test_version_2_in_a_container(tmp_path: Path) -> None:
    watch, file = counter(tmp_path, "0::/host/path\n", "memory.events", "oom_kill 0\n")
    file.write_text("oom_kill 1\n")
    assert watch.took_one()


def test_version_1(tmp_path: Path) -> None:
    own = "3:cpu,cpuacct:/x\n2:memory:/app\n"
    text = "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"
    watch, file = counter(tmp_path, own, "memory/app/memory.oom_control", text)
    file.write_text(text.replace("oom_kill 0", "oom_kill 1"))
    assert watch.took_one()


def test_without_a_counter_nothing_is_claimed(tmp_path: Path) -> None:
    watch = OutOfMemoryCounter(str(tmp_path), str(tmp_path / "none"))
    assert not watch.took_one()


def test_signal_names() -> None:
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(200) == "signal 200"
