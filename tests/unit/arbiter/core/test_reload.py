"""A reload returns a decision for each event, and changes only itself."""

from __future__ import annotations

import math

import pytest

from servo.arbiter.core.policy import ROLLING_ATTEMPTS, Policy
from servo.arbiter.core.reload import (
    Commit,
    Decision,
    Finish,
    ForkCanary,
    Load,
    Phase,
    Reload,
    RollBack,
)
from servo.arbiter.core.worker_table import WorkerEntry, WorkerState

NOW = 100.0


def start(check_limit_s: float = 20.0) -> Reload:
    return Reload(
        "SIGHUP",
        2,
        old_generation=1,
        old_target=3,
        old_low=3,
        check_limit_s=check_limit_s,
        now=NOW,
    )


def worker(serial: int, generation: int = 2, spawned_at: float = NOW) -> WorkerEntry:
    return WorkerEntry(serial, serial, generation, spawned_at, state=WorkerState.READY)


def with_canary() -> Reload:
    """A reload whose canary, serial 7, boots."""
    reload = start()
    assert reload.config_checked(2, None) == Load()
    assert reload.config_loaded(2, Policy(workers=3)) is None
    assert reload.next_step([worker(1, 1)], may_fork=True) == ForkCanary(1)
    reload.canary_forked(7)
    return reload


def rolling() -> Reload:
    reload = with_canary()
    assert reload.worker_ready(worker(7)) == Commit()
    return reload


def rolled_back(decision: Decision | None) -> RollBack:
    assert isinstance(decision, RollBack)
    return decision


def test_a_reload_that_succeeds() -> None:
    reload = rolling()
    assert reload.next_step([worker(7), worker(2, 1)], may_fork=True) is None
    assert reload.next_step([worker(7), worker(8)], may_fork=True) == Finish()
    event = reload.finished(NOW + 2)
    assert (event.name, event.generation, event.data) == ("reload_finished", 2, {"seconds": 2.0})


def test_there_is_one_canary_and_it_waits_for_room() -> None:
    reload = start()
    assert reload.next_step([], may_fork=True) is None
    reload.config_checked(2, None)
    reload.config_loaded(2, Policy(workers=3))
    assert reload.next_step([], may_fork=False) is None
    assert reload.next_step([worker(4, 1), worker(3, 1)], may_fork=True) == ForkCanary(3)
    reload.canary_forked(7)
    assert reload.next_step([], may_fork=True) is None


def test_a_bad_configuration() -> None:
    decision = rolled_back(start().config_checked(2, "no such setting"))
    assert decision.text == "the configuration is bad: no such setting"
    # The child has exited and the new generation never was the current one.
    assert (decision.cancel_check, decision.restore) == (False, False)


def test_a_check_that_takes_too_long() -> None:
    reload = start(check_limit_s=20.0)
    assert reload.due_at == NOW + 20
    reload.shift(5.0)
    assert reload.check_limit(NOW + 24) is None
    decision = rolled_back(reload.check_limit(NOW + 25))
    assert decision.text == "reading the configuration takes over 20 s (boot_timeout)"
    assert (decision.cancel_check, decision.restore) == (True, False)


def test_no_limit_for_the_check() -> None:
    reload = start(check_limit_s=0.0)
    assert reload.due_at == math.inf
    assert reload.check_limit(NOW + 1e6) is None


def test_a_configuration_that_the_arbiter_can_not_use() -> None:
    reload = start()
    reload.config_checked(2, None)
    assert "a port is taken" in rolled_back(reload.config_failed(2, "a port is taken")).text


def test_more_workers_than_the_scoreboard_has_room_for() -> None:
    reload = start()
    reload.config_checked(2, None)
    decision = rolled_back(reload.config_loaded(2, Policy(workers=9, capacity=8)))
    assert "workers = 9 is more than the 7" in decision.text


def test_news_of_another_generation_changes_nothing() -> None:
    reload = start()
    assert reload.config_checked(1, "bad") is None
    assert reload.config_loaded(1, Policy(workers=1)) is None
    assert reload.config_failed(1, "bad") is None
    assert reload.phase is Phase.CHECKING


def test_only_the_canary_decides() -> None:
    reload = with_canary()
    assert reload.boot_failed(worker(8), "ImportError", "") is None
    assert reload.worker_ended(worker(8), "exited") is None
    assert reload.worker_ready(worker(1, 1)) is None
    decision = rolled_back(reload.boot_failed(worker(7), "ImportError", "Traceback"))
    assert (decision.text, decision.details) == (
        "its first worker failed: ImportError",
        "Traceback",
    )


def test_several_rounds_of_failures_roll_back_once_rolling() -> None:
    reload = rolling()
    assert reload.worker_failed(worker(2, generation=1), NOW) is None
    now = NOW
    for _ in range(ROLLING_ATTEMPTS - 1):
        now += 10
        assert reload.worker_failed(worker(8, spawned_at=now - 1), now) is None
        # Another that was forked before this failure is of the same round.
        assert reload.worker_failed(worker(9, spawned_at=now - 1), now) is None
    decision = rolled_back(reload.worker_failed(worker(8, spawned_at=now), now))
    assert decision.text == f"its workers failed {ROLLING_ATTEMPTS} times"
    assert decision.restore


@pytest.mark.parametrize(
    ("reload", "surge", "candidate"),
    [(start(), 1, None), (with_canary(), 0, 2), (rolling(), 4, None)],
    ids=["checking", "canary", "rolling"],
)
def test_the_canary_takes_the_surge(reload: Reload, surge: int, candidate: int | None) -> None:
    assert (reload.surge(4, awaits_mold=False), reload.candidate) == (surge, candidate)


def test_until_the_canary_has_a_mold_another_worker_may_take_the_surge() -> None:
    assert with_canary().surge(4, awaits_mold=True) == 1


def test_phases_come_in_order() -> None:
    reload = start()
    with pytest.raises(RuntimeError, match="CHECKING > CANARY"):
        reload.config_loaded(2, Policy(workers=1))


def test_the_event_of_a_roll_back_has_the_first_line_as_its_reason() -> None:
    reload = start()
    event = reload.rolled_back(reload.give_up("it is bad\nline 2"), "the old ones serve", NOW + 1)
    assert (event.name, event.reason, event.details) == (
        "reload_rolled_back",
        "it is bad",
        "line 2",
    )
    assert event.text.endswith("; the old ones serve")
