"""The table of workers, and the transitions that it refuses."""

from __future__ import annotations

import itertools

import pytest

from servo.arbiter.core.worker_table import InvalidTransitionError, Pool, WorkerState

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
    handle = Pool().add(slot=1, generation=1, now=0.0)
    handle.state = before
    if (before, after) in ALLOWED:
        handle.move(after)
        assert handle.state is after
    else:
        with pytest.raises(InvalidTransitionError):
            handle.move(after)
        assert handle.state is before


def test_serials_are_never_reused() -> None:
    pool = Pool()
    first = pool.add(1, 1, 0.0)
    first.move(S.EXITED)
    pool.remove(first)
    assert pool.add(1, 1, 0.0).serial == 2
    assert pool.get(1) is None


def test_a_row_stays_until_its_worker_has_exited() -> None:
    pool = Pool()
    handle = pool.add(1, 1, 0.0)
    with pytest.raises(InvalidTransitionError):
        pool.remove(handle)


def test_views() -> None:
    pool = Pool()
    live, draining = pool.add(1, 1, 0.0), pool.add(2, 2, 0.0)
    live.pid, draining.pid = 11, 12
    draining.move(S.DRAINING)
    assert pool.live() == [live]
    assert pool.draining() == [draining]
    assert pool.generations() == {1, 2}
    assert pool.find(12) is draining
    assert pool.find(13) is None
    assert len(pool) == 2


def test_a_standstill_moves_every_moment() -> None:
    handle = Pool().add(1, 1, 10.0)
    handle.ready_at = handle.asked_at = handle.kill_at = 20.0
    handle.shift(5.0)
    times = (handle.spawned_at, handle.alive_at, handle.ready_at, handle.asked_at, handle.kill_at)
    assert times == (15.0, 15.0, 25.0, 25.0, 25.0)
