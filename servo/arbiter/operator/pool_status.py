"""The state of the pools, for operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.arbiter.core.pool_supervision import PoolState
from servo.metrics import procfs
from servo.metrics.accept_queue import queues
from servo.pools.board import BUSY, OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.arbiter.processes.pool import Pool, PoolProcess
    from servo.pools.board import Row

_NS = 1e9
# A row may have been written over; a longer duration (31 years) can't be true.
_LONGEST_S = 1e9


def pools_values(pools: Iterable[Pool], now_ns: int) -> list[dict[str, Any]]:
    """The state of each pool as JSON values, by name.

    pools    the pools
    now_ns   monotonic nanoseconds
    """
    found = sorted(pools, key=lambda pool: pool.name)
    waiting = queues([pool.listener.getsockname() for pool in found if _is_open(pool)])
    queue_of = dict(zip((pool.name for pool in found if _is_open(pool)), waiting, strict=True))
    return [_pool(pool, queue_of.get(pool.name), now_ns) for pool in found]


def running_tasks(pools: Iterable[Pool], now_ns: int) -> list[dict[str, Any]]:
    """The running tasks of all pools as JSON values, the longest first."""
    tasks = [
        {"pool": pool.name, "slot": process.slot, "pid": process.pid, **task}
        for pool in pools
        for process in pool.processes.values()
        if (task := _task(pool.board.row(process.row_index), now_ns)) is not None
    ]
    return sorted(tasks, key=lambda task: -task["seconds"])


def _is_open(pool: Pool) -> bool:
    return pool.listener.fileno() >= 0


def _pool(pool: Pool, queue: Any, now_ns: int) -> dict[str, Any]:
    supervision = pool.supervision
    totals = [pool.board.ended_totals()]
    totals += [pool.board.row(each.row_index).totals for each in pool.processes.values()]
    outcomes = {
        name: sum(each.outcomes[number] for each in totals) for number, name in enumerate(OUTCOMES)
    }
    return {
        "name": pool.name,
        "workers": supervision.policy.workers,
        "queue": None if queue is None else {"waiting": queue.waiting, "limit": queue.limit + 1},
        "tasks": outcomes,
        "busy_s": round(sum(each.busy_ns for each in totals) / _NS, 3),
        "restarts": supervision.restarts,
        "failure": supervision.failure,
        "processes": [
            _process(pool, process, now_ns)
            for process in sorted(
                pool.processes.values(), key=lambda each: (each.slot, each.serial)
            )
        ],
    }


def _process(pool: Pool, process: PoolProcess, now_ns: int) -> dict[str, Any]:
    entry = pool.supervision.entries[process.serial]
    row = pool.board.row(process.row_index)
    task = _task(row, now_ns)
    state = entry.state.value
    if entry.state is PoolState.READY:
        state = "idle" if task is None else "busy"
    totals = row.totals
    return {
        "slot": process.slot,
        "pid": process.pid,
        "generation": process.generation,
        "state": state,
        "stale": entry.stale,
        "age_s": round(now_ns / _NS - entry.spawned_at, 3),
        "task": None if task is None else task["task"],
        "seconds": None if task is None else task["seconds"],
        "tasks": totals.outcomes[0] + totals.outcomes[1],
        "failed": totals.outcomes[1],
        "rss": procfs.resident_of(process.pid),
    }


def _task(row: Row, now_ns: int) -> dict[str, Any] | None:
    if row.state != BUSY:
        return None
    seconds = min(max(0.0, (now_ns - row.since_ns) / _NS), _LONGEST_S)
    return {"task": row.label, "seconds": round(seconds, 3)}
