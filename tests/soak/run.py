"""The long tests: many reloads of a slow app under load, and slow clients beside normal ones.

    make soak                                   everything, about an hour
    make soak ARGS="--reloads 5 --import-s 1"   smaller
    make soak ARGS="--only slow_clients"        a part

A run fails if a request is lost, if no response arrives for 100 ms or more, or if slow clients more
than double the 99th percentile of normal clients. The measurements go to docs/soak.json and
docs/soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import resource
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


from chaos import chaos
from chaos_clients import PLAIN_CLIENTS
from control import hostile_callers, true_lists
from http2_floods import PAUSE_S, http2_floods
from kept_websockets import kept_websockets

from integration import releases
from integration.load import EVERY_KIND, Load, read_response
from integration.server import APPS, REPOSITORY, Server, memory

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
    "never reading": b"GET /file HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
SLOWDOWN_LIMIT = 2.0
# The latency beside slow clients and without them is measured in turns, and the median counts.
ROUNDS = 3
# With this many, twenty responses are above the 99th percentile.
ANSWERS = 2000
FILE_BYTES = 8_000_000
PARTS = (
    "reloads",
    "slow_clients",
    "idle_connections",
    "websockets",
    "http2_floods",
    "control",
    "chaos",
)
CONTROL_S = 60.0


def main() -> int:
    options = arguments()
    _raise_descriptor_limit()
    record: dict[str, dict[str, dict[str, Any]]] = {part: {} for part in PARTS}
    saved = REPOSITORY / "docs" / "soak.json"
    if options.only and saved.exists():
        record.update(json.loads(saved.read_text()))
    problems: list[str] = []
    for worker_class in options.classes.split(","):
        for part in RUN if options.only is None else RUN.keys() & {options.only}:
            with tempfile.TemporaryDirectory(prefix="servo-soak-") as directory:
                row = RUN[part](Path(directory), worker_class, options, problems)
                record[part][worker_class] = row
                print(f"{worker_class}: {json.dumps(row)}", flush=True)
    if options.only in (None, "websockets"):
        with tempfile.TemporaryDirectory(prefix="servo-soak-") as directory:
            row = kept_websockets(Path(directory), min(options.reloads, 5), problems)
            record["websockets"] = {"async": row}
            print(f"websockets: {json.dumps(row)}", flush=True)
    if options.only in (None, "http2_floods"):
        with tempfile.TemporaryDirectory(prefix="servo-soak-") as directory:
            rows = http2_floods(Path(directory), _latency, ROUNDS, SLOWDOWN_LIMIT, problems)
            record["http2_floods"] = rows
            print(f"http2_floods: {json.dumps(rows)}", flush=True)
    if options.only in (None, "control"):
        record["control"] = {}
        for name, measure in {
            "hostile callers": hostile_callers,
            "random commands": true_lists,
        }.items():
            with tempfile.TemporaryDirectory(prefix="servo-soak-") as directory:
                record["control"][name] = measure(Path(directory), CONTROL_S, problems)
            print(f"control, {name}: {json.dumps(record['control'][name])}", flush=True)
    if options.only in (None, "chaos"):
        # The logs are kept if the run fails.
        logs = Path(tempfile.mkdtemp(prefix="servo-soak-"))
        found: list[str] = []
        record["chaos"] = chaos(logs, options.seconds, options.seed, found)
        if found:
            print(f"the logs are in {logs}")
        else:
            shutil.rmtree(logs)
        problems += found
        load = round(os.getloadavg()[2], 1)
        record["chaos_run"] = {
            "run": {"seconds": options.seconds, "seed": options.seed, "load": load}
        }
        print(f"chaos: {json.dumps(record['chaos'], indent=1)}", flush=True)
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
    parser.add_argument(
        "--import-s", type=float, default=2.0, help="seconds that the app's import takes"
    )
    parser.add_argument("--slow", type=int, default=2000, help="slow clients of each kind")
    parser.add_argument("--idle", type=int, default=10_000, help="idle connections")
    parser.add_argument(
        "--only", choices=PARTS, help="measure only this part; keep the other figures"
    )
    parser.add_argument("--classes", default=",".join(CLASSES))
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seconds", type=float, default=1800.0, help="length of the chaos run")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 30), help="its random seed"
    )
    options = parser.parse_args()
    options.seconds = max(10.0, min(options.seconds, 7200.0))
    options.reloads = max(1, min(options.reloads, 100))
    options.import_s = max(0.0, min(options.import_s, 10.0))
    return options


def reloads(
    directory: Path, worker_class: str, options: argparse.Namespace, problems: list[str]
) -> dict[str, float]:
    """Under load: reload many times, add and remove workers, and stop."""
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
    """The failed requests that had been sent completely before TERM."""
    with Load(server.port, {"raw-kept": 2, "raw-fresh": 2}, "/?s=0.05") as load:
        load.wait_answers(100)
        asked_at = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_exit()
    return [f for f in load.failures if f.sent_at is not None and f.sent_at < asked_at]


def slow_clients(
    directory: Path, worker_class: str, options: argparse.Namespace, problems: list[str]
) -> dict[str, float]:
    """The latency of normal requests, alone and beside many clients of each slow kind."""
    file = directory / "file"
    file.write_bytes(b"f" * FILE_BYTES)
    server = _start(directory, worker_class, options.slow + 100, {"BIG_FILE": str(file)})
    row: dict[str, float] = {}
    try:
        server.wait_ready(1)
        _latency(server, "warming up", [])
        for kind, beginning in SLOW_CLIENTS.items():
            rounds: dict[str, list[dict[str, float]]] = {"alone": [], kind: []}
            for _ in range(ROUNDS):
                rounds["alone"].append(_latency(server, f"{worker_class}, {kind}", problems))
                with contextlib.ExitStack() as stack:
                    for _ in range(options.slow):
                        client = stack.enter_context(_connect(server, kind == "never reading"))
                        client.sendall(beginning)
                    rounds[kind].append(_latency(server, f"{worker_class}, {kind}", problems))
                # Let the server notice the closed connections before the next round.
                time.sleep(1.0)
            for name in ("p50_ms", "p99_ms"):
                alone, beside = (
                    statistics.median(found[name] for found in results)
                    for results in rounds.values()
                )
                row[f"{kind} {name}"] = beside
                row[f"{kind} alone {name}"] = alone
            if beside > alone * SLOWDOWN_LIMIT:
                problems.append(f"{worker_class}, {kind}: p99 {beside} ms, alone {alone} ms")
        server.stop()
    finally:
        server.kill_all()
    return row


def _latency(server: Server, what: str, problems: list[str]) -> dict[str, float]:
    with Load(server.port, {"raw-kept": 1, "raw-fresh": 1}) as load:
        load.wait_answers(ANSWERS, deadline_s=120)
    problems += [f"{what}: {failure}" for failure in load.failures]
    return percentiles(load.latencies)


def idle_connections(
    directory: Path, worker_class: str, options: argparse.Namespace, problems: list[str]
) -> dict[str, float]:
    """The memory of a worker with connections that have had one response and send nothing."""
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    server = _start(directory, worker_class, options.idle + 100, {})
    try:
        server.wait_ready(1)
        (worker,) = server.wait_workers(1)
        _latency(server, f"{worker_class}, warming up", problems)
        before = memory(worker)
        with contextlib.ExitStack() as stack:
            for _ in range(options.idle):
                client = stack.enter_context(_connect(server, small=False))
                client.sendall(request)
                read_response(client)
            held = memory(worker) - before
            beside = _latency(server, f"{worker_class}, idle connections", problems)
        server.stop()
    finally:
        server.kill_all()
    return {
        "connections": options.idle,
        "bytes_each": round(held / options.idle),
        "MB_together": round(held / 1e6, 1),
        **beside,
    }


def _start(
    directory: Path, worker_class: str, connections: int, env: dict[str, str | None]
) -> Server:
    module, flags = CLASSES[worker_class]
    return Server(
        f"{APPS / module}.py:app",
        *flags,
        *("-w", "1", "--worker-connections", str(connections)),
        # No held connection may end during the measurement.
        *("--header-timeout", "600", "--body-timeout", "600", "--send-timeout", "600"),
        *("--keep-alive", "600"),
        cwd=directory,
        env=env,
    ).start()


def _connect(server: Server, small: bool) -> socket.socket:
    client = socket.socket()
    client.settimeout(30)
    if small:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    return client


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


RUN = {"reloads": reloads, "slow_clients": slow_clients, "idle_connections": idle_connections}


def percentiles(latencies: list[float]) -> dict[str, float]:
    hundredths = statistics.quantiles(latencies, n=100)
    return {"p50_ms": round(hundredths[49] * 1e3, 2), "p99_ms": round(hundredths[98] * 1e3, 2)}


def markdown(record: dict[str, dict[str, dict[str, Any]]], options: argparse.Namespace) -> str:
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    lines = [
        "---",
        "orphan: true",
        "---",
        "",
        "# Soak",
        "",
        f"`make soak` measured this on {now} with CPython {platform.python_version()} on"
        f" {os.cpu_count()} cores, shared with the load generator.",
        "",
    ]
    sections = {
        "reloads": (
            f"{options.reloads} reloads of an app that takes {options.import_s:g} s to import",
            "After the reloads come six changes of the number of workers, and a stop. Clients use"
            " kept and fresh connections all the time. A failure is a connection that is refused,"
            " reset or cut off, or a status other than 200.",
        ),
        "slow_clients": (
            f"{options.slow:,} slow clients",
            "The table shows the latency of normal requests to one worker. Meanwhile, the slow"
            " clients have sent half a head, half a body or nothing, or have requested a file of"
            " 8 MB and never read it. Rounds with and without them (alone) alternate; the figures"
            f" are medians of {ROUNDS} rounds each.",
        ),
        "idle_connections": (
            f"{options.idle:,} idle connections",
            "Each connection has had one response and then sends nothing. The table shows how much"
            " resident memory one worker needs for each connection and for all of them, and the"
            " latency of normal requests meanwhile.",
        ),
        "websockets": (
            "WebSockets through rolling reloads",
            "Each client has just sent five messages when the reload starts. It gets the answers,"
            " then the close code 1012, and connects again. The time is from the start of the"
            " slowest reload until all clients are connected again.",
        ),
    }
    sections["http2_floods"] = (
        "Floods over HTTP/2",
        "The table shows the latency of normal requests to one worker. Meanwhile, a client sends"
        " one kind of flood as fast as it can until its connection is closed, and connects again"
        f" after {PAUSE_S * 1000:g} ms. Rounds with and without it (alone) alternate; the figures"
        f" are medians of {ROUNDS} rounds each.",
    )
    sections["control"] = (
        "The control socket",
        "The first column shows how long valid commands take. Meanwhile, 100 other connections"
        " send garbage, half lines and endless lines, and never read, and the server serves,"
        " reloads and scales. For the second column, random reloads, scalings, restarts and kills"
        f" run at the same time for {CONTROL_S:g} s. The list of workers is compared with the"
        " existing processes again and again; the column shows how often.",
    )
    run = record.get("chaos_run", {}).get("run", {"seconds": 0.0, "seed": 0, "load": 0.0})
    sections["chaos"] = (
        f"Chaos for {run['seconds'] / 60:g} minutes",
        "The run has one server of each class, an `async` one with `--preload`, and a `thread` one"
        " with `--preload` and `--refork-after`. Each server has"
        f" 2 to 4 workers and {sum(PLAIN_CLIENTS.values())} clients: kept, fresh and pipelined"
        " connections, chunked uploads, large downloads and slow readers. The two servers of class"
        " `async` use TLS, and also have clients with event streams, WebSockets and httpx over"
        " HTTP/2. A simulated operator randomly deploys good and broken releases (one kind boots"
        " and answers 500), rolls back, scales, restarts workers, upgrades Servo in place, reopens"
        " logs and renews certificates. `max_requests` recycles workers. Faults kill and stop"
        " workers and molds. The clients check each response. A lost request is attributed to a"
        " killed worker only if /proc showed that this worker held the request's connection when"
        " the worker was stopped for good. After the load, the server's descriptors by kind,"
        " memfds, socket files, zombies, processes and list of workers are compared with those"
        " before the load."
        f" The seed was {run['seed']}. The machine's load average was {run['load']:g} over the last"
        f" 15 minutes.{run.get('note', '')}",
    )
    for part, (title, text) in sections.items():
        if record.get(part):
            lines += [f"## {title}", "", text, "", *table(record[part]), ""]
    return "\n".join(lines)


def table(rows: dict[str, dict[str, float]]) -> list[str]:
    """The lines of a Markdown table; `rows` become its columns, such as the worker classes."""
    names = list(rows)
    measures = list(dict.fromkeys(measure for row in rows.values() for measure in row))
    return [
        f"| | {' | '.join(names)} |",
        f"|---|{'--:|' * len(names)}",
        *(
            f"| {measure.replace('_', ' ')} | "
            + " | ".join(f"{row[measure]:g}" if measure in row else "" for row in rows.values())
            + " |"
            for measure in measures
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
