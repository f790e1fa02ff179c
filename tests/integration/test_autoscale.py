"""A server that scales by load: with real clients that wait, and then with none."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.server import Server, wait_for

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

WSGI = """
import time
def app(environ, start_response):
    time.sleep(0.3)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
FLAGS = {
    "sync": ("-k", "sync"),
    "thread": ("-k", "thread", "--threads", "2"),
    "async with wsgi": ("-k", "async", "--threads", "2"),
}


class Clients:
    """Clients that send one request after the other until they are stopped."""

    def __init__(self, server: Server, count: int) -> None:
        self.server = server
        self.stopped = False
        self.failures: list[str] = []
        self.threads = [threading.Thread(target=self.run) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self) -> None:
        while not self.stopped:
            try:
                with urllib.request.urlopen(self.server.url, timeout=60) as response:
                    assert response.read() == b"ok"
            except OSError as error:
                self.failures.append(repr(error))

    def stop(self) -> None:
        self.stopped = True
        for thread in self.threads:
            thread.join()


@pytest.mark.parametrize("kind", FLAGS)
def test_it_grows_with_slow_clients_and_shrinks_when_they_are_gone(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "waits.py").write_text(WSGI)
    flags = ("-w", "2:5", "--scale-down-delay", "2")
    server = serve("waits:app", *FLAGS[kind], *flags, ready=2)
    clients = Clients(server, 12)
    try:
        server.wait_workers(5)
    finally:
        clients.stop()
    server.wait_workers(2)
    assert clients.failures == []
    log = server.log()
    assert re.search(r"scaled up to \d from 2: \d+% of the capacity is in use", log)
    assert "scaled down to 2 from 3: fewer were enough for 2 s" in log
    assert log.count("scaled up") <= 3


def test_a_reload_and_signals_while_it_scales(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WSGI)
    server = serve("waits:app", "-k", "sync", "-w", "2:5", "--scale-down-delay", "2", ready=2)
    clients = Clients(server, 8)
    try:
        server.wait_log("scaled up to 4")
        server.signal(1)
        server.wait_log("reload .* finished")
        old = server.wait_workers(5)
        server.signal(1)
        server.wait_replaced(old)
    finally:
        clients.stop()
    assert clients.failures == []
    server.wait_workers(2)
    server.signal(21)  # TTIN
    server.wait_log("SIGTTIN: at least 3 instead of 2 workers, at most 5")
    server.wait_workers(3)


def test_a_quiet_server_stays_at_its_lower_bound(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(WSGI)
    server = serve("waits:app", "-w", "1:4", ready=1)
    begun = time.monotonic()
    # The policy has measured eight times by then.
    wait_for(lambda: time.monotonic() - begun > 2, "two seconds")
    assert len(server.worker_pids()) == 1
    assert "scaled" not in server.log()


MOLDED = WSGI.replace("import time", "import os, time\nIMPORTED_BY = str(os.getpid())").replace(
    'return [b"ok"]',
    'open("imported_by", "a").write(f"{os.getpid()} {IMPORTED_BY}\\n")\n    return [b"ok"]',
)


@pytest.mark.parametrize("flags", [(), ("--refork-after", "20")])
@pytest.mark.parametrize("kind", ["sync", "thread"])
def test_new_workers_come_from_the_mold(
    serve: Serve, tmp_path: Path, kind: str, flags: tuple[str, ...]
) -> None:
    """With reforks, too: the server scales while it replaces the workers."""
    (tmp_path / "waits.py").write_text(MOLDED)

    def answers() -> list[list[str]]:
        return [line.split() for line in (tmp_path / "imported_by").read_text().splitlines()]

    flags = (*flags, "-w", "2:5", "--scale-down-delay", "2", "--preload")
    server = serve("waits:app", *FLAGS[kind], *flags, ready=2)
    clients = Clients(server, 12)
    try:
        server.wait_workers(5)
        if "--refork-after" in flags:
            server.wait_log("requests.* finished after")
        server.wait_workers(5)
        wait_for(lambda: len({pid for pid, _ in answers()}) >= 5, "an answer of each worker")
    finally:
        clients.stop()
    server.wait_workers(2)
    assert clients.failures == []
    (mold,) = {imported_by for _, imported_by in answers()}
    assert f"the mold of generation 1 (pid {mold}) has imported the app" in server.log()
    assert server.log().count("has imported the app") == 1
