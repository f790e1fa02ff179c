"""The state of pools for operators, from boards that the test writes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servo.arbiter.core.pool_supervision import (
    ForkProcess,
    PoolPolicy,
    PoolSupervision,
    Reading,
)
from servo.arbiter.operator.pool_status import pools_values, running_tasks
from servo.pools.board import DONE, FAILED, Board
from servo.pools.listening import listen

POLICY = PoolPolicy(2, 60, 5, 0, 30, 5)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Any]:
    """A pool with a booting process and an idle one."""
    board, supervision = Board(), PoolSupervision("ml", POLICY, 3)
    pool = SimpleNamespace(
        name="ml",
        board=board,
        supervision=supervision,
        listener=listen(str(tmp_path / "s"), 7),
        processes={},
    )
    now = time.monotonic()
    for serial in (1, 2):
        supervision.forked(serial, os.getpid(), ForkProcess(serial, 3), now)
        pool.processes[serial] = SimpleNamespace(
            serial=serial,
            slot=serial,
            generation=3,
            pid=os.getpid(),
            row_index=board.allocate(serial),
        )
    supervision.ready(2, now)
    yield pool
    pool.listener.close()
    board.close()


def test_processes_their_tasks_and_the_queue(pool: Any) -> None:
    row = pool.board.row(pool.processes[2].row_index)
    for outcome in (DONE, DONE, FAILED):
        row.begin("m.f", 1)
        row.end(outcome)
    row.begin("m.long\n", 7)
    pool.board.count_lost()
    now_ns = row.since_ns + 1_500_000_000
    (values,) = pools_values([pool], now_ns)
    processes = values.pop("processes")
    assert values.pop("busy_s") >= 0
    assert values == {
        "name": "ml",
        "workers": 2,
        "queue": {"waiting": 0, "limit": 7},
        "tasks": {"done": 2, "failed": 1, "abandoned": 0, "lost": 1},
        "restarts": 0,
        "failure": "",
    }
    assert [each["state"] for each in processes] == ["booting", "busy"]
    busy = processes[1]
    assert (busy["task"], busy["seconds"]) == (r"m.long\n", 1.5)
    assert (busy["tasks"], busy["failed"], busy["generation"]) == (3, 1, 3)
    assert busy["rss"] > 0
    assert running_tasks([pool], now_ns) == [
        {"pool": "ml", "slot": 2, "pid": os.getpid(), "task": r"m.long\n", "seconds": 1.5}
    ]


def test_idle_stale_and_closed(pool: Any) -> None:
    pool.supervision.measured({1: Reading(None, "", 0, 0), 2: Reading(None, "", 9, 0)}, 1e3)
    pool.listener.close()
    (values,) = pools_values([pool], time.monotonic_ns())
    assert values["queue"] is None
    idle = values["processes"][1]
    assert (idle["state"], idle["task"], idle["seconds"]) == ("idle", None, None)
    assert "max_tasks" in idle["stale"]
    assert running_tasks([pool], time.monotonic_ns()) == []


def test_a_row_that_was_written_over(pool: Any) -> None:
    row = pool.board.row(pool.processes[2].row_index)
    row.begin("f", 1)
    row._words[3] = 2**64 - 1
    assert running_tasks([pool], time.monotonic_ns())[0]["seconds"] == 0.0
    row._words[3] = 0
    assert running_tasks([pool], 2**63)[0]["seconds"] == 1e9
