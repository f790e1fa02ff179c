"""Measure how many messages per second one worker can send to another, and how long a request to
another worker takes.

    make bench-messages
    make bench-messages ARGS="--count 200000 --classes async"

The server has two workers. The one that gets the HTTP request sends small messages (about 40 bytes
of JSON) through the arbiter to the other, as fast as it can. None may be lost or out of order. Then
it sends requests (`cluster.request`), one after the other. Everything runs on 127.0.0.1, on all
cores.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PORT = 18_766
CLASSES = {
    "sync": ("apps.messages:wsgi", "-k", "sync"),
    "thread": ("apps.messages:wsgi", "-k", "thread", "--threads", "4"),
    "async": ("apps.messages:app", "-k", "async", "--lifespan", "off"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=81_920, help="messages in a round")
    parser.add_argument("--asks", type=int, default=2_000, help="questions in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", default="sync,thread,async")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores")
    print("| worker | messages/s | CPU µs a message | question p50 | p99 |")
    print("|---|---|---|---|---|")
    for name in options.classes.split(","):
        print(measure(name, options), flush=True)


def measure(name: str, options: argparse.Namespace) -> str:
    command = [options.python, "-m", "servo", *CLASSES[name], "-w", "2"]
    command += ["--bind", f"127.0.0.1:{PORT}", "--log-level", "warning"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    server = subprocess.Popen(command, cwd=HERE, env=environment)
    try:
        wait_for_both()
        rates, cpu, times = [], [], []
        for _ in range(options.rounds):
            before = cpu_seconds(server.pid)
            result = get(f"/send?{options.count}")
            assert result["in_order"], result
            rates.append(result["received"] / result["seconds"])
            cpu.append((cpu_seconds(server.pid) - before) / result["received"] * 1e6)
            moments = get(f"/ask?{options.asks}")["times"]
            times += [b - a for a, b in itertools.pairwise(moments)]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    cuts = statistics.quantiles(times, n=100)
    least, most = min(rates), max(rates)
    return (
        f"| {name} | {statistics.median(rates):,.0f} ({least:,.0f}–{most:,.0f})"
        f" | {statistics.median(cpu):.1f}"
        f" | {cuts[49] * 1e6:,.0f} µs | {cuts[98] * 1e6:,.0f} µs |"
    )


def get(path: str) -> dict:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, body[:1000]
    return json.loads(body)


def wait_for_both() -> None:
    """Wait until the workers can reach each other."""
    for _ in range(200):
        try:
            if get("/ask?1")["times"]:
                return
        except (OSError, AssertionError):
            time.sleep(0.1)
    raise SystemExit("the server does not come up")


def cpu_seconds(arbiter: int) -> float:
    """User and system time of the arbiter and its children."""
    ticks = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has ended
        if int(entry) == arbiter or int(fields[1]) == arbiter:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
