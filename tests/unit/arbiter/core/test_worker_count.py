"""The number of workers: who may change it, and its bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from servo.arbiter.core.action_queue import ActionQueue
from servo.arbiter.core.actions import Action, RecordLifecycleEvent, WorkerCountChanged
from servo.arbiter.core.autoscale import SAMPLE_S, ServerLoad, WorkerLoad
from servo.arbiter.core.policy import Policy
from servo.arbiter.core.worker_count import WorkerCount

FIXED = Policy(4, capacity=12)
SCALED = Policy(2, capacity=12, max_workers=8, scale_down_delay_s=2.0)


class Story(WorkerCount):
    """A count, and the actions that it has queued."""

    def __init__(self, policy: Policy) -> None:
        self.queue = ActionQueue()
        super().__init__(policy, self.queue)
        self.now = 1000.0

    def numbers(self) -> tuple[int, int, int]:
        return self.low, self.target, self.most

    def taken(self) -> list[Action]:
        return self.queue.take()

    def loaded(self, busy: int, seconds: float, *, may_shrink: bool = True) -> None:
        """`busy` of the workers, all of which are ready, have a request for so long."""
        end = self.now + seconds
        while self.now < end:
            loads = [WorkerLoad(slot, int(slot <= busy), 1) for slot in range(1, self.target + 1)]
            waiting = max(0, busy - self.target)
            self.measured(ServerLoad(loads, waiting, 64), self.now, may_shrink=may_shrink)
            self.now += SAMPLE_S


def test_a_fixed_number_is_its_own_lower_bound() -> None:
    count = Story(FIXED)
    assert count.numbers() == (4, 4, 11)
    count.scale(6, "servoctl")
    assert count.numbers() == (6, 6, 11)
    event, changed = count.taken()
    assert isinstance(event, RecordLifecycleEvent)
    assert event.text == "servoctl: 6 workers instead of 4"
    assert (event.name, event.reason, event.data) == (
        "scaled",
        "servoctl",
        {"workers": 6, "before": 4},
    )
    assert changed == WorkerCountChanged(6, 4)


def test_the_same_number_again_changes_nothing() -> None:
    count = Story(FIXED)
    count.scale(4, "servoctl")
    assert count.taken() == []


def test_with_autoscaling_an_operator_moves_the_lower_bound() -> None:
    count = Story(SCALED)
    assert count.numbers() == (2, 2, 8)
    count.loaded(9, 4)
    assert count.numbers() == (2, 8, 8)
    count.scale(4, "servoctl")
    assert count.numbers() == (4, 8, 8)
    count.loaded(0, 20)
    assert count.numbers() == (4, 4, 8)


def test_the_load_decides_nothing_soon_after_it_was_forgotten() -> None:
    count = Story(SCALED)
    count.loaded(9, 3 * SAMPLE_S)
    before = count.target
    count.forget_load()
    assert count.use == {}
    count.loaded(9, SAMPLE_S)
    assert count.target == before


def test_the_number_stays_while_it_must_not_shrink() -> None:
    count = Story(SCALED)
    count.loaded(9, 4)
    count.loaded(0, 20, may_shrink=False)
    assert count.target == 8
    assert count.use == dict.fromkeys(range(1, 9), 0.0)


def test_a_reload_keeps_the_number_of_an_operator() -> None:
    count = Story(FIXED)
    count.scale(6, "servoctl")
    count.adopt(replace(FIXED, timeout_s=1.0), "reload")
    assert count.numbers() == (6, 6, 11)


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        (Policy(3, capacity=12), (3, 3, 11)),
        (Policy(4, capacity=6), (5, 5, 5)),
        (Policy(4, capacity=12, max_workers=8), (4, 6, 8)),
    ],
    ids=["another number", "less room", "bounds"],
)
def test_a_reload_brings_other_numbers(policy: Policy, numbers: tuple[int, int, int]) -> None:
    count = Story(FIXED)
    count.scale(6, "servoctl")
    count.adopt(policy, "reload")
    assert count.numbers() == numbers


def test_a_roll_back_returns_the_number_before() -> None:
    count = Story(FIXED)
    count.scale(6, "servoctl")
    count.adopt(Policy(2, capacity=12), "reload")
    count.roll_back(FIXED, low=6, target=6)
    assert count.numbers() == (6, 6, 11)


def test_a_roll_back_keeps_the_number_that_the_load_needs() -> None:
    count = Story(SCALED)
    count.adopt(replace(SCALED, workers=1), "reload")
    count.loaded(9, 4)
    count.roll_back(SCALED, low=2, target=2)
    assert count.numbers() == (2, 8, 8)
