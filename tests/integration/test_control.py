"""`servoctl` and the control socket against real servers."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
import requests

from integration import releases
from integration.conftest import CLASSES, class_args
from integration.server import (
    APPS,
    DEADLINE_S,
    Server,
    alive,
    environment,
    memory,
    runtime_directory,
    wait_for,
)
from integration.turmoil import Hostile, check_list, connect, control_path
from servo.control.client import ControlClient, ControlError, NoAnswer, RequestFailed

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
WSGI = f"{APPS / 'wsgi_app.py'}:app"
ASGI = f"{APPS / 'asgi_app.py'}:app"
COMMAND = (sys.executable, "-m", "servo.cli.ctl")


def servoctl(
    *arguments: str, env: dict[str, str | None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def ctl(server: Server, *arguments: str) -> Any:
    """The JSON of a command that has to be done."""
    result = servoctl("--pid", str(server.pid), *arguments, "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return lines[0] if len(lines) == 1 else lines


def slots(server: Server) -> dict[int, int]:
    """The pids of the ready workers by slot."""
    rows = ctl(server, "workers")["workers"]
    return {row["slot"]: row["pid"] for row in rows if row["state"] == "ready"}


@contextmanager
def request_under_way(server: Server, path: str) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=DEADLINE_S) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        with connect(server) as control:
            wait_for(lambda: control.request("status")["in_flight"], "the request in a worker")
        yield


# --- looking ----------------------------------------------------------------------------------


def test_list_and_status(serve: Serve) -> None:
    first = serve(WSGI, "-w", "2", "--name", "shop", ready=2)
    second = serve(WSGI, "-w", "1", "--name", "blog")
    requests.get(f"{first.url}/", timeout=30)
    rows = {row["pid"]: row for row in ctl(first, "list")}
    assert rows[first.pid]["name"] == "shop"
    assert rows[first.pid]["state"] == "running"
    workers = rows[first.pid]["workers"]
    counts = {"target": 2, "least": 2, "most": 2, "ready": 2, "blocked": 0, "total": 2}
    assert workers == counts
    assert rows[second.pid]["name"] == "blog"
    plain = servoctl("list").stdout
    assert re.search(rf"^shop +{first.pid} +running +2/2 ", plain, re.MULTILINE)
    assert "\x1b" not in plain

    status = ctl(first, "status")
    assert status["listeners"] == [first.url]
    assert (status["requests"], status["statuses"]["2xx"]) == (1, 1)
    assert status["generation"] == 1
    by_name = servoctl("--name", "blog", "status", "--json")
    assert json.loads(by_name.stdout)["pid"] == second.pid
    by_socket = servoctl("--socket", control_path(first), "status")
    assert f"pid           {first.pid}" in by_socket.stdout


def test_workers(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "2", ready=2)
    for _ in range(20):
        requests.get(f"{server.url}/", timeout=30)
    result = ctl(server, "workers")
    rows = result["workers"]
    assert result["target"] == 2
    assert sorted(row["pid"] for row in rows) == server.ready_pids()
    assert [row["slot"] for row in rows] == [1, 2]
    # A worker counts a request when its answer is out, which the client may see first.
    wait_for(lambda: sum(r["requests"] for r in ctl(server, "workers")["workers"]) == 20)
    for row in ctl(server, "workers")["workers"]:
        assert (row["state"], row["generation"], row["last_exit"]) == ("ready", 1, "")
        assert row["rss_bytes"] > 1 << 20
        assert 0 < row["pss_bytes"] <= row["rss_bytes"]
        assert row["cpu_percent"] >= 0
        if row["requests"]:
            assert 0 < row["p50_s"] <= row["p99_s"]


def test_the_last_exit_of_a_slot(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    (pid,) = server.ready_pids()
    server.signal_worker(pid, signal.SIGSEGV)
    server.wait_replaced([pid])
    (row,) = ctl(server, "workers")["workers"]
    assert row["last_exit"] == "crashed"
    assert "SIGSEGV" in row["last_exit_text"]


def test_requests(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    assert ctl(server, "requests") == {"workers": [], "tasks": []}
    with request_under_way(server, "/slow?s=3600"):
        (worker,) = ctl(server, "requests")["workers"]
        assert worker["answered"]
        (request,) = worker["requests"]
        assert (request["method"], request["target"]) == ("GET", "/slow?s=3600")
        assert request["client"] == "127.0.0.1"
        assert 0 <= request["seconds"] < DEADLINE_S
        assert "/slow?s=3600" in servoctl("--pid", str(server.pid), "requests").stdout
        server.stop(signal.SIGINT)


def test_stacks(serve: Serve, worker_class: str) -> None:
    server = serve(*class_args(worker_class), "-w", "1")
    idle = ctl(server, "stack", "1")
    assert "MainThread" in [thread["name"] for thread in idle["threads"]]
    with request_under_way(server, "/slow?s=3600"):
        busy = ctl(server, "stack", "1")
        assert "in slow" in json.dumps(busy)
        for thread in busy.get("threads", []):
            assert not (thread["idle"] and "in slow" in thread["stack"])
        if worker_class != "sync":  # its only thread is interrupted by a signal
            assert all(thread["idle"] for thread in idle["threads"])
        if worker_class == "async":
            assert any("in slow" in task["stack"] for task in busy["tasks"])
        assert "in slow" in servoctl("--pid", str(server.pid), "stack", "1").stdout
        assert busy["pid"] == idle["pid"]
        assert alive(busy["pid"])
        server.stop(signal.SIGINT)


@pytest.mark.parametrize("app", [f"{APPS / 'wsgi_app.py'}:app", ASGI], ids=["wsgi", "asgi"])
def test_stack_and_requests_of_a_worker_that_is_blocked(serve: Serve, app: str) -> None:
    """No thread of it reads its channel: one waits for a lock, the event loop is kept busy."""
    path = "/deadlock" if app == WSGI else "/block"
    server = serve(app, "-w", "1", "--timeout", "3600")
    with request_under_way(server, path):
        stack = ctl(server, "stack", "1")
        assert not stack["answered"]
        assert path.strip("/") in stack["text"]
        (worker,) = ctl(server, "requests")["workers"]
        assert worker["answered"]
        assert [each["target"] for each in worker["requests"]] == [path]
        assert alive(stack["pid"])
    server.kill_all()


def test_a_blocked_worker_is_red_in_the_list(serve: Serve, worker_class: str) -> None:
    app = f"{APPS / 'stuck_app.py'}:{'asgi' if worker_class == 'async' else 'wsgi'}"
    # With several threads, a thread that sleeps blocks nobody else; one that keeps Python's lock
    # does.
    path = "/hold-the-lock" if worker_class == "thread" else "/sleep"
    server = serve(app, *CLASSES[worker_class][1], "-w", "1", "--timeout", "3600")
    (row,) = ctl(server, "workers")["workers"]
    assert (row["state"], row["blocked_s"]) == ("ready", 0.0)
    with request_under_way(server, path):
        wait_for(lambda: ctl(server, "workers")["workers"][0]["blocked_s"] > 1, "a blocked worker")
        (row,) = ctl(server, "workers")["workers"]
        assert (row["state"], row["in_flight"]) == ("ready", 1)
        assert row["lag_s"] > 1
        shown = at_terminal("--pid", str(server.pid), "workers")
        assert re.search(r"\x1b\[1;31mblocked \d+(\.\d)? s", shown)
        assert (
            "1 of 1 ready, 1 in all, 1 blocked"
            in servoctl("--pid", str(server.pid), "status").stdout
        )
    server.kill_all()


def test_the_stack_of_a_worker_that_hangs_in_its_import(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.BROKEN["hangs on import"])
    server = serve("release:app", "-w", "1", ready=0)
    server.wait_log("is booting")

    def hangs() -> bool:
        return "release.py" in ctl(server, "stack", "1")["text"]

    wait_for(hangs, "the import in the stack")
    assert ctl(server, "status")["state"] == "starting"
    server.stop(signal.SIGINT)


def test_config(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", "--env", "SECRET=hush", ready=2)
    rows = {row["name"]: row for row in ctl(server, "config")["settings"]}
    assert (rows["workers"]["value"], rows["workers"]["source"]) == ("2", "flag --workers")
    assert rows["timeout"] == {
        "name": "timeout",
        "value": "30",
        "unit": "seconds",
        "source": "default",
    }
    assert "flag --workers" in servoctl("--pid", str(server.pid), "config").stdout


@pytest.mark.parametrize("kind", ["stderr", "file", "json"])
def test_logs(serve: Serve, tmp_path: Path, worker_class: str, kind: str) -> None:
    path = tmp_path / "error.log"
    flags = {"stderr": (), "file": ("--log-file", str(path)), "json": ("--log-format", "json")}
    server = serve(*class_args(worker_class), "-w", "1", *flags[kind], ready=0)
    wait_for(lambda: path.exists() or server.log())
    wait_for(lambda: _is_up(server), "an answer")
    requests.get(f"{server.url}/fail", timeout=30)
    (pid,) = server.children()

    def found() -> list[Any]:
        records = ctl(server, "logs", "--worker", "1", "--level", "error", "--grep", "on purpose")
        return records if isinstance(records, list) else [records]

    record = wait_for(lambda: _none_yet(found), "the worker's line in the arbiter")[0]
    assert (record["slot"], record["pid"], record["level"]) == (1, pid, "error")
    assert "RuntimeError: the app failed on purpose" in record["text"]
    shown = servoctl("--pid", str(server.pid), "logs", "--lines", "1000").stdout
    assert "arbiter" in shown
    assert "the app failed on purpose" in shown
    if kind == "file":
        lines = servoctl(
            "--pid", str(server.pid), "logs", "--file", "--grep", "on purpose", "--worker", "1"
        ).stdout
        assert "RuntimeError: the app failed on purpose" in lines
        assert "is ready" not in lines


def _is_up(server: Server) -> bool:
    try:
        return requests.get(f"{server.url}/", timeout=30).ok
    except requests.ConnectionError:
        return False


def _none_yet(found: Callable[[], list[Any]]) -> list[Any] | None:
    try:
        return found()
    except IndexError:
        return None


def test_following_logs_and_events(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    pid = str(server.pid)
    with (
        follow("--pid", pid, "events", "-f", "--json") as events,
        follow("--pid", pid, "logs", "-f", "--grep", "booting|ended") as logs,
    ):
        wait_for(lambda: "ready" in events.text(), "past events")
        assert ctl(server, "scale", "2")["ok"]
        wait_for(lambda: '"slot": 2' in events.text(), "a new event")
        server.wait_workers(2)
        wait_for(lambda: "worker 2" in logs.text(), "a new line")
        server.stop()
        assert events.wait() == 0
        assert logs.wait() == 0
    told = [json.loads(line) for line in events.text().splitlines() if line.startswith("{")]
    names = [event["name"] for event in told]
    assert names.count("spawned") == names.count("ready") == 2
    assert names[-1] == "exited"
    serials = [event["serial"] for event in told if event["name"] == "spawned"]
    assert serials == [1, 2]
    assert "the server has ended" in logs.text()


class Following:
    """A command that goes on, and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._text = b""

    def text(self) -> str:
        assert self.process.stdout is not None
        if self.process.stdout.closed:
            return self._text.decode()
        os.set_blocking(self.process.stdout.fileno(), False)
        while data := self.process.stdout.read():
            self._text += data
        return self._text.decode()

    def wait(self) -> int:
        code = self.process.wait(DEADLINE_S)
        self.text()
        return code


