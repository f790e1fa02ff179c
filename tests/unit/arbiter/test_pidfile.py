"""The pidfile: only a locked one belongs to a live server."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from pathlib import Path

import pytest

from servo.arbiter.pidfile import PidFile
from servo.errors import ConfigError


def test_life(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    file = PidFile(str(path))
    file.acquire()
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    file.release()
    assert not path.exists()
    file.release()


def test_a_live_one_is_an_error_that_names_the_pid(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    file = PidFile(str(path))
    file.acquire()
    with pytest.raises(ConfigError, match="a server that is starting"):
        PidFile(str(path)).acquire()
    file.write()
    with pytest.raises(ConfigError, match=f"servo.pid belongs to .* with pid {os.getpid()}"):
        PidFile(str(path)).acquire()
    file.release()


def test_a_stale_one_is_taken_over_whatever_pid_it_names(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    path.write_text(f"{os.getppid()} or something longer\n")  # that process lives
    file = PidFile(str(path))
    file.acquire()
    file.write()
    assert path.read_text() == f"{os.getpid()}\n"
    file.release()


def test_anothers_file_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    file = PidFile(str(path))
    file.acquire()
    path.unlink()
    path.write_text("another's")
    file.release()
    assert path.read_text() == "another's"


def test_a_child_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    file = PidFile(str(path))
    file.acquire()
    copy = os.dup(file._fd)  # what a fork gives
    file.close_in_child()
    assert path.exists()
    with pytest.raises(ConfigError):
        PidFile(str(path)).acquire()
    os.close(copy)
    PidFile(str(path)).acquire()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        PidFile(str(tmp_path / "none" / "servo.pid")).acquire()


def test_a_disk_that_takes_no_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = PidFile("servo.pid")
    file.acquire()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(ConfigError, match=r"^pidfile servo\.pid: File too large$"):
            file.write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.release()
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("keep")
    path = tmp_path / "servo.pid"
    path.symlink_to(secret)
    file = PidFile(str(path))
    file.acquire()
    file.write()
    assert secret.read_text() == "keep"
    assert not path.is_symlink()
    assert path.read_text() == f"{os.getpid()}\n"
    file.release()
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        PidFile(str(path)).acquire()
    assert [each.name for each in tmp_path.iterdir()] == ["servo.pid"]


def test_a_check_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    path.write_text("7\n")
    PidFile(str(path)).check()
    PidFile(str(tmp_path / "other.pid")).check()
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"servo.pid": "7\n"}
    with pytest.raises(ConfigError, match="No such file or directory"):
        PidFile(str(tmp_path / "none" / "servo.pid")).check()


def test_one_of_many_that_start_at_once_has_it(tmp_path: Path) -> None:
    """On a stale file, from processes that all see it stale."""
    path = tmp_path / "servo.pid"
    for _ in range(20):
        path.write_text("1\n")
        go, start = os.pipe()
        hold, end = os.pipe()
        children = []
        for _ in range(6):
            pid = os.fork()
            if pid == 0:
                os.close(start)
                os.close(end)
                os.read(go, 1)
                code = 1
                try:
                    PidFile(str(path)).acquire()
                    code = 0
                    os.read(hold, 1)  # keep the lock until all have tried
                finally:
                    os._exit(code)
            children.append(pid)
        os.close(go)
        os.close(start)
        losers = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in children[1:]]
        os.close(hold)
        os.close(end)
        winner = os.waitstatus_to_exitcode(os.wait()[1])
        assert (winner, losers) == (0, [1] * 5)


def test_nor_a_link_on_the_way_there(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "run").symlink_to(tmp_path / "etc")
    for act in (PidFile.acquire, PidFile.check):
        with pytest.raises(ConfigError, match="symbolic link in a directory that other users"):
            act(PidFile(str(shared / "run" / "servo.pid")))
    assert list((tmp_path / "etc").iterdir()) == []


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "servo.pid"
    for _ in ("none", "stale"):
        file = PidFile(str(path))
        file.acquire()
        file.write()
        with pytest.raises(ConfigError, match=f"running server with pid {os.getpid()}"):
            PidFile(str(path)).acquire()
        assert [each.name for each in tmp_path.iterdir()] == ["servo.pid"]
        file.close_in_child()  # as if it were killed


def test_what_a_pidfile_says_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "servo.pid"
    path.write_text("\x1b[2J")
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError) as caught:
            PidFile(str(path)).acquire()
    assert r"with pid \x1b[2J" in str(caught.value)


def test_the_next_program_keeps_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = PidFile("servo.pid")
    before.acquire()
    before.write()
    after = PidFile.from_state(before.to_state(lambda fd: fd), os.dup)
    before.close_in_child()
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match=f"with pid {os.getpid()}"):
        PidFile(str(tmp_path / "servo.pid")).acquire()
    after.release()
    assert not (tmp_path / "servo.pid").exists()
