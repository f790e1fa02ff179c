"""Plays the Autobahn WebSocket cases against a real server, and writes the page of the results.

python tests/conformance/autobahn.py           all; write docs/reference/websocket-conformance.md
python tests/conformance/autobahn.py --quick   only the cases that take seconds; no page

The Autobahn TestSuite needs Python 2.7. kosoku (on PyPI) runs its case files on Python 3.
"""

from __future__ import annotations

import asyncio
import datetime
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from kosoku import FailureError, run_fuzzingclient

from integration.server import APPS, REPOSITORY, Server

PAGE = REPOSITORY / "docs" / "reference" / "websocket-conformance.md"
APP = f"{APPS / 'websocket_app.py'}:app"
# All cases together take about three minutes on two idle cores.
TIMEOUT_S = 1500.0

GROUPS = {
    "1": "framing",
    "2": "pings and pongs",
    "3": "reserved bits",
    "4": "opcodes",
    "5": "fragmentation",
    "6": "UTF-8",
    "7": "closing",
    "9": "sizes and speed",
    "10": "miscellaneous",
    "12": "compression: kinds and sizes of messages",
    "13": "compression: parameters",
}
COMPRESSION = ("12.*", "13.*")
PLAIN = tuple(f"{group}.*" for group in GROUPS if group not in ("12", "13"))
# The cases that are not about speed or compression take a few seconds.
QUICK = tuple(f"{group}.*" for group in GROUPS if group not in ("9", "12", "13"))
# The name of a run, further arguments of the server, and the cases.
RUNS = [
    ("uvloop", ("--loop", "uvloop"), (*PLAIN, *COMPRESSION)),
    ("asyncio, h11", ("--loop", "asyncio", "--http-parser", "h11"), QUICK),
]
VERDICTS = ("OK", "NON-STRICT", "INFORMATIONAL", "other")


def play(directory: Path, options: tuple[str, ...], cases: tuple[str, ...]) -> list[Any]:
    """Play these cases against a server of their own. Returns kosoku's results."""
    # Without pings from us: an unexpected frame fails a case.
    options = ("--websocket-ping-interval", "0", *options)
    server = Server(APP, "-w", "1", *options, cwd=directory).start()
    try:
        server.wait_ready(1)
        results = asyncio.run(_run(server.port, cases))
        server.stop()
    finally:
        server.kill_all()
    assert "Traceback" not in server.log(), server.log()
    return results


async def _run(port: int, cases: tuple[str, ...]) -> list[Any]:
    running = run_fuzzingclient(f"ws://127.0.0.1:{port}/echo", cases=list(cases), concurrency=2)
    try:
        return list(await asyncio.wait_for(running, TIMEOUT_S))
    except FailureError as error:
        return list(error.results)


def verdict(result: Any) -> str:
    """Return kosoku's verdict, or "other" for a failure."""
    if not result.passed:
        return "other"
    return str(result.behavior.value)


def main() -> int:
    quick = sys.argv[1:] == ["--quick"]
    tables = []
    failed = []
    for name, options, cases in [("quick", (), QUICK)] if quick else RUNS:
        with tempfile.TemporaryDirectory(prefix="servo-autobahn-") as directory:
            results = play(Path(directory), options, cases)
        print(f"{name}: {len(results)} cases, {Counter(map(verdict, results))}", flush=True)
        failed += [
            f"{name}: {result!r}: {result.result} {result.result_close}"
            for result in results
            if not result.passed
        ]
        tables += ["", f"## {name}", "", *_table(results)]
    if not quick:
        PAGE.write_text("\n".join([*_preface(), *tables]) + "\n")
        print(f"written to {PAGE.relative_to(REPOSITORY)}")
    for line in failed:
        print(f"FAILED {line}")
    return 1 if failed else 0


def _preface() -> list[str]:
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    return [
        "# WebSocket conformance",
        "",
        "This page lists the results of the Autobahn TestSuite's cases against Servo."
        " `make conformance` plays them with"
        f" [kosoku](https://pypi.org/project/kosoku/) (here {version('kosoku')}, on {today}, with"
        f" `websockets` {version('websockets')}) against a real server with an echo app, and writes"
        " this page. `make test` plays the cases that are not about speed or compression.",
        "",
        "*Non-strict* behaviour is allowed by RFC 6455, but another behaviour would be stricter. If"
        " a bad frame follows good ones, Servo reports it to the client before the app has answered"
        " the good ones (3, 4, 5). Servo checks text when its frame is complete, not at each byte"
        " (6.4). *Informational* cases have no correct answer (7). No case may have another"
        " result.",
    ]


def _table(results: list[Any]) -> list[str]:
    groups: dict[str, Counter[str]] = {}
    for result in results:
        counts = groups.setdefault(result.case_id.split(".")[0], Counter())
        counts[verdict(result)] += 1
    lines = [
        "| cases | about | OK | non-strict | informational | otherwise |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for group, about in GROUPS.items():
        if group in groups:
            numbers = " | ".join(str(groups[group][kind]) for kind in VERDICTS)
            lines.append(f"| {group} | {about} | {numbers} |")
    total = sum(groups.values(), Counter())
    lines.append(f"| | all {len(results)} | {' | '.join(str(total[kind]) for kind in VERDICTS)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
