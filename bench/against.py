"""Compare the CPU time per request of this tree with that of an earlier revision, interleaved.

    make bench-against REV=v0.1 ARGS="--rounds 30 --workloads varied,proxied"

The hot modules of both trees are compiled (with --plain: of neither). Both trees run side by side
on one core, with the same interpreter, libraries and load. The load goes to one of them for a
second, then to the other, in alternating order, so that a machine that slows down for longer slows
both. Each ratio comes from one such pair; 1.00 means "as before". The table also shows the lowest
figure of all seconds: it contains the least work of other programs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path

import environment
import load
from measure import WARM_UP_S
from process import cpu_ns, pin, running
from servers import PORT, REPOSITORY, SERVERS, WORK, Server
from workloads import WORKLOADS, Workload

WORKLOAD_NAMES = "hello,browser,post-1k,varied,proxied"
SERVER_NAMES = "servo-sync,servo-thread,servo-async"
TREES = WORK / "against"


def main() -> None:
    options = arguments()
    python = environment.prepare(options.python)
    trees = {
        "before": tree(python, options.revision, options),
        "after": tree(python, "", options),
    }
    pin(os.getpid(), first=False)  # the load generators inherit it
    workloads = [WORKLOADS[name] for name in options.workloads.split(",")]
    servers = [SERVERS[name] for name in options.servers.split(",")]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for server in servers:
        for workload in workloads:
            if server.kind in workload.kinds:
                pairs = compare(python, server, trees, workload, options.rounds)
                found[server.name, workload.name] = pairs
                print(f"{server.name} {workload.name}: done", flush=True)
    print(table(found, options.revision))


def compare(
    python: str, server: Server, trees: dict[str, Path], workload: Workload, rounds: int
) -> list[tuple[float, float]]:
    """CPU microseconds per request (before, after) of each pair of seconds. Raises FailedError."""
    before = replace(server, source=trees["before"])
    after = replace(server, source=trees["after"], port=PORT + 2)
    pairs = []
    with (
        running(python, before, workload.setup) as first,
        running(python, after, workload.setup) as second,
    ):
        for each in (before, after):
            load.closed(workload, WARM_UP_S, each.port)
        for number in range(rounds):
            taken = {}
            for each, session in [(before, first), (after, second)][:: 1 if number % 2 else -1]:
                used = cpu_ns(session.pid)
                done = load.closed(workload, 1, each.port)["requests"]
                taken[each.port] = (cpu_ns(session.pid) - used) / done / 1000
            pairs.append((taken[before.port], taken[after.port]))
    return pairs


def tree(python: str, revision: str, options: argparse.Namespace) -> Path:
    """Make a copy of a revision's package, compiled unless --plain; "" is the working tree."""
    name = (revision or "working").replace("/", "-") + ("-plain" if options.plain else "")
    path = TREES / name
    if options.built and path.exists():
        return path
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    if revision:
        archive = ["git", "archive", revision, "servo", "setup.py", "setup.cfg", "pyproject.toml"]
        packed = subprocess.run(archive, cwd=REPOSITORY, check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(path)], input=packed, check=True)
    else:
        shutil.copytree(REPOSITORY / "servo", path / "servo")
        for file in ("setup.py", "setup.cfg", "pyproject.toml"):
            shutil.copy(REPOSITORY / file, path)
    (path / "README.md").write_text("")
    if not options.plain:
        print(f"compiling {revision or 'this tree'} …", flush=True)
        command = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
        env = {**os.environ, "SERVO_COMPILE": "1"}
        subprocess.run(command, cwd=path, check=True, env=env, stdout=subprocess.DEVNULL)
    return path


def table(found: dict[tuple[str, str], list[tuple[float, float]]], revision: str) -> str:
    """Markdown: the lowest figures and their ratio; the median and quartiles of all ratios."""
    lines = [f"| server | workload | {revision} µs | now µs | ratio | median | quartiles |"]
    lines.append("|---|---|--:|--:|--:|--:|--:|")
    for (server, workload), pairs in found.items():
        before, after = (min(values) for values in zip(*pairs, strict=True))
        ratios = sorted(b / a for a, b in pairs)
        middle = statistics.median(ratios)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        lines.append(
            f"| {server} | {workload} | {before:.2f} | {after:.2f} | {after / before:.3f} "
            f"| {middle:.3f} | {low:.3f}-{high:.3f} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("revision", help="a git revision to compare with")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of seconds")
    parser.add_argument("--workloads", default=WORKLOAD_NAMES)
    parser.add_argument("--servers", default=SERVER_NAMES)
    parser.add_argument("--plain", action="store_true", help="compile neither tree")
    parser.add_argument("--built", action="store_true", help="reuse the trees of the last run")
    parser.add_argument("--python", default=environment.default_python(), help="the interpreter")
    return parser.parse_args()


if __name__ == "__main__":
    main()
