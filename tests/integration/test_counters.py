"""`cluster.counter` in real servers: exact sums while workers are killed, replaced and upgraded."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from integration.server import APPS, Server, wait_for
from integration.test_metrics import serve_with_metrics

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]

CLASSES = {
    "sync": ("app", "-k", "sync"),
    "thread": ("app", "-k", "thread", "--threads", "4"),
    "async": ("asgi", "-k", "async", "--lifespan", "off"),
}


def arguments(worker_class: str) -> tuple[str, ...]:
    app, *flags = CLASSES[worker_class]
    return (f"{APPS / 'state_app.py'}:{app}", *flags)


def values(server: Server) -> list[int]:
    found: list[int] = requests.get(f"{server.url}/value", timeout=30).json()
    return found


class Clients:
    """Threads that request a path all the time, and don't mind if a worker dies."""

    def __init__(self, server: Server, path: str = "/add", count: int = 4) -> None:
        self._url = f"{server.url}{path}"
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        with requests.Session() as session:
            while not self._ended.is_set():
                with contextlib.suppress(requests.RequestException):
                    session.get(self._url, timeout=30)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_sums_are_exact_whatever_ends_the_workers(
    serve: Serve, worker_class: str, tmp_path: Path
) -> None:
    """Kill -9 at random, recycling, a reload and an upgrade, all under load."""
    chance = random.Random(18)
    server = serve(*arguments(worker_class), "-w", "3", "--max-requests", "200", ready=3)
    kills = 0
    with Clients(server):
        for signum in (0, signal.SIGHUP, signal.SIGUSR2):
            if signum:
                server.signal(signum)
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                time.sleep(chance.uniform(0.05, 0.3))
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(chance.choice(server.worker_pids()), signal.SIGKILL)
                    kills += 1
    assert kills > 5
    server.wait_log(r"upgraded: Servo")
    server.wait_workers(3)
    wait_for(lambda: requests.get(f"{server.url}/", timeout=30).text == "ok", "an answer")
    logged = (tmp_path / "returned").stat().st_size
    assert logged > 100
    added, work = values(server)
    # A worker may have been killed between an addition and the next statement.
    assert 0 <= added - logged <= kills
    assert 0 <= logged - work / 3 <= kills
    server.stop()


def test_a_reload_and_a_child_of_the_application(serve: Serve, worker_class: str) -> None:
    server = serve(*arguments(worker_class), "-w", "2", ready=2)
    for _ in range(10):
        requests.get(f"{server.url}/add", timeout=30)
    assert requests.get(f"{server.url}/fork", timeout=30).json()[0] == 1010
    old = server.ready_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    requests.get(f"{server.url}/add", timeout=30)
    assert values(server) == [1011, 33]


def test_counters_are_on_metrics(serve: Serve, worker_class: str) -> None:
    server, metrics = serve_with_metrics(serve, *arguments(worker_class), "-w", "2", ready=2)
    for _ in range(5):
        requests.get(f"{server.url}/add", timeout=30)
    metrics.wait_value(5, "hits_total")
    metrics.wait_value(15, "work_total", step="add")
    server.signal(signal.SIGHUP)
    requests.get(f"{server.url}/add", timeout=30)
    metrics.wait_value(6, "hits_total")


def test_a_mold_makes_the_counters_of_its_workers(serve: Serve, tmp_path: Path) -> None:
    server = serve(*arguments("thread"), "-w", "2", "--preload", ready=2)
    for _ in range(7):
        requests.get(f"{server.url}/add", timeout=30)
    assert values(server) == [7, 21]
    assert (tmp_path / "returned").stat().st_size == 7


def test_a_full_table(serve: Serve) -> None:
    server = serve(*arguments("thread"), "-w", "1", "--cluster-counters", "1")
    response = requests.get(f"{server.url}/add", timeout=30)
    assert response.status_code == 500
    server.wait_log(r"CountersFull: the server has 1 counters already.*\(cluster_counters\)")


def test_the_example_limits_all_workers_together(serve: Serve) -> None:
    example = APPS.parents[2] / "examples" / "rate_limit.py"
    server = serve(f"{example}:app", "-k", "sync", "-w", "3", ready=3)
    began = time.monotonic()
    statuses = [requests.get(f"{server.url}/", timeout=30).status_code for _ in range(150)]
    passed = statuses.count(200)
    assert set(statuses) <= {200, 429}
    # A burst of 10, and then 50 a second; each worker may let one pass too many.
    assert 1 <= passed <= 10 + 50 * (time.monotonic() - began) + 1 + 3


def test_hooks_of_the_configuration_count_too(serve: Serve, tmp_path: Path) -> None:
    """The configuration is read before the server has its table."""
    (tmp_path / "servo.conf.py").write_text(
        "from servo import cluster\n"
        "HOOKED = cluster.counter('hits')\n"
        "def when_ready(server):\n"
        "    HOOKED.add(500)\n"
        "def post_worker_init(worker):\n"
        "    HOOKED.add(10)\n"
    )
    server = serve(*arguments("thread"), "-w", "2", "-c", "servo.conf.py", ready=2)
    requests.get(f"{server.url}/add", timeout=30)
    wait_for(lambda: values(server)[0] == 521, "the sum of the arbiter, two workers and a request")
