"""Signals that may be refused, and the kernel's counters of processes killed for memory."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from servo.arbiter.process_info import OutOfMemoryCounter, send_signal, signal_name


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


def refuse(code: int, *, users: dict[int, list[int]] | None = None):
    """An `os.kill` that fails, but for these effective users, whose signals are noted."""

    def kill(pid: int, signum: int) -> None:
        if users is None or os.geteuid() not in users:
            raise OSError(code, os.strerror(code))
        users[os.geteuid()].append(signum)

    return kill


def test_a_process_that_is_gone_needs_no_signal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "kill", refuse(errno.ESRCH))
    assert send_signal(4711, signal.SIGKILL)
    assert not caplog.text


def test_a_refused_signal_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "kill", refuse(errno.EPERM))
    assert not send_signal(4711, signal.SIGUSR1, None)
    assert "Process 4711 can't be sent SIGUSR1: Operation not permitted" in caplog.text


def test_root_without_the_capability_sends_it_as_the_processes_user(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    effective = [0]
    noted: dict[int, list[int]] = {1000: []}
    monkeypatch.setattr(os, "geteuid", lambda: effective[-1])
    monkeypatch.setattr(os, "seteuid", effective.append)
    monkeypatch.setattr(os, "kill", refuse(errno.EPERM, users=noted))
    assert send_signal(4711, signal.SIGKILL, 1000)
    assert noted == {1000: [signal.SIGKILL]}
    assert effective == [0, 1000, 0]
    assert not send_signal(4711, signal.SIGKILL, 1001)
    assert effective[-1] == 0
    assert "can't be sent" in caplog.text


def test_without_the_capability_to_become_another_user_it_stays_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def seteuid(_user: int) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "seteuid", seteuid)
    monkeypatch.setattr(os, "kill", refuse(errno.EPERM))
    assert not send_signal(4711, signal.SIGABRT, 1000)
    assert "SIGABRT" in caplog.text


def test_signal_names() -> None:
    assert signal_name(11) == "SIGSEGV"
    assert signal_name(200) == "signal 200"
