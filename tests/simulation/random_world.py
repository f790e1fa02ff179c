"""A world in which everything happens at random: lives, deploys, renewals, faults.

Operators deploy good and broken releases, scale, reload, upgrade and roll back; certificates are
renewed; workers and molds crash, hang, leak and fail their health checks; the machine stands still.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from simulation.certificates import Certificates
from simulation.world import MoldProc, Proc, World

from servo.arbiter.core import actions, events
from servo.arbiter.core.policy import TICK_S, Policy
from servo.ipc.messages import (
    BootFailed,
    Booting,
    Draining,
    Lingering,
    Message,
    Ready,
    ReplaceMe,
    Retire,
)

# The ways in which a release can be broken, "" for a good one. The first three never get ready.
NO_BOOT = ["raises", "exits", "hangs"]
FAULTS = [*NO_BOOT, "crashes", "errors", "unhealthy", "leaks"]


@dataclass(frozen=True, slots=True)
class Release:
    """The code of an application, which every process has that has imported it.

    fault  one of FAULTS, or "" for a good release
    """

    number: int
    fault: str = ""


def random_policy(rng: random.Random) -> Policy:
    workers = rng.choice([1, 1, 2, 3, 4, 7])
    batch = rng.choice([1, 1, 2, 5])
    return Policy(
        workers=workers,
        timeout_s=rng.choice([0, 1.5, 4]),
        boot_timeout_s=rng.choice([1, 4, 15]),
        graceful_timeout_s=rng.choice([0, 0.3, 3]),
        pre_stop_delay_s=rng.choice([0, 0, 0, 2]),
        request_timeout_s=rng.choice([0, 0, 2]),
        max_lifetime_s=rng.choice([0, 0, 0, 6]),
        reload_batch=batch,
        max_workers=rng.choice([0, 0, workers + 1, workers + 4]),
        scale_down_delay_s=3.0,
        max_boot_failures=rng.choice([0, 0, 0, 1, 2, 4]),
        max_memory_bytes=rng.choice([0, 0, 100]),
        max_memory_hard_bytes=rng.choice([0, 0, 150]),
        own_queues=rng.random() < 0.2,
        preload=rng.random() < 0.4,
        refork_after=rng.choice([0, 100, 100]),
        bake_time_s=rng.choice([0, 0, 2, 20]),
        workers_of=rng.choice([{}, {}, {}, {"async": 2, "thread": workers}]),
    )


class RandomWorld(World):
    """Processes with random lives, on a clock of their own."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        # Of its own, so that the rest of each life is the same without WebSockets.
        self.websockets = random.Random(f"{seed} websockets")
        policy = random_policy(self.rng)
        self.capacity = self.rng.choice([12, 16, 40])
        self.wait_for_change = self.rng.random() < 0.15
        super().__init__(self.finish(policy))
        self.calm = self.rng.random() < 0.1
        self.badness = self.rng.choice([0.02, 0.2, 0.6])
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.growth: dict[int, int] = {}
        # The code on the disk, and that of each process and mold, by pid.
        self.disk = Release(1)
        self.code: dict[int, Release] = {}
        # generation -> the worker that forks its mold
        self.warmed: dict[int, int] = {}
        # pid -> responses since the start, and how many of them had a 5xx status
        self.responses: dict[int, tuple[int, int]] = {}
        self.certificates = Certificates()
        self.certificates.load(1)
        self.next_tick = self.now + TICK_S

    def finish(self, policy: Policy) -> Policy:
        most = self.capacity - policy.reload_batch
        return replace(
            policy,
            workers_of={} if policy.max_workers else policy.workers_of,
            drain_websockets_s=self.websockets.choice([0, 0, 2, 20]),
            capacity=self.capacity,
            wait_for_change=self.wait_for_change,
            max_workers=policy.max_workers if policy.max_workers <= most else 0,
        )

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
                policy = self.supervisor.policy
                if policy.bake_time_s or policy.refork_after or self.rng.random() < 0.1:
                    self.count_responses()
                self.now = max(self.now, due)
                self.next_tick = self.now + TICK_S
                self.tick()

    def tick(self) -> None:
        for pid, growth in self.growth.items():
            if pid in self.procs:
                self.procs[pid].memory += growth
        super().tick()
        self.certificates.tick(self.supervisor.policies, self.now)
        if self.exit_code is None:
            self.measure()
        if self.exit_code is None and self.supervisor.is_autoscaled:
            self.measure_load()

    def freeze(self, seconds: float) -> None:
        """Nobody runs for a while: not the workers, not the arbiter."""
        self._timers = [(time + seconds, number, do) for time, number, do in self._timers]
        for proc in self.procs.values():
            # The heartbeats that would have come are missing until each has run again.
            if proc.ready and proc.still_since is None:
                proc.still_since = self.now
                self.after(seconds + self.rng.uniform(0, 0.4), lambda proc=proc: self.thaw(proc))
        self.now += seconds

    def thaw(self, proc: Proc) -> None:
        proc.still_since = None

    # --- lives ------------------------------------------------------------------------------------

    def bad(self, share: float = 1.0) -> bool:
        return not self.calm and self.rng.random() < self.badness * share

    def fork_fails(self) -> bool:
        return self.bad(0.1)

    def deploys(self, fault: str = "") -> None:
        """Replace the code on the disk."""
        self.disk = Release(self.disk.number + 1, fault)

    def renews(self) -> None:
        """Renew the certificate: two files, one after the other. The second may never come."""
        files = self.certificates
        pair = max(files.files.values()) + 1
        first, second = self.rng.sample(["certificate", "key"], 2)
        files.write(first, pair, self.now)

        def complete() -> None:
            if max(files.files.values()) == pair:  # else another renewal has begun
                files.write(second, pair, self.now)

        if not self.bad():
            self.after(self.rng.uniform(0, 8), complete)

    def on_fork(self, proc: Proc) -> None:
        rng = self.rng
        mold = self.molds.get(proc.generation)
        preload = self.supervisor.policies[proc.generation].preload
        self.code[proc.pid] = self.code[mold.pid] if preload and mold is not None else self.disk
        limit = self.supervisor.policies[proc.generation].boot_timeout_s
        self.after(rng.uniform(0, 0.1), lambda: self.says(proc, Booting()))
        boot = rng.uniform(0.1, 0.6)
        fault = self.code[proc.pid].fault
        if fault in NO_BOOT:
            fate = NO_BOOT.index(fault)
        elif self.bad():
            fate = rng.randrange(5)
        else:
            self.after(boot, lambda: self.gets_ready(proc))
            return
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

    def on_preflight(self) -> None:
        self.after(self.rng.uniform(0.1, 2.0), self.preflight_ends)

    def preflight_ends(self) -> None:
        # A release that hangs makes the preflight hang until its limit.
        if self.preflighting and self.disk.fault != "hangs":
            fails = self.bad() or self.disk.fault in NO_BOOT or not self.certificates.usable
            self.preflight_ended("the app can't be imported" if fails else None)

    def execute_fails(self) -> str | None:
        return "no memory" if self.bad(0.2) else None

    def is_given_back(self) -> bool:
        return self.bad(0.2)

    def gets_ready(self, proc: Proc) -> None:
        if proc.pid not in self.procs or proc.killed:
            return
        proc.ready = True
        proc.memory = self.rng.choice([95, 120, 160]) if self.bad(0.3) else 50
        fault = self.code[proc.pid].fault
        if self.bad() or fault == "leaks":
            self.growth[proc.pid] = self.rng.choice([1, 10, 40])
        self.says(proc, Ready(self.rng.choice(["async", "thread"])))
        if self.exit_code is None:
            self.measure(proc)
        if proc.pid not in self.procs:
            return
        if proc.asked is not None:
            self.on_asked(proc)
        elif fault == "crashes":
            self.after(self.rng.expovariate(1.0), lambda: self.exits(proc, -11, "SIGSEGV"))
        elif fault == "unhealthy":
            unhealthy = ReplaceMe("unhealthy", "GET /health answers 500")
            self.after(self.rng.uniform(1, 3), lambda: self.says(proc, unhealthy))
        elif self.bad():
            self.after(self.rng.expovariate(0.3), lambda: self.misbehaves(proc))

    def misbehaves(self, proc: Proc) -> None:
        rng = self.rng
        if proc.pid not in self.procs:
            return
        fate = rng.randrange(10)
        if fate <= 1:
            code, signal = rng.choice([(1, ""), (0, ""), (-9, "SIGKILL"), (-11, "SIGSEGV")])
            self.exits(proc, code, signal)
        elif fate == 2:
            proc.hung_at = self.now
        elif fate == 3:
            self.says(proc, ReplaceMe(rng.choice(["recycled", "terminated", "unhealthy", "what?"])))
        elif fate == 4:
            self.says(proc, Draining())
            self.after(rng.uniform(0, 4), lambda: self.exits(proc))
        elif fate == 5:
            self.loses_channel(proc)
        elif fate == 6:
            self.tell(events.RowOverwritten(proc.serial))
        elif fate == 7:
            proc.busy_since = self.now
            if rng.random() < 0.5:  # its loop is blocked, too, so it can't end the request itself
                proc.hung_at = self.now
        elif fate == 8:
            proc.untouchable = rng.random() < 0.3 and not self.calm
        else:
            message: Message = rng.choice(
                [Ready(), Booting(), BootFailed("app", "late"), Draining()]
            )
            self.says(proc, message)

    def on_asked(self, proc: Proc) -> None:
        if not proc.ready or proc.hung_at is not None:
            return  # it does not read its channel
        if self.bad(0.5):
            if self.rng.random() < 0.5:
                self.after(self.rng.uniform(0, 6), lambda: self.exits(proc))
            return
        self.after(0.01, lambda: self.says(proc, Draining()))
        websockets_s = self.supervisor.policies[proc.generation].drain_websockets_s
        if websockets_s and isinstance(proc.asked, Retire) and self.websockets.random() < 0.7:
            self.after(0.02, lambda: self.says(proc, Lingering()))
            self.after(websockets_s + 0.1, lambda: self.exits(proc))
            return
        took = self.rng.uniform(0.02, 0.25)
        if proc.next_mold and isinstance(proc.asked, Retire):
            error = "its threads hang" if self.bad() else ""
            self.after(took, lambda: self.forks_mold(proc, error))
        self.after(took, lambda: self.exits(proc))

    def on_kill(self, proc: Proc, signal: str) -> None:
        if signal == "SIGTERM":
            if proc.deaf and proc.ready:
                self.after(0.2, lambda: self.exits(proc))
            return
        if signal == "SIGKILL" or not self.bad():
            proc.killed = True
            code = -9 if signal == "SIGKILL" else -6
            self.after(self.rng.uniform(0, 0.2), lambda: self.exits(proc, code, signal))

    def count_responses(self) -> None:
        """Each ready worker answers some requests, and those of a broken release fail often."""
        counts = {}
        for proc in self.procs.values():
            if proc.ready:
                responses, errors = self.responses.get(proc.pid, (0, 0))
                more = self.rng.randrange(100)
                bad = more * 0.5 if self.code[proc.pid].fault == "errors" else more * 0.01
                self.responses[proc.pid] = responses + more, errors + int(bad)
                counts[proc.serial] = self.responses[proc.pid]
        self.tell(events.ResponsesCounted(counts))

    # --- molds ------------------------------------------------------------------------------------

    def on_fork_mold(self, mold: MoldProc) -> None:
        rng = self.rng
        took = rng.uniform(0.05, 0.6)
        self.code[mold.pid] = self.disk
        is_bad = self.disk.fault in NO_BOOT or self.bad()
        if not is_bad:
            self.after(took, lambda: self.mold_gets_ready(mold))
        elif self.disk.fault != "hangs" and rng.random() < 0.6:
            kind = rng.choice(["app", "app", "boot", ""])
            self.after(took, lambda: self.mold_ends(mold, "it could not", kind, "a traceback"))
        # else it hangs

    def on_make_mold(self, proc: Proc, generation: int) -> None:
        self.warmed[generation] = proc.pid
        self.certificates.copy(proc.generation, generation)

    def on_adopt_mold(self, mold: MoldProc) -> None:
        self.code[mold.pid] = self.code[self.warmed[mold.generation]]
        took = self.rng.uniform(0.01, 0.1)
        if not self.bad():
            self.after(took, lambda: self.mold_gets_ready(mold))
        elif self.rng.random() < 0.6:
            self.after(took, lambda: self.mold_ends(mold, "SIGSEGV"))
        # else it hangs

    def mold_gets_ready(self, mold: MoldProc) -> None:
        self.mold_ready(mold)
        if self.bad():
            self.after(self.rng.expovariate(0.3), lambda: self.mold_misbehaves(mold))

    def mold_misbehaves(self, mold: MoldProc) -> None:
        if self.rng.random() < 0.3:
            self.mold_ends(mold, "SIGKILL")
        else:
            mold.killed = True  # stopped: it takes orders and carries none out

    def on_kill_mold(self, mold: MoldProc, signal: str) -> None:
        if signal == "SIGKILL" or not self.bad():
            self.after(self.rng.uniform(0, 0.2), lambda: self.mold_ends(mold, signal))

    def has_forked(self, order: actions.Fork) -> bool:
        return self.rng.random() < 0.3

    def on_order(self, order: actions.Fork) -> None:
        mold = self.molds[order.generation]
        if mold.killed:
            return
        took = self.rng.uniform(0, 0.05)
        if not self.bad(0.1):
            self.after(took, lambda: self.carries_out(order))
        elif self.rng.random() < 0.5:
            self.after(took, lambda: self.carries_out(order, "no process can be had"))
        else:
            self.after(took, lambda: self.mold_ends(mold, "SIGKILL"))

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
        if not self.certificates.usable:
            return "the key does not belong to the certificate"
        if self.bad(0.3):
            return "a port is taken"
        assert self.supervisor.reload is not None
        self.certificates.load(self.supervisor.reload.generation)
        return self.finish(random_policy(self.rng))

    def on_executed(self) -> None:
        if self.certificates.usable:
            self.certificates.restart(self.supervisor.generation)
