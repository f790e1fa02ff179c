"""`--preload`: a mold imports the app once, and forks the workers of its generation."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from authority import Authority

from integration import releases
from integration.conftest import CLASSES
from integration.load import EVERY_KIND, Load
from integration.server import (
    APPS,
    DEADLINE_S,
    Process,
    Server,
    environment,
    processes,
    wait_for,
)

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
APP = str(APPS / "preload_app.py")

PRELOADED = {
    "sync": (f"{APP}:wsgi", "-k", "sync", "--preload"),
    "thread": (f"{APP}:wsgi", "-k", "thread", "--threads", "4", "--preload"),
    "async": (f"{APP}:asgi", "-k", "async", "--preload"),
}
MOLD = re.compile(r"the mold of generation (\d+) \(pid (\d+)\) has imported")


def mold_pid(server: Server, since: int = 0) -> int:
    """The pid of the mold that got ready last."""
    server.wait_log(MOLD.pattern, since)
    return int(MOLD.findall(server.log()[since:])[-1][1])


def ask(server: Server) -> list[str]:
    response = requests.get(server.url, timeout=30)
    assert response.status_code == 200
    return response.text.split()


def answers(server: Server, workers: int) -> dict[int, list[str]]:
    """An answer of each of so many workers, by pid."""
    found: dict[int, list[str]] = {}

    def all_answered() -> bool:
        answer = ask(server)
        found[int(answer[1])] = answer
        return len(found) >= workers

    wait_for(all_answered, f"answers of {workers} workers")
    return found


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


def stat(pid: int) -> Process | None:
    return next((process for process in processes() if process.pid == pid), None)


def test_workers_share_what_the_mold_has_imported(serve: Serve, worker_class: str) -> None:
    server = serve(*PRELOADED[worker_class], "-w", "3", ready=3)
    mold = mold_pid(server)
    found = answers(server, 3)
    assert sorted(found) == server.wait_workers(3)
    for pid, (_, _, parent, imported_by, _) in found.items():
        assert int(parent) == server.pid, "the arbiter has adopted it"
        assert int(imported_by) == mold != pid
    assert len({answer[4] for answer in found.values()}) == 3, "each has its own random numbers"
    assert mold in server.children()
    server.stop()
    assert stat(mold) is None


def test_a_killed_worker_comes_from_the_mold(serve: Serve, worker_class: str) -> None:
    server = serve(*PRELOADED[worker_class], "-w", "2", ready=2)
    mold = mold_pid(server)
    old = server.wait_workers(2)
    server.signal_worker(old[0], signal.SIGKILL)
    server.wait_log(rf"worker 1 \(pid {old[0]}\) ended .*SIGKILL|pid {old[0]}\) ended .*SIGKILL")
    server.wait_replaced(old[:1], count=2)
    assert {int(answer[3]) for answer in answers(server, 2).values()} == {mold}


def test_reloads_under_load(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    releases.deploy(tmp_path, releases.good(worker_class, "1"))
    flags = (*CLASSES[worker_class][1], "-w", "2", "--preload", "--boot-timeout", "2")
    server = serve("release:app", *flags, ready=2)
    serving, mold = server.wait_workers(2), mold_pid(server)
    assert releases.imports(tmp_path) == 1, "once for both workers"

    with Load(server.port, EVERY_KIND) as load:
        for name, source in releases.broken(worker_class).items():
            mark = server.mark()
            releases.deploy(tmp_path, source)
            server.signal(signal.SIGHUP)
            server.wait_log("rolled back", mark)
            assert server.wait_workers(2) == serving, name
            load.wait_answers(20)
        assert set(load.bodies) == {b"1"}
        releases.deploy(tmp_path, releases.good(worker_class, "2"))
        mark = server.mark()
        server.signal(signal.SIGHUP)
        server.wait_replaced(serving)
        server.wait_log("finished after", mark)
        assert mold_pid(server, mark) != mold
        wait_for(lambda: stat(mold) is None, "end of the old mold")
        load.wait_answers(20)
    assert load.failures == []
    assert set(load.bodies) == {b"1", b"2"}


def test_a_worker_that_dies_in_a_failing_deploy_comes_back_with_the_old_code(
    serve: Serve, tmp_path: Path
) -> None:
    releases.deploy(tmp_path, releases.good("sync", "1"))
    server = serve("release:app", "-k", "sync", "-w", "1", "--preload")
    (worker,) = server.wait_workers(1)
    releases.deploy(tmp_path, releases.BROKEN["hangs on import"])
    mark = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_log("reading the configuration", mark)
    wait_for(lambda: len(server.children()) >= 4, "the second mold")
    server.signal_worker(worker, signal.SIGKILL)
    server.wait_replaced([worker])
    with Load(server.port, {"raw-fresh": 1}) as load:
        load.wait_answers(5)
    assert load.failures == []
    assert set(load.bodies) == {b"1"}
    releases.deploy(tmp_path, releases.good("sync", "2"))


def test_a_mold_that_is_killed_is_replaced(serve: Serve, worker_class: str) -> None:
    server = serve(*PRELOADED[worker_class], "-w", "2", ready=2)
    mold, old = mold_pid(server), server.wait_workers(2)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        mark = server.mark()
        os.kill(mold, signal.SIGKILL)
        server.wait_log(rf"generation 1 \(pid {mold}\) ended; its workers serve on", mark)
        server.wait_replaced(old)
        load.wait_answers(20)
    assert load.failures == []
    second = mold_pid(server, mark)
    assert {int(answer[3]) for answer in answers(server, 2).values()} == {second}


def test_a_dead_mold_and_a_broken_release(serve: Serve, tmp_path: Path) -> None:
    """The workers serve the old code until there is a release that can be imported."""
    releases.deploy(tmp_path, releases.good("sync", "1"))
    server = serve("release:app", "-k", "sync", "-w", "2", "--preload", ready=2)
    old = server.wait_workers(2)
    releases.deploy(tmp_path, releases.BROKEN["raises on import"])
    mark = server.mark()
    os.kill(mold_pid(server), signal.SIGKILL)
    server.wait_log("rolled back: its app could not be loaded.*this release is broken", mark)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        assert server.wait_workers(2) == old
        releases.deploy(tmp_path, releases.good("sync", "2"))
        server.wait_replaced(old)
        load.wait_answers(20)
    assert load.failures == []


def test_a_stopped_mold(serve: Serve, worker_class: str) -> None:
    """It takes an order and does not carry it out. When the server stops, it does not wait."""
    server = serve(*PRELOADED[worker_class], "-w", "2", ready=2)
    mold, (first, _) = mold_pid(server), server.wait_workers(2)
    os.kill(mold, signal.SIGSTOP)
    mark = server.mark()
    server.signal_worker(first, signal.SIGKILL)
    server.wait_log(r"the mold of generation 1: it has forked no worker for 10 s", mark)
    server.wait_replaced([first], count=2)
    assert mold_pid(server, mark) != mold
    os.kill(mold_pid(server, mark), signal.SIGSTOP)
    server.stop()


@pytest.mark.parametrize("kind", ["raises on import", "sys.exit on import", "hangs on import"])
def test_an_app_that_cant_be_imported_at_the_start(serve: Serve, tmp_path: Path, kind: str) -> None:
    releases.deploy(tmp_path, releases.BROKEN[kind])
    server = serve("release:app", "-w", "2", "--preload", "--boot-timeout", "2", ready=0)
    assert server.wait_exit() == (3 if kind == "hangs on import" else 4)
    server.wait_log("could not load the app")


def test_each_slot_has_its_own_sockets(serve: Serve) -> None:
    """With reuse_port: no process but a slot's worker, and the arbiter, holds its socket."""
    server = serve(*PRELOADED["sync"], "-w", "3", "--reuse-port", ready=3)
    mold = mold_pid(server)
    with Load(server.port, {"raw-fresh": 4}) as load:
        load.wait_answers(50)
        for signum in (signal.SIGTTOU, signal.SIGTTOU, signal.SIGTTIN, signal.SIGHUP):
            old = server.wait_workers(len(server.worker_pids()))
            server.signal(signum)
            if signum == signal.SIGTTOU:
                server.wait_workers(len(old) - 1)
            elif signum == signal.SIGTTIN:
                server.wait_workers(len(old) + 1)
            else:
                server.wait_replaced(old)
            load.wait_answers(30)
    assert load.failures == []
    assert stat(mold) is None


