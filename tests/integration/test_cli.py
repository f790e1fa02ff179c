"""The command line: its output, its errors, and the exit codes."""

from __future__ import annotations

import importlib.metadata
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.server import APPS, Server, free_port, run_servo

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"


def test_version_and_help(tmp_path: Path) -> None:
    result = run_servo("--version", cwd=tmp_path)
    assert result.returncode == 0
    assert importlib.metadata.version("servo-server") in result.stdout
    result = run_servo("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "--workers" in result.stdout


def test_check_config(tmp_path: Path) -> None:
    assert run_servo(WSGI, "--check-config", cwd=tmp_path).returncode == 0
    (tmp_path / "broken.py").write_text("raise RuntimeError('broken on purpose')\n")
    result = run_servo("broken:app", "--check-config", cwd=tmp_path)
    assert result.returncode == 4
    assert "broken on purpose" in result.stderr + result.stdout


def test_print_config_says_where_each_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "servo.toml").write_text("graceful_timeout = 7\n")
    result = run_servo(
        WSGI, "--timeout", "9", "--print-config", cwd=tmp_path, env={"SERVO_BACKLOG": "77"}
    )
    assert result.returncode == 0, result.stderr
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert "7" in lines["graceful_timeout"]
    assert "servo.toml" in lines["graceful_timeout"]
    assert "9" in lines["timeout"]
    assert "--timeout" in lines["timeout"]
    assert "77" in lines["backlog"]
    assert "SERVO_BACKLOG" in lines["backlog"]
    assert "default" in lines["keepalive"]


@pytest.mark.parametrize(
    ("args", "env", "toml", "code", "says"),
    [
        (("--wrokers", "2"), {}, "", 2, "--workers"),
        (("--workers", "many"), {}, "", 2, "many"),
        ((), {"SERVO_WROKERS": "2"}, "", 1, "SERVO_WORKERS"),
        ((), {"SERVO_WORKERS": "many"}, "", 1, "SERVO_WORKERS"),
        ((), {}, "wrokers = 2\n", 1, "workers"),
        ((), {}, "workers = 'many'\n", 1, "servo.toml"),
        ((), {}, "workers = = 2\n", 1, "servo.toml"),
        (("-c", "missing.toml"), {}, "", 1, "missing.toml"),
        ((), {"SERVO_CMD_ARGS": "--wrokers 2"}, "", 1, "SERVO_CMD_ARGS"),
    ],
)
def test_mistakes_are_named_with_their_source(
    tmp_path: Path,
    args: tuple[str, ...],
    env: dict[str, str | None],
    toml: str,
    code: int,
    says: str,
) -> None:
    (tmp_path / "servo.toml").write_text(toml)
    result = run_servo(WSGI, *args, cwd=tmp_path, env=env)
    assert (result.returncode, says in result.stderr) == (code, True), result
    assert "Traceback" not in result.stderr


def test_command_line_from_the_environment(serve: Serve) -> None:
    """gunicorn's variable is read while Servo's own is not there, and flags win over both."""
    port = free_port()
    env: dict[str, str | None] = {"GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port} --workers 3"}
    server = serve(WSGI, "-w", "2", bind=False, env=env, ready=2)
    server.wait_workers(2)
    assert requests.get(f"http://127.0.0.1:{port}/", timeout=30).text == "ok"
    server.wait_log("GUNICORN_CMD_ARGS")


HOOKS = {
    "on_starting": 1,
    "when_ready": 1,
    "on_reload": 1,
    "pre_fork": 2,
    "post_fork": 2,
    "post_worker_init": 1,
    "worker_exit": 2,
    "child_exit": 2,
    "nworkers_changed": 3,
    "pre_request": 2,
    "post_request": 4,
    "on_exit": 1,
}


def test_gunicorn_configuration_with_hooks(serve: Serve, tmp_path: Path) -> None:
    lines = ["import os", "workers = 1", "worker_class = 'gthread'", "threads = 2"]
    for name, arity in HOOKS.items():
        parameters = ", ".join("abcd"[:arity])
        lines += [f"def {name}({parameters}):", f"    open('hooks', 'a').write({name + chr(10)!r})"]
    (tmp_path / "gunicorn.conf.py").write_text("\n".join(lines) + "\n")
    server = serve(WSGI)
    server.wait_log(r"gunicorn\.conf\.py")
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"
    old = server.wait_workers(1)
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    server.stop()
    called = (tmp_path / "hooks").read_text().split()
    assert set(called) == set(HOOKS)
    assert called[0] == "on_starting"
    assert called[-1] == "on_exit"
    first = {name: called.index(name) for name in HOOKS}
    assert first["pre_fork"] < first["post_fork"] < first["post_worker_init"]
    assert first["pre_request"] < first["post_request"] < first["on_reload"]


@pytest.mark.parametrize(
    ("spec", "source"),
    [
        ("shop", "def create_app():\n    return APP\n"),
        ("shop:build()", "def build():\n    return APP\n"),
        (
            "shop:build('a', n=1)",
            "def build(a, n):\n    assert (a, n) == ('a', 1)\n    return APP\n",
        ),
        ("shop:holder.app", "class holder:\n    app = staticmethod(APP)\n"),
        ("shop.py:application", "application = APP\n"),
    ],
)
def test_forms_of_naming_an_app(serve: Serve, tmp_path: Path, spec: str, source: str) -> None:
    load = f"import runpy\nAPP = runpy.run_path({str(APPS / 'wsgi_app.py')!r})['app']\n"
    (tmp_path / "shop.py").write_text(load + source)
    server = serve(spec)
    assert requests.get(f"{server.url}/", timeout=30).text == "ok"
