"""What counting, and serving the counts, costs a request: CPU time with it and without, in one run.

    python3 bench/metrics.py                       both worker classes, about four minutes
    python3 bench/metrics.py --rounds 60 --servers async

Three servers of a class live side by side on the first core: one with nothing measured
(`uncounted.py`), one as it comes, and one whose metrics are scraped and sent to statsd each second.
They take turns under load, a second each, so that whatever else the machine does meets all of them.
The result is each one's lower quartile. Environment and load are `run.py`'s.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import run

CLASSES = {"sync": "apps:wsgi", "async": "apps:asgi"}
KINDS = ("uncounted", "counted", "served")
FIRST_PORT = run.PORT + 1
METRICS_PORT = FIRST_PORT + len(KINDS)
SLICE_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--servers", default="sync,async")
    parser.add_argument("--workloads", default="hello,browser")
    parser.add_argument("--python", default=run.default_python())
    options = parser.parse_args()
    rounds = max(3, min(options.rounds, 200))
    workloads = run.chosen(parser, options.workloads, {"hello": 0, "browser": 0})
    python = run.prepare(options.python)
    rows = []
    for name in run.chosen(parser, options.servers, CLASSES):
        with contextlib.ExitStack() as stack:
            statsd = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            statsd.bind(("127.0.0.1", 0))
            sessions = {
                kind: stack.enter_context(
                    running(python, name, kind, FIRST_PORT + i, statsd.getsockname()[1])
                )
                for i, kind in enumerate(KINDS)
            }
            stack.enter_context(scraping())
            for workload in workloads:
                rows.append(f"| {name} | {workload} | {compare(sessions, workload, rounds)} |")
                print(rows[-1], flush=True)
    print("\n| worker | load | nothing measured | counted | and served | counted | and served |")
    print("\n".join(["|---|---|---|---|---|---|---|", *rows]))


def compare(sessions: dict[str, int], workload: str, rounds: int) -> str:
    """The cells of a row: µs a request of each kind; what it is more than with nothing measured."""
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        turn = number % len(KINDS)
        for kind in KINDS[turn:] + KINDS[:turn]:
            run.PORT = FIRST_PORT + KINDS.index(kind)
            run.BIND = f"127.0.0.1:{run.PORT}"
            before = cpu_ns(sessions[kind])
            load = run.generate(workload, SLICE_S)
            if load["errors"] or not load["requests"]:
                raise SystemExit(f"{kind}, {workload}: {load}")
            if number:  # the first round only warms up
                samples[kind].append((cpu_ns(sessions[kind]) - before) / load["requests"] / 1e3)
    # Whatever else the machine does only ever adds: the quietest quarter is nearest to the truth.
    quiet = {kind: statistics.quantiles(taken, n=4)[0] for kind, taken in samples.items()}
    cells = [f"{value:.2f}" for value in quiet.values()]
    cells += [f"{quiet[kind] / quiet['uncounted'] * 100 - 100:+.1f} %" for kind in KINDS[1:]]
    return " | ".join(cells)


@contextlib.contextmanager
def running(python: str, name: str, kind: str, port: int, statsd_port: int) -> Iterator[int]:
    """A server in a session of its own on the first core; every process of it ends with this."""
    command = [python, *(["uncounted.py"] if kind == "uncounted" else ["-m", "servo"])]
    command += ["--bind", f"127.0.0.1:{port}", "--workers", "1", "--log-level", "warning"]
    command += ["-k", name, "--no-control-socket"]
    if kind == "served":
        command += ["--metrics-bind", f"127.0.0.1:{METRICS_PORT}"]
        command += ["--statsd-host", f"127.0.0.1:{statsd_port}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("SERVO_", "GUNICORN_"))}
    process = subprocess.Popen(
        [*command, CLASSES[name]],
        cwd=run.HERE,
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    run.pin(process.pid, first=True)
    try:
        end = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the {kind} server did not open its port")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        for pid in run.members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def cpu_ns(session: int) -> int:
    """CPU time of every thread of a session's processes, as the scheduler counts it: to the ns."""
    total = 0
    for pid in run.members(session):
        for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(stat.read_text().split()[0])
    return total


@contextlib.contextmanager
def scraping() -> Iterator[None]:
    """Ask for /metrics once a second meanwhile, sixty times as often as is usual."""
    done = threading.Event()

    def scrape() -> None:
        url = f"http://127.0.0.1:{METRICS_PORT}/metrics"
        while not done.wait(1.0):
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
