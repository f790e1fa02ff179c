"""Thousands of random lifetimes of a server, with all its mechanisms in one random machine.

No invariant of `World` breaks, all workers serve once the faults stop, and a stop ends.
"""

from __future__ import annotations

import os

import pytest
from simulation.random_world import FAULTS, RandomWorld

from servo.arbiter.core import events

# The default run is for every `make test`; SERVO_LIFETIMES=100000 is for a long evening.
LIFETIMES = int(os.environ.get("SERVO_LIFETIMES", "1200"))
BATCHES = 16

SIGNALS = [
    *("SIGHUP",) * 6,
    *("SIGTTIN", "SIGTTOU") * 3,
    *("SIGUSR2",) * 3,
    *("SIGWINCH", "SIGUSR1", "SIGCONT"),
]

COMMANDS: list[tuple[str, object]] = [
    *[("rollback", None)] * 4,
    *[("reload", None)] * 2,
    *[("scale", to) for to in ("+1", "-1", "3", "99", "x")],
    *[("restart-worker", slot) for slot in (1, 2, 5)],
    ("upgrade", "/usr/bin/python3"),
    ("reopen", None),
]


def live_a_life(seed: int) -> RandomWorld:
    world = RandomWorld(seed)
    rng = world.rng
    try:
        world.tell(events.Started())
        for _ in range(rng.randrange(1, 25)):
            world.run(rng.choice([0.01, 0.2, 1, 3]))
            if world.exit_code is not None:
                break
            something_happens(world)
        if world.exit_code is None and rng.random() < 0.5:
            calms_down(world)
        if world.exit_code is None:
            stops(world)
    except AssertionError as error:
        story = "\n".join(world.log[-60:])
        raise AssertionError(f"seed {seed}: {error}\n{story}") from error
    return world


def something_happens(world: RandomWorld) -> None:
    """The load changes, an operator acts, or the machine stands still."""
    rng = world.rng
    if rng.random() < 0.3:
        world.demand = rng.choice([0, 1, 3, 8])
        world.memory_left = rng.choice([0, 10, 1000])
    if rng.random() < 0.2:
        world.renews()
    if rng.random() < 0.3:
        world.deploys(rng.choice(FAULTS) if world.bad() else "")
    chance = rng.random()
    if chance < 0.6:
        world.signal(rng.choice(SIGNALS))
    elif chance < 0.85:
        world.asks(*rng.choice(COMMANDS))
    elif chance < 0.92:
        world.freeze(rng.choice([2, 30, 600]))
    else:
        world.tell(events.FileChanged(("app.py",)))


def calms_down(world: RandomWorld) -> None:
    """Nothing goes wrong any more: all that are asked for serve, and nothing is under way."""
    world.calm = True
    world.growth.clear()
    pair = max(world.certificates.files.values()) + 1
    for name in world.certificates.files:
        world.certificates.write(name, pair, world.now)
    # The bad ones that live are ended by limits or by people.
    for proc in [*world.procs.values()]:
        if not proc.ready or proc.untouchable or proc.hung_at is not None:
            world.exits(proc, -9, "SIGKILL")
    for mold in [*world.molds.values()]:
        if not mold.ready or mold.killed:
            world.mold_ends(mold, "SIGKILL")
    # Operators repair a release that is broken, or in doubt, as it has never served. The release
    # that serves may also be broken when a good one could not replace it.
    pids = [*world.procs, *(mold.pid for mold in world.molds.values())]
    releases = [world.disk, *(world.code[pid] for pid in pids)]
    is_repaired = any(each.fault for each in releases) or world.rng.random() < 0.5
    if is_repaired:
        world.deploys()
        world.signal("SIGHUP")
    world.run(120)
    supervisor = world.supervisor  # an upgrade has made another one
    if supervisor.held or supervisor.paused:
        world.tell(events.FileChanged(("app.py",)))
        world.run(60)
    if world.exit_code is not None:
        return
    lifetime = supervisor.policy.max_lifetime_s
    for _ in range(60 if lifetime else 1):
        ready = [worker for worker in supervisor.workers.live() if worker.ready]
        if len(ready) == supervisor.count.target and supervisor.reload is None:
            break
        world.run(0.5)
    assert supervisor.reload is None, "a reload that never ends"
    assert supervisor.upgrade is None, "an upgrade that never ends"
    assert len(ready) == supervisor.count.target, f"{len(ready)} of {supervisor.count.target} serve"
    assert {worker.generation for worker in ready} == {supervisor.generation}
    if is_repaired:
        assert {world.code[worker.pid] for worker in ready} == {world.disk}, "old code serves"
    assert set(supervisor.policies) == {supervisor.generation}, "a generation is kept without end"
    assert set(world.molds) == ({supervisor.generation} if supervisor.policy.preload else set())
    assert len({worker.slot for worker in ready}) == len(ready), "two workers in a slot"
    for proc in world.procs.values():
        limit = supervisor.policies[proc.generation].max_memory_bytes
        too_large = limit and proc.memory >= limit > (proc.at_boot or 0)
        assert not too_large or lifetime or proc.untouchable, "a worker that is too large stays"
    is_unhealthy = any(world.code[proc.pid].fault == "unhealthy" for proc in world.procs.values())
    if not lifetime and not is_unhealthy and not any(worker.replace_reason for worker in ready):
        forks = world.last_serial
        world.run(5)
        assert world.last_serial == forks, "workers come and go without a reason"


def stops(world: RandomWorld) -> None:
    rng = world.rng
    grace = max(policy.graceful_timeout_s for policy in world.supervisor.policies.values())
    world.signal(rng.choice(["SIGTERM", "SIGTERM", "SIGINT", "SIGQUIT"]))
    for name in rng.choices(["SIGTERM", "SIGINT", "SIGHUP", "SIGTTIN", "SIGWINCH"], k=2):
        world.run(rng.uniform(0, 0.5))
        if world.exit_code is None:
            world.signal(name)
    world.run(grace + 10)
    assert world.exit_code is not None, "the stop does not end"


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(BATCHES))
def test_lifetimes(batch: int) -> None:
    size = LIFETIMES // BATCHES
    for seed in range(batch * size, (batch + 1) * size):
        live_a_life(seed)


def test_the_model_has_teeth() -> None:
    """The worlds are varied enough: servers that serve, fail to start, reload, roll back, kill."""
    worlds = [live_a_life(seed) for seed in range(400)]
    said = "\n".join(line for world in worlds for line in world.log)
    for what in (
        "rolled back",
        "finished after",
        "no heartbeat",
        "boot_timeout",
        "stood still",
        "killing it",
        "could not boot",
        "waiting for a file",
        "scaled down",
        "SIGWINCH",
        "scaled up to",
        "scaled down to",
        "not scaled up",
        "in a row (max_boot_failures)",
        "it uses too much memory",
        "max_worker_memory_hard is",
        "has no effect",
        "upgrade (SIGUSR2) failed",
        "upgraded",
        "has imported the app",
        "could not load the app",
        "its workers serve on",
        "its mold ended",
        "has no mold",
        "(drain_websockets)",
        "closes its WebSockets early",
        "is rolled back to generation",
        "only the settings of generation",
        "has proved itself",
        "requests) finished after",
        "the next mold could not be forked",
        "ended before it had forked the next mold",
        "goes first",
    ):
        assert what in said, what
    assert {0, 3, 4} <= {world.exit_code for world in worlds}
