"""hypothesis drives the supervisor step by step, and shrinks a failing sequence."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from simulation.world import Proc, World

from servo.arbiter.core import events
from servo.arbiter.core.autoscale import SAMPLE_S
from servo.arbiter.core.policy import Policy
from servo.ipc.messages import BootFailed, Booting, Draining, Lingering, Ready, ReplaceMe

POLICIES = st.builds(
    Policy,
    workers=st.integers(1, 4),
    timeout_s=st.sampled_from([0.0, 2.0]),
    boot_timeout_s=st.sampled_from([0.0, 3.0]),
    graceful_timeout_s=st.sampled_from([0.0, 1.0, 5.0]),
    drain_websockets_s=st.sampled_from([0.0, 3.0]),
    max_lifetime_s=st.sampled_from([0.0, 4.0]),
    reload_batch=st.integers(1, 3),
    capacity=st.just(12),
    max_workers=st.sampled_from([0, 5, 8]),
    scale_down_delay_s=st.just(2.0),
    max_boot_failures=st.sampled_from([0, 2]),
    max_memory_bytes=st.sampled_from([0, 100]),
    max_memory_hard_bytes=st.sampled_from([0, 150]),
    wait_for_change=st.booleans(),
    own_queues=st.booleans(),
)


class ChosenWorld(World):
    """Nothing happens by itself but what no process can refuse: a death by SIGKILL."""

    config: Policy | str = "none"
    execute_error: str | None = None

    def execute_fails(self) -> str | None:
        return self.execute_error

    def on_kill(self, proc: Proc, signal: str) -> None:
        proc.killed = proc.killed or signal == "SIGKILL"

    def new_config(self) -> Policy | str:
        return self.config


class SupervisorMachine(RuleBasedStateMachine):
    """Every rule is something that the world may do next; `World.check` runs after each event."""

    world: ChosenWorld

    def pick(self, data: st.DataObject) -> Proc:
        return data.draw(st.sampled_from(sorted(self.world.procs.values(), key=lambda p: p.pid)))

    def running(self) -> bool:
        return self.world.exit_code is None

    def peopled(self) -> bool:
        return self.running() and bool(self.world.procs)

    @initialize(policy=POLICIES)
    def starts(self, policy: Policy) -> None:
        self.world = ChosenWorld(policy)
        self.world.tell(events.Started())

    @precondition(lambda self: not self.running())
    @rule()
    def it_is_over(self) -> None:
        """hypothesis wants a rule for every state."""

    @precondition(running)
    @rule(seconds=st.sampled_from([0.05, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.bury()
        self.world.advance(seconds)

    def bury(self) -> None:
        for proc in [*self.world.procs.values()]:
            if proc.killed:
                self.world.exits(proc, -9, "SIGKILL")

    @precondition(running)
    @rule(name=st.sampled_from(["SIGHUP", "SIGHUP", "SIGTTIN", "SIGTTOU", "SIGWINCH", "SIGUSR2"]))
    def operator_signals(self, name: str) -> None:
        self.world.signal(name)

    @precondition(running)
    @rule(
        asked=st.one_of(
            st.tuples(st.sampled_from(["reload", "reopen"]), st.none()),
            st.tuples(st.just("scale"), st.sampled_from(["1", "4", "+1", "-1", "+20", "x"])),
            st.tuples(st.just("upgrade"), st.just("")),
            st.tuples(st.just("restart-worker"), st.integers(1, 5)),
        )
    )
    def operator_asks(self, asked: tuple[str, object]) -> None:
        self.world.asks(*asked)

    @precondition(running)
    @rule(name=st.sampled_from(["SIGTERM", "SIGINT"]), sure=st.integers(0, 5))
    def operator_stops(self, name: str, sure: int) -> None:
        if sure == 0:
            self.world.signal(name)

    @precondition(running)
    @rule()
    def a_file_changes(self) -> None:
        self.world.tell(events.FileChanged(("a.py", "b.py")))

    @precondition(peopled)
    @rule(data=st.data())
    def gets_ready(self, data: st.DataObject) -> None:
        proc = self.pick(data)
        if not proc.killed:
            proc.ready = True
            self.world.says(proc, Ready())

    @precondition(peopled)
    @rule(data=st.data(), memory=st.sampled_from([40, 95, 120, 160]))
    def grows(self, data: st.DataObject, memory: int) -> None:
        proc = self.pick(data)
        proc.memory = max(proc.memory, memory)
        self.world.measure(proc)

    @precondition(lambda self: self.running() and self.world.supervisor.is_autoscaled)
    @rule(demand=st.integers(0, 9), memory=st.sampled_from([0, 10, 1000]), times=st.integers(1, 5))
    def load_changes(self, demand: int, memory: int, times: int) -> None:
        self.world.demand, self.world.memory_left = demand, memory
        for _ in range(times):
            if self.running():
                self.world.measure_load()
                self.world.now += SAMPLE_S

    @precondition(peopled)
    @rule(data=st.data())
    def hangs(self, data: st.DataObject) -> None:
        proc = self.pick(data)
        proc.hung_at = proc.hung_at or self.world.now

    @precondition(peopled)
    @rule(
        data=st.data(),
        message=st.sampled_from(
            [
                Booting(),
                Draining(),
                Lingering(),
                BootFailed("app", "no"),
                BootFailed("boot", ""),
                ReplaceMe("recycled"),
                ReplaceMe("request_timeout", "2 threads hang"),
                ReplaceMe("what?"),
            ]
        ),
    )
    def says(self, data: st.DataObject, message: BootFailed) -> None:
        proc = self.pick(data)
        if not proc.killed:
            self.world.says(proc, message)

    @precondition(peopled)
    @rule(data=st.data(), end=st.sampled_from([(0, ""), (1, ""), (4, ""), (-11, "SIGSEGV")]))
    def exits(self, data: st.DataObject, end: tuple[int, str]) -> None:
        self.world.exits(self.pick(data), *end)

    @precondition(peopled)
    @rule(data=st.data())
    def loses_its_channel(self, data: st.DataObject) -> None:
        self.world.loses_channel(self.pick(data))

    @precondition(lambda self: self.running() and self.world.checking is not None)
    @rule(config=st.one_of(POLICIES, st.just("a port is taken"), st.none()))
    def configuration_is_read(self, config: Policy | str | None) -> None:
        self.world.config = config or ""
        self.world.config_checked("a bad value" if config is None else None)

    @precondition(lambda self: self.running() and self.world.preflighting)
    @rule(error=st.sampled_from([None, None, "the app can't be imported"]), executed=st.booleans())
    def preflight_ends(self, error: str | None, executed: bool) -> None:
        self.world.execute_error = None if executed else "no such file"
        self.world.preflight_ended(error)

    def teardown(self) -> None:
        """Whatever the state, a stop ends within the limits and leaves nobody behind."""
        if not hasattr(self, "world"):
            return
        if self.world.exit_code is None:
            self.world.signal("SIGTERM")
        for _ in range(80):
            if self.world.exit_code is not None:
                return
            self.bury()
            self.world.advance(0.2)
        raise AssertionError("the stop does not end")


TestSupervisor = pytest.mark.slow(SupervisorMachine.TestCase)
TestSupervisor.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
