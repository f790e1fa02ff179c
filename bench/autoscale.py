"""Measure autoscaling on one load: quiet, a spike, a plateau, quiet again.

    make bench-autoscale
    make bench-autoscale ARGS="--uwsgi /path/to/uwsgi"

Requests come at a fixed rate, each on a connection of its own, whether earlier ones were answered
or not. Each takes 0.1 s in the app, so a rate of 100 a second needs 10 `sync` workers. A latency
counts from the time when the request was due. With --uwsgi, uWSGI's cheaper subsystem gets the same
load, with both of its common algorithms.

Writes docs/benchmarks/autoscale.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.waits import WAIT_S

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs" / "benchmarks"
PORT = 18_767
LEAST, MOST = 2, 16
# (name, seconds, requests a second)
PHASES = [("quiet", 10, 5), ("spike", 15, 100), ("plateau", 25, 60), ("quiet again", 35, 5)]
SPIKE_AT = PHASES[0][1]
SAMPLE_S = 0.25
# The p99 counts over this many seconds. It is back when it is below BACK times the app's own time.
WINDOW_S = 2.0
BACK = 2.0


@dataclass
class Record:
    """What one server did.

    workers    (seconds, worker processes)
    latencies  (when the request was due, seconds until its end)
    failed     requests without an answer
    """

    workers: list[tuple[float, int]] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)
    failed: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--uwsgi", help="the path of uWSGI")
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    address = f"127.0.0.1:{PORT}"
    servo = [options.python, "-m", "servo", "apps.waits:app", "-k", "sync"]
    servo += ["-w", f"{LEAST}:{MOST}", "--scale-down-delay", "10", "--bind", address]
    commands = {"servo": [*servo, "--log-level", "warning"]}
    if options.uwsgi:
        base = [options.uwsgi, "--master", "--http-socket", address, "--module", "apps.waits:app"]
        base += ["--processes", str(MOST), "--cheaper", str(LEAST), "--disable-logging"]
        base += ["--listen", "1024", "--need-app", "--die-on-term", "--python-path", str(HERE)]
        commands["uwsgi, cheaper spare"] = [*base, "--cheaper-algo", "spare", "--cheaper-step", "4"]
        commands["uwsgi, cheaper busyness"] = [
            *(*base, "--cheaper-algo", "busyness", "--cheaper-overload", "1"),
            *("--cheaper-step", "4", "--cheaper-busyness-multiplier", "10"),
        ]
    figures = {}
    curves = {}
    load = os.getloadavg()[0]
    for name, command in commands.items():
        record = asyncio.run(measure(command))
        figures[name] = evaluate(record)
        curves[name] = record.workers
        print(name, json.dumps(figures[name]), flush=True)
    where = (
        f"{os.cpu_count()} cores, Linux {platform.release()}, load average {load:.1f} at the start"
    )
    write(where, figures, curves)


async def measure(command: list[str]) -> Record:
    """Run a server under the load; return what it did."""
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE}"}
    process = subprocess.Popen(  # noqa: ASYNC220  once, before the load
        command,
        cwd=HERE,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await answered(process)
        record = Record()
        begun = time.monotonic()
        watcher = asyncio.create_task(watch(process.pid, record, begun))
        requests = []
        for due in schedule():
            await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
            requests.append(asyncio.create_task(request(record, begun, due)))
        await asyncio.gather(*requests)
        watcher.cancel()
        return record
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def schedule() -> list[float]:
    """The times, in seconds, at which requests are due."""
    times, start = [], 0.0
    for _, seconds, rate in PHASES:
        times += [start + i / rate for i in range(seconds * rate)]
        start += seconds
    return times


async def answered(process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        except OSError:
            await asyncio.sleep(0.1)
            continue
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        return
    raise SystemExit("the server does not answer")


async def request(record: Record, begun: float, due: float) -> None:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
    except (OSError, asyncio.TimeoutError):
        record.failed += 1
        return
    if b" 200 " not in answer[:15]:
        record.failed += 1
    record.latencies.append((due, time.monotonic() - begun - due))


async def watch(pid: int, record: Record, begun: float) -> None:
    while True:
        record.workers.append((round(time.monotonic() - begun, 2), workers_of(pid)))
        await asyncio.sleep(SAMPLE_S)


def workers_of(pid: int) -> int:
    """The worker processes of a server: its children, without Servo's helpers."""
    count = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        # Servo names its processes; those of uWSGI are all workers.
        count += state != "Z" and (b"servo: " not in title or b"servo: worker" in title)
    return count


# --- figures ----------------------------------------------------------------------------------


def evaluate(record: Record) -> dict[str, Any]:
    needed = math.ceil(PHASES[1][2] * WAIT_S)
    there = [at for at, count in record.workers if at >= SPIKE_AT and count >= needed]
    return {
        "needed_s": round(there[0] - SPIKE_AT, 2) if there else None,
        "back_s": back_s(record),
        "p99_ms": {name: p99_ms(record, start, end) for name, start, end in spans()},
        "turns": turns(record),
        "worker_s": round(sum(count for _, count in record.workers) * SAMPLE_S),
        "failed": record.failed,
    }


def spans() -> list[tuple[str, float, float]]:
    found, start = [], 0.0
    for name, seconds, _ in PHASES:
        found.append((name, start, start + seconds))
        start += seconds
    return found


