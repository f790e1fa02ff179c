"""The latency of normal requests beside each flood over HTTP/2."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration.h2_floods import FLOODS, Flood
from integration.server import APPS, Server

Latency = Callable[[Server, str, list[str]], dict[str, float]]

# How long a disconnected client would need to reconnect across a network.
PAUSE_S = 0.05


def http2_floods(
    directory: Path, latency: Latency, rounds: int, limit: float, problems: list[str]
) -> dict[str, dict[str, float]]:
    """A row for each flood: medians of the rounds, which alternate between flood and no flood.

    latency   measures a server: p50_ms and p99_ms
    limit     the p99 during a flood may be this many times the p99 without one
    """
    server = Server(
        f"{APPS / 'asgi_app.py'}:app",
        *("-k", "async", "-w", "1", "--http2-cleartext", "prior-knowledge"),
        cwd=directory,
    ).start()
    rows: dict[str, dict[str, float]] = {}
    try:
        server.wait_ready(1)
        latency(server, "warming up", [])
        for name in FLOODS:
            with apart(server.wait_workers(1)):
                rows[name] = beside_and_alone(server, name, latency, rounds, problems)
            print(f"http2, {name}: {rows[name]}", flush=True)
            if rows[name]["p99_ms"] > limit * rows[name]["alone p99_ms"]:
                problems.append(f"http2, {name}: {rows[name]}")
            if not rows[name]["connections ended"]:
                problems.append(f"http2, {name}: no connection was ended")
        server.stop()
    finally:
        server.kill_all()
    return rows


def beside_and_alone(
    server: Server, name: str, latency: Latency, rounds: int, problems: list[str]
) -> dict[str, float]:
    alone, beside, ended = [], [], 0
    for _ in range(rounds):
        alone.append(latency(server, f"http2, {name}", problems)["p99_ms"])
        flood = start(server.port, name)
        beside.append(latency(server, f"http2, {name}", problems)["p99_ms"])
        ended += stop(flood)
    return {
        "p99_ms": statistics.median(beside),
        "alone p99_ms": statistics.median(alone),
        "connections ended": ended,
    }


@contextlib.contextmanager
def apart(workers: list[int]) -> Iterator[None]:
    """Keep the CPU time of the flood's sender away from the measurement, as a network would.

    The workers have their own core. The measuring threads share the others with the flood and have
    priority over it. Without that, a kernel with lazy preemption lets it run for milliseconds.
    """
    cores = sorted(os.sched_getaffinity(0))
    policy = os.sched_getscheduler(0)
    for pid in workers:
        os.sched_setaffinity(pid, cores[:1])
    os.sched_setaffinity(0, cores[1:] or cores)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        print("http2: not root, so the flood delays what is measured", flush=True)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, os.sched_param(0))
        os.sched_setaffinity(0, cores)


def start(port: int, name: str) -> subprocess.Popen[str]:
    """Start the flood in a separate process, so that it doesn't delay the measuring threads."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "flooding\n"
    return process


def stop(process: subprocess.Popen[str]) -> int:
    """Stop the flood; return how many of its connections the server ended."""
    return int(process.communicate(timeout=60)[0])


def main() -> None:
    """Flood until standard input ends."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    port, name = sys.argv[1:]
    with Flood(int(port), *FLOODS[name], pause_s=PAUSE_S) as flood:
        time.sleep(0.2)
        print("flooding", flush=True)
        sys.stdin.read()
    print(len(flood.codes))


if __name__ == "__main__":
    main()
