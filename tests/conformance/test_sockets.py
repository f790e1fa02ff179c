"""Both corpora over real sockets, against every parser in every worker class.

Each combination is one test, because its server starts only once. A failure lists each failed case.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance.cases import GUNICORN_ABSENT, GUNICORN_FILE, Case, framing_cases
from conformance.combinations import (
    COMBINATIONS,
    PAGE,
    as_documented,
    documented,
    play_all,
)
from conformance.player import Play, Player

from integration.server import APPS, Server

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("parser", "kind"), COMBINATIONS)
def test_every_case(parser: str, kind: str, tmp_path: Path) -> None:
    result = play_all(parser, kind, tmp_path)
    assert result.faults == []
    different = as_documented(kind, result.outcomes)
    assert different == {}, f"{PAGE.name} says otherwise: look why, then `make conformance`"


@pytest.mark.skipif(not GUNICORN_FILE.exists(), reason=GUNICORN_ABSENT)
def test_gunicorns_cases_are_among_them() -> None:
    """Without the corpus, the test above plays only the cases of framing.json."""
    assert sum(name.startswith(("valid/", "invalid/")) for name in documented()) == 132


def test_page_has_every_case() -> None:
    assert {case.name for case in framing_cases()} <= documented().keys()


def test_player_finds_fault(tmp_path: Path) -> None:
    """The player rejects an app that doesn't echo, and a 404 as an acceptance."""
    server = Server(f"{APPS / 'wsgi_app.py'}:app", "-w", "1", cwd=tmp_path).start()
    try:
        server.wait_ready(1)
        case = Case(
            "missing",
            b"GET /p HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            "must_accept",
            [{"method": "GET", "path": "/p", "body": ""}],
        )
        left_open = Case("left open", b"GET /p HTTP/1.1\r\nHost: a\r\n\r\n", "must_close_after")
        plays = [Play(case, "whole", [case.data]), Play(left_open, "whole", [left_open.data])]
        Player(server.port, environ_headers=True, deadline_s=1.0).run(plays)
        assert plays[0].fault is not None
        assert "[404]" in plays[0].fault
        assert plays[1].fault is not None
        server.stop()
    finally:
        server.kill_all()
