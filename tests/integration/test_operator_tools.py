"""Tools of `servoctl` against real servers: reports, calls of handlers, all servers, profiles."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from integration.server import APPS, DEADLINE_S, Server, environment, wait_for
from integration.turmoil import connect
from servo.cli import profile as profiling
from servo.control.client import ControlError

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"


def servoctl(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servo.cli.ctl", "--pid", str(server.pid), *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def of_name(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servo.cli.ctl", "--name", name, *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def ctl(server: Server, *arguments: str) -> Any:
    """The JSON of a command that has to succeed."""
    result = servoctl(server, *arguments, "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return lines[0] if len(lines) == 1 else lines


# --- report -----------------------------------------------------------------------------------

# The end of each secret below; no encoding changes it.
PARTS = ("4f1c", "8a2e", "0b7d", "51c3", "93d0", "77aa", "2e6f", "AKIA", "6d1b", "c80e")
LEAKY = """\
import logging
import os

log = logging.getLogger("gunicorn.error")


def app(environ, start_response):
    log.warning("connecting to %s", os.environ["DATABASE_URL"])
    log.warning("all of it: %r", dict(os.environ))
    log.warning("the key: %s, and from --env: %s", os.environ["SHOP_SECRET"], os.environ["API_KEY"])
    log.warning('{"user": "x", "password": "In-The-Log-51c3"}')
    log.warning("headers: {'Authorization': 'Bearer bearer-93d0'}")
    log.warning("Cookie: a=b; sid=cookie-value-77aa")
    log.warning("GET /reset?code=query-code-2e6f HTTP/1.1")
    log.warning("the bucket refused AKIAIOSFODNN7EXAMPLE")
    try:
        raise RuntimeError("rejected: api_key='exception-key-6d1b'")
    except RuntimeError:
        log.exception("the shop failed at http://u:Pass%2Fword%20of%3Da%26URL-8a2e@shop.example/")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


def test_a_report_has_no_secret_of_the_server(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "leaky.py").write_text(LEAKY)
    env = {
        "SHOP_SECRET": "Plain-Environment-4f1c",
        "DATABASE_URL": "postgres://shop:Pass/word of=a&URL-8a2e@db.example/shop",
        "SERVO_KEYFILE_PASSWORD": "keyfile-password-c80e",
    }
    server = serve("leaky:app", "-w", "2", "--env", "API_KEY=raw-env-0b7d", env=env, ready=2)
    requests.get(f"{server.url}/", timeout=30)
    wait_for(lambda: "the shop failed" in json.dumps(ctl(server, "logs")))
    # The log itself has all of them, except for the one that the server hides from the app.
    logged = json.dumps(ctl(server, "logs"))
    assert [part for part in PARTS if part not in logged] == ["c80e"]
    plain = servoctl(server, "report")
    assert plain.returncode == 0, plain.stderr
    for text in (plain.stdout, json.dumps(ctl(server, "report"))):
        assert "connecting to" in text
        assert [part for part in PARTS if part in text] == []
    # The arbiter itself removes the secrets that it knows, because users with `:read` see its
    # answer.
    with connect(server) as control:
        answer = json.dumps(control.request("report"))
    assert "connecting to" in answer
    assert [part for part in ("4f1c", "8a2e", "0b7d", "c80e") if part in answer] == []


