"""Plays h2spec against a real server, with TLS and without.

python tests/conformance/h2spec.py           all its cases; exit code 1 if one fails
python tests/conformance/h2spec.py --page    the same, and write docs/reference/http2-conformance.md

h2spec (https://github.com/summerwind/h2spec) is a Go program. This script looks for it in $H2SPEC
and then on PATH. Without h2spec, it plays nothing and says so.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from authority import Authority

from integration.server import REPOSITORY, Server

PAGE = REPOSITORY / "docs" / "reference" / "http2-conformance.md"
APP = f"{Path(__file__).parent / 'apps' / 'patient_asgi.py'}:app"
# Some cases need a response of five bytes or more, and skip a shorter one.
PATH = "/describe"
TIMEOUT_S = 300.0
# Per case. It is long, because a slow machine is not a failure.
CASE_TIMEOUT_S = 10
COUNTS = re.compile(r"^(\d+) tests, (\d+) passed, (\d+) skipped, (\d+) failed$", re.MULTILINE)


_PREFACE = """\
# HTTP/2 conformance

This page lists the results of the [h2spec](https://github.com/summerwind/h2spec) cases against a
real server."""
_HEAD = """\
| over | cases | passed | skipped |
|---|--:|--:|--:|
"""
_HOW = """\
`python tests/conformance/h2spec.py` plays the cases with the `h2spec` on PATH or in `$H2SPEC`. With
`--page`, it writes this page. The server is `servo -k async` with
`tests/conformance/apps/patient_asgi.py`, over TLS with a certificate made for the test, or without
TLS with `--http2-cleartext prior-knowledge`. `make conformance` does the same, and skips these
cases if there is no h2spec.
"""


class Outcome(NamedTuple):
    """h2spec's counts, and its report on the failures."""

    tests: int
    passed: int
    skipped: int
    failed: int
    failures: str


def find() -> str | None:
    """Return the path of h2spec, or None."""
    return shutil.which(os.environ.get("H2SPEC") or "h2spec")


def play(program: str, directory: Path, *, tls: bool) -> Outcome:
    """Play all cases against a server of their own."""
    if tls:
        flags = Authority(directory).issue("server").flags
    else:
        flags = ("--http2-cleartext", "prior-knowledge")
    server = Server(APP, "-k", "async", *flags, cwd=directory).start()
    try:
        server.wait_ready(1)
        said = subprocess.run(
            [
                *(program, "--host", "127.0.0.1", "--port", str(server.port), "--path", PATH),
                *("--timeout", str(CASE_TIMEOUT_S), *(("--tls", "--insecure") if tls else ())),
            ],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        ).stdout
        server.stop()
    finally:
        server.kill_all()
    assert "Traceback" not in server.log(), server.log()
    found = COUNTS.search(said)
    assert found is not None, said
    return Outcome(*map(int, found.groups()), said.partition("Failures:")[2])


def main() -> int:
    program = find()
    if program is None:
        print("Nothing played: no h2spec on PATH, and none in $H2SPEC")
        return 0
    rows = []
    failed = 0
    for name, tls in (("TLS", True), ("cleartext", False)):
        with tempfile.TemporaryDirectory(prefix="servo-h2spec-") as directory:
            outcome = play(program, Path(directory), tls=tls)
        print(f"{name}: {outcome.passed} of {outcome.tests} passed, {outcome.skipped} skipped")
        print(outcome.failures, end="")
        failed += outcome.failed
        rows.append(f"| {name} | {outcome.tests} | {outcome.passed} | {outcome.skipped} |\n")
    if sys.argv[1:] == ["--page"]:
        _write_page(program, rows)
    return 1 if failed else 0


def _write_page(program: str, rows: list[str]) -> None:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    program = f"h2spec {said.stdout.strip().removeprefix('Version: ')}"
    played = f"They were played on {today} with {program}:"
    PAGE.write_text(f"{_PREFACE} {played}\n\n{_HEAD}{''.join(rows)}\n{_HOW}")
    print(f"written to {PAGE.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    sys.exit(main())
