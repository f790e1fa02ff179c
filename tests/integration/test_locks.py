"""`cluster.lock` in real servers: one owner, and never a lock that nobody can take again."""

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

from integration.server import Server, wait_for
from integration.test_counters import Clients, arguments

pytestmark = pytest.mark.slow

Serve = Callable[..., Server]


def test_one_owner_while_workers_are_killed(
    serve: Serve, worker_class: str, tmp_path: Path
) -> None:
    chance = random.Random(18)
    server = serve(*arguments(worker_class), "-w", "3", ready=3)
    returned = tmp_path / "returned"
    with Clients(server, "/critical", 6):
        for signum in (0, signal.SIGHUP):
            if signum:
                server.signal(signum)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                time.sleep(chance.uniform(0.1, 0.4))
                with contextlib.suppress(ProcessLookupError, IndexError):
                    os.kill(chance.choice(server.worker_pids()), signal.SIGKILL)
        before = returned.stat().st_size
        wait_for(lambda: returned.stat().st_size > before + 20, "20 more owners")
    assert not (tmp_path / "violated").exists()
    assert before > 50


def test_the_lock_of_a_killed_worker_is_free_at_once(
    serve: Serve, worker_class: str, tmp_path: Path
) -> None:
    server = serve(*arguments(worker_class), "-w", "2", "--timeout", "0", ready=2)

    def hold() -> None:
        with contextlib.suppress(requests.RequestException):
            requests.get(f"{server.url}/hold", timeout=60)

    holder = threading.Thread(target=hold)
    holder.start()
    wait_for(lambda: (tmp_path / "held").exists() and (tmp_path / "held").read_text(), "an owner")
    answers = []

    def enter() -> None:
        # The holder itself may accept it, and be killed with it.
        while "ok" not in answers:
            with contextlib.suppress(requests.RequestException):
                answers.append(requests.get(f"{server.url}/critical", timeout=60).text)

    other = threading.Thread(target=enter)
    other.start()
    assert not answers
    os.kill(int((tmp_path / "held").read_text()), signal.SIGKILL)
    other.join(30)
    holder.join(30)
    assert "ok" in answers
    assert not (tmp_path / "violated").exists()
