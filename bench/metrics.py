"""Measure what metrics cost a request: CPU time with counting and without it, in one run.

    python3 bench/metrics.py                          both worker classes, about two minutes
    python3 bench/metrics.py --duration 30 --servers async

One worker alternates between counting and not counting (`alternating.py`), while its metrics are
scraped every 5 s and sent to statsd every second. The CPU time of the process that serves them is
measured separately. The figures are the lowest deciles over blocks of 500 requests. This uses the
environment, the load and the port of `run.py`, so the two can't run at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import environment
import load
import process
import run
from servers import BIND, HERE, PORT, REPOSITORY
from workloads import WORKLOADS

CLASSES = {"sync": "apps.hello:wsgi", "async": "apps.hello:asgi"}
LOADS = ("hello", "browser")
METRICS_PORT = PORT + 1
WARM_UP_S = 1.0
SCRAPE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--duration", type=float, default=15.0, help="seconds of each measurement")
    parser.add_argument("--servers", default="sync,async")
    parser.add_argument("--python", default=environment.default_python())
    options = parser.parse_args()
    seconds = max(2.0, min(options.duration, 120.0))
    classes = run.chosen(parser, options.servers, CLASSES)
    python = environment.prepare(options.python)
    print("| worker | load | nothing counted | counted | more | serving it | more |")
    print("|---|---|---|---|---|---|---|")
    for name in classes:
        for workload in LOADS:
            bare, counted, served = measure(python, name, workload, seconds)
            cells = [name, workload, f"{bare:.2f} µs", f"{counted:.2f} µs"]
            cells += [f"{(counted / bare - 1) * 100:.1f} %", f"{served:.3f} µs"]
            cells.append(f"{((counted + served) / bare - 1) * 100:.1f} %")
            print(f"| {' | '.join(cells)} |", flush=True)


def measure(python: str, name: str, workload: str, seconds: float) -> tuple[float, float, float]:
    """CPU µs per request: the worker without counting and with it, and the metrics process."""
    with (
        tempfile.TemporaryDirectory() as directory,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd,
    ):
        statsd.bind(("127.0.0.1", 0))
        result = Path(directory, "result")
        with running(python, name, result, statsd.getsockname()[1]) as arbiter, scraping():
            load.closed(WORKLOADS[workload], WARM_UP_S)
            exporter = exporter_of(arbiter)
            before = cpu_ns(exporter)
            answered = load.closed(WORKLOADS[workload], seconds)["requests"]
            used = cpu_ns(exporter) - before
        # Other programs can only add time, so the quietest moments are the most accurate.
        blocks = json.loads(result.read_text())
        bare, counted = (statistics.quantiles(each, n=10)[0] for each in blocks)
        return bare / 1e3, counted / 1e3, used / answered / 1e3


@contextlib.contextmanager
def running(python: str, name: str, result: Path, statsd_port: int) -> Iterator[int]:
    """Run the server in its own session on the first core; stop it at the end of the block."""
    command = [python, "alternating.py", "--bind", BIND, "--workers", "1", "-k", name]
    command += ["--metrics-bind", f"127.0.0.1:{METRICS_PORT}"]
    command += ["--statsd-host", f"127.0.0.1:{statsd_port}", "--log-level", "warning"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SERVO_", "GUNICORN_"))}
    server = subprocess.Popen(
        [*command, CLASSES[name]],
        cwd=HERE,
        # Import the plain source instead of the installed package: `alternating.py` patches it.
        env={**env, "ALTERNATING_RESULT": str(result), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.pin(server.pid, first=True)
    try:
        process.wait_open(server)
        yield server.pid
    finally:
        process.end(server)


def exporter_of(arbiter: int) -> int:
    """The pid of the metrics process: the only child of the arbiter that is not a worker."""
    url = f"http://127.0.0.1:{METRICS_PORT}/status.json"
    with urllib.request.urlopen(url, timeout=10) as response:
        workers = {worker["pid"] for worker in json.load(response)["workers"]}
    children = Path(f"/proc/{arbiter}/task/{arbiter}/children").read_text().split()
    (pid,) = set(map(int, children)) - workers
    return pid


def cpu_ns(pid: int) -> int:
    """CPU time (ns) of a process with one thread, as the scheduler counts it."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


@contextlib.contextmanager
def scraping() -> Iterator[None]:
    """Request /metrics every SCRAPE_S inside the block, which is more often than usual."""
    done = threading.Event()

    def scrape() -> None:
        url = f"http://127.0.0.1:{METRICS_PORT}/metrics"
        while not done.wait(SCRAPE_S):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
                response.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
