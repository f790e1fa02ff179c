"""The arbiter's answers to "status" and "workers"."""

from __future__ import annotations

from typing import Any

from servo.shared_memory.row_layout import LATENCY_BUCKETS


def histogram(**counts: int) -> list[int]:
    """A histogram with so many requests in some buckets: `histogram(b3=5)`."""
    found = [0] * LATENCY_BUCKETS
    for name, count in counts.items():
        found[int(name[1:])] = count
    return found


def status(requests: int = 0, *, errors: int = 0, **more: Any) -> dict[str, Any]:
    """Answered requests, of which some with 5xx."""
    return {
        "name": "shop",
        "pid": 7,
        "version": "1.0",
        "python": "3.13.0",
        "app": "shop:app",
        "worker_class": "async",
        "started_at": 1000.0,
        "state": "running",
        "phase": "",
        "generation": 1,
        "workers": {"target": 2},
        "requests": requests,
        "statuses": {"1xx": 0, "2xx": requests - errors, "3xx": 0, "4xx": 0, "5xx": errors},
        "latency": histogram(b4=requests),
        "thread_waits": histogram(),
        "queue_times": histogram(),
        "in_flight": 1,
        "utilisation": 0.25,
        "listeners": ["http://127.0.0.1:8000"],
        "accept_queues": [{"waiting": 3, "limit": 2048, "drops": 0}],
        **more,
    }


def worker(serial: int = 1, **more: Any) -> dict[str, Any]:
    """A row of the answer to "workers"."""
    return {
        "slot": 1,
        "pid": 1000 + serial,
        "serial": serial,
        "generation": 1,
        "state": "ready",
        "age_s": 5.0,
        "leaving": "",
        "last_exit": "",
        "blocked_s": 0.0,
        "requests": 0,
        "requests_per_s": 0.0,
        "in_flight": 0,
        "utilisation": 0.5,
        "latency": histogram(),
        "lag_s": 0.001,
        **more,
    }


def workers(*rows: dict[str, Any]) -> dict[str, Any]:
    """The answer to "workers"."""
    return {"server_pid": 7, "target": 2, "workers": list(rows)}
