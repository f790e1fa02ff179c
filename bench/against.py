"""What a change costs: CPU time per request of this tree beside an earlier revision, interleaved.

    make bench-against REV=v0.1 ARGS="--rounds 9 --workloads varied,proxied"

Both trees are built with the hot modules compiled (--plain: neither is) and run the same
interpreter, libraries and load. Each round runs every server with both, in an order that changes,
so a machine that slows down slows both. Ratios are taken within a round; 1.00 is "as before".
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
from measure import measure
from process import pin
from servers import ENVIRONMENT, REPOSITORY, SERVERS, Server
from workloads import WORKLOADS, Workload

WORKLOAD_NAMES = "hello,browser,post-1k,varied,proxied"
SERVER_NAMES = "servo-sync,servo-thread,servo-async"
TREES = ENVIRONMENT / "against"


def main() -> None:
    options = arguments()
    python = environment.prepare(options.python)
    trees = {
        "before": tree(python, options.revision, options.plain),
        "after": tree(python, "", options.plain),
    }
    pin(os.getpid(), first=False)  # the load generators inherit it
    workloads = [WORKLOADS[name] for name in options.workloads.split(",")]
    servers = [SERVERS[name] for name in options.servers.split(",")]
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number in range(options.rounds):
        for server in servers:
            pair: dict[str, dict[str, float]] = {}
            for which in list(trees)[:: 1 if number % 2 else -1]:
                pair[which] = cpu_us(
                    python, replace(server, source=trees[which]), workloads, options
                )
            for name in pair["before"].keys() & pair["after"].keys():
                figures = pair["before"][name], pair["after"][name]
                found.setdefault((server.name, name), []).append(figures)
        print(f"round {number + 1}/{options.rounds}", flush=True)
    print(table(found, options.revision))


def cpu_us(
    python: str, server: Server, workloads: list[Workload], options: argparse.Namespace
) -> dict[str, float]:
    """Workload to CPU microseconds per request; what failed is printed and left out."""
    suited = [workload for workload in workloads if server.kind in workload.kinds]
    figures = {}
    for name, sample in measure(python, server, suited, options.seconds, 0).items():
        if "cpu_us" in sample:
            figures[name] = float(sample["cpu_us"])
        else:
            print(f"{server.name} {name}: {sample['error']}", flush=True)
    return figures


def tree(python: str, revision: str, plain: bool) -> Path:
    """A copy of that revision's package (of the working tree for ""), compiled unless plain."""
    name = (revision or "working").replace("/", "-") + ("-plain" if plain else "")
    path = TREES / name
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
    if not plain:
        print(f"compiling {revision or 'this tree'} …", flush=True)
        command = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
        env = {**os.environ, "SERVO_COMPILE": "1"}
        subprocess.run(command, cwd=path, check=True, env=env, stdout=subprocess.DEVNULL)
    return path


def table(found: dict[tuple[str, str], list[tuple[float, float]]], revision: str) -> str:
    """Markdown: the medians, and the median and quartiles of the rounds' ratios."""
    lines = [f"| server | workload | {revision} µs | now µs | ratio | quartiles |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for (server, workload), pairs in found.items():
        before, after = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios = sorted(b / a for a, b in pairs)
        middle = statistics.median(ratios)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        spread = f"{low:.3f}-{high:.3f}"
        lines.append(
            f"| {server} | {workload} | {before:.2f} | {after:.2f} | {middle:.3f} | {spread} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("revision", help="a git revision to compare with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--workloads", default=WORKLOAD_NAMES)
    parser.add_argument("--servers", default=SERVER_NAMES)
    parser.add_argument("--plain", action="store_true", help="compile neither tree")
    parser.add_argument("--python", default=environment.default_python(), help="the interpreter")
    return parser.parse_args()


if __name__ == "__main__":
    main()
