"""Compare Servo with its peers in one run: CPU time of the whole server per request.

    make bench                                              every group, one after another
    make bench ARGS="--workloads http,tls --rounds 5"       two groups, each with its own record
    make bench ARGS="--servers servo-async,uvicorn --workloads hello,browser --save trial"
    make bench ARGS="--check"                               compare with what is recorded
    make bench ARGS="--list"
    make bench PYTHON=python3.14 ARGS="--workloads http"    the records are named by interpreter

Each round restarts every server, one after another, so that a machine that slows down slows all of
them. The first core is only for the server, the second for the load generator. Everything runs on
127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import check
import environment
import report
from measure import Sample, measure, offered_rate
from process import pin
from servers import HERE, SERVERS, Server
from workloads import ARENA, GROUPS, WORKLOADS, Workload

RESULTS = environment.REPOSITORY / "docs" / "benchmarks"
# The page of all aims (goals.py), and the one that sets interpreters beside each other.
GOALS_PAGE = "goals.md"
INTERPRETERS_PAGE = "interpreters.md"
# The record that has a plot: CPU time per request of Servo and all peers.
PLOTTED, PLOT = "http", "cpu.svg"


def main() -> None:
    options = arguments()
    if options.list:
        print_lists()
        return
    if options.pages:
        write_pages(options.out)
        return
    # End by an exception, so that the `finally` blocks end the servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    python = environment.prepare(options.python)
    pin(os.getpid(), first=False)  # the load generators inherit it
    worse = []
    for group, workloads in options.runs.items():
        machine = {"group": group, **environment.describe(python)}
        name = f"{group}{options.suffix}" if group else ""
        results = run(python, workloads, options)
        record = report.record(name, machine, results, options.rounds, options.seconds)
        text = report.markdown(record)
        print("\n" + text, flush=True)
        if options.check:
            worse += compared(options.out / f"{name}.json", results)
        elif name:
            save(python, options.out, record, text)
    if worse:
        raise SystemExit("worse than recorded:\n" + "\n".join(worse))


def run(python: str, workloads: list[Workload], options: argparse.Namespace) -> report.Results:
    """Run all rounds of these workloads, and print each figure as soon as it is known."""
    servers = [s for s in options.servers if any(s.kind in w.kinds for w in workloads)]
    if any(workload.setup.tls for workload in workloads):
        environment.make_certificate()
    if any(workload.setup == ARENA for workload in workloads):
        environment.make_static_files()
    rate = 0.0
    if any(workload.how == "paced" and not workload.rate for workload in workloads):
        rate = offered_rate(python, servers)
        print(f"every server is offered {rate:g} requests/s", flush=True)
    results: report.Results = {workload.name: {} for workload in workloads}
    for number in range(options.rounds):
        # Rotate the order, so that no server always runs right after the heaviest one.
        turn = number % len(servers) if servers else 0
        for server in servers[turn:] + servers[:turn]:
            begun = time.monotonic()
            suited = [workload for workload in workloads if server.kind in workload.kinds]
            for name, sample in measure(python, server, suited, options.seconds, rate).items():
                results[name].setdefault(server.name, []).append(sample)
                print(told(number + 1, options.rounds, server, name, sample), flush=True)
            print(f"{'':12}({server.name}: {time.monotonic() - begun:.1f} s)", flush=True)
    return results


def told(number: int, rounds: int, server: Server, workload: str, sample: Sample) -> str:
    key, unit, style = report.COLUMNS[WORKLOADS[workload].how][0]
    figure = sample.get("error") or f"{sample[key]:{style}} {unit}"
    return f"round {number}/{rounds}  {server.name:19} {workload:13} {figure}"


def save(python: str, out: Path, record: dict[str, Any], text: str) -> None:
    """Write NAME.json, NAME.md, the pages from all records, and the plot if it shows this one."""
    out.mkdir(parents=True, exist_ok=True)
    name = record["name"]
    (out / f"{name}.json").write_text(report.as_json(record))
    (out / f"{name}.md").write_text(text)
    if name == PLOTTED:
        command = [python, "plots.py", str(out / f"{name}.json"), str(out / PLOT)]
        subprocess.run(command, cwd=HERE, check=True)
    print(f"written to {out}/{name}.md and .json", flush=True)
    write_pages(out)


def write_pages(out: Path) -> None:
    """Write the page of all aims, and the one that sets interpreters beside each other."""
    records = recorded(out)
    own = [record for group in GROUPS for record in records if record["name"] == group]
    (out / GOALS_PAGE).write_text(report.all_goals(own))
    if page := report.by_interpreter(records):
        (out / INTERPRETERS_PAGE).write_text(page)


def recorded(out: Path) -> list[dict[str, Any]]:
    """All records of groups, whatever the interpreter, that have the current format."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    return [
        record
        for record in found
        if isinstance(record, dict)
        and record.get("format") == report.FORMAT
        and report.group_of(record) in GROUPS
    ]


def compared(path: Path, results: report.Results) -> list[str]:
    before = check.recorded(path)
    if before is None:
        return [f"{path.name}: there is no record to compare with"]
    return check.regressions(before, results)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--seconds", "--duration", type=float, default=3.0, help="of each measurement"
    )
    parser.add_argument("--servers", default="", help="names, comma-separated (default: all)")
    parser.add_argument("--workloads", default="", help="groups or workloads, comma-separated")
    parser.add_argument("--python", help="the interpreter; it names the records, if it is given")
    parser.add_argument("--save", help="record all of it under one name; empty: record nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the directory of the records")
    parser.add_argument("--check", action="store_true", help="compare with the records, save none")
    parser.add_argument(
        "--pages", action="store_true", help="write the pages of all records again, after new aims"
    )
    parser.add_argument("--list", action="store_true", help="list groups, workloads and servers")
    options = parser.parse_args()
    options.suffix = f"-{environment.tag(options.python)}" if options.python else ""
    options.python = shutil.which(options.python or environment.default_python())
    options.servers = [SERVERS[name] for name in chosen(parser, options.servers, SERVERS)]
    names = chosen(parser, options.workloads, {**GROUPS, **WORKLOADS}, GROUPS)
    options.runs = runs(names, options.save, whole=len(options.servers) == len(SERVERS))
    # Limit the time that a mistyped number can take.
    options.rounds = max(1, min(options.rounds, 20))
    options.seconds = max(0.5, min(options.seconds, 30.0))
    return options


def chosen(
    parser: argparse.ArgumentParser,
    text: str,
    known: Iterable[str],
    default: Iterable[str] | None = None,
) -> list[str]:
    """The comma-separated names in `text`; without any, the default, or all known names."""
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such name: {', '.join(unknown)}; there are {', '.join(known)}")
    return names or list(known if default is None else default)


def runs(names: list[str], save: str | None, whole: bool) -> dict[str, list[Workload]]:
    """Record's name -> workloads. Each group that is measured as a whole gets its own record."""
    groups = {name: GROUPS[name] for name in names if name in GROUPS}
    if save is None and whole and len(groups) == len(names):
        return groups
    together = [w for name in names for w in GROUPS.get(name, [])]
    together += [WORKLOADS[name] for name in names if name not in GROUPS]
    return {"latest" if save is None else save: list(dict.fromkeys(together))}


def print_lists() -> None:
    for group, workloads in GROUPS.items():
        print(f"{group:12} {', '.join(workload.name for workload in workloads)}")
    print()
    print("\n".join(f"{name:20} {server.kind}" for name, server in SERVERS.items()))


if __name__ == "__main__":
    main()