@contextmanager
def follow(*arguments: str) -> Iterator[Following]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        env={**environment(), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield Following(process)
        finally:
            process.kill()


# --- changing ---------------------------------------------------------------------------------


def test_scale(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    assert ctl(server, "scale", "3")["result"] == {"workers": 3, "before": 1}
    server.wait_workers(3)
    assert ctl(server, "scale", "-2")["result"] == {"workers": 1, "before": 3}
    server.wait_workers(1)
    assert ctl(server, "scale", "+1")["result"]["workers"] == 2
    server.wait_workers(2)
    for to, says in [("0", "at least one"), ("100000", "no room"), ("-9", "at least one")]:
        result = servoctl("--pid", str(server.pid), "scale", to)
        assert result.returncode == 1
        assert says in result.stderr
    assert len(server.wait_workers(2)) == 2


def test_restart_worker(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", ready=2)
    before = slots(server)
    steps = ctl(server, "restart-worker", "2")
    result = steps[-1]["result"]
    assert (result["slot"], result["old_pid"], result["trouble"]) == (2, before[2], "")
    server.wait_replaced([before[2]], 2)
    assert slots(server) == {1: before[1], 2: result["pid"]}
    refused = servoctl("--pid", str(server.pid), "restart-worker", "7")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "no worker serves in slot 7; the slots are 1, 2" in refused.stderr
    assert ctl(server, "restart-worker", "1", "--no-wait")["ok"]
    server.wait_replaced([before[1]], 2)


def test_reopen(serve: Serve, tmp_path: Path) -> None:
    access = tmp_path / "logs" / "access.log"
    access.parent.mkdir()
    server = serve(WSGI, "-w", "2", "--access-logfile", str(access), ready=2)
    access.rename(tmp_path / "access.log.1")
    result = ctl(server, "reopen")["result"]
    assert result == {"files": [str(access)], "workers": 2}

    def both_write_there() -> bool:
        requests.get(f"{server.url}/after", timeout=DEADLINE_S)
        return access.read_text().count("/after") > 4

    wait_for(both_write_there, "lines in the new file")
    access.parent.rename(tmp_path / "moved")
    refused = servoctl("--pid", str(server.pid), "reopen")
    assert refused.returncode == 1
    assert f"the old log stays in use: can't open the log file {access}" in refused.stderr
    requests.get(f"{server.url}/still", timeout=DEADLINE_S)
    moved = tmp_path / "moved" / "access.log"
    wait_for(lambda: "/still" in moved.read_text(), "a line in the old file")


def test_signals_to_one_worker(serve: Serve, worker_class: str) -> None:
    """Each does what the command says that it does."""
    server = serve(*class_args(worker_class), "-w", "2", ready=2)
    before = slots(server)

    def send(name: str) -> str:
        result = ctl(server, "signal", "2", name)["result"]
        assert (result["slot"], result["signal"]) == (2, "SIG" + name)
        return str(result["effect"])

    for name in ("HUP", "INT", "USR2", "WINCH"):
        assert f"ignores SIG{name}" in send(name)
    assert "reopens its log files" in send("USR1")
    assert slots(server) == before
    assert "stands still" in send("STOP")

    def state() -> str:
        stat = Path(f"/proc/{before[2]}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]

    wait_for(lambda: state() == "T", "the worker to stop")
    assert "goes on" in send("CONT")
    wait_for(lambda: state() != "T", "the worker to go on")
    assert "its successor" in send("TERM")
    (after,) = set(server.wait_replaced([before[2]], 2)) - {before[1]}
    assert slots(server) == {1: before[1], 2: after}
    assert "a new worker takes slot 2" in send("KILL")
    server.wait_replaced([after], 2)
    assert sorted(slots(server)) == [1, 2]
    assert alive(before[1])


def test_wrong_signals(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", ready=2)
    before = slots(server)
    pid = before[2]
    for arguments, code, advice in [
        (("7", "TERM"), 1, "there is no worker 7; the slots are 1, 2"),
        ((str(pid), "TERM"), 1, f"{pid} is the pid of worker 2"),
        (("1", "TREM"), 2, "did you mean TERM?"),
        (("1",), 2, "Missing argument 'SIGNAL'"),
    ]:
        result = servoctl("--pid", str(server.pid), "signal", *arguments)
        assert (result.returncode, result.stdout) == (code, "")
        assert advice in result.stderr
    assert slots(server) == before


def test_restart_of_a_worker_whose_successor_can_not_boot(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good("sync", "one"))
    server = serve("release:app", "-w", "1")
    (pid,) = server.ready_pids()
    releases.deploy(tmp_path, releases.BROKEN["raises on import"])
    result = servoctl("--pid", str(server.pid), "restart-worker", "1")
    assert result.returncode == 1
    assert "RuntimeError: this release is broken" in result.stderr
    assert "its successor failed" in result.stderr
    assert requests.get(server.url, timeout=30).text == "one"
    assert alive(pid)


def test_a_good_reload_and_a_bad_one(serve: Serve, worker_class: str, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good(worker_class, "one"))
    server = serve("release:app", "-k", worker_class, "-w", "2", ready=2)
    old = server.ready_pids()
    releases.deploy(tmp_path, releases.good(worker_class, "two"))
    *steps, last = ctl(server, "reload")
    replaced = [step for step in steps if step["step"] == "replaced"]
    assert [(step["done"], step["of"]) for step in replaced] == [(1, 2), (2, 2)]
    assert sorted(step["old_pid"] for step in replaced) == old
    assert last["result"]["replaced"] == 2
    assert requests.get(server.url, timeout=30).text == "two"
    new = server.wait_replaced(old)
    assert sorted(step["pid"] for step in replaced) == new

    releases.deploy(tmp_path, releases.BROKEN["raises on import"])
    failed = servoctl("--pid", str(server.pid), "reload")
    assert failed.returncode == 1
    assert "raise RuntimeError('this release is broken')" in failed.stderr
    assert "servoctl: error: rolled back: its first worker failed" in failed.stderr
    answer = servoctl("--pid", str(server.pid), "reload", "--json")
    assert answer.returncode == 1
    last = json.loads(answer.stdout.splitlines()[-1])
    assert (last["ok"], last["kind"]) == (False, "rolled back")
    assert "Traceback" in last["details"]
    assert requests.get(server.url, timeout=30).text == "two"
    assert server.ready_pids() == new
    assert ctl(server, "status")["last_reload"]["name"] == "reload_rolled_back"


@pytest.mark.parametrize("fault", ["syntax error", "sys.exit on import", "hangs on import"])
def test_every_bad_release_is_rolled_back(serve: Serve, tmp_path: Path, fault: str) -> None:
    releases.deploy(tmp_path, releases.good("sync", "one"))
    server = serve("release:app", "-w", "1", "--boot-timeout", "1")
    releases.deploy(tmp_path, releases.BROKEN[fault])
    result = servoctl("--pid", str(server.pid), "reload")
    assert result.returncode == 1
    assert "rolled back" in result.stderr
    assert requests.get(server.url, timeout=30).text == "one"


def test_a_reload_with_a_bad_configuration(serve: Serve, tmp_path: Path) -> None:
    config = tmp_path / "servo.conf.py"
    config.write_text("workers = 1\n")
    server = serve(WSGI)
    config.write_text("raise ValueError('a typo')\n")
    result = servoctl("--pid", str(server.pid), "reload")
    assert result.returncode == 1
    assert "ValueError: a typo" in result.stderr
    config.write_text("workers = 2\n")
    assert ctl(server, "reload")[-1]["ok"]
    server.wait_workers(2)


def test_a_reload_asked_for_during_a_reload_follows_it(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good("sync", "one", slow_import_s=0.3))
    server = serve("release:app", "-w", "2", ready=2)
    results: list[dict[str, Any]] = []

    def reload() -> None:
        with connect(server) as client:
            results.append(client.request("reload"))

    threads = [threading.Thread(target=reload) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    generations = sorted(result["generation"] for result in results)
    assert generations in ([2, 3, 3], [2, 2, 3], [2, 3, 4])
    assert ctl(server, "status")["generation"] == generations[-1]


def test_a_stop_amid_a_reload(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good("sync", "one"))
    server = serve("release:app", "-w", "1")
    releases.deploy(tmp_path, releases.BROKEN["hangs on import"])
    with follow("--pid", str(server.pid), "reload") as reload:
        wait_for(lambda: ctl(server, "status")["state"] == "reloading", "the reload")
        assert ctl(server, "stop")[-1]["ok"]
        assert reload.wait() == 1
        assert "the server is stopping" in reload.text()
    assert server.wait_exit() == 0


def test_stop(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", ready=2)
    result = servoctl("--pid", str(server.pid), "stop")
    assert result.returncode == 0
    assert result.stdout.endswith("the server has ended\n")
    assert server.wait_exit() == 0
    assert not os.path.exists(control_path(server))
    gone = servoctl("--pid", str(server.pid), "stop")
    assert gone.returncode == 3


def test_stop_now_cuts_a_graceful_stop_short(serve: Serve) -> None:
    server = serve(WSGI, "-k", "thread", "-w", "1", "--graceful-timeout", "3600")
    with request_under_way(server, "/slow?s=3600"):
        assert ctl(server, "stop", "--no-wait")["ok"]
        wait_for(lambda: ctl(server, "status")["state"] == "stopping")
        assert servoctl("--pid", str(server.pid), "reload").returncode == 1
        assert ctl(server, "stop", "--now")[-1]["ok"]
    assert server.wait_exit() == 0


def test_what_a_worker_costs_nobody(serve: Serve) -> None:
    """Commands for a busy worker hold up no other command."""
    server = serve(WSGI, "-k", "sync", "-w", "2", ready=2)
    with request_under_way(server, "/deadlock"), connect(server) as client:
        client.request("requests")
        asking = threading.Thread(target=lambda: ctl(server, "requests"))
        asking.start()
        for _ in range(20):
            assert client.request("status")["in_flight"] == 1
        asking.join(DEADLINE_S)
    server.kill_all()


# --- events, seen alike -----------------------------------------------------------------------


def test_hooks_log_and_servoctl_see_the_same_events(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "servo.conf.py").write_text(
        "import json\n"
        "def on_event(server, event):\n"
        "    with open('events', 'a') as file:\n"
        "        print(json.dumps(event.as_dict()), file=file)\n"
        "    if event.name == 'scaled':\n"
        "        raise RuntimeError('this hook is broken')\n"
    )
    # The debug level, as `spawned` is for developers.
    server = serve(WSGI, "-w", "1", "--log-format", "json", "--log-level", "debug", ready=0)
    wait_for(lambda: _is_up(server), "an answer")
    ctl(server, "scale", "2")
    ctl(server, "reload")
    wait_for(lambda: ctl(server, "status")["workers"]["total"] == 2, "an end of the reload")
    by_servoctl = ctl(server, "events", "--lines", "1000")
    server.stop()
    by_hook = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    by_log = []
    for line in server.log().splitlines():
        record = json.loads(line) if line.startswith("{") else {}
        if "event" in record:
            by_log.append({**record["event"], "text": record["message"]})
    for event in by_hook:
        event.pop("time")
        event.pop("details", None)
    seen = [{k: v for k, v in event.items() if k != "time"} for event in by_servoctl]
    assert by_hook == by_log
    assert by_hook[: len(seen)] == seen
    names = [event["name"] for event in by_hook]
    for name in ("spawned", "booting", "ready", "draining", "exited", "scaled", "stopping"):
        assert name in names
    assert names.index("reload_started") < names.index("reload_finished")
    assert "The on_event hook failed" in server.log()


# --- which server, and whether it answers -----------------------------------------------------


def test_wrong_names_and_two_of_one_name(serve: Serve) -> None:
    first = serve(WSGI, "-w", "1", "--name", "twin")
    second = serve(WSGI, "-w", "1", "--name", "twin")
    ambiguous = servoctl("--name", "twin", "status")
    assert (ambiguous.returncode, ambiguous.stdout) == (2, "")
    for server in (first, second):
        assert re.search(rf"twin +{server.pid} ", ambiguous.stderr)
        picked = servoctl("--name", "twin", "--pid", str(server.pid), "status", "--json")
        assert json.loads(picked.stdout)["pid"] == server.pid
    for arguments in (("--name", "twine"), ("--pid", "1"), ("--socket", "/nowhere/at.all")):
        wrong = servoctl(*arguments, "status")
        assert (wrong.returncode, wrong.stdout) == (3, "")
        assert "no server" in wrong.stderr


def test_a_control_socket_that_was_removed_comes_back(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    os.unlink(control_path(server))
    server.wait_log("The control socket was removed by somebody; it is back at")
    assert ctl(server, "status")["pid"] == server.pid


def test_an_arbiter_that_is_stopped_by_a_signal(serve: Serve) -> None:
    server = serve(WSGI, "-w", "1")
    pid = str(server.pid)
    server.signal(signal.SIGSTOP)
    try:
        for command in (("status",), ("reload",), ("stop",), ("logs", "-f"), ("workers",)):
            result = servoctl("--pid", pid, "--timeout", "0.5", *command)
            assert result.returncode == 1
            assert "does not answer within 0.5 s" in result.stderr
        row = next(
            row
            for row in json.loads(servoctl("list", "--timeout", "0.5", "--json").stdout)
            if row["pid"] == server.pid
        )
        assert row["state"] == "does not answer"
        # Even when nobody takes connections any more.
        waiting: list[ControlClient] = []
        with pytest.raises(NoAnswer):
            waiting.extend(connect(server, 0.2) for _ in range(200))
        for client in waiting:
            client.close()
    finally:
        server.signal(signal.SIGCONT)
    # What was asked meanwhile is done now: a stop among it.
    assert server.wait_exit() == 0


def test_an_arbiter_that_was_killed(serve: Serve) -> None:
    """Its workers, which finish their requests, don't keep its lock."""
    server = serve(WSGI, "-k", "thread", "-w", "1", "--name", "killed")
    path = control_path(server)
    with request_under_way(server, "/slow?s=5"):
        server.signal(signal.SIGKILL)
        assert server.wait_exit() == -signal.SIGKILL
        assert server.members()
        dead = servoctl("--socket", path, "status")
        assert dead.returncode == 3
        assert "left over from a dead server" in dead.stderr
        gone = servoctl("--name", "killed", "status")
        assert gone.returncode == 3
        assert not os.path.exists(path)
    server.kill_all()


def test_a_path_of_ones_own_and_none_at_all(serve: Serve, tmp_path: Path) -> None:
    short = Path(runtime_directory(), "own.sock")
    server = serve(WSGI, "-w", "1", "--control-socket", str(short), "--control-socket-mode", "0660")
    assert short.stat().st_mode & 0o777 == 0o660
    assert ctl(server, "status")["pid"] == server.pid
    second = serve(WSGI, "-w", "1", "--control-socket", str(short), ready=0)
    assert second.wait_exit() == 1
    assert "belongs to a server that is running" in second.log()
    silent = serve(WSGI, "-w", "1", "--no-control-socket")
    assert "Control socket" not in silent.log()
    assert servoctl("--pid", str(silent.pid), "status").returncode == 3
    # As root or not, there may be no place for it: a server goes without.
    server.stop()
    assert not short.exists()


def test_a_daemon_is_listed_by_the_pid_it_has(serve: Serve, tmp_path: Path) -> None:
    server = serve(
        WSGI, "-w", "1", "--daemon", "--pid", "p", "--log-file", "log", "--name", "demon", ready=0
    )
    assert server.wait_exit() == 0
    wait_for(lambda: "is ready" in _text(tmp_path / "log"), "the daemon")
    pid = int((tmp_path / "p").read_text())
    server.sessions.add(os.getsid(pid))
    result = servoctl("--name", "demon", "status", "--json")
    assert json.loads(result.stdout)["pid"] == pid
    assert servoctl("--name", "demon", "stop").returncode == 0
    wait_for(lambda: not alive(pid), "end of the daemon")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_other_users(serve: Serve) -> None:
    """Who it is, the kernel tells; the list says what each may."""
    place = Path(runtime_directory())
    path = place / "shared.sock"
    place.chmod(0o755)
    reader, operator, stranger = 60_001, 60_002, 60_003
    server = serve(
        WSGI,
        *("-w", "1", "--control-socket", str(path), "--env", "SECRET=hush"),
        *("--control-allow", f"{reader}:read,{operator}"),
    )

    def ask(uid: int, command: str, args: dict[str, Any]) -> dict[str, Any]:
        """What a process of that user gets: a result, or an error's kind."""
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                with ControlClient(str(path), DEADLINE_S) as client:
                    answer = client.request(command, args)
            except RequestFailed as error:
                answer = {"kind": error.kind}
            except ControlError as error:
                answer = {"error": str(error)}
            finally:
                os.write(into, json.dumps(answer).encode())
                os._exit(0)
        os.close(into)
        with os.fdopen(out, "rb") as file:
            text = file.read()
        os.waitpid(pid, 0)
        return dict(json.loads(text))

    assert ask(reader, "status", {})["pid"] == server.pid
    assert ask(reader, "scale", {"to": "2"}) == {"kind": "denied"}
    shown = {row["name"]: row for row in ask(reader, "config", {})["settings"]}
    assert shown["raw_env"]["value"] == "SECRET=…"
    assert ask(operator, "scale", {"to": "2"})["workers"] == 2
    assert ask(stranger, "status", {}) == {"kind": "denied"}
    os.chmod(path, 0o600)
    assert "this user may not connect" in ask(stranger, "status", {})["error"]
    assert "Control connection of user 60003" in server.log()


# --- at a terminal ----------------------------------------------------------------------------


def at_terminal(*arguments: str, width: int = 120, env: dict[str, str | None] | None = None) -> str:
    """What a person sees."""
    pid, fd = pty.fork()
    if pid == 0:
        # Here, because the program may ask before the parent has set it.
        ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 40, width, 0, 0))
        # Without COLUMNS, which xdist may set: it would count instead of the terminal's width.
        changes = {"TERM": "xterm-256color", "COLUMNS": None, "LINES": None, **(env or {})}
        environ = environment(changes)
        os.execve(COMMAND[0], [*COMMAND, *arguments], environ)
    text = b""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            try:
                text += os.read(fd, 65536)
            except OSError:
                break  # Linux's way to say that the other side is closed
    os.close(fd)
    os.waitpid(pid, 0)
    return text.decode().replace("\r\n", "\n")


def test_tables_at_a_terminal(serve: Serve) -> None:
    server = serve(WSGI, "-w", "2", ready=2)
    pid = str(server.pid)
    shown = at_terminal("--pid", pid, "workers", width=200)
    assert "\x1b[" in shown
    header, *rows = re.sub(r"\x1b\[[\d;]*m", "", shown).strip().splitlines()
    assert header.split()[:4] == ["slot", "pid", "gen", "state"]
    # What has no room is named below.
    assert [row.split()[0] for row in rows if not row.startswith("A wider ")] == ["1", "2"]
    narrow = re.sub(r"\x1b\[[\d;]*m", "", at_terminal("--pid", pid, "list", width=80))
    assert all(len(line) <= 80 for line in narrow.splitlines())
    # https://no-color.org: no colours; bold and dim are none.
    assert not re.search(
        r"\x1b\[[\d;]*3\d", at_terminal("--pid", pid, "workers", env={"NO_COLOR": "1"})
    )
    assert "\x1b" not in at_terminal("--pid", pid, "workers", env={"TERM": "dumb"})


# --- hostile callers --------------------------------------------------------------------------


def test_hostile_callers_keep_nobody_from_working(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good("sync", "one"))
    server = serve("release:app", "-w", "2", ready=2)
    before = memory(server.pid)
    most = 0
    with Hostile(control_path(server)) as hostile:
        wait_for(lambda: hostile.rounds > 20, "the siege")
        for round_ in range(4):
            with connect(server) as client:
                assert client.request("status")["state"] == "running"
                assert client.request("scale", {"to": str(2 + round_ % 2)})
            with connect(server) as client:
                client.request("reload")
            assert requests.get(server.url, timeout=30).text == "one"
            with connect(server) as client:
                assert len(client.request("workers")["workers"]) >= 2
            most = max(most, memory(server.pid))
        rounds = hostile.rounds
        wait_for(lambda: hostile.rounds > rounds + 20, "more of the siege")
        most = max(most, memory(server.pid))
    # 128 callers at 64 KB in, and 16 MB for all that goes out.
    assert most - before < 48 << 20
    assert servoctl("--pid", str(server.pid), "stop").returncode == 0
    assert "The control request" not in server.log()


# --- no worker unlisted, none listed that is not there ----------------------------------------


def test_the_list_is_true_whatever_happens(serve: Serve) -> None:
    """The long form is in the soak tests."""
    server = serve(WSGI, "-k", "thread", "-w", "3", "--graceful-timeout", "5", ready=3)
    check_list(server, random.Random(11), seconds=6.0)
