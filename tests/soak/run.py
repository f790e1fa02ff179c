"""The long tests: many reloads of a slow app under load, and slow clients beside normal ones.

    make soak                                   everything, about twenty minutes
    make soak ARGS="--reloads 5 --import-s 1"   smaller

Fails on any lost request and on a gap without an answer of 100 ms or more. What it measured goes to
docs/soak.json and docs/soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kept_websockets import kept_websockets

from integration import releases
from integration.load import EVERY_KIND, Load
from integration.server import APPS, REPOSITORY, Server

CLASSES = {
    "sync": ("wsgi_app", ("-k", "sync")),
    "thread": ("wsgi_app", ("-k", "thread", "--threads", "4")),
    "async": ("asgi_app", ("-k", "async")),
}
GAP_LIMIT_S = 0.1
SLOW_CLIENTS = {
    "half a head": b"GET / HTTP/1.1\r\nHost: local",
    "half a body": b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc",
    "silence": b"",
}


def main() -> int:
    options = arguments()
    record: dict[str, dict[str, dict[str, float]]] = {"reloads": {}, "slow_clients": {}}
    problems: list[str] = []
    for worker_class in options.classes.split(","):
        with tempfile.TemporaryDirectory(prefix="servo-soak-") as directory:
            row = reloads(Path(directory), worker_class, options, problems)
            record["reloads"][worker_class] = row
            print(f"{worker_class}: {json.dumps(row)}", flush=True)
        with tempfile.TemporaryDirectory(prefix="servo-soak-") as directory:
            row = slow_clients(Path(directory), worker_class, problems)
            record["slow_clients"][worker_class] = row
            print(f"{worker_class}: {json.dumps(row)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="servo-soak-") as directory:
        row = kept_websockets(Path(directory), min(options.reloads, 5), problems)
        record["websockets"] = {"async": row}
        print(f"websockets: {json.dumps(row)}", flush=True)
    report = markdown(record, options)
    print("\n" + report)
    if options.save:
        docs = REPOSITORY / "docs"
        (docs / "soak.json").write_text(json.dumps(record, indent=1) + "\n")
        (docs / "soak.md").write_text(report)
    for problem in problems:
        print(f"FAILED {problem}")
    return 1 if problems else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--reloads", type=int, default=20)
    parser.add_argument("--import-s", type=float, default=2.0, help="what the app's import takes")
    parser.add_argument("--classes", default=",".join(CLASSES))
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    options.reloads = max(1, min(options.reloads, 100))
    options.import_s = max(0.0, min(options.import_s, 10.0))
    return options


def reloads(
    directory: Path, worker_class: str, options: argparse.Namespace, problems: list[str]
) -> dict[str, float]:
    """Reload after reload, then up and down, then a stop, all under load."""
    releases.deploy(directory, releases.good(worker_class, "1", options.import_s))
    server = Server("release:app", *CLASSES[worker_class][1], "-w", "2", cwd=directory).start()
    try:
        server.wait_ready(2)
        with Load(server.port, EVERY_KIND) as load:
            load.wait_answers(200)
            for number in range(options.reloads):
                old = server.worker_pids()
                source = releases.good(worker_class, str(number + 2), options.import_s)
                releases.deploy(directory, source)
                server.signal(signal.SIGHUP)
                server.wait_replaced(old)
            for signum, count in [(signal.SIGTTIN, 3), (signal.SIGTTOU, 2)] * 3:
                server.signal(signum)
                server.wait_workers(count)
            load.wait_answers(200)
        gap = load.longest_gap()
        problems += [f"{worker_class}, reloads: {failure}" for failure in load.failures]
        if gap >= GAP_LIMIT_S:
            problems.append(f"{worker_class}, reloads: no answer for {gap * 1e3:.0f} ms")
        lost = stop_under_load(server)
        problems += [f"{worker_class}, stop: {failure}" for failure in lost]
    finally:
        server.kill_all()
    return {
        "reloads": options.reloads,
        "answers": load.answers,
        "failures": len(load.failures) + len(lost),
        "longest_gap_ms": round(gap * 1e3, 1),
        **percentiles(load.latencies),
    }


def stop_under_load(server: Server) -> list[object]:
    """The requests that were wholly sent before TERM and got no answer."""
    with Load(server.port, {"raw-kept": 2, "raw-fresh": 2}, "/?s=0.05") as load:
        load.wait_answers(100)
        asked_at = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_exit()
    return [f for f in load.failures if f.sent_at is not None and f.sent_at < asked_at]


def slow_clients(directory: Path, worker_class: str, problems: list[str]) -> dict[str, float]:
    """The latency of normal requests, alone and beside 200 clients of each slow kind."""
    module, flags = CLASSES[worker_class]
    server = Server(f"{APPS / module}.py:app", *flags, "-w", "1", cwd=directory).start()
    row: dict[str, float] = {}
    try:
        server.wait_ready(1)
        for kind, beginning in {"idle server": None, **SLOW_CLIENTS}.items():
            with contextlib.ExitStack() as stack:
                for _ in range(200 if beginning is not None else 0):
                    client = stack.enter_context(
                        socket.create_connection(("127.0.0.1", server.port), timeout=30)
                    )
                    client.sendall(beginning or b"")
                with Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as load:
                    load.wait_answers(2000, deadline_s=120)
            problems += [f"{worker_class}, {kind}: {failure}" for failure in load.failures]
            for name, value in percentiles(load.latencies).items():
                row[f"{kind} {name}"] = value
        server.stop()
    finally:
        server.kill_all()
    return row


def percentiles(latencies: list[float]) -> dict[str, float]:
    hundredths = statistics.quantiles(latencies, n=100)
    return {"p50_ms": round(hundredths[49] * 1e3, 2), "p99_ms": round(hundredths[98] * 1e3, 2)}


def markdown(record: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    lines = [
        "---",
        "orphan: true",
        "---",
        "",
        "# Soak",
        "",
        f"`make soak` on {now}, CPython {platform.python_version()}, {os.cpu_count()} cores, the"
        " load generator on the same ones.",
        "",
        f"## {options.reloads} reloads of an app that takes {options.import_s:g} s to import",
        "",
        "Then six changes of the number of workers, and a stop; kept-alive and fresh connections"
        " all the time. A failure is a refused, reset or cut connection, or any status but 200.",
        "",
        *table(record["reloads"]),
        "",
        "## 200 slow clients",
        "",
        "The latency of normal requests to one worker, alone and beside 200 connections that"
        " have sent half a head, half a body, or nothing.",
        "",
        *table(record["slow_clients"]),
        "",
        "## WebSockets through rolling reloads",
        "",
        "Each has just sent five messages when the reload is asked for, gets them answered, then"
        " 1012, and connects again; the time is for all of them, the longest of the reloads.",
        "",
        *table(record["websockets"]),
    ]
    return "\n".join(lines) + "\n"


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    """Worker classes as columns."""
    names = list(rows)
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row))
    return [
        f"| | {' | '.join(names)} |",
        f"|---|{'--:|' * len(names)}",
        *(
            f"| {measure.replace('_', ' ')} | "
            + " | ".join(f"{rows[name][measure]:g}" for name in names)
            + " |"
            for measure in measures
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