def p99_ms(record: Record, start: float, end: float) -> int:
    values = sorted(latency for due, latency in record.latencies if start <= due < end)
    return round(values[min(len(values) - 1, int(len(values) * 0.99))] * 1000) if values else 0


def back_s(record: Record) -> float | None:
    """Seconds from the spike until the p99 is back, and stays so until the spike's end."""
    limit = BACK * WAIT_S * 1000
    end = spans()[1][2]
    last = None
    at = end - WINDOW_S
    while at >= SPIKE_AT:
        if p99_ms(record, at, at + WINDOW_S) > limit:
            return None if last is None else round(last - SPIKE_AT, 1)
        last = at
        at -= SAMPLE_S
    return 0.0


def turns(record: Record) -> int:
    """How often the number of workers turns from more to fewer or back, during the plateau."""
    _, start, end = spans()[2]
    counts = [count for at, count in record.workers if start <= at < end]
    steps = [b - a for a, b in itertools.pairwise(counts) if a != b]
    return sum((a > 0) != (b > 0) for a, b in itertools.pairwise(steps))


# --- the page -----------------------------------------------------------------------------------


def write(where: str, figures: dict[str, Any], curves: dict[str, list[tuple[float, int]]]) -> None:
    busy = ""
    if float(where.split("load average ")[1].split()[0]) > (os.cpu_count() or 1):
        busy = (
            "\nOther processes used the cores meanwhile. Each fork took longer, and the figures of "
            "one\nserver vary between runs.\n"
        )
    record = {"machine": where, "phases": PHASES, "figures": figures, "workers": curves}
    (DOCS / "autoscale.json").write_text(json.dumps(record) + "\n")
    (DOCS / "autoscale.svg").write_text(plot(curves))
    rows = [
        f"| {name} | {seconds(row['needed_s'])} | {seconds(row['back_s'])} | "
        + " | ".join(f"{value:,} ms" for value in row["p99_ms"].values())
        + f" | {row['turns']} | {row['worker_s']} | {row['failed']} |"
        for name, row in figures.items()
    ]
    names = " | ".join(f"p99 {name}" for name, *_ in PHASES)
    load = ", ".join(f"{name} {rate}/s for {length} s" for name, length, rate in PHASES)
    (DOCS / "autoscale.md").write_text(
        f"""---
orphan: true
---

# Autoscaling

Measured {time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())} on {where}; \
{platform.python_implementation()} {platform.python_version()}.
{busy}
The app waits {WAIT_S:g} s for each request. The load is {load}. Each server may run {LEAST} to \
{MOST} workers that serve one request at a time; the spike needs \
{math.ceil(PHASES[1][2] * WAIT_S)}. Servo runs with `--scale-down-delay 10`.

![Workers of each server over time](autoscale.svg)

| server | needed workers after | p99 is back after | {names} | turns | worker seconds | failed |
|---|---|---|{"---|" * len(PHASES)}---|---|---|
{chr(10).join(rows)}

* *Needed workers after* counts from the start of the spike. *p99 is back* when it stays below \
{BACK * WAIT_S * 1000:.0f} ms over {WINDOW_S:g} s.
* *Turns* are changes between more and fewer workers during the plateau, whose load is constant.
* *Worker seconds* are what the capacity costs: the workers, added up over the whole time.

`make bench-autoscale` measures this; [how to scale by load](../how-to/autoscale.md) describes it.
"""
    )


def seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:g} s"


def plot(curves: dict[str, list[tuple[float, int]]]) -> str:
    """An SVG: workers over time, and the number that the load keeps busy."""
    total = sum(length for _, length, _ in PHASES)

    def x(at: float) -> float:
        return 40 + at / total * 580

    def y(count: float) -> float:
        return 200 - count / MOST * 170

    busy = [
        (at, rate * WAIT_S)
        for (_, start, end), (*_, rate) in zip(spans(), PHASES, strict=True)
        for at in (start, end)
    ]
    colours = ["#c2410c", "#2563eb", "#64748b"]
    lines = [("busy workers", "#16a34a", busy)]
    lines += [(n, c, steps(v)) for (n, v), c in zip(curves.items(), colours, strict=False)]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 240" font-size="10" '
        'font-family="sans-serif"><rect width="640" height="240" fill="white"/>'
    ]
    parts += [
        f'<path d="M40 {y(count):.1f}H620" stroke="#e2e8f0"/>'
        f'<text x="34" y="{y(count) + 3:.1f}" text-anchor="end">{count}</text>'
        for count in range(0, MOST + 1, 4)
    ]
    parts += [
        f'<text x="{x(at):.1f}" y="214" text-anchor="middle">{at} s</text>'
        for at in range(0, total + 1, 10)
    ]
    for i, (name, colour, points) in enumerate(lines):
        path = " ".join(f"{x(at):.1f},{y(min(count, MOST)):.1f}" for at, count in points)
        dash = ' stroke-dasharray="4 3"' if i == 0 else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'
            f'<text x="{40 + 150 * i}" y="232" fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def steps(points: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """The corners of a step function."""
    found: list[tuple[float, int]] = []
    for at, count in points:
        if found and found[-1][1] != count:
            found.append((at, found[-1][1]))
        if not found or found[-1][1] != count:
            found.append((at, count))
    return [*found, points[-1]] if points else []


if __name__ == "__main__":
    main()
