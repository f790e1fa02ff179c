"""What `servoctl pools` prints."""

from __future__ import annotations

from typing import Any

import pytest

from servo.cli import show
from servo.cli.pools_view import show_pools

PROCESS: dict[str, Any] = {
    "slot": 1,
    "pid": 77,
    "generation": 2,
    "state": "busy",
    "stale": "",
    "age_s": 65.0,
    "task": "ml.classify\x1b[2J",
    "seconds": 2.0,
    "tasks": 12,
    "failed": 1,
    "rss": 50 << 20,
}
POOL: dict[str, Any] = {
    "name": "ml",
    "workers": 1,
    "queue": {"waiting": 3, "limit": 100},
    "tasks": {"done": 11, "failed": 1, "abandoned": 0, "lost": 2},
    "busy_s": 3.0,
    "restarts": 2,
    "failure": "no model",
    "processes": [PROCESS],
}


def test_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    show_pools({"pools": [POOL]})
    first, second, head, row = capsys.readouterr().out.splitlines()
    assert first == (
        "pool ml: tasks: 11 done, 1 failed, 2 lost; 3 of 100 wait; 2 processes have failed"
    )
    assert second == "  new processes can't boot: no model"
    assert head.split()[:4] == ["slot", "pid", "gen", "state"]
    assert row.split()[:4] == ["1", "77", "2", "busy"]
    assert row.endswith(r"ml.classify\x1b[2J")


def test_an_idle_pool_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    idle = {**PROCESS, "task": None, "seconds": None, "rss": None, "stale": "old", "state": "idle"}
    show_pools(
        {"pools": [{**POOL, "queue": None, "failure": "", "restarts": 0, "processes": [idle]}]}
    )
    first, _, row = capsys.readouterr().out.splitlines()
    assert first == "pool ml: tasks: 11 done, 1 failed, 2 lost"
    assert "idle (stale)" in row
    show_pools({"pools": [{**POOL, "processes": []}]})
    show_pools({"pools": []})
    assert capsys.readouterr().out.splitlines()[-1] == "this server has no pools"


def test_tasks_among_the_requests(capsys: pytest.CaptureFixture[str]) -> None:
    task = {"pool": "ml", "slot": 1, "pid": 77, "task": "ml.classify\n", "seconds": 3.0}
    show.requests({"workers": [], "tasks": [task]})
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["pool", "slot", "pid", "for", "task"]
    assert row.split() == ["ml", "1", "77", "3.0", "s", r"ml.classify\n"]
