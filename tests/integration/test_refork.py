"""`--refork-after`: a worker that has served requests forks the next mold."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.load import EVERY_KIND, Load
from integration.server import Server, wait_for
from integration.test_preload import listening, shared_kib, stat

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]
READY = re.compile(r"the mold of generation \d+ \(pid (\d+)\) is ready after")
# Each answer says who has computed it: the first request does, and its answer is kept.
APP = """
import os

CACHE = {}

def app(environ, start_response):
    filled_by = CACHE.setdefault("filled by", os.getpid())
    body = f"{os.getpid()} {filled_by} {os.environ.get('SERVO_SLOT')}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
CLASSES = {"sync": ("-k", "sync"), "thread": ("-k", "thread", "--threads", "4")}


def start(serve: Serve, tmp_path: Path, *flags: str, app: str = APP, workers: int = 2) -> Server:
    (tmp_path / "cached.py").write_text(app)
    return serve("cached:app", "-w", str(workers), "--preload", *flags, ready=workers)


def ask(server: Server) -> list[str]:
    return requests.get(server.url, timeout=30).text.split()


def reforked(server: Server, since: int = 0) -> int:
    """Ask until a refork is over; return the pid of the mold."""

    def is_over() -> bool:
        ask(server)
        return bool(re.search(r"refork \(worker .* requests\) finished", server.log()[since:]))

    wait_for(is_over, "a refork")
    return int(READY.findall(server.log()[since:])[-1])


@pytest.mark.parametrize("worker_class", CLASSES)
def test_workers_share_what_requests_have_loaded(
    serve: Serve, tmp_path: Path, worker_class: str
) -> None:
    server = start(serve, tmp_path, *CLASSES[worker_class], "--refork-after", "50")
    old = server.wait_workers(2)
    with Load(server.port, EVERY_KIND) as load:
        server.wait_log(r"refork \(worker .* requests\) finished")
        new = server.wait_replaced(old)
        load.wait_answers(20)
    assert load.failures == []
    (mold,) = map(int, READY.findall(server.log()))
    assert set(server.children()) >= {mold, *new}
    assert {int(pid) for pid in (ask(server)[1] for _ in range(20))} <= set(old), "a kept cache"
    assert listening(mold) == []
    found = stat(mold)
    assert found is not None
    assert found.parent == server.pid, "the arbiter has adopted it"
    assert "Traceback" not in server.log()
    server.stop()
    assert stat(mold) is None


def test_a_killed_worker_comes_from_the_new_mold(serve: Serve, tmp_path: Path) -> None:
    server = start(serve, tmp_path, "-k", "sync", "--refork-after", "10", workers=1)
    (old,) = server.wait_workers(1)
    mold = reforked(server)
    (second,) = server.wait_replaced([old])
    server.signal_worker(second, signal.SIGKILL)
    server.wait_replaced([second])
    assert ask(server)[1:] == [str(old), "1"]
    mark = server.mark()
    os.kill(mold, signal.SIGKILL)
    server.wait_log(rf"the mold of generation 2 \(pid {mold}\) ended; its workers serve on", mark)
    server.wait_log("finished after", mark)
    assert ask(server)[1] not in (str(old), str(mold)), "a new mold has imported the app"


def test_what_a_worker_has_before_it_forks(serve: Serve, tmp_path: Path) -> None:
    """The hook closes what its mold must not share; the log warns of what is left."""
    (tmp_path / "conf.py").write_text(
        "def before_refork(server, worker):\n"
        "    import cached\n"
        "    cached.POOL.pop().close()\n"
        "    print('closed by', worker.pid, flush=True)\n"
        "def after_mold(server, worker):\n"
        "    import cached\n"
        "    print('forked with', sorted(cached.CACHE), flush=True)\n"
    )
    app = APP + (
        "import socket, threading\n"
        "POOL = [socket.socket()]\n"
        "threading_done = threading.Event()\n"
        "def post(environ, start_response, answer=app):\n"
        "    if not CACHE:\n"
        "        threading.Thread(target=threading_done.wait, name='batch', daemon=True).start()\n"
        "    return answer(environ, start_response)\n"
    )
    (tmp_path / "cached.py").write_text(app)
    server = serve(
        *("cached:post", "-k", "sync", "-w", "1", "-c", "conf.py", "--preload"),
        *("--refork-after", "5"),
    )
    (old,) = server.wait_workers(1)
    reforked(server)
    server.wait_replaced([old])
    server.wait_log(f"closed by {old}")
    server.wait_log("The thread batch was started in a worker that forks the next mold")
    server.wait_log(r"forked with \['filled by'\]")


def test_a_hook_that_fails(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text("def before_refork(server, worker):\n    1 / 0\n")
    server = start(serve, tmp_path, "-k", "sync", "-c", "conf.py", "--refork-after", "20")
    with Load(server.port, {"raw-fresh": 2}) as load:
        server.wait_log("rolled back: the next mold could not be forked: ZeroDivisionError")
        load.wait_answers(100)
    assert load.failures == []
    server.wait_workers(2)
    assert server.log().count("requests): it forks the next mold") == 1, "it is not tried again"


def test_workers_that_cant_boot_from_a_warmed_mold(serve: Serve, tmp_path: Path) -> None:
    """The canary fails, and the old mold forks the workers again."""
    (tmp_path / "conf.py").write_text(
        "def post_fork(server, worker):\n"
        "    import cached\n"
        "    assert not cached.CACHE, 'a lock is held'\n"
    )
    server = start(serve, tmp_path, "-k", "sync", "-c", "conf.py", "--refork-after", "20")
    with Load(server.port, {"raw-fresh": 2}) as load:
        server.wait_log("rolled back: its first worker failed: AssertionError: a lock is held;")
        load.wait_answers(100)
    assert load.failures == []
    (mold,) = map(int, READY.findall(server.log()))
    wait_for(lambda: stat(mold) is None, "the end of the bad mold")
    server.wait_workers(2)


def test_large_caches_exist_once(serve: Serve, tmp_path: Path) -> None:
    app = APP + (
        "\nDATA = []\n"
        "def load(environ, start_response):\n"
        "    if not DATA:\n"
        "        DATA.extend(bytes([n % 255 + 1]) * (1 << 20) for n in range(48))\n"
        "    return app(environ, start_response)\n"
    )
    (tmp_path / "cached.py").write_text(app)
    flags = ("-k", "sync", "-w", "2", "--preload", "--refork-after", "5")
    server = serve("cached:load", *flags, ready=2)
    old = server.wait_workers(2)
    reforked(server)
    for pid in server.wait_replaced(old):
        assert shared_kib(pid) >= 48 << 10


def test_with_reuse_port(serve: Serve, tmp_path: Path) -> None:
    flags = ("-k", "sync", "--reuse-port", "--refork-after", "20")
    server = start(serve, tmp_path, *flags, workers=3)
    old = server.wait_workers(3)
    with Load(server.port, {"raw-fresh": 4}) as load:
        server.wait_replaced(old)
        load.wait_answers(50)
    assert load.failures == []


def test_where_a_refork_makes_no_sense(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "cached.py").write_text(APP)
    server = serve("cached:app", "--refork-after", "5", ready=0)
    assert server.wait_exit() == 2
    server.wait_log("refork_after: 5 has no effect without preload_app")
    server = serve("cached:app", "-k", "async", "--preload", "--refork-after", "5", ready=0)
    assert server.wait_exit() == 3
    server.wait_log("refork_after is for WSGI apps in workers of class sync or thread")