def test_a_report_says_what_runs(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", "--name", "shop", ready=2, env={"PYTHONHASHSEED": "7"})
    text = servoctl(server, "report", "--lines", "5").stdout
    for line in (
        "# Report by servoctl",
        "name          shop",
        "flag --workers",
        "PYTHONHASHSEED=7",
    ):
        assert line in text
    values = ctl(server, "report")
    assert values["facts"]["executable"] == sys.executable
    assert sorted(row["pid"] for row in values["workers"]) == server.ready_pids()
    assert values["workers"][0]["pss_bytes"] > 0
    assert len(values["events"]) > 0
    server.stop()
    gone = servoctl(server, "report")
    assert gone.returncode == 3
    assert "servoctl could not ask the server" in gone.stdout
    assert "## Limits" in gone.stdout


# --- call -------------------------------------------------------------------------------------

HANDLERS = """\
import os
import time

from servo import cluster


@cluster.on_message("who")
def who(message, sender):
    return {"got": message, "pid": os.getpid(), "from": sender.slot}


@cluster.on_message("fail")
def fail(message):
    raise ValueError("no such shop")


@cluster.on_message("set")
def not_json(message):
    return {1}


@cluster.on_message("hang")
def hang(message):
    time.sleep(message)


@cluster.on_message("end")
def end(message):
    os._exit(7)


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []


async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})


@cluster.on_message("async who")
async def async_who(message):
    return message
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("handlers:app", "-k", "sync"),
        ("handlers:app", "-k", "thread"),
        ("handlers:asgi", "-k", "async", "--lifespan", "off"),
    ],
    ids=["sync", "thread", "async"],
)
def test_a_call_of_a_message_handler(
    serve: Serve, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    server = serve(*arguments, "-w", "2", ready=2)
    pids = {row["slot"]: row["pid"] for row in ctl(server, "workers")["workers"]}
    for slot in (1, 2):
        result = servoctl(server, "call", str(slot), "who", '{"a": ["é"]}')
        assert json.loads(result.stdout) == {"got": {"a": ["é"]}, "pid": pids[slot], "from": 0}
    assert ctl(server, "call", "1", "async who", "null")["result"]["answer"] is None
    odd = "\\x1b[2J\\u202e\\ud800"
    assert ctl(server, "call", "1", "who", json.dumps(odd))["result"]["answer"]["got"] == odd
    for words, message in [
        (("call", "7", "who", "1"), "there is no worker 7; the slots are 1, 2"),
        (("call", "1", "what", "1"), "worker 1 has no handler for 'what'"),
        (("call", "1", "fail", "1"), "worker 1: ValueError: no such shop"),
        (("call", "1", "set", "1"), "the handler returned no JSON value"),
        (("call", "1", "who", json.dumps("x" * 70_000)), "a request is longer than"),
        (("call", "2", "hang", "0.5", "--wait", "0.05"), "has not answered within 0.05 s"),
        (("call", "1", "end", "1"), f"worker 1 (pid {pids[1]}) has ended"),
    ]:
        failed = servoctl(server, *words)
        assert (failed.returncode, failed.stdout) == (1, ""), words
        assert message in failed.stderr
    wrong = servoctl(server, "call", "1", "who", '{"a": }')
    assert wrong.returncode == 2
    assert "line 1, column 7" in wrong.stderr
    # The late answer of the handler that hung is not taken for another call's.
    assert ctl(server, "call", "2", "who", "3")["result"]["answer"]["got"] == 3


# --- all servers ------------------------------------------------------------------------------


def test_a_command_for_all_servers(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "release.py").write_text("from wsgi_app import app\n")
    arguments = ("release:app", "-w", "1", "--name", "twin", "--pythonpath", str(APPS))
    first, second = serve(*arguments), serve(*arguments)
    servers = {first.pid: first, second.pid: second}
    before = {pid: server.ready_pids() for pid, server in servers.items()}
    reloaded = of_name("twin", "--all", "reload")
    assert reloaded.returncode == 0, reloaded.stderr
    assert reloaded.stdout.count("reloaded: 1 worker replaced") == 2
    for pid, server in servers.items():
        assert f"twin (pid {pid}):" in reloaded.stdout
        server.wait_replaced(before[pid])
    (tmp_path / "release.py").write_text("raise RuntimeError\n")
    failed = of_name("twin", "--all", "reload")
    assert failed.returncode == 1
    assert failed.stderr.count("servoctl: error: twin: rolled back") == 2
    stopped = of_name("twin", "--all", "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert (first.wait_exit(), second.wait_exit()) == (0, 0)


def test_the_list_shows_restarts_and_usage(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    (pid,) = server.ready_pids()
    (row,) = [row for row in ctl(server, "list") if row["pid"] == server.pid]
    assert (row["restarts"], row["uid"]) == (0, os.geteuid())
    assert row["memory_bytes"] > 1 << 20
    assert row["cpu_percent"] >= 0
    server.signal_worker(pid, signal.SIGKILL)
    server.wait_replaced([pid])
    assert ctl(server, "reload")[-1]["ok"]
    (row,) = [row for row in ctl(server, "list") if row["pid"] == server.pid]
    assert row["restarts"] == 1  # a reload is none
    assert "1 (workers that ended unexpectedly)" in servoctl(server, "status").stdout


# --- profile ----------------------------------------------------------------------------------

BUSY = """\
import threading


def the_hot_loop():
    while True:
        sum(range(1000))


def app(environ, start_response):
    if environ["PATH_INFO"] == "/busy":
        threading.Thread(target=the_hot_loop, daemon=True).start()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


@pytest.mark.skipif(profiling._find_py_spy() is None, reason="py-spy is not installed")
def test_a_profile_by_py_spy(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    server = serve("busy:app", "-w", "1", "-k", "thread")
    idle = servoctl(server, "profile", "1", "--seconds", "1", "-o", str(tmp_path / "idle.svg"))
    # An idle worker may have run for a moment, so that there is a sample.
    assert idle.returncode == 0 or "was idle all the time" in idle.stderr
    requests.get(f"{server.url}/busy", timeout=30)
    (pid,) = server.ready_pids()
    for form, start in (("svg", "<?xml"), ("speedscope", "{")):
        path = tmp_path / f"profile.{form}"
        words = ("profile", "1", "--seconds", "1", "--format", form, "-o", str(path))
        assert ctl(server, *words)["result"]["pid"] == pid
        text = path.read_text()
        assert text.startswith(start)
        assert "the_hot_loop" in text
    assert requests.get(f"{server.url}/", timeout=30).status_code == 200
    assert server.ready_pids() == [pid]
    missing = servoctl(server, "profile", "9")
    assert (missing.returncode, "there is no worker 9" in missing.stderr) == (1, True)


@pytest.mark.skipif(profiling._find_py_spy() is None, reason="py-spy is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_profile_without_permission(serve: Serve, open_directory: Path) -> None:
    """A user that the control socket admits may still not trace the workers."""
    program = profiling._find_py_spy()
    assert program is not None
    copy = open_directory / "py-spy"
    shutil.copy(program, copy)
    server = serve(WSGI, "-w", "1")
    (pid,) = server.ready_pids()
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        text = "no error"
        try:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
            profiling._run_py_spy(str(copy), pid, 1, profiling.SVG, Path("/dev/null"))
        except (ControlError, OSError) as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(into, text.encode())
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as file:
        text = file.read()
    os.waitpid(child, 0)
    assert text.startswith("ControlError: the system does not allow this user to trace the worker")
