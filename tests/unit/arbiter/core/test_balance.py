"""The workers to fork and to retire, for tables of workers written as text.

A worker is written as slot and state: `r` ready, `b` booting, `o` ready of the old generation,
`p` booting of the old generation, `w` ready and waiting for a replacement.
"""

from __future__ import annotations

import pytest

from servo.arbiter.core.balance import Plan, balance
from servo.arbiter.core.worker_table import WorkerEntry, WorkerState, WorkerTable


def draw(text: str) -> list[WorkerEntry]:
    table = WorkerTable()
    workers = []
    for drawn in text.split():
        slot, kind = int(drawn[:-1]), drawn[-1]
        worker = table.add(slot, 1 if kind in "op" else 2, 0.0)
        worker.move(WorkerState.BOOTING)
        if kind in "row":
            worker.move(WorkerState.READY)
        if kind == "w":
            worker.replace_reason = "RECYCLED"
        workers.append(worker)
    return workers


def plan_for(text: str, desired: int, surge: int = 1, room: int = 99) -> tuple[str, list[int]]:
    workers = draw(text)
    plan: Plan = balance(workers, desired=desired, generation=2, surge=surge, room=room)
    texts = dict(zip([worker.serial for worker in workers], text.split(), strict=True))
    return " ".join(texts[worker.serial] for worker in plan.retire), plan.fork


@pytest.mark.parametrize(
    ("text", "desired", "surge", "retire", "fork"),
    [
        ("", 3, 1, "", [1, 2, 3]),
        ("1r 2r 3r", 3, 1, "", []),
        ("1r 3r", 3, 1, "", [2]),
        ("1r 2b 3r", 3, 1, "", []),
        # recycling: the replacement is forked first, in the same slot
        ("1r 2w 3r", 3, 1, "", [2]),
        ("1r 2w 3r 2b", 3, 1, "", []),
        ("1r 2w 3r 2r", 3, 1, "2w", []),
        ("1w 2w 3w", 3, 1, "", [1]),
        # a worker died while the replacement of another boots
        ("1r 2w 2b", 3, 1, "", [3]),
        ("2w 2r", 2, 1, "", [1]),
        # a reload
        ("1o 2o 3o", 3, 2, "", [1, 2]),
        ("1o 2o 3o 1r", 3, 1, "1o", [2]),
        ("1o 2o 3o 1r 2b", 3, 1, "1o", []),
        ("1o 2o 3o 1r 2r", 3, 2, "1o 2o", [3]),
        ("1p 2o", 2, 1, "1p", [1, 2]),
        # scaling
        ("1r 2r 3r", 2, 1, "3r", []),
        ("1r 2r 3b", 2, 1, "3b", []),
        ("1o 2o 1r 2b", 1, 1, "1o 2o 2b", []),
        ("1r 2r", 0, 1, "2r 1r", []),
        ("1r 3r 4r", 3, 1, "", []),
    ],
)
def test_plan(text: str, desired: int, surge: int, retire: str, fork: list[int]) -> None:
    assert plan_for(text, desired, surge) == (retire, fork)


def test_room_bounds_the_forks() -> None:
    assert plan_for("1r", 4, room=2) == ("", [2, 3])
    assert plan_for("1r", 4, room=0) == ("", [])


def test_without_surge_missing_ones_still_come() -> None:
    plan = balance(draw("1w 2r"), desired=3, generation=2, surge=1, room=9, may_surge=False)
    assert plan.fork == [3]


def test_the_least_busy_worker_ends_first() -> None:
    workers = draw("1r 2r 3r")
    use = {worker.serial: busy for worker, busy in zip(workers, (0.9, 0.1, 0.5), strict=True)}
    plan = balance(workers, desired=2, generation=2, surge=1, room=9, use=use)
    assert [worker.slot for worker in plan.retire] == [2]
