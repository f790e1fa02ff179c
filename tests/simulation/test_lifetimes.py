"""Thousands of random lifetimes of a server: whatever the workers do and whoever sends signals, no
invariant of `World` breaks, a calm world is served again, and a stop ends."""

from __future__ import annotations

import heapq
import itertools
import os
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from simulation.world import Proc, World

from servo.arbiter.core import events
from servo.arbiter.core.policy import TICK_S, Policy
from servo.ipc.messages import BootFailed, Booting, Draining, Message, Ready, ReplaceMe

# The default run is for every `make test`; SERVO_LIFETIMES=100000 is for a long evening.
LIFETIMES = int(os.environ.get("SERVO_LIFETIMES", "1600"))
BATCHES = 8

SIGNALS = [
    *("SIGHUP",) * 6,
    *("SIGTTIN", "SIGTTOU") * 3,
    *("SIGWINCH", "SIGUSR1", "SIGUSR2", "SIGCONT"),
]


def random_policy(rng: random.Random) -> Policy:
    workers = rng.choice([1, 1, 2, 3, 4, 7])
    batch = rng.choice([1, 1, 2, 5])
    return Policy(
        workers=workers,
        timeout_s=rng.choice([0, 1.5, 4]),
        boot_timeout_s=rng.choice([1, 4]),
        graceful_timeout_s=rng.choice([0, 0.3, 3]),
        max_lifetime_s=rng.choice([0, 0, 0, 6]),
        reload_batch=batch,
        own_queues=rng.random() < 0.2,
    )


