"""What a worker's end waits for, and for how long. Ends themselves: tests/integration."""

from __future__ import annotations

import threading

import pytest

from servo.workers.python_exit import grace_end_ns, running_threads
from servo.workers.threads import WorkerThread


@pytest.mark.parametrize(("timeout_s", "own_s"), [(30.0, 29.5), (5.0, 4.5), (1.0, 0.9), (0.0, 0.0)])
def test_a_worker_is_done_shortly_before_it_would_be_killed(timeout_s, own_s):
    assert grace_end_ns(timeout_s, 7_000) == pytest.approx(own_s * 1e9 + 7_000)


def test_threads_that_python_waits_for():
    over = threading.Event()
    threads = [
        threading.Thread(target=over.wait, name="plain"),
        threading.Thread(target=over.wait, name="daemon", daemon=True),
        WorkerThread("ours", over.wait),
    ]
    for thread in threads:
        thread.start()
    try:
        names = {thread.name for thread in running_threads()}
        assert names & {"plain", "daemon", "ours", "MainThread"} == {"plain"}
    finally:
        over.set()
        for thread in threads:
            thread.join()
