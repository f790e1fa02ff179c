"""The table of workers, and the transitions that it refuses."""

from __future__ import annotations

import itertools

import pytest

from servo.arbiter.core.worker_table import InvalidTransitionError, WorkerState, WorkerTable

S = WorkerState
ALLOWED = {
    (S.SPAWNED, S.BOOTING),
    (S.SPAWNED, S.DRAINING),
    (S.SPAWNED, S.EXITED),
    (S.BOOTING, S.READY),
    (S.BOOTING, S.DRAINING),
    (S.BOOTING, S.EXITED),
    (S.READY, S.DRAINING),
    (S.READY, S.EXITED),
    (S.DRAINING, S.EXITED),
}


@pytest.mark.parametrize(("before", "after"), [*itertools.product(S, S)])
def test_transitions(before: WorkerState, after: WorkerState) -> None:
    entry = WorkerTable().add(slot=1, generation=1, now=0.0)
    entry.state = before
    if (before, after) in ALLOWED:
        entry.move(after)
        assert entry.state is after
    else:
        with pytest.raises(InvalidTransitionError):
            entry.move(after)
        assert entry.state is before


def test_serials_are_never_reused() -> None:
    table = WorkerTable()
    first = table.add(1, 1, 0.0)
    first.move(S.EXITED)
    table.remove(first)
    assert table.add(1, 1, 0.0).serial == 2
    assert table.get(1) is None


def test_a_row_stays_until_its_worker_has_exited() -> None:
    table = WorkerTable()
    entry = table.add(1, 1, 0.0)
    with pytest.raises(InvalidTransitionError):
        table.remove(entry)


def test_views() -> None:
    table = WorkerTable()
    live, draining = table.add(1, 1, 0.0), table.add(2, 2, 0.0)
    live.pid, draining.pid = 11, 12
    draining.move(S.DRAINING)
    assert table.live() == [live]
    assert table.draining() == [draining]
    assert table.generations() == {1, 2}
    assert table.find(12) is draining
    assert table.find(13) is None
    assert len(table) == 2


def test_a_standstill_moves_every_moment() -> None:
    entry = WorkerTable().add(1, 1, 10.0)
    entry.ready_at = entry.stop_asked_at = entry.kill_at = 20.0
    entry.shift(5.0)
    times = (
        entry.spawned_at,
        entry.heartbeat_at,
        entry.ready_at,
        entry.stop_asked_at,
        entry.kill_at,
    )
    assert times == (15.0, 15.0, 25.0, 25.0, 25.0)
