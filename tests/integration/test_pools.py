"""Pools in real servers: tasks from every worker class, processes that die, reloads, stops."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from integration.conftest import Serve
from integration.server import (
    APPS,
    DEADLINE_S,
    REPOSITORY,
    Server,
    alive,
    command_line,
    free_port,
    processes,
    wait_for,
)

pytestmark = pytest.mark.slow

CLASSES = {
    "sync": ("heavy:wsgi", "-k", "sync"),
    "thread": ("heavy:wsgi", "-k", "thread", "--threads", "4"),
    "async": ("heavy:asgi", "-k", "async"),
    "async-wsgi": ("heavy:wsgi", "-k", "async", "--threads", "4"),
}


class Site:
    """A server with the pool `ml`."""

    def __init__(self, serve: Serve, directory: Path) -> None:
        self.serve = serve
        self.directory = directory
        (directory / "heavy.py").write_bytes((APPS / "heavy.py").read_bytes())

    def start(self, *args: str, **pool: Any) -> Server:
        options = {"workers": 2, "initializer": "heavy:load", **pool}
        self.configure(**options)
        if not hasattr(self, "temporary"):
            self.temporary = tempfile.mkdtemp(prefix="sp")
        server = self.serve(
            *args, "--graceful-timeout", "10", env={"TMPDIR": self.temporary}, ready=1
        )
        self.server = server
        wait_for(lambda: len(self.pool_pids()) >= options["workers"], "pool processes")
        wait_for(lambda: server.log().count("of pool ml") >= options["workers"], "ready pool")
        return server

    def configure(self, **options: Any) -> None:
        lines = [f"{name} = {json.dumps(value)}" for name, value in options.items()]
        (self.directory / "servo.toml").write_text("[pools.ml]\n" + "\n".join(lines) + "\n")

    def get(self, name: str, argument: object = "") -> Any:
        url = f"{self.server.url}/{name}?{quote(str(argument))}"
        with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
            return json.load(response)

    def pool_pids(self) -> list[int]:
        """The live processes of the pool."""
        return [
            each.pid
            for each in processes()
            if each.parent == self.server.pid
            and each.state != "Z"
            and "servo: pool ml" in command_line(each.pid)
        ]

    def path(self, name: str) -> Path:
        return self.directory / name

    def wait_begun(self, name: str) -> int:
        begun = self.path(name + ".begun")
        return int(wait_for(lambda: begun.exists() and begun.read_text(), "begun task"))


@pytest.fixture
def site(serve: Serve, tmp_path: Path) -> Iterator[Site]:
    site = Site(serve, tmp_path)
    yield site
    if hasattr(site, "server") and site.server.process is not None:
        site.server.stop()
        # No socket, board or directory is left.
        assert os.listdir(site.temporary) == []
        os.rmdir(site.temporary)


@pytest.fixture
def in_background() -> Iterator[Callable[..., concurrent.futures.Future[Any]]]:
    with concurrent.futures.ThreadPoolExecutor(8) as executor:
        yield executor.submit


@pytest.mark.parametrize("kind", CLASSES)
def test_tasks_of_every_worker_class(site: Site, kind: str) -> None:
    site.start(*CLASSES[kind])
    pid, *loaded = site.get("pid")
    assert pid in site.pool_pids()
    assert loaded == [pid]  # the initializer ran once, in this process
    assert site.get("upper", "abc") == "ABC"
    assert site.get("megabytes", 100) == 100 << 20
    assert site.get("stream", 50) == list(range(50))
    assert site.get("nested") == ["ml"]
    failed = site.get("fail", "no")
    assert (failed["error"], failed["text"]) == ("ValueError", "no")
    assert "heavy.py" in failed["cause"]
    assert site.get("die")["error"] == "ProcessDied"
    assert "killed by signal 9 (SIGKILL)" in site.get("die")["text"]
    assert site.get("upper", "still here") == "STILL HERE"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_request_gives_up_its_task(site: Site, kind: str) -> None:
    site.start(*CLASSES[kind], workers=1)
    assert site.get("hang", "give-up") == [True, True]
    pid = site.wait_begun("give-up")
    wait_for(lambda: not alive(pid), "end of the process")
    assert "its task was cancelled by the caller" in site.server.log()
    assert site.get("upper", "x") == "X"


def test_a_process_killed_while_it_is_idle(site: Site) -> None:
    site.start(*CLASSES["sync"])
    for _ in range(3):
        before = site.pool_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert site.get("upper", "x") == "X"
    wait_for(lambda: len(site.pool_pids()) == 2, "two processes")


def test_a_process_killed_while_it_runs(
    site: Site, in_background: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    site.start(*CLASSES["thread"], workers=1)
    running = in_background(site.get, "wait", "go")
    pid = site.wait_begun("go")
    queued = in_background(site.get, "upper", "x")
    os.kill(pid, signal.SIGKILL)
    answer = running.result(DEADLINE_S)
    assert answer["error"] == "ProcessDied"
    assert f"the pool process {pid} ended" in answer["text"]
    assert "SIGKILL" in answer["text"]
    assert queued.result(DEADLINE_S) == "X"  # the queue outlives the process


def test_processes_killed_at_random_while_tasks_run(site: Site) -> None:
    """Each task ends in its result or a true error, whatever its process was doing."""
    site.start(*CLASSES["thread"], workers=2)

    def ask(number: int) -> Any:
        return site.get("upper", f"n{number}") if number % 3 else site.get("megabytes", 1)

    with concurrent.futures.ThreadPoolExecutor(4) as executor:
        answers = [executor.submit(ask, n) for n in range(300)]
        for answer in answers[::20]:
            answer.result(DEADLINE_S)
            for pid in site.pool_pids()[:1]:
                os.kill(pid, signal.SIGKILL)
        for n, answer in enumerate(answers):
            found = answer.result(DEADLINE_S)
            if isinstance(found, dict):
                assert found["error"] == "ProcessDied"
                assert "SIGKILL" in found["text"]
            else:
                assert found == (f"N{n}" if n % 3 else 1 << 20)
    assert site.get("upper", "x") == "X"


def test_a_task_past_its_time(site: Site) -> None:
    server = site.start(*CLASSES["sync"], workers=1, timeout=0.2)
    answer = site.get("hang", "hung")
    assert answer["error"] == "TaskTimeout"
    assert "heavy.hang ran for more than 0.2 s (timeout)" in answer["text"]
    log = server.log()
    assert "Fatal Python error: Aborted" in log  # the stacks
    assert "in hang" in log
    assert site.get("upper", "x") == "X"


def test_a_full_queue(
    site: Site, in_background: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    site.start(*CLASSES["thread"], workers=1, queue=1)
    running = in_background(site.get, "wait", "go")
    site.wait_begun("go")
    waiting = in_background(site.get, "upper", "x")
    extra = in_background(site.get, "upper", "z")
    answers = [waiting, extra]
    done = concurrent.futures.wait(answers, DEADLINE_S, concurrent.futures.FIRST_COMPLETED).done
    (first,) = done
    assert first.result()["error"] == "QueueFull"
    assert first.result()["text"] == "the queue of the pool ml is full: 1 tasks wait"
    site.path("go").touch()
    assert isinstance(running.result(DEADLINE_S), int)
    (other,) = {*answers} - done
    assert other.result(DEADLINE_S) in ("X", "Z")


def test_a_worker_killed_while_its_task_runs(
    site: Site, in_background: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    server = site.start(*CLASSES["sync"], "-w", "1", workers=1)
    in_background(site.get, "wait", "go")  # it gets no answer
    pid = site.wait_begun("go")
    (worker,) = server.ready_pids()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: server.ready_pids() not in ([], [worker]), "another worker")
    site.path("go").touch()
    assert site.get("pid")[0] == pid  # the same process goes on with other tasks


def test_a_reload_replaces_the_processes_with_the_new_code(
    site: Site, in_background: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    server = site.start(*CLASSES["thread"], workers=2)
    before = site.pool_pids()
    running = in_background(site.get, "wait", "go")
    old = site.wait_begun("go")
    source = site.path("heavy.py").read_text()
    site.path("heavy.py").write_text(source.replace("RELEASE = 1", "RELEASE = 2"))
    server.signal(signal.SIGHUP)

    def new_code() -> bool:
        pids = site.pool_pids()
        return len([pid for pid in pids if pid not in before]) == 2

    wait_for(new_code, "new processes")
    wait_for(lambda: site.get("release") == 2, "new release")
    site.path("go").touch()
    assert running.result(DEADLINE_S) == old  # its task was not cut off
    wait_for(lambda: not set(before) & set(site.pool_pids()), "end of the old processes")


def test_a_reload_whose_initializer_fails_keeps_the_old_processes(site: Site) -> None:
    server = site.start(*CLASSES["sync"], workers=2)
    before = sorted(site.pool_pids())
    site.path("broken").touch()
    server.signal(signal.SIGHUP)
    wait_for(lambda: "keeps its old processes" in server.log(), "failure")
    assert "RuntimeError: the model is missing" in server.log()
    assert set(before) <= set(site.pool_pids())
    assert site.get("pid")[0] in before
    site.path("broken").unlink()
    wait_for(lambda: not set(before) & set(site.pool_pids()), "new processes", 60)


def test_a_reload_adds_and_removes_pools(site: Site) -> None:
    server = site.start(*CLASSES["sync"], workers=1)
    (site.directory / "servo.toml").write_text("[pools.other]\n")
    server.signal(signal.SIGHUP)
    wait_for(lambda: "finished" in server.log(), "reload")
    wait_for(lambda: not site.pool_pids(), "end of the old pool")
    answer = site.get("upper", "x")
    assert answer["error"] == "NoSuchPool"
    assert "The pools are: other" in answer["text"]


def test_an_upgrade_keeps_the_processes_until_its_reload(site: Site) -> None:
    server = site.start(*CLASSES["sync"], workers=1)
    before = site.pool_pids()
    server.signal(signal.SIGUSR2)
    wait_for(lambda: "has taken the place of" in server.log(), "upgrade")
    assert site.get("upper", "x") == "X"
    wait_for(lambda: not set(before) & set(site.pool_pids()), "new processes")
    assert site.get("upper", "x") == "X"


def test_with_preload(site: Site) -> None:
    site.start(*CLASSES["sync"], "--preload")
    pid, *loaded = site.get("pid")
    assert loaded == [pid]
    assert site.get("stream", 5) == list(range(5))


def test_a_stop_lets_the_running_task_finish(
    site: Site, in_background: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    server = site.start(*CLASSES["thread"], workers=1)
    running = in_background(site.get, "wait", "go")
    pid = site.wait_begun("go")
    server.signal(signal.SIGTERM)
    wait_for(lambda: "is draining" in server.log(), "draining workers")
    site.path("go").touch()
    assert running.result(DEADLINE_S) == pid
    assert server.wait_exit() == 0


@pytest.mark.parametrize("stuck", [False, True])
def test_the_processes_end_with_the_arbiter(
    site: Site, in_background: Callable[..., concurrent.futures.Future[Any]], stuck: bool
) -> None:
    server = site.start(*CLASSES["sync"], "--graceful-timeout", "1", workers=2)
    pids = site.pool_pids()
    if stuck:
        in_background(site.get, "hang", "hung")  # it gets no answer
        site.wait_begun("hung")
    server.signal(signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), "end of the processes")
    wait_for(lambda: not server.members(), "end of the workers")
    # The next server removes what was left.
    (leftover,) = os.listdir(site.temporary)
    site.start(*CLASSES["sync"], workers=1)
    assert leftover not in os.listdir(site.temporary)


def test_operators_see_pools_and_their_tasks(
    site: Site, in_background: Callable[..., concurrent.futures.Future[Any]]
) -> None:
    server = site.start(*CLASSES["thread"], workers=2, queue=5)
    assert site.get("upper", "x") == "X"
    assert site.get("fail", "x")["error"] == "ValueError"
    running = in_background(site.get, "wait", "go")
    pid = site.wait_begun("go")

    def ask(*command: str) -> str:
        program = [sys.executable, "-m", "servo.cli.ctl", "--pid", str(server.pid), *command]
        done = subprocess.run(program, capture_output=True, text=True, check=True, env=server.env)
        return done.stdout

    (pool,) = json.loads(ask("--json", "pools"))["pools"]
    assert pool["tasks"] == {"done": 1, "failed": 1, "abandoned": 0, "lost": 0}
    assert pool["queue"] == {"waiting": 0, "limit": 5}
    assert sorted(each["state"] for each in pool["processes"]) == ["busy", "idle"]
    (busy,) = [each for each in pool["processes"] if each["state"] == "busy"]
    assert (busy["pid"], busy["task"]) == (pid, "heavy.wait")
    assert "pool ml: tasks: 1 done, 1 failed; 0 of 5 wait" in ask("pools")
    assert "heavy.wait" in ask("requests")
    site.path("go").touch()
    assert running.result(DEADLINE_S) == pid


def test_metrics_of_pools_also_of_new_ones(site: Site) -> None:
    port = free_port()
    server = site.start(*CLASSES["sync"], "--metrics-bind", f"127.0.0.1:{port}")
    assert site.get("upper", "x") == "X"

    def page() -> str:
        try:
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    wait_for(lambda: 'servo_pool_tasks_total{outcome="done",pool="ml"} 1.0' in page(), "figures")
    (site.directory / "servo.toml").write_text("[pools.ml]\n[pools.other]\n")
    server.signal(signal.SIGHUP)
    wait_for(lambda: 'servo_pool_processes{pool="other",state="idle"} 1.0' in page(), "new pool")
    assert 'servo_pool_tasks_total{outcome="done",pool="ml"} 1.0' in page()


def test_the_example(serve: Serve) -> None:
    pool = {"thumbs": {"workers": 2, "initializer": "thumbnails:load", "queue": 50}}
    server = serve(f"{REPOSITORY}/examples/thumbnails.py:app", "--pools", json.dumps(pool))
    for path, kind in (("/", "text/html"), ("/picture?zoom=3", "image/png")):
        with urllib.request.urlopen(server.url + path, timeout=DEADLINE_S) as response:
            assert response.headers["Content-Type"].startswith(kind)
            body = response.read()
    assert body.startswith(b"\x89PNG")
    with urllib.request.urlopen(server.url + "/rows?zoom=3", timeout=DEADLINE_S) as response:
        assert len(response.read().split()) == 160