def listening(pid: int) -> list[str]:
    """The listening sockets that a process holds."""
    ours = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            ours.add(os.readlink(entry))
        except OSError:
            continue
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [line[1] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in ours]


def test_a_mold_holds_no_listener(serve: Serve, worker_class: str) -> None:
    server = serve(*PRELOADED[worker_class], "-w", "2", ready=2)
    assert listening(mold_pid(server)) == []
    for pid in server.wait_workers(2):
        assert len(listening(pid)) == 1


HOOKS = """
import os

def note(*what):
    with open("notes", "a") as file:
        print(*what, file=file)

def pre_fork(server, worker):
    worker.tag = f"tag {worker.slot}"
    worker.refused = lambda: None

def after_mold(server, worker):
    note("after_mold", worker.slot, worker.tag)

def post_fork(server, worker):
    note("post_fork", worker.slot, worker.tag, hasattr(worker, "refused"), worker.app.callable)

def post_worker_init(worker):
    note("post_worker_init", worker.slot, os.getpid() == worker.pid)

def worker_exit(server, worker):
    note("worker_exit", worker.slot)
"""


def test_hooks(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(HOOKS)
    server = serve(*PRELOADED["thread"], "-w", "1", "-c", "conf.py")
    server.wait_log("hook's worker.refused can't be passed on to a mold")
    server.stop()
    notes = (tmp_path / "notes").read_text().splitlines()
    assert notes[0] == "after_mold 1 tag 1"
    assert notes[1].startswith("post_fork 1 tag 1 False <function wsgi")
    assert notes[2:] == ["post_worker_init 1 True", "worker_exit 1"]


def test_exit_functions_run_in_workers_only(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "import atexit, os\n"
        "print('printed on import', end=' ')\n"
        "note = lambda: open('ends', 'a').write(f'{os.getpid()}\\n')\n"
        "atexit.register(note)\n"
        "from preload_app import wsgi as app\n"
    )
    env: dict[str, str | None] = {"PYTHONPATH": f"{APPS}:{APPS.parents[2]}"}
    server = serve("shop:app", "-w", "2", "--preload", ready=2, env=env)
    old, mold = server.wait_workers(2), mold_pid(server)
    server.signal(signal.SIGHUP)
    pids = server.wait_replaced(old)
    wait_for(lambda: stat(mold) is None, "the end of the old mold")
    server.stop()
    ends = sorted(map(int, (tmp_path / "ends").read_text().split()))
    assert ends == sorted([*old, *pids])
    assert server.log().count("printed on import") == 2


def test_reload_by_a_changed_file(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good("sync", "1"))
    server = serve("release:app", "-w", "1", "--preload", "--reload")
    old = server.wait_workers(1)
    releases.deploy(tmp_path, releases.good("sync", "2"))
    server.wait_replaced(old)
    assert requests.get(server.url, timeout=30).text == "2"


def test_an_upgrade_in_place(serve: Serve, worker_class: str) -> None:
    server = serve(*PRELOADED[worker_class], "-w", "2", ready=2)
    mold, old = mold_pid(server), server.wait_workers(2)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        mark = server.mark()
        server.signal(signal.SIGUSR2)
        server.wait_log("upgraded: ", mark)
        server.wait_replaced(old)
        load.wait_answers(20)
    assert load.failures == []
    second = mold_pid(server, mark)
    assert {int(answer[3]) for answer in answers(server, 2).values()} == {second}
    wait_for(lambda: stat(mold) is None, "end of the old program's mold")


def test_a_worker_that_dies_during_an_upgrade(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    """The mold of the old program forks its successor, until the reload is over."""
    releases.deploy(tmp_path, releases.good(worker_class, "1"))
    flags = (*CLASSES[worker_class][1], "-w", "2", "--preload")
    server = serve("release:app", *flags, ready=2)
    mold, (first, _) = mold_pid(server), server.wait_workers(2)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        releases.deploy(tmp_path, releases.good(worker_class, "2", slow_import_s=3.0))
        mark = server.mark()
        server.signal(signal.SIGUSR2)
        server.wait_log("upgraded: ", mark)
        server.signal_worker(first, signal.SIGKILL)
        now = server.wait_replaced([first], count=2)
        assert "finished after" not in server.log()[mark:]
        assert server.log()[mark:].count("has imported") == 0, "the old mold has forked it"
        assert requests.get(server.url, timeout=30).text == "1"
        server.wait_replaced(now)
        load.wait_answers(20)
    assert len(load.failures) <= sum(EVERY_KIND.values()), "one request of each client of the dead"
    assert set(load.bodies) == {b"1", b"2"}
    wait_for(lambda: stat(mold) is None, "the end of the old program's mold")


def test_a_mold_that_dies_while_no_program_runs(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(
        "import os, signal\n"
        "def pre_exec(server):\n"
        "    os.kill(int(open('mold').read()), signal.SIGKILL)\n"
    )
    server = serve(*PRELOADED["sync"], "-w", "2", "-c", "conf.py", ready=2)
    old, mold = server.wait_workers(2), mold_pid(server)
    (tmp_path / "mold").write_text(str(mold))
    mark = server.mark()
    server.signal(signal.SIGUSR2)
    server.wait_log(rf"the mold of generation 1 \(pid {mold}\) ended", mark)
    server.wait_replaced(old)
    assert mold_pid(server, mark) != mold


CHANGED = """
def pre_exec(server):
    with open("conf.py", "a") as file:
        file.write('if not __import__("os").path.exists("broken"):\\n')
        file.write('    open("broken", "w").close()\\n')
        file.write('    raise RuntimeError("it was changed")\\n')
"""


def test_a_program_that_cant_start_gives_the_mold_back(serve: Serve, tmp_path: Path) -> None:
    """The configuration changes between the preflight and the takeover."""
    (tmp_path / "conf.py").write_text(CHANGED)
    server = serve(*PRELOADED["sync"], "-w", "2", "-c", "conf.py", ready=2)
    mold, (first, _) = mold_pid(server), server.wait_workers(2)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        mark = server.mark()
        server.signal(signal.SIGUSR2)
        server.wait_log("upgrade failed: the new program could not start", mark)
        load.wait_answers(20)
    assert load.failures == []
    server.signal_worker(first, signal.SIGKILL)
    server.wait_replaced([first], count=2)
    assert {int(answer[3]) for answer in answers(server, 2).values()} == {mold}
    assert MOLD.findall(server.log()[mark:]) == [], "no reload was needed"
    server.signal(signal.SIGUSR2)
    server.wait_log("upgraded: ", mark)
    wait_for(lambda: stat(mold) is None, "the end of the old program's mold")
    server.stop()


def test_a_roll_back_of_an_upgrade(serve: Serve, tmp_path: Path) -> None:
    """The mold of the old program is kept for bake_time."""
    releases.deploy(tmp_path, releases.good("sync", "1"))
    flags = ("-k", "sync", "-w", "2", "--preload", "--bake-time", "600")
    server = serve("release:app", *flags, ready=2)
    old = server.wait_workers(2)
    releases.deploy(tmp_path, releases.good("sync", "2"))
    server.signal(signal.SIGUSR2)
    new = server.wait_replaced(old)
    server.wait_log("finished after")
    assert requests.get(server.url, timeout=30).text == "2"
    assert servoctl(server, "rollback").stdout == "rolled back to generation 1\n"
    server.wait_replaced(new)
    assert requests.get(server.url, timeout=30).text == "1"


CARELESS = """
import socket, threading
from preload_app import wsgi as app

connection = socket.create_connection(("127.0.0.1", {port}))
threading.Thread(target=threading.Event().wait, name="exporter", daemon=True).start()
"""


def test_warnings_about_what_does_not_survive_the_fork(serve: Serve, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as database:
        port = database.getsockname()[1]
        (tmp_path / "shop.py").write_text(CARELESS.format(port=port))
        env: dict[str, str | None] = {"PYTHONPATH": f"{APPS}:{APPS.parents[2]}"}
        server = serve("shop:app", "-w", "2", "--preload", ready=2, env=env)
        server.wait_log(rf"connected to 127.0.0.1:{port}\) was opened while the app was imported")
        server.wait_log("The thread exporter was started while the app was imported")
        assert server.log().count("while the app was imported") == 2
        assert len(answers(server, 2)) == 2


def test_warm_up(serve: Serve, tmp_path: Path) -> None:
    source = (APPS / "preload_app.py").read_text()
    (tmp_path / "shop.py").write_text(
        source + "\ndef load():\n    global VERSION\n    VERSION = 'warm'\n"
    )
    flags = ("-w", "2", "--preload", "--warm-up", "shop:load", "--warm-up", "/")
    server = serve("shop:wsgi", *flags, ready=2)
    server.wait_log(r"Warm-up shop:load took .* s\n.*Warm-up / took")
    assert {answer[0] for answer in answers(server, 2).values()} == {"warm"}
    (tmp_path / "shop.py").write_text(source)
    mark = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_log(
        "rolled back: its app could not be loaded: warm_up: shop has no attribute", mark
    )


FAILS = """
def app(environ, start_response):
    start_response("500 Internal Server Error", [("Content-Length", "3")])
    return [b"bad"]
"""


def test_a_release_that_answers_errors_is_rolled_back(serve: Serve, tmp_path: Path) -> None:
    releases.deploy(tmp_path, releases.good("sync", "1"))
    flags = ("-k", "sync", "-w", "2", "--preload", "--bake-time", "600")
    server = serve("release:app", *flags, ready=2)
    old = server.wait_workers(2)
    releases.deploy(tmp_path, FAILS)
    mark = server.mark()
    server.signal(signal.SIGHUP)
    bad = server.wait_replaced(old)
    for _ in range(100):
        assert requests.get(server.url, timeout=30).status_code in (200, 500)
    server.wait_log(
        "generation 2 is rolled back to generation 1: .* of its responses are 5xx", mark
    )
    server.wait_replaced(bad)
    assert requests.get(server.url, timeout=30).text == "1", "the disk has the bad release"


def test_servoctl_rollback(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    releases.deploy(tmp_path, releases.good(worker_class, "1"))
    flags = (*CLASSES[worker_class][1], "-w", "2", "--preload", "--bake-time", "600")
    server = serve("release:app", *flags, ready=2)
    assert "there is nothing to roll back to" in servoctl(server, "rollback").stderr
    old = server.wait_workers(2)
    with Load(server.port, EVERY_KIND) as load:
        load.wait_answers(20)
        releases.deploy(tmp_path, releases.good(worker_class, "2"))
        server.signal(signal.SIGHUP)
        new = server.wait_replaced(old)
        load.wait_answers(20)
        result = servoctl(server, "rollback")
        assert result.stdout == "rolled back to generation 1\n"
        server.wait_replaced(new)
        assert requests.get(server.url, timeout=30).text == "1"
    assert load.failures == []
    assert set(load.bodies) == {b"1", b"2"}


def test_tls(serve: Serve, tmp_path: Path, worker_class: str) -> None:
    authority = Authority(tmp_path)
    server = serve(*PRELOADED[worker_class], "-w", "2", *authority.issue("server").flags, ready=2)
    mold = mold_pid(server)
    url = f"https://localhost:{server.port}"
    answer = requests.get(url, timeout=30, verify=str(authority.path)).text.split()
    assert int(answer[3]) == mold
    old = server.wait_workers(2)
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    assert requests.get(url, timeout=30, verify=str(authority.path)).status_code == 200
    assert "Traceback" not in server.log()


def shared_kib(pid: int) -> int:
    """The memory of a process that it shares with others, in KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(size) for size in re.findall(r"^Shared_(?:Clean|Dirty): +(\d+) kB", text, re.M))


def test_large_data_exists_once(serve: Serve, tmp_path: Path) -> None:
    megabytes = 64
    (tmp_path / "shop.py").write_text(
        "from preload_app import wsgi as app\n"
        f"DATA = [bytes([n % 255 + 1]) * (1 << 20) for n in range({megabytes})]\n"
    )
    env: dict[str, str | None] = {"PYTHONPATH": f"{APPS}:{APPS.parents[2]}"}
    server = serve("shop:app", "-k", "sync", "-w", "2", "--preload", ready=2, env=env)
    for pid in server.wait_workers(2):
        assert shared_kib(pid) >= megabytes << 10