class RandomWorld(World):
    """Processes with random lives, on a clock of their own."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        policy = random_policy(self.rng)
        self.capacity = self.rng.choice([12, 16, 40])
        self.wait_for_change = self.rng.random() < 0.15
        super().__init__(self.finish(policy))
        self.calm = self.rng.random() < 0.1
        self.badness = self.rng.choice([0.02, 0.2, 0.6])
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.really_hung: set[int] = set()
        self.next_tick = self.now + TICK_S

    def finish(self, policy: Policy) -> Policy:
        return replace(policy, capacity=self.capacity, wait_for_change=self.wait_for_change)

    # --- the clock --------------------------------------------------------------------------------

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + seconds, next(self._numbers), do))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.exit_code is None and self.now < end:
            due = min(self.next_tick, self.supervisor.wake_at())
            if self._timers and self._timers[0][0] <= due:
                time, _, do = heapq.heappop(self._timers)
                self.now = max(self.now, time)
                do()
            else:
                self.now = max(self.now, due)
                self.next_tick = self.now + TICK_S
                self.tick()

    def freeze(self, seconds: float) -> None:
        """Nobody runs for a while: not the workers, not the arbiter."""
        self._timers = [(time + seconds, number, do) for time, number, do in self._timers]
        for proc in self.procs.values():
            # The heartbeats that would have come are missing until each has run again.
            if proc.ready and proc.hung_at is None:
                proc.hung_at = self.now
                self.after(seconds + self.rng.uniform(0, 0.4), lambda proc=proc: self.thaw(proc))
        self.now += seconds

    def thaw(self, proc: Proc) -> None:
        if proc.hung_at is not None and proc.pid not in self.really_hung:
            proc.hung_at = None

    # --- lives ------------------------------------------------------------------------------------

    def bad(self, share: float = 1.0) -> bool:
        return not self.calm and self.rng.random() < self.badness * share

    def fork_fails(self) -> bool:
        return self.bad(0.1)

    def on_fork(self, proc: Proc) -> None:
        rng = self.rng
        limit = self.supervisor.policies[proc.generation].boot_timeout_s
        self.after(rng.uniform(0, 0.1), lambda: self.says(proc, Booting()))
        boot = rng.uniform(0.1, 0.6)
        if not self.bad():
            self.after(boot, lambda: self.gets_ready(proc))
            return
        fate = rng.randrange(5)
        if fate == 0:
            kind = rng.choice(["app", "boot"])
            self.after(boot, lambda: self.says(proc, BootFailed(kind, "no such module\n  trace")))
            if rng.random() < 0.8:
                self.after(boot + 0.05, lambda: self.exits(proc, 4 if kind == "app" else 3))
        elif fate == 1:
            code, signal = rng.choice([(1, ""), (0, ""), (4, ""), (-11, "SIGSEGV")])
            self.after(boot, lambda: self.exits(proc, code, signal))
        elif fate == 2:
            pass  # it hangs
        elif fate == 3:
            self.after(limit + rng.uniform(-0.5, 3), lambda: self.gets_ready(proc))
        else:
            self.after(boot, lambda: self.loses_channel(proc))
            self.after(boot + 0.1, lambda: self.gets_ready(proc))

    def gets_ready(self, proc: Proc) -> None:
        if proc.pid not in self.procs or proc.killed:
            return
        proc.ready = True
        self.says(proc, Ready())
        if proc.asked is not None:
            self.on_asked(proc)
        elif self.bad():
            self.after(self.rng.expovariate(0.3), lambda: self.misbehaves(proc))

    def misbehaves(self, proc: Proc) -> None:
        rng = self.rng
        if proc.pid not in self.procs:
            return
        fate = rng.randrange(7)
        if fate <= 1:
            code, signal = rng.choice([(1, ""), (0, ""), (-9, "SIGKILL"), (-11, "SIGSEGV")])
            self.exits(proc, code, signal)
        elif fate == 2:
            proc.hung_at = self.now
            self.really_hung.add(proc.pid)
        elif fate == 3:
            self.says(proc, ReplaceMe(rng.choice(["recycled", "terminated", "request_timeout"])))
        elif fate == 4:
            self.says(proc, Draining())
            self.after(rng.uniform(0, 4), lambda: self.exits(proc))
        elif fate == 5:
            self.loses_channel(proc)
        else:
            message: Message = rng.choice(
                [Ready(), Booting(), BootFailed("app", "late"), Draining()]
            )
            self.says(proc, message)

    def on_asked(self, proc: Proc) -> None:
        if not proc.ready or proc.pid in self.really_hung:
            return  # it does not read its channel
        if self.bad(0.5):
            if self.rng.random() < 0.5:
                self.after(self.rng.uniform(0, 6), lambda: self.exits(proc))
            return
        self.after(0.01, lambda: self.says(proc, Draining()))
        self.after(self.rng.uniform(0.02, 0.25), lambda: self.exits(proc))

    def on_kill(self, proc: Proc, signal: str) -> None:
        if signal == "SIGTERM":
            if proc.deaf and proc.ready:
                self.after(0.2, lambda: self.exits(proc))
            return
        if signal == "SIGKILL" or not self.bad():
            proc.killed = True
            code = -9 if signal == "SIGKILL" else -6
            self.after(self.rng.uniform(0, 0.2), lambda: self.exits(proc, code, signal))

    # --- configuration ----------------------------------------------------------------------------

    def on_check(self) -> None:
        generation = self.checking

        def answer(error: str | None) -> None:
            if self.checking == generation:
                self.config_checked(error)

        if not self.bad():
            self.after(self.rng.uniform(0, 0.2), lambda: answer(None))
        elif self.rng.random() < 0.5:
            self.after(self.rng.uniform(0, 1), lambda: answer("a bad value"))

    def new_config(self) -> Policy | str:
        return "a port is taken" if self.bad(0.3) else self.finish(random_policy(self.rng))


def live_a_life(seed: int) -> RandomWorld:
    world = RandomWorld(seed)
    rng = world.rng
    try:
        world.tell(events.Started())
        for _ in range(rng.randrange(1, 25)):
            world.run(rng.choice([0.01, 0.2, 1, 3]))
            if world.exit_code is not None:
                break
            if rng.random() < 0.7:
                world.signal(rng.choice(SIGNALS))
            elif rng.random() < 0.2:
                world.freeze(rng.choice([2, 30, 600]))
            elif rng.random() < 0.2:
                world.tell(events.FileChanged(("app.py",)))
        if world.exit_code is None and rng.random() < 0.5:
            calms_down(world)
        if world.exit_code is None:
            stops(world)
    except AssertionError as error:
        story = "\n".join(world.log[-60:])
        raise AssertionError(f"seed {seed}: {error}\n{story}") from error
    return world


def calms_down(world: RandomWorld) -> None:
    """Nothing goes wrong any more: all that are asked for serve, and nothing is under way."""
    supervisor = world.supervisor
    world.calm = True
    # The bad ones that live are ended by limits or by people.
    for proc in [*world.procs.values()]:
        if not proc.ready or proc.hung_at is not None:
            world.exits(proc, -9, "SIGKILL")
    world.run(60)
    if supervisor.held or supervisor.paused:
        world.tell(events.FileChanged(("app.py",)))
        world.run(60)
    if world.exit_code is not None:
        return
    lifetime = supervisor.policy.max_lifetime_s
    for _ in range(60 if lifetime else 1):
        ready = [worker for worker in supervisor.workers.live() if worker.ready]
        if len(ready) == supervisor.target and supervisor.reload is None:
            break
        world.run(0.5)
    assert supervisor.reload is None, "a reload that never ends"
    assert len(ready) == supervisor.target, f"{len(ready)} of {supervisor.target} serve"
    assert {worker.generation for worker in ready} == {supervisor.generation}
    assert len({worker.slot for worker in ready}) == len(ready), "two workers in a slot"
    if not lifetime and not any(worker.replace_reason for worker in ready):
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
    worlds = [live_a_life(seed) for seed in range(200)]
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
    ):
        assert what in said, what
    assert {0, 3, 4} <= {world.exit_code for world in worlds}
