"""Runs every case over every parser and worker class, with real servers, and writes a table.

python tests/conformance/combinations.py    run all cases, write docs/reference/conformance.md
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from conformance.cases import GUNICORN_ABSENT, GUNICORN_FILE, Case, framing_cases, gunicorn_cases
from conformance.player import Play, Player, warm_ways, ways

from integration.server import REPOSITORY, Server, wait_for

APPS = Path(__file__).parent / "apps"
PAGE = REPOSITORY / "docs" / "reference" / "conformance.md"
CLASSES = {
    "sync": ("echo_wsgi", ("-k", "sync")),
    "thread": ("echo_wsgi", ("-k", "thread", "--threads", "4")),
    "async": ("echo_asgi", ("-k", "async")),
}
COMBINATIONS = [(parser, kind) for parser in ("httptools", "h11") for kind in CLASSES]

# The only case whose outcome may depend on the worker class, and the reason.
DIFFERENT = {"upgrade_websocket_no_key": "only `async` speaks WebSocket"}

# Of the cases up to SPLIT_BOUND bytes, one in SPLIT_EVERY is split at each position.
SPLIT_BOUND = 200
SPLIT_EVERY = 5


@dataclass
class Result:
    """The results of one combination: faulty plays, and each case's outcome.

    warm  the cases that were also played on warm connections
    """

    faults: list[str]
    outcomes: dict[str, str]
    warm: set[str]
    plays: int


def play_all(parser: str, kind: str, directory: Path) -> Result:
    """Play every case over one combination, with one server for each set of settings needed."""
    groups: dict[str, list[Case]] = {}
    for case in framing_cases() + gunicorn_cases():
        groups.setdefault(json.dumps(case.settings, sort_keys=True), []).append(case)
    servers = [_start(parser, kind, json.loads(key), directory) for key in groups]
    plays: list[Play] = []
    faults: list[str] = []
    try:
        for server, cases in zip(servers, groups.values(), strict=True):
            server.wait_ready(1)
            player = Player(server.port, environ_headers=CLASSES[kind][0] == "echo_wsgi")
            played = player.run(_plays(cases))
            faults += [str(play) for play in played if play.fault]
            faults += _calls(server, played)
            plays += played
        for server in servers:
            server.stop()
            faults += ["a traceback is in the log"] * ("Traceback" in server.log())
    finally:
        for server in servers:
            server.kill_all()
    outcomes: dict[str, str] = {}
    for play in sorted(plays, key=lambda play: play.way != "whole"):
        text = _outcome(play)
        if outcomes.setdefault(play.case.name, text) != text:
            faults.append(f"{play.case} ({play.way}): {text}, but {outcomes[play.case.name]}")
    warm = {play.case.name for play in plays if play.warm}
    return Result(faults, outcomes, warm, len(plays))


def _start(parser: str, kind: str, settings: dict[str, Any], directory: Path) -> Server:
    module, flags = CLASSES[kind]
    config = directory / f"{len(list(directory.iterdir()))}.py"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    return Server(
        f"{APPS / module}.py:app",
        *flags,
        *("-w", "1", "--http-parser", parser, "-c", str(config)),
        cwd=directory,
        env={"SEEN": str(config.with_suffix(".seen"))},
    ).start()


def _plays(cases: list[Case]) -> list[Play]:
    short = [case.name for case in cases if len(case.data) <= SPLIT_BOUND]
    chosen = set(short[::SPLIT_EVERY])
    return [
        play
        for case in cases
        for each in (ways, warm_ways)
        for play in each(case, case.name in chosen)
    ]


def _calls(server: Server, plays: list[Play]) -> list[str]:
    """Check that each call of the app was answered, so that it saw only its clients' requests."""
    path = Path(server.env["SEEN"])
    answered = Counter(seen.path for play in plays for seen in play.seen)

    def calls() -> Counter[str]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return Counter(path for path, error in lines if error is None and path != "/warm")

    wait_for(lambda: calls().total() >= answered.total(), "calls of the app")
    return [f"the app was called for {path}: {n}" for path, n in (calls() - answered).items()]


def _outcome(play: Play) -> str:
    codes = " ".join(map(str, play.codes)) or "nothing"
    return f"{codes}, closed" if play.closed else codes


