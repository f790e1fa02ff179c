"""From the arbiter's answers to samples."""

from __future__ import annotations

from typing import Any

import pytest
from unit.dashboard.answers import histogram, status, worker, workers

from servo.dashboard.samples import Sampler
from servo.shared_memory.row_layout import LATENCY_BOUNDS_S


def test_rates_are_the_differences_of_totals() -> None:
    sampler = Sampler()
    first = sampler.sample(1, 100.0, 5.0, status(10), workers())
    assert (first["rate"], first["classes"]["2xx"]) == (None, None)
    assert first["total"]["requests"] == 10
    second = sampler.sample(2, 102.0, 7.0, status(50, errors=10), workers())
    assert (second["rate"], second["classes"]["2xx"], second["classes"]["5xx"]) == (20.0, 15.0, 5.0)
    assert second["total"] == {"requests": 50, "1xx": 0, "2xx": 40, "3xx": 0, "4xx": 0, "5xx": 10}


def test_counters_that_begin_again_have_no_rate() -> None:
    sampler = Sampler()
    sampler.sample(1, 100.0, 5.0, status(10), workers())
    assert sampler.sample(2, 101.0, 6.0, status(3), workers())["rate"] is None
    assert sampler.sample(3, 102.0, 7.0, status(5), workers())["rate"] == 2.0


def test_percentiles_are_those_of_the_last_seconds() -> None:
    sampler = Sampler()
    sampler.sample(1, 0.0, 0.0, status(0, latency=histogram(b9=1000)), workers())
    sample: dict[str, Any] = {}
    for second in range(1, 8):
        slow = 1 if second > 1 else 0
        counts = histogram(b9=1000, b2=990, b12=slow)
        sample = sampler.sample(second, 0.0, second, status(0, latency=counts), workers())
        if second == 2:
            assert sample["p50"] <= LATENCY_BOUNDS_S[2]
            assert sample["p99"] <= LATENCY_BOUNDS_S[2]
            assert LATENCY_BOUNDS_S[11] < sample["p999"] <= LATENCY_BOUNDS_S[12]
    assert sample["p50"] is None  # the last requests were answered more than 5 s before


def test_a_worker_has_its_usage_and_latency() -> None:
    sampler = Sampler()
    row = worker(cpu_percent=12.5, rss_bytes=1000, last_exit_text="crashed by signal 11 (SIGSEGV)")
    sampler.sample(1, 0.0, 0.0, status(), {**workers(row), "cpu_percent": 2.5, "rss_bytes": 500})
    row = {**row, "latency": histogram(b3=4), "blocked_s": 1.5, "state": "ready"}
    answer = {**workers(row), "cpu_percent": None, "rss_bytes": 500}
    sample = sampler.sample(2, 1.0, 1.0, status(), answer)
    assert (sample["cpu"], sample["memory"]) == (0.125, 1500)
    (shown,) = sample["workers"]
    assert (shown["cpu"], shown["memory"], shown["blocked"]) == (0.125, 1000, 1.5)
    assert LATENCY_BOUNDS_S[2] < shown["p99"] <= LATENCY_BOUNDS_S[3]
    assert shown["last_exit"] == "crashed by signal 11 (SIGSEGV)"


def test_a_worker_that_is_just_forked_has_gaps() -> None:
    row = {"slot": 2, "pid": 9, "serial": 3, "generation": 1, "state": "spawned", "age_s": 0.1}
    sample = Sampler().sample(1, 0.0, 0.0, status(), workers({**row, "leaving": ""}))
    (shown,) = sample["workers"]
    assert (shown["rate"], shown["p99"], shown["blocked"], shown["last_exit"]) == (
        *(None, None, None),
        "",
    )
    assert sample["loop_lag"] is None


def test_short_waits_are_not_shown_as_blocked() -> None:
    sample = Sampler().sample(1, 0.0, 0.0, status(), workers(worker(blocked_s=0.2)))
    assert sample["workers"][0]["blocked"] is None


@pytest.mark.parametrize(
    ("state", "shown"), [("running", "serving"), ("reloading", "reloading"), ("paused", "paused")]
)
def test_a_running_server_serves(state: str, shown: str) -> None:
    assert Sampler().sample(1, 0.0, 0.0, status(state=state), workers())["state"] == shown


def test_each_listener_has_its_queue() -> None:
    two = ["http://127.0.0.1:8000", "unix:/run/a.sock"]
    queues = [{"waiting": 1, "limit": 5, "drops": 0}, None]
    sampler = Sampler()
    answer = status(listeners=two, accept_queues=queues)
    assert sampler.sample(1, 0.0, 0.0, answer, workers())["accept_queue"] == [
        {"listener": "http://127.0.0.1:8000", "length": 1, "limit": 5}
    ]
    stopping = status(listeners=two, accept_queues=[])
    assert sampler.sample(2, 1.0, 1.0, stopping, workers())["accept_queue"] == []


def test_a_lost_server_has_the_same_fields() -> None:
    sampler = Sampler()
    known = sampler.sample(1, 0.0, 0.0, status(5), workers(worker()))
    lost = sampler.lost(2, 1.0)
    assert lost.keys() == known.keys()
    assert (lost["state"], lost["rate"], lost["workers"]) == ("lost", None, [])
    assert lost["total"]["requests"] == 5
    assert Sampler().lost(1, 0.0)["total"] is None


def test_a_pool_has_its_processes_and_its_rate() -> None:
    def pool(done: int, **more: Any) -> dict[str, Any]:
        tasks = {"done": done, "failed": 2, "abandoned": 0, "lost": 0}
        processes = [
            {"state": "busy", "rss": 100},
            {"state": "idle", "rss": 50},
            {"state": "booting", "rss": None},
        ]
        values = {"name": "ml", "workers": 3, "queue": {"waiting": 1, "limit": 8}, "failure": ""}
        return {**values, "tasks": tasks, "processes": processes, **more}

    sampler = Sampler()
    (first,) = sampler.sample(1, 0.0, 1.0, status(), workers(), [pool(10)])["pools"]
    assert (first["rate"], first["state"]) == (None, "serving")
    answer = [pool(16, failure="it has no model", queue=None)]
    (second,) = sampler.sample(2, 2.0, 3.0, status(), workers(), answer)["pools"]
    assert second == {
        "name": "ml",
        "state": "failing",
        "workers": 2,
        "target": 3,
        "busy": 1,
        "rate": 3.0,
        "queued": None,
        "queue_limit": None,
        "failed": 2,
        "memory": 150,
    }
