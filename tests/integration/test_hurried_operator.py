"""Every command of `servoctl`, typed in a hurry: at no server, at two, and at a stopped one.

Each answers in one line what is wrong, with the exit code that the reference gives, and changes
nothing.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from integration.server import APPS, DEADLINE_S, Server, environment
from servo.cli import ctl

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"

# Arguments with which each command would be carried out.
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "status": (),
    "workers": (),
    "requests": (),
    "pools": (),
    "stack": ("1",),
    "config": (),
    "events": (),
    "logs": (),
    "reload": (),
    "rollback": (),
    "upgrade": (),
    "scale": ("+1",),
    "restart-worker": ("1",),
    "reopen": (),
    "signal": ("1", "KILL"),
    "send": ("1", '"hello"'),
    "stop": (),
}
# Those that need no server.
WITHOUT_SERVER = {"list", "unit", "completion"}
# Those that have such tests of their own: in test_monit.py and test_operator_tools.py.
ELSEWHERE = {"monit", "report", "call", "profile"}

Done = subprocess.CompletedProcess[str]


def every(*options: str, without: tuple[str, ...] = ()) -> dict[str, Done]:
    """Run every command with the same options."""

    def run(name: str) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "servo.cli.ctl", *options, name, *ARGUMENTS[name]],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    names = [name for name in ARGUMENTS if name not in without]
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(run, names), strict=True))


def test_every_command_is_tried() -> None:
    assert set(ARGUMENTS) | WITHOUT_SERVER | ELSEWHERE == set(ctl.servoctl.commands)


def test_no_server() -> None:
    for name, done in every("--name", "nobody-has-this-name").items():
        assert (done.returncode, done.stdout) == (3, ""), name
        assert re.match(r"servoctl: error: no server .*", done.stderr), name
        assert "Traceback" not in done.stderr, name


def test_no_server_at_a_path() -> None:
    for name, done in every("--socket", "/nowhere/at.all", "--json").items():
        assert (done.returncode, done.stderr) == (3, ""), name
        answer: dict[str, Any] = json.loads(done.stdout)
        assert (answer["ok"], answer["kind"]) == (False, ""), name
        assert "/nowhere/at.all does not exist" in answer["error"], name


def test_two_servers_of_one_name(serve: Serve) -> None:
    servers = [serve(WSGI, "-w", "1", "--name", "hasty") for _ in range(2)]
    before = [server.worker_pids() for server in servers]
    for name, done in every("--name", "hasty").items():
        assert (done.returncode, done.stdout) == (2, ""), name
        assert "several servers are named hasty; choose one with --pid or --socket" in done.stderr
        for server in servers:
            assert re.search(rf"hasty +{server.pid} ", done.stderr), name
    assert [server.worker_pids() for server in servers] == before
    for server in servers:
        assert "servoctl of user" not in server.log()
        assert requests.get(server.url, timeout=DEADLINE_S).text == "ok"


def test_a_server_that_is_stopped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It carries out later what it was asked, so `stop`, `upgrade` and `rollback` are left out."""
    # A SIGKILL could hit the first worker of the reload, which would then be rolled back.
    monkeypatch.setitem(ARGUMENTS, "signal", ("1", "CONT"))
    server = serve(WSGI, "-w", "2", ready=2)
    server.signal(signal.SIGSTOP)
    try:
        options = ("--pid", str(server.pid), "--timeout", "0.5")
        for name, done in every(*options, without=("stop", "upgrade", "rollback")).items():
            assert (done.returncode, done.stdout) == (1, ""), name
            assert "does not answer within 0.5 s: it may be stopped (SIGSTOP)" in done.stderr, name
            assert len(done.stderr.splitlines()) == 1, name
    finally:
        server.signal(signal.SIGCONT)
    server.wait_log("servoctl.* finished")  # the reload
    server.wait_workers(3)
    assert requests.get(server.url, timeout=DEADLINE_S).text == "ok"