def page(results: dict[tuple[str, str], Result]) -> str:
    """The documentation page of these results."""
    names = [f"{parser}, {kind}" for parser, kind in results]
    framing = {case.name: case for case in framing_cases()}
    first = _agreed(results)
    lines = [
        "# Conformance",
        "",
        "This page lists the outcome of raw HTTP/1.1 requests over real sockets, by parser and",
        "worker class. `make conformance` plays them and writes the page; `make test` fails if an",
        "outcome differs from it. Each case is sent whole and byte by byte, and one in five of the",
        "shorter cases is also split at each position. The outcome is the same every time.",
        "",
        "A *warm* connection has just answered the same ordinary request twice, so it remembers",
        "that request's field lines. They are the last lines of the case itself: only the last",
        "line, the last two, and so on up to all of them, as far as a valid request can have them.",
        "The outcome must be the same as on a new connection.",
        "",
        f"| as expected | {' | '.join(names)} |",
        f"|---|{'--:|' * len(names)}",
        *(
            f"| {corpus} | " + " | ".join(_score(result, own) for result in results.values()) + " |"
            for corpus, own in (
                ("the cases below", framing.keys()),
                ("gunicorn's own", first.keys() - framing.keys()),
            )
        ),
        *(
            f"| {corpus}, warm | "
            + " | ".join(_score(result, own & result.warm) for result in results.values())
            + " |"
            for corpus, own in (
                ("the cases below", framing.keys()),
                ("gunicorn's own", first.keys() - framing.keys()),
            )
        ),
        "| connections | " + " | ".join(f"{result.plays:,}" for result in results.values()) + " |",
        "",
        "gunicorn's cases come from its own test suite. `tests/conformance/cases.py` lists those",
        "with a different outcome, and the reasons. The cases are not part of this repository.",
        "",
        "## Case by case",
        "",
        'In the outcomes, `200` means that a request reached the app as the case demands; "closed"',
        "means that the server has closed the connection.",
        "",
        "| case | RFC | level | outcome | warm |",
        "|---|---|---|---|---|",
    ]
    warm = set.intersection(*(result.warm for result in results.values()))
    said = {name: "the same" if name in warm else "" for name in first}
    lines += [
        f"| {name} | {case.rfc} | {case.level} | {first[name]} | {said[name]} |"
        for name, case in framing.items()
    ]
    lines += ["", "gunicorn's:", "", "| case | outcome | warm | remark |", "|---|---|---|---|"]
    lines += [
        f"| {case.name} | {first[case.name]} | {said[case.name]} | {case.note} |"
        for case in gunicorn_cases()
    ]
    return "\n".join(lines) + "\n"


def _agreed(results: dict[tuple[str, str], Result]) -> dict[str, str]:
    """Return each case's outcome over all combinations; for `DIFFERENT`, also that of `async`."""
    agreed: dict[str, str] = {}
    for (_, kind), result in results.items():
        for name, outcome in result.outcomes.items():
            if name in DIFFERENT and kind == "async":
                continue
            assert agreed.setdefault(name, outcome) == outcome, f"{name}: the combinations differ"
    for (_, kind), result in results.items():
        for name, reason in DIFFERENT.items():
            if kind == "async":
                other = (
                    f"{agreed[name].partition(' (')[0]} ({kind}: {result.outcomes[name]}; {reason})"
                )
                agreed[name] = other
    return agreed


def as_documented(kind: str, outcomes: dict[str, str]) -> dict[str, tuple[str, str | None]]:
    """Return the cases whose outcome differs from the page's, with both outcomes."""
    written = documented()
    different = {}
    for name, outcome in outcomes.items():
        text = written.get(name)
        if text is not None and name in DIFFERENT:
            common, _, rest = text.partition(" (async: ")
            text = rest.partition("; ")[0] if kind == "async" else common
        if outcome != text:
            different[name] = (outcome, text)
    return different


def _score(result: Result, names: Any) -> str:
    bad = {name for name in names if any(fault.startswith(f"{name} (") for fault in result.faults)}
    return f"{len(names) - len(bad)} of {len(names)}"


def documented() -> dict[str, str]:
    """Return each case's outcome on the page."""
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    known = {case.name for case in framing_cases()}
    return {
        row[0][2:]: row[3] if row[0][2:] in known else row[1]
        for row in rows
        if row[0][2:] in known or row[0][2:].startswith(("valid/", "invalid/"))
    }


def main() -> int:
    if not GUNICORN_FILE.exists():
        print(GUNICORN_ABSENT, file=sys.stderr)
        return 1
    results = {}
    for parser, kind in COMBINATIONS:
        with tempfile.TemporaryDirectory(prefix="servo-conformance-") as directory:
            result = results[parser, kind] = play_all(parser, kind, Path(directory))
        print(f"{parser}, {kind}: {result.plays} connections, {len(result.faults)} faults")
        for fault in result.faults:
            print(f"  {fault}")
    if any(result.faults for result in results.values()):
        return 1
    PAGE.write_text(page(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
