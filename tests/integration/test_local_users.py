"""Attacks by another user of the machine on a server that runs as root."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import CLASSES
from integration.server import APPS, Server, run_servo, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which is what is attacked here"),
]

Serve = Callable[..., Server]
NOBODY = pwd.getpwnam("nobody")
# The interpreter may lie where only root can read. With this bit a process that gives up root keeps
# its capabilities, and so can import; what is looked at here, files and groups, is the same.
SETPRIV = shutil.which("setpriv")
COMMAND = (str(SETPRIV), "--securebits", "+no_setuid_fixup", sys.executable, "-m", "servo")
needs_setpriv = pytest.mark.skipif(SETPRIV is None, reason="setpriv is not installed")


def described(server: Server) -> Any:
    with urllib.request.urlopen(f"{server.url}/describe", timeout=30) as response:
        return json.load(response)


@pytest.fixture
def his(tmp_path: Path) -> Path:
    """A directory that the workers' user can write, with all that leads there open to him."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    directory = tmp_path / "his"
    directory.mkdir()
    os.chown(directory, NOBODY.pw_uid, NOBODY.pw_gid)
    return directory


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("root's\n")
    path.chmod(0o600)
    return path


def is_untouched(path: Path) -> bool:
    status = path.stat()
    return path.read_text() == "root's\n" and status.st_uid == 0 and status.st_mode & 0o777 == 0o600


@needs_setpriv
@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_log_replaced_by_a_link(serve: Serve, his: Path, secret: Path, worker_class: str) -> None:
    log = his / "error.log"
    server = serve(
        f"{APPS / 'wsgi_app.py'}:app",
        *("-k", worker_class, "--user", "nobody"),
        *("--error-logfile", str(log), "--access-logfile", str(his / "access.log")),
        ready=0,
        command=COMMAND,
    )
    wait_for(lambda: log.exists() and "is ready" in log.read_text(), "a ready worker")
    assert log.stat().st_uid == NOBODY.pw_uid  # new, so it was given away
    (his / "old.log").write_bytes(log.read_bytes())
    for name in ("error.log", "access.log"):
        (his / name).rename(his / f"{name}.1")
        (his / name).symlink_to(secret)
    server.signal(signal.SIGUSR1)
    old = his / "error.log.1"
    wait_for(lambda: "symbolic link" in old.read_text(), "the refusal in the old log")
    described(server)
    status = secret.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (0, 0o600)
    # The worker is that user: with root's capabilities kept (above) it may write there by itself.
    assert f"[{server.pid}]" not in secret.read_text()


def test_a_log_that_is_a_link_at_the_start(his: Path, secret: Path, tmp_path: Path) -> None:
    (his / "error.log").symlink_to(secret)
    done = run_servo(
        *(f"{APPS / 'wsgi_app.py'}:app", "--user", "nobody", "--bind", f"unix:{tmp_path}/s"),
        *("--error-logfile", str(his / "error.log")),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "symbolic link in a directory that other users can write" in done.stderr
    assert is_untouched(secret)


def test_a_pidfile_that_is_a_link(serve: Serve, his: Path, secret: Path) -> None:
    (his / "servo.pid").symlink_to(secret)
    server = serve(f"{APPS / 'wsgi_app.py'}:app", "--pid", str(his / "servo.pid"))
    assert (his / "servo.pid").read_text() == f"{server.pid}\n"
    assert is_untouched(secret)


@needs_setpriv
@pytest.mark.parametrize("worker_class", CLASSES)
def test_a_user_brings_its_own_groups(serve: Serve, his: Path, worker_class: str) -> None:
    server = serve(
        *(f"{APPS / 'wsgi_app.py'}:app", "-k", worker_class, "--user", "nobody"), command=COMMAND
    )
    told = described(server)
    assert (told["uid"], told["gid"]) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert sorted(told["groups"]) == sorted(os.getgrouplist("nobody", NOBODY.pw_gid))


@pytest.mark.parametrize("worker_class", CLASSES)
def test_the_password_of_a_key_is_no_variable_of_the_app(serve: Serve, worker_class: str) -> None:
    server = serve(
        f"{APPS / 'wsgi_app.py'}:app",
        *("-k", worker_class),
        env={"SERVO_KEYFILE_PASSWORD": "hush-hush"},
    )
    assert "SERVO_KEYFILE_PASSWORD" not in described(server)["env"]
    for pid in (server.pid, *server.worker_pids()):
        assert b"hush-hush" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_no_value_of_a_variable_is_printed(tmp_path: Path) -> None:
    done = run_servo("a:b", "--env", "TOKEN=hush-hush", "--print-config", cwd=tmp_path)
    assert "TOKEN" in done.stdout
    assert "hush-hush" not in done.stdout
