"""The policy of autoscaling, on loads that a model makes: no clock, no processes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servo.arbiter.core.autoscale import (
    SAMPLE_S,
    TARGET_USE,
    Autoscale,
    ServerLoad,
    WorkerLoad,
)

MIB = 1 << 20


class Model:
    """A server whose requests last long, and that boots a worker in `boot_s`.

    demand   returns how many requests clients have under way at a time
    """

    def __init__(
        self,
        demand: Callable[[float], float],
        *,
        low: int = 1,
        high: int = 16,
        capacity: int = 1,
        boot_s: float = 0.5,
        delay_s: float = 60.0,
    ) -> None:
        self.demand = demand
        self.low, self.high, self.capacity = low, high, capacity
        self.boot_s, self.delay_s = boot_s, delay_s
        self.policy = Autoscale()
        self.now = 1000.0
        self.target = low
        self.ready_at = [self.now] * low
        self.history: list[tuple[float, int]] = [(0.0, low)]
        self.reasons: list[str] = []
        self.load = ServerLoad([], cpus=64)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / SAMPLE_S)):
            self.now += SAMPLE_S
            self.step()

    def step(self) -> None:
        ready = sum(at <= self.now for at in self.ready_at) or 1
        total = round(self.demand(self.now - 1000.0))
        running = min(total, ready * self.capacity)
        each = [running // ready + (i < running % ready) for i in range(ready)]
        load = replace(
            self.load,
            workers=[WorkerLoad(i, n, self.capacity) for i, n in enumerate(each)],
            waiting=total - running,
        )
        scaling = self.policy.decide(
            load,
            target=self.target,
            bounds=(self.low, self.high),
            delay_s=self.delay_s,
            now=self.now,
        )
        if scaling.text:
            self.reasons.append(scaling.text)
        if scaling.target != self.target:
            self.history.append((self.now - 1000.0, scaling.target))
            self.ready_at = self.ready_at[: scaling.target]
            missing = scaling.target - len(self.ready_at)
            self.ready_at += [self.now + self.boot_s] * missing
            self.target = scaling.target

    def when(self, target: int) -> float:
        """The first time with at least this many workers."""
        return next(at for at, count in self.history if count >= target)


@pytest.mark.slow
@given(
    demand=st.integers(0, 80),
    capacity=st.sampled_from([1, 4, 20]),
    low=st.integers(1, 4),
    span=st.integers(0, 20),
    boot_s=st.sampled_from([0.2, 1.0, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_constant_load_gets_its_number_and_keeps_it(
    demand: int, capacity: int, low: int, span: int, boot_s: float
) -> None:
    model = Model(
        lambda _: demand, low=low, high=low + span, capacity=capacity, boot_s=boot_s, delay_s=20.0
    )
    model.run(60)
    settled = model.target
    model.run(120)
    assert model.target == settled, "it oscillates"
    changes = [count for _, count in model.history]
    assert changes == sorted(changes), "it went down under a constant load"
    needed = math.ceil(demand / capacity / TARGET_USE - 1e-6)
    assert settled == max(low, min(needed, low + span))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_noisy_load_does_not_make_it_oscillate(seed: int) -> None:
    rng = random.Random(seed)
    model = Model(lambda _: rng.gauss(6.0, 1.0), low=2)
    model.run(60)
    model.run(900)
    late = [count for at, count in model.history if at > 60]
    assert len(late) <= 3
    assert all(8 <= count <= 12 for count in late)


def test_a_spike_has_its_workers_within_seconds() -> None:
    model = Model(lambda at: 2 if at < 20 else 12, low=2, high=20)
    model.run(60)
    assert model.when(12) - 20 <= 2.0
    assert model.when(16) - 20 <= 5.0
    assert model.target == 16


def test_quiet_after_a_plateau_goes_down_slowly_and_to_the_lower_bound() -> None:
    model = Model(lambda at: 1 if at < 10 or at > 130 else 9, low=2)
    model.run(400)
    down = [(at, count) for (_, before), (at, count) in pairwise(model.history) if count < before]
    assert down[0][0] >= 190.0
    assert all(later - sooner >= 6.0 for (sooner, _), (later, _) in pairwise(down))
    assert model.target == 2


def test_a_load_that_comes_back_finds_its_workers() -> None:
    model = Model(lambda at: 9 if at % 60 < 30 else 1, low=2)
    model.run(30)
    settled = model.target
    model.run(600)
    assert model.history[-1][1] == settled == 12


def test_a_burst_of_a_moment_does_not_count() -> None:
    model = Model(lambda at: 40 if at % 10 == 5 else 1, low=2)
    model.run(100)
    # One sample of four: at most the workers that were there were busy.
    assert model.target <= 3


def test_it_never_goes_past_the_memory_that_is_left() -> None:
    model = Model(lambda _: 20, low=2, high=30)
    for _ in range(240):
        ready = sum(at <= model.now + SAMPLE_S for at in model.ready_at)
        left = (550 - 100 * ready) * MIB
        model.load = ServerLoad([], cpus=64, memory_left=left, worker_memory=100 * MIB)
        model.run(SAMPLE_S)
    assert [count for _, count in model.history] == [2, 4, 5]
    last = "not scaled up from 5: one more needs 100 MB of memory, 50 MB are left"
    assert model.reasons[-1] == last
    assert len(model.reasons) == 3


def test_it_never_adds_workers_while_all_cpus_are_busy() -> None:
    policy = Autoscale()
    load = ServerLoad([WorkerLoad(i, 1, 1, cpu=0.95) for i in range(2)], waiting=9, cpus=2)
    for step in range(40):
        scaling = policy.decide(
            load, target=2, bounds=(2, 16), delay_s=60, now=1000 + step * SAMPLE_S
        )
        assert scaling.target == 2


def test_cpu_time_and_blocked_loops_count_as_use() -> None:
    assert WorkerLoad(1, 1, 4).use == 0.25
    assert WorkerLoad(1, 1, 4, cpu=0.9).use == 0.9
    assert WorkerLoad(1, 1, 1000, blocked=True).use == 1.0
    assert WorkerLoad(1, 9, 4).use == 1.0


def test_without_a_ready_worker_nothing_is_decided() -> None:
    policy = Autoscale()
    scaling = policy.decide(ServerLoad([], 9), target=3, bounds=(1, 9), delay_s=1, now=1000)
    assert (scaling.target, scaling.text) == (3, "")


def test_after_a_standstill_it_starts_anew() -> None:
    model = Model(lambda _: 1, low=2, delay_s=5.0)
    model.target = 4
    model.ready_at = [0.0] * 4
    model.run(4)
    model.policy.shift(600.0)
    model.now += 600.0
    model.run(4)
    assert model.target == 4
    model.run(2)
    assert model.target < 4
