"""Large numbers of workers, binds and signals."""

from __future__ import annotations

import itertools
import signal
from typing import TYPE_CHECKING

import pytest
import requests

from integration.conftest import class_args
from integration.server import APPS, DEADLINE_S, Server, free_port, wait_for
from integration.turmoil import connect as control

if TYPE_CHECKING:
    from integration.conftest import Serve

pytestmark = pytest.mark.slow

BOOT_S = 120.0


def is_settled(server: Server) -> bool:
    """Whether there are as many workers as there should be, all of them ready."""
    with control(server) as client:
        target = client.request("status")["workers"]["target"]
        rows = client.request("workers")["workers"]
    return len(rows) == target and all(row["state"] == "ready" for row in rows)


def test_many_workers_and_many_signals(serve: Serve) -> None:
    flags = ("-k", "sync", "--reuse-port", "--timeout", "120")
    server = serve(f"{APPS / 'wsgi_app.py'}:app", *flags, "-w", "64", ready=0)
    server.wait_ready(64, BOOT_S)
    signals = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGTTOU, signal.SIGTTIN)
    for signum in itertools.islice(itertools.cycle(signals), 1000):
        server.signal(signum)
    server.signal(signal.SIGHUP)
    server.wait_log("reload .* finished", deadline_s=BOOT_S)
    wait_for(lambda: is_settled(server), "all workers", BOOT_S)
    for _ in range(64):
        assert requests.get(f"{server.url}/", timeout=DEADLINE_S).ok
    assert server.stop(deadline_s=BOOT_S) == 0


@pytest.mark.parametrize("reuse", [(), ("--reuse-port",)], ids=["shared", "reuse_port"])
def test_many_binds(serve: Serve, worker_class: str, reuse: tuple[str, ...]) -> None:
    ports = [free_port() for _ in range(200)]
    binds = [flag for port in ports for flag in ("--bind", f"127.0.0.1:{port}")]
    server = serve(*class_args(worker_class), "-w", "2", *reuse, *binds, ready=2)
    for port in ports:
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=DEADLINE_S).ok
    old = server.worker_pids()
    server.signal(signal.SIGHUP)
    server.wait_replaced(old)
    for port in ports:
        assert requests.get(f"http://127.0.0.1:{port}/", timeout=DEADLINE_S).ok
    assert server.stop() == 0
