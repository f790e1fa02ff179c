"""Reads the figures of the pools from their boards, for /metrics.

The metrics process inherits the boards. When a reload adds or removes a pool, the arbiter replaces
the process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from servo.metrics import accept_queue
from servo.pools.board import BUCKETS_S, BUSY, IDLE, OUTCOMES, Totals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from servo.metrics.accept_queue import Queue
    from servo.pools.board import Board


class PoolFigures(NamedTuple):
    """The figures of one pool.

    name       its name
    tasks      the number of tasks by outcome
    busy_s     seconds in which tasks ran
    durations  pairs of (upper bound in seconds, number of tasks up to it)
    processes  the number of processes by state: booting, idle, busy
    waiting    tasks that wait for a process; None if unknown
    limit      the most tasks that may wait; None if unknown
    """

    name: str
    tasks: dict[str, int]
    busy_s: float
    durations: list[tuple[float, int]]
    processes: dict[str, int]
    waiting: int | None
    limit: int | None


class PoolReader:
    """Reads the boards. Counters never decrease.

    boards     the boards by name
    addresses  the addresses of the pools' sockets by name
    """

    def __init__(self, boards: Mapping[str, Board], addresses: Mapping[str, str]) -> None:
        self._boards = boards
        self._addresses = addresses
        self._last: dict[str, list[int]] = {}

    def read(self) -> list[PoolFigures]:
        """The figures of all pools, by name."""
        names = sorted(self._boards)
        queues = accept_queue.queues([self._addresses[name] for name in names]) if names else []
        return [self._figures(name, queue) for name, queue in zip(names, queues, strict=True)]

    def _figures(self, name: str, queue: Queue | None) -> PoolFigures:
        board = self._boards[name]
        rows = board.live_rows()
        counts = self._grown(name, [board.ended_totals(), *(row.totals for row in rows)])
        busy_ns, outcomes = counts[0], counts[1 : 1 + len(OUTCOMES)]
        up_to, durations = 0, []
        for bound, count in zip(
            (*BUCKETS_S, float("inf")), counts[1 + len(OUTCOMES) :], strict=True
        ):
            up_to += count
            durations.append((bound, up_to))
        states = [row.state for row in rows]
        busy, idle = states.count(BUSY), states.count(IDLE)
        return PoolFigures(
            name,
            dict(zip(OUTCOMES, outcomes, strict=True)),
            busy_ns / 1e9,
            durations,
            {"booting": len(states) - busy - idle, "idle": idle, "busy": busy},
            None if queue is None else queue.waiting,
            None if queue is None else queue.limit + 1,
        )

    def _grown(self, name: str, totals: Sequence[Totals]) -> list[int]:
        """The sums of the totals. If one is less than before, a row was just freed."""
        found = [(each.busy_ns, *each.outcomes, *each.durations) for each in totals]
        sums = [sum(column) for column in zip(*found, strict=True)]
        last = self._last.get(name, sums)
        self._last[name] = [max(now, before) for now, before in zip(sums, last, strict=True)]
        return self._last[name]
