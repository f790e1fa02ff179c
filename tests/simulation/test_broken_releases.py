"""A broken release never wins: the workers of the one before serve, or come back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation.random_world import NO_BOOT, RandomWorld

from servo.arbiter.core import events
from servo.arbiter.core.policy import Policy

SEEDS = range(20)

pytestmark = pytest.mark.slow


class Deployment(RandomWorld):
    """A world in which only the deployed release is broken.

    most_broken  the largest share of the serving workers that had the broken code
    """

    def __init__(self, seed: int, fault: str) -> None:
        super().__init__(seed)
        self.calm = True
        self.fault = fault
        self.most_broken = 0.0

    def finish(self, policy: Policy) -> Policy:
        return super().finish(
            replace(
                policy,
                workers=max(2, policy.workers),
                max_workers=0,
                workers_of={},
                preload=True,
                refork_after=0,
                bake_time_s=30.0,
                max_lifetime_s=0.0,
                wait_for_change=False,
            )
        )

    def new_config(self) -> Policy | str:
        return self.supervisor.policy

    def check(self, event: events.Event) -> None:
        super().check(event)
        ready = [self.code[proc.pid] for proc in self.procs.values() if proc.ready]
        broken = sum(bool(release.fault) for release in ready)
        self.most_broken = max(self.most_broken, broken / len(ready) if ready else 0.0)


def deployed(seed: int, fault: str) -> Deployment:
    """A server that serves, and then gets a broken release."""
    world = Deployment(seed, fault)
    world.tell(events.Started())
    world.run(10)
    world.deploys(fault)
    world.signal("SIGHUP")
    world.run(25)
    return world


@pytest.mark.parametrize("fault", NO_BOOT)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_release_that_does_not_boot_never_serves(seed: int, fault: str) -> None:
    world = deployed(seed, fault)
    assert world.most_broken == 0
    assert world.supervisor.generation == 1
    assert len(world.ready_serials) == world.supervisor.count.target


@pytest.mark.parametrize("fault", ["crashes", "errors", "unhealthy"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_release_that_fails_later_is_rolled_back(seed: int, fault: str) -> None:
    world = deployed(seed, fault)
    supervisor = world.supervisor
    assert world.most_broken > 0
    assert supervisor.generation == 1
    ready = [world.code[worker.pid or 0] for worker in supervisor.workers if worker.ready]
    assert len(ready) == supervisor.count.target
    assert not [release for release in ready if release.fault]


@pytest.mark.parametrize("fault", ["crashes", "errors", "unhealthy"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_repair_wins_whenever_it_comes(seed: int, fault: str) -> None:
    """The bake may find the bad release before, during or after the reload that repairs it."""
    world = Deployment(seed, fault)
    world.tell(events.Started())
    world.run(10)
    world.deploys(fault)
    world.signal("SIGHUP")
    world.run(world.rng.uniform(0, 8))
    world.deploys()
    world.signal("SIGHUP")
    world.run(25)
    supervisor = world.supervisor
    assert supervisor.reload is None
    ready = [world.code[worker.pid or 0] for worker in supervisor.workers if worker.ready]
    assert ready == [world.disk] * supervisor.count.target
