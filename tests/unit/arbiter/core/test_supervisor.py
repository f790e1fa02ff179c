"""The supervisor, one event at a time. `World` performs its actions on model processes, and checks
its invariants after each event."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulation.world import Proc, World

from servo.arbiter.core import actions, events
from servo.arbiter.core.autoscale import SAMPLE_S
from servo.arbiter.core.backoff import BACKOFF_CAP_S
from servo.arbiter.core.policy import BOOT_STOP_S, QUICK_STOP_S, YOUNG_S, Policy
from servo.arbiter.core.reload import Phase
from servo.ipc import messages as msg


class Story(World):
    """A world in which processes do only what the test says."""

    def __init__(self, workers: int = 2, **values: object) -> None:
        super().__init__(Policy(workers=workers, **values))  # type: ignore[arg-type]
        self.actions: list[actions.Action] = []
        self.config: Policy | str = self.supervisor.policy
        self.refuse_forks = False

    def perform(self, action: actions.Action) -> None:
        self.actions.append(action)
        super().perform(action)

    def new_config(self) -> Policy | str:
        return self.config

    def fork_fails(self) -> bool:
        return self.refuse_forks

    def start(self) -> Story:
        self.tell(events.Started())
        return self

    def serve(self) -> Story:
        """Start, and let all workers get ready."""
        self.start()
        self.all_ready()
        return self

    def all_ready(self) -> None:
        for proc in self.alive():
            if not proc.ready:
                self.ready(proc)

    def ready(self, proc: Proc) -> None:
        proc.ready = True
        self.says(proc, msg.Ready())

    def alive(self) -> list[Proc]:
        return [*self.procs.values()]

    def newest(self) -> Proc:
        return self.alive()[-1]

    def hup(self, config: Policy | str | None = None, error: str | None = None) -> None:
        """Send a HUP; the check of the configuration answers at once."""
        self.config = config if config is not None else self.supervisor.policy
        self.signal("SIGHUP")
        self.config_checked(error)

    def took(self, kind: type[actions.Action]) -> list[actions.Action]:
        return [action for action in self.actions if isinstance(action, kind)]

    def kills(self) -> list[tuple[int, str]]:
        return [(k.serial, k.signal) for k in self.actions if isinstance(k, actions.KillWorker)]

    def reold(self) -> list[int]:
        return [proc.slot for proc in self.alive() if isinstance(proc.asked, msg.Retire)]

    def said(self, text: str) -> bool:
        return any(text in line for line in self.log)


# --- start ------------------------------------------------------------------------------------


def test_start_forks_one_worker_a_slot() -> None:
    story = Story(3).start()
    assert [(p.serial, p.slot, p.generation) for p in story.alive()] == [
        (1, 1, 1),
        (2, 2, 1),
        (3, 3, 1),
    ]
    assert actions.WorkerCountChanged(3, None) in story.actions
    story.all_ready()
    assert story.said("worker 3 (pid 103) is ready after 0.00 s")


@pytest.mark.parametrize(("kind", "code"), [("app", 4), ("boot", 3)])
def test_first_boot_failure_ends_the_server(kind: str, code: int) -> None:
    story = Story(2).start()
    first, second = story.alive()
    story.says(first, msg.BootFailed(kind, "ImportError: no\n  File x.py"))
    assert story.said("could not boot: ImportError: no\n  File x.py")
    assert story.listeners_open is False
    assert second.asked == msg.Stop(quick=True)
    story.exits(first, code)
    story.exits(second)
    assert story.exit_code == code


def test_crashes_of_the_first_generation_are_tried_three_times() -> None:
    story = Story(1).start()
    for _ in range(3):
        assert story.exit_code is None
        story.exits(story.newest(), -11, "SIGSEGV")
        story.advance(1)
    assert story.exit_code == 3
    assert story.last_serial == 3
    assert story.said("crashed by signal 11 (SIGSEGV)")


def test_boot_timeout_of_the_first_generation() -> None:
    story = Story(1, boot_timeout_s=5.0).start()
    story.advance(5)
    assert story.kills() == [(1, "SIGABRT")]
    story.exits(story.newest(), -6, "SIGABRT")
    assert story.exit_code == 3
    assert story.said("killed by the arbiter: not ready after 5 s (boot_timeout)")


def test_a_process_that_cant_be_had_is_tried_again() -> None:
    story = Story(1)
    story.refuse_forks = True
    story.start()
    assert story.exit_code is None
    story.refuse_forks = False
    story.advance(1)
    assert len(story.alive()) == 1


def fails_to_boot(story: Story, times: int) -> None:
    """The newest worker fails; then its successor, and so on."""
    for _ in range(times):
        story.advance(BACKOFF_CAP_S)
        proc = story.newest()
        story.says(proc, msg.BootFailed("app", "no such module"))
        story.exits(proc, 4)


def test_max_boot_failures_end_a_server_that_has_served() -> None:
    story = Story(1, max_boot_failures=3).serve()
    story.exits(story.newest(), -9, "SIGKILL")
    fails_to_boot(story, 2)
    assert story.exit_code is None
    fails_to_boot(story, 1)
    assert story.exit_code == 4
    assert story.said("no worker could boot 3 times in a row (max_boot_failures): the server ends")


def test_max_boot_failures_count_from_zero_after_a_success() -> None:
    story = Story(1, max_boot_failures=2).serve()
    for _ in range(3):
        story.exits(story.newest(), -9, "SIGKILL")
        fails_to_boot(story, 1)
        story.advance(BACKOFF_CAP_S)
        story.all_ready()
        story.advance(YOUNG_S)
    assert story.exit_code is None


def test_max_boot_failures_end_no_server_that_serves() -> None:
    story = Story(2, max_boot_failures=2).serve()
    story.exits(story.newest(), -9, "SIGKILL")
    fails_to_boot(story, 5)
    assert story.exit_code is None
    story.exits(story.alive()[0], -9, "SIGKILL")  # the one that served
    fails_to_boot(story, 1)
    assert story.alive()[0].asked == msg.Stop(quick=True)
    story.exits(story.alive()[0])
    assert story.exit_code == 4


def test_workers_that_fail_together_are_one_failed_boot() -> None:
    story = Story(3, max_boot_failures=2).serve()
    for proc in story.alive():
        story.exits(proc, -9, "SIGKILL")
    story.advance(1)
    for proc in story.alive():
        story.exits(proc, 1)
    assert story.exit_code is None


def test_max_boot_failures_of_one_leaves_the_start_no_second_attempt() -> None:
    story = Story(1, max_boot_failures=1).start()
    story.exits(story.newest(), -11, "SIGSEGV")
    assert story.exit_code == 3
    assert story.said("no worker could boot (max_boot_failures)")


def test_a_reload_has_its_chance_before_max_boot_failures() -> None:
    story = Story(1, max_boot_failures=1).serve()
    story.signal("SIGHUP")
    story.exits(story.newest(), -9, "SIGKILL")
    fails_to_boot(story, 1)
    assert story.exit_code is None
    story.config_checked(None)
    story.ready(story.newest())
    assert story.supervisor.generation == 2


def test_with_reload_max_boot_failures_wait_for_a_change() -> None:
    story = Story(1, max_boot_failures=1, wait_for_change=True).serve()
    story.exits(story.newest(), -9, "SIGKILL")
    fails_to_boot(story, 1)
    story.advance(2 * BACKOFF_CAP_S)
    assert story.alive() == []
    assert story.said("waiting for a file to change")
    story.tell(events.FileChanged(("app.py",)))
    story.config_checked(None)
    fails_to_boot(story, 1)  # the canary
    story.advance(2 * BACKOFF_CAP_S)
    assert story.alive() == []
    assert story.said("waiting for the next change of a file")
    story.tell(events.FileChanged(("app.py",)))
    story.config_checked(None)
    story.all_ready()
    assert len(story.alive()) == 1


def test_forks_that_fail_beside_others_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(4, max_boot_failures=1)
    outcomes = iter([True, False, True, False])
    monkeypatch.setattr(story, "fork_fails", lambda: next(outcomes))
    story.start()
    assert [proc.asked for proc in story.alive()] == [msg.Stop(quick=True)] * 2
    assert story.lives == {2: ["spawned", "draining"], 4: ["spawned", "draining"]}
    for proc in story.alive():
        story.exits(proc)
    assert story.exit_code == 3


def test_once_served_a_boot_failure_never_ends_the_server() -> None:
    story = Story(1).serve()
    story.exits(story.newest(), -9, "SIGKILL")
    for _ in range(30):
        story.advance(BACKOFF_CAP_S)
        story.says(story.newest(), msg.BootFailed("app", "gone"))
        story.exits(story.newest(), 4)
    assert story.exit_code is None
    # Doubling from 0.1 s to 30 s, so about one an interval of 30 s in the end.
    assert story.last_serial <= 32


def test_watching_waits_for_the_fix() -> None:
    story = Story(2, wait_for_change=True).start()
    for proc in story.alive():
        story.says(proc, msg.BootFailed("app", "SyntaxError"))
        story.exits(proc, 4)
    story.advance(120)
    assert story.exit_code is None
    assert story.alive() == []
    for fixed in (False, True):
        story.tell(events.FileChanged(("app.py", "db.py")))
        story.config_checked(None)
        (canary,) = story.alive()
        if fixed:
            story.ready(canary)
        else:
            story.says(canary, msg.BootFailed("app", "still wrong"))
            story.exits(canary, 4)
            story.advance(60)
            assert story.alive() == []
    assert len(story.alive()) == 2
    assert story.said("app.py and 1 more changed")


# --- exits ------------------------------------------------------------------------------------


def test_a_crash_is_replaced_in_its_slot() -> None:
    story = Story(3).serve()
    story.advance(YOUNG_S)
    story.exits(story.alive()[1], -11, "SIGSEGV")
    assert [proc.slot for proc in story.alive()] == [1, 3, 2]


def test_young_deaths_back_off_and_an_old_one_does_not() -> None:
    story = Story(1).serve()
    for _ in range(4):
        story.exits(story.newest(), 1)
        assert story.alive() == []
        story.advance(1)
        story.ready(story.newest())
    assert story.said("forked in 0.8 s at the earliest")
    story.advance(YOUNG_S)
    story.exits(story.newest(), 1)
    assert len(story.alive()) == 1


def test_many_deaths_at_once_are_one_failure() -> None:
    story = Story(8).serve()
    story.advance(1)
    for proc in story.alive():
        story.exits(proc, -9, "SIGKILL")
    story.advance(0.1)
    assert len(story.alive()) == 8


def test_out_of_memory_is_said_only_with_evidence() -> None:
    story = Story(2).serve()
    first, second = story.alive()
    del story.procs[first.pid]
    story.tell(events.ChildExited(first.pid, -9, "SIGKILL", out_of_memory=True))
    assert story.said("(pid 101) ended after 0.00 s: killed by the kernel: out of memory")
    story.exits(second, -9, "SIGKILL")
    assert story.said("(pid 102) ended after 0.00 s: killed by signal 9 (SIGKILL), not by the")


def test_the_exit_of_another_child_changes_nothing() -> None:
    story = Story(1).serve()
    story.tell(events.ChildExited(99999, 0))
    assert len(story.alive()) == 1


# --- limits -----------------------------------------------------------------------------------


def test_no_heartbeat_aborts_then_kills_and_replaces_at_once() -> None:
    story = Story(2, timeout_s=30.0).serve()
    hung = story.alive()[0]
    hung.hung_at = story.now
    story.advance(29)
    assert story.kills() == []
    story.advance(1.5)
    assert story.kills() == [(hung.serial, "SIGABRT")]
    assert [proc.slot for proc in story.alive()] == [1, 2, 1]
    story.advance(2)
    assert story.kills()[1:] == [(hung.serial, "SIGKILL")]
    story.exits(hung, -9, "SIGKILL")
    assert story.said("killed by the arbiter: no heartbeat for 30 s")


def test_a_hung_worker_that_can_not_be_killed_is_replaced_and_left_at_the_end() -> None:
    story = Story(1, timeout_s=30.0, graceful_timeout_s=10.0).serve()
    (hung,) = story.alive()
    hung.hung_at = story.now
    hung.untouchable = True
    story.advance(35)
    assert story.kills() == [(hung.serial, "SIGABRT"), (hung.serial, "SIGKILL")]
    assert hung.asked == msg.Stop(quick=True)
    assert story.said("can't be killed")
    fresh = story.newest()
    assert fresh is not hung
    story.ready(fresh)
    story.signal("SIGTERM")
    assert story.exit_code is None
    story.exits(fresh)
    assert story.exit_code == 0


def test_a_worker_that_can_not_be_killed_does_not_hold_up_a_stop() -> None:
    story = Story(2, graceful_timeout_s=10.0).serve()
    stays, ends = story.alive()
    stays.untouchable = True
    story.signal("SIGTERM")
    story.exits(ends)
    assert story.exit_code is None
    story.advance(11)
    assert story.exit_code == 0


def test_one_that_could_not_be_killed_may_end_by_itself() -> None:
    story = Story(1, timeout_s=30.0).serve()
    (hung,) = story.alive()
    hung.hung_at = story.now
    hung.untouchable = True
    story.advance(35)
    story.exits(hung)
    assert story.said("worker 1 (pid 101) ended")
    assert len(story.alive()) == 1


def test_a_worker_whose_row_was_written_over_is_replaced() -> None:
    story = Story(2).serve()
    first, second = story.alive()
    story.tell(events.RowOverwritten(first.serial))
    assert story.said("written over its row of the scoreboard; the row is repaired")
    story.ready(story.newest())
    assert first.asked is not None
    assert second.asked is None
    story.exits(first)
    assert story.said("something has written over its row")
    story.tell(events.RowOverwritten(first.serial))


def test_a_standstill_of_the_machine_is_not_a_hang() -> None:
    story = Story(2, timeout_s=30.0, graceful_timeout_s=10.0).serve()
    story.advance(5)
    story.signal("SIGTTOU")
    (reold,) = (proc for proc in story.alive() if proc.asked)
    for proc in story.alive():
        proc.hung_at = story.now
    story.now += 3600
    story.tick()
    assert story.kills() == []
    assert story.said("stood still for 3600.0 s")
    for proc in story.alive():
        proc.hung_at = None
    story.advance(9)
    assert story.kills() == []
    story.advance(2)
    assert story.kills() == [(reold.serial, "SIGKILL")]


@pytest.mark.parametrize(("beating", "killed"), [(False, True), (True, False)])
def test_request_timeout_of_a_worker_that_cant_end_it_itself(beating: bool, killed: bool) -> None:
    story = Story(1, timeout_s=0.0, request_timeout_s=10.0).serve()
    (proc,) = story.alive()
    proc.busy_since = began = story.now
    for _ in range(15):
        story.now += 1
        story.tell(events.Tick({1: story.now if beating else began}, {1: began}))
    assert bool(story.kills()) is killed
    assert story.said("a request runs for more than 10 s (request_timeout)") is killed


def test_max_lifetime_recycles_one_at_a_time() -> None:
    story = Story(3, max_lifetime_s=100.0).serve()
    story.advance(101)
    for _ in range(3):
        assert len(story.alive()) == 4
        successor = story.newest()
        assert story.reold() == []
        story.ready(successor)
        assert story.reold() == [successor.slot]
        story.exits(next(proc for proc in story.alive() if proc.asked))
    assert sorted(proc.slot for proc in story.alive()) == [1, 2, 3]
    assert story.said("will be replaced: recycled (lived for")


def test_drain_is_bounded() -> None:
    story = Story(2, graceful_timeout_s=10.0).serve()
    story.signal("SIGTTOU")
    (reold,) = (proc for proc in story.alive() if proc.asked)
    assert reold.slot == 2
    story.advance(9.5)
    assert story.kills() == []
    story.advance(1)
    assert story.kills() == [(reold.serial, "SIGKILL")]
    story.exits(reold, -9, "SIGKILL")
    assert story.said(
        "killed by the arbiter: still running 10 s after it was told to end: scaled down"
    )


def test_wake_at_names_the_next_deadline() -> None:
    story = Story(1, boot_timeout_s=60.0).start()
    assert story.supervisor.wake_at() == pytest.approx(story.now + 60)
    story.all_ready()
    assert story.supervisor.wake_at() == float("inf")
    story.exits(story.newest(), 1)
    assert story.supervisor.wake_at() == pytest.approx(story.now + 0.1)


# --- replacement ------------------------------------------------------------------------------


def test_a_replacement_gets_ready_before_the_old_worker_ends() -> None:
    story = Story(2).serve()
    old = story.alive()[1]
    story.says(old, msg.ReplaceMe("terminated"))
    successor = story.newest()
    assert (successor.slot, old.asked) == (2, None)
    story.ready(successor)
    assert old.asked == msg.Retire("terminated")
    story.says(old, msg.Draining())
    story.exits(old)
    assert story.said("(pid 102) ended after 0.00 s: it was sent SIGTERM")
    assert len(story.alive()) == 2


def test_while_replacements_fail_the_old_worker_serves() -> None:
    story = Story(1).serve()
    old = story.newest()
    story.says(old, msg.ReplaceMe("recycled"))
    for _ in range(5):
        story.says(story.newest(), msg.BootFailed("app", "no"))
        story.exits(story.newest(), 4)
        story.advance(5)
    assert old.asked is None
    story.ready(story.newest())
    assert old.asked is not None


def test_a_worker_that_leaves_by_itself_is_replaced() -> None:
    story = Story(1).serve()
    story.advance(YOUNG_S)
    leaving = story.newest()
    story.says(leaving, msg.Draining())
    assert story.newest() is not leaving
    story.exits(leaving)
    assert story.said("it left by itself")


def test_a_worker_without_its_channel_gets_sigterm() -> None:
    story = Story(2).serve()
    worker = story.alive()[1]
    story.loses_channel(worker)
    story.signal("SIGTTOU")
    assert story.kills() == [(worker.serial, "SIGTERM")]


# --- reload -----------------------------------------------------------------------------------


def test_reload_checks_then_boots_a_canary_then_rolls() -> None:
    story = Story(3).serve()
    old = story.alive()
    story.signal("SIGHUP")
    assert actions.CheckConfig(2) in story.actions
    assert story.alive() == old
    story.config_checked(None)
    assert actions.LoadConfig(2) in story.actions
    canary = story.newest()
    assert (canary.slot, canary.generation, len(story.alive())) == (1, 2, 4)
    story.ready(canary)
    assert actions.AdoptGeneration(2) in story.actions
    for slot in (2, 3):
        assert story.reold() == list(range(1, slot))
        assert (story.newest().slot, story.newest().generation) == (slot, 2)
        story.ready(story.newest())
    assert story.said("reload (SIGHUP) finished")
    assert story.took(actions.DropGeneration) == []
    for proc in old:
        story.exits(proc)
    assert story.took(actions.DropGeneration) == [actions.DropGeneration(1)]
    assert [proc.slot for proc in story.alive()] == [1, 2, 3]


def test_reload_batch() -> None:
    story = Story(4, reload_batch=2).serve()
    story.hup()
    story.ready(story.newest())
    assert len([proc for proc in story.alive() if proc.generation == 2]) == 3
    story.all_ready()
    story.all_ready()
    assert story.reold() == [1, 2, 3, 4]


@pytest.mark.parametrize("phase", ["check", "load"])
def test_bad_configuration_is_rolled_back(phase: str) -> None:
    story = Story(2).serve()
    if phase == "check":
        story.hup(error="workers: 'many' is not valid")
    else:
        story.hup("a port is taken")
    assert story.said("rolled back: the configuration")
    assert len(story.alive()) == 2
    assert story.supervisor.reload is None


def test_a_configuration_that_hangs_is_given_up() -> None:
    story = Story(1, boot_timeout_s=20.0).serve()
    story.signal("SIGHUP")
    story.advance(20)
    assert story.took(actions.CancelCheck)
    assert story.said("rolled back: reading the configuration takes over 20 s (boot_timeout)")


@pytest.mark.parametrize("fate", ["says so", "crashes", "hangs", "leaves"])
def test_a_canary_that_fails_is_rolled_back_without_a_second_try(fate: str) -> None:
    story = Story(2, boot_timeout_s=20.0).serve()
    old = story.alive()
    story.hup()
    canary = story.newest()
    if fate == "says so":
        story.says(canary, msg.BootFailed("app", "ImportError: x"))
        story.exits(canary, 4)
    elif fate == "crashes":
        story.exits(canary, 1)
    elif fate == "hangs":
        story.advance(20)
        story.exits(canary, -6, "SIGABRT")
    else:
        story.says(canary, msg.Draining())
        story.exits(canary)
    story.advance(120)
    assert story.said("rolled back: its first worker")
    assert story.alive() == old
    assert story.supervisor.generation == 1
    assert story.took(actions.DropGeneration) == [actions.DropGeneration(2)]


def test_a_reload_that_fails_half_way_returns_to_the_old_generation() -> None:
    story = Story(3).serve()
    story.hup()
    story.ready(story.newest())
    for _ in range(3):
        story.exits(story.newest(), 1)
        story.advance(5)
    assert story.said("rolled back: its workers failed 3 times")
    assert story.supervisor.generation == 1
    for _ in range(4):
        story.all_ready()
        for proc in [p for p in story.alive() if p.asked]:
            story.exits(proc)
    assert {proc.generation for proc in story.alive()} == {1}
    assert len(story.alive()) == 3


def test_further_hups_become_one_more_reload() -> None:
    story = Story(1).serve()
    story.signal("SIGHUP")
    story.signal("SIGHUP")
    story.signal("SIGHUP")
    assert story.took(actions.CheckConfig) == [actions.CheckConfig(2)]
    story.config_checked(None)
    story.ready(story.newest())
    assert story.took(actions.CheckConfig) == [actions.CheckConfig(2), actions.CheckConfig(3)]
    story.config_checked("bad")
    story.advance(10)
    assert len(story.took(actions.CheckConfig)) == 2


def test_a_hup_during_a_failing_reload_follows_it() -> None:
    story = Story(1).serve()
    story.hup()
    story.signal("SIGHUP")
    story.says(story.newest(), msg.BootFailed("app", "old bug"))
    assert story.took(actions.CheckConfig) == [actions.CheckConfig(2), actions.CheckConfig(3)]


def test_a_crash_during_the_canary_respawns_the_old_generation() -> None:
    story = Story(2).serve()
    story.advance(YOUNG_S)
    victim = story.alive()[1]
    story.hup()
    story.exits(victim, -9, "SIGKILL")
    assert sorted((p.slot, p.generation) for p in story.alive()) == [(1, 1), (1, 2), (2, 1)]


def test_a_new_worker_count_comes_with_the_reload_and_scaling_by_hand_stays() -> None:
    story = Story(2).serve()
    story.signal("SIGTTIN")
    story.all_ready()
    story.hup()
    story.ready(story.newest())
    assert story.supervisor.count.target == 3
    while story.supervisor.reload is not None:
        story.all_ready()
    story.hup(Policy(workers=5))
    story.ready(story.newest())
    assert story.supervisor.count.target == 5
    assert actions.WorkerCountChanged(5, 3) in story.actions


def test_auto_workers_follow_the_class_that_the_app_led_to() -> None:
    story = Story(2, workers_of={"sync": 5, "async": 2}).start()
    story.says(story.alive()[0], msg.Ready("sync"))
    assert len(story.alive()) == 5
    story.signal("SIGTTOU")
    story.says(story.alive()[1], msg.Ready("sync"))
    assert story.supervisor.count.target == 4


# --- scaling ----------------------------------------------------------------------------------


def test_ttin_and_ttou() -> None:
    story = Story(1).serve()
    story.signal("SIGTTIN")
    story.ready(story.newest())
    assert [proc.slot for proc in story.alive()] == [1, 2]
    story.signal("SIGTTOU")
    story.signal("SIGTTOU")
    assert story.said("the last worker stays")
    assert story.reold() == [2]


def test_ttou_drops_a_booting_worker_first() -> None:
    story = Story(1).serve()
    story.signal("SIGTTIN")
    booting = story.newest()
    story.signal("SIGTTOU")
    assert booting.asked is not None
    story.advance(BOOT_STOP_S)
    assert story.kills() == [(booting.serial, "SIGKILL")]


def test_scaling_ends_where_the_scoreboard_does() -> None:
    story = Story(2, capacity=4).serve()
    for _ in range(5):
        story.signal("SIGTTIN")
        story.all_ready()
    assert len(story.alive()) == 3
    assert story.said("no room for more than 3 workers")


def test_a_slot_with_a_queue_of_its_own_is_emptied() -> None:
    story = Story(2, own_queues=True).serve()
    story.signal("SIGTTOU")
    assert story.took(actions.CloseSlot) == [actions.CloseSlot(2)]
    assert story.alive()[1].asked == msg.Retire("scaled_down", take_queued=True)


# --- drain_websockets ---------------------------------------------------------------------------


def lingers(workers: int = 1, **values: object) -> Story:
    """A story whose first workers were replaced by a reload, and keep WebSockets open."""
    story = Story(
        workers, drain_websockets_s=60.0, graceful_timeout_s=5.0, timeout_s=0.0, **values
    ).serve()
    old = story.alive()
    reload_all(story)
    for proc in old:
        story.says(proc, msg.Draining())
        story.says(proc, msg.Lingering())
    return story


def reload_all(story: Story) -> None:
    story.hup()
    while story.supervisor.reload is not None:
        story.all_ready()


def test_a_worker_that_keeps_websockets_lives_longer() -> None:
    story = lingers()
    old, new = story.alive()
    assert story.said("keeps its WebSockets and event streams for up to 60 s (drain_websockets)")
    assert story.supervisor.reload is None, "the successor does not wait"
    assert new.ready
    story.advance(64)
    assert story.kills() == []
    story.advance(2)
    assert story.kills() == [(old.serial, "SIGKILL")]


def test_a_worker_without_websockets_has_the_ordinary_time() -> None:
    story = Story(1, drain_websockets_s=60.0, graceful_timeout_s=5.0, timeout_s=0.0).serve()
    old = story.newest()
    reload_all(story)
    story.advance(6)
    assert story.kills() == [(old.serial, "SIGKILL")]


def test_without_the_setting_no_worker_lingers() -> None:
    story = Story(1, graceful_timeout_s=5.0, timeout_s=0.0).serve()
    old = story.newest()
    reload_all(story)
    story.says(old, msg.Lingering())
    assert not story.supervisor.workers.lingering()
    story.advance(6)
    assert story.kills() == [(old.serial, "SIGKILL")]


def test_a_worker_that_serves_can_not_linger() -> None:
    story = Story(1, drain_websockets_s=60.0).serve()
    story.says(story.newest(), msg.Lingering())
    assert not story.supervisor.workers.lingering()


def test_a_stop_ends_the_lingering() -> None:
    story = lingers()
    old = story.alive()[0]
    story.advance(10)
    story.signal("SIGTERM")
    assert old.asked == msg.Stop()
    story.says(old, msg.Lingering())
    story.advance(4)
    assert story.kills() == []
    story.advance(1.5)
    assert (old.serial, "SIGKILL") in story.kills()


def test_a_report_that_crosses_the_stop() -> None:
    story = Story(1, drain_websockets_s=60.0, graceful_timeout_s=5.0, timeout_s=0.0).serve()
    old = story.newest()
    reload_all(story)
    story.signal("SIGTERM")
    assert isinstance(old.asked, msg.Retire)
    story.says(old, msg.Lingering())
    assert old.asked == msg.Stop()
    story.advance(5.5)
    assert (old.serial, "SIGKILL") in story.kills()


def test_a_quick_stop_does_not_wait_for_websockets() -> None:
    story = lingers()
    story.signal("SIGINT")
    assert story.alive()[0].asked == msg.Stop(quick=True)


def test_at_most_as_many_workers_linger_as_serve() -> None:
    story = lingers(2)
    first = story.alive()[:2]
    second = story.alive()[2:]
    reload_all(story)
    story.says(second[0], msg.Lingering())
    assert [isinstance(proc.asked, msg.Stop) for proc in first] == [True, False]
    assert story.said("closes its WebSockets early: 3 workers linger, at most 2 may")
    story.says(second[1], msg.Lingering())
    assert [isinstance(proc.asked, msg.Stop) for proc in first] == [True, True]
    assert not any(isinstance(proc.asked, msg.Stop) for proc in second)


def test_lingering_workers_leave_rows_for_successors() -> None:
    story = lingers(2, capacity=5)
    assert len(story.supervisor.workers.lingering()) == 2
    first = story.alive()[0]
    story.hup()
    story.all_ready()
    assert isinstance(first.asked, msg.Stop)


def test_lingering_workers_do_not_delay_replacements() -> None:
    story = lingers(1)
    story.says(story.newest(), msg.ReplaceMe("recycled"))
    assert len(story.alive()) == 3


def test_winch_drains_all_and_keeps_the_sockets() -> None:
    story = Story(2).serve()
    story.signal("SIGWINCH")
    for proc in story.alive():
        assert proc.asked == msg.Retire("drained")
        story.exits(proc)
    story.advance(60)
    assert (story.alive(), story.listeners_open) == ([], True)
    story.signal("SIGTTIN")
    assert len(story.alive()) == 2


@pytest.mark.parametrize("works", [True, False])
def test_hup_after_winch_brings_workers_back(works: bool) -> None:
    story = Story(2).serve()
    story.signal("SIGWINCH")
    for proc in story.alive():
        story.exits(proc)
    story.hup()
    (canary,) = story.alive()
    if works:
        story.ready(canary)
    else:
        story.exits(canary, 1)
    story.advance(1)
    assert {proc.generation for proc in story.alive()} == {2 if works else 1}
    assert len(story.alive()) == 2


def test_winch_gives_a_reload_up() -> None:
    story = Story(2).serve()
    story.hup()
    story.signal("SIGHUP")
    story.signal("SIGWINCH")
    assert all(proc.asked for proc in story.alive())
    assert story.supervisor.reload is None
    assert story.said(
        "reload (SIGHUP) rolled back: all workers drain; SIGHUP or SIGTTIN brings the workers back"
    )
    assert not story.said("keep serving")


@pytest.mark.parametrize("phase", [Phase.CHECKING, Phase.CANARY])
def test_winch_during_the_reload_of_a_paused_server_keeps_it_paused(phase: Phase) -> None:
    story = Story(2).serve()
    story.signal("SIGWINCH")
    for proc in story.alive():
        story.exits(proc)
    if phase is Phase.CHECKING:
        story.signal("SIGHUP")
    else:
        story.hup()
    reload = story.supervisor.reload
    assert reload is not None
    assert reload.phase is phase
    story.signal("SIGWINCH")
    assert story.supervisor.reload is None
    for proc in story.alive():
        story.exits(proc)
    story.advance(60)
    assert story.alive() == []


# --- the other signals ------------------------------------------------------------------------


def test_usr1_reaches_every_worker() -> None:
    story = Story(2).serve()
    story.signal("SIGUSR1")
    assert story.took(actions.ReopenLogFiles)
    for serial in (1, 2):
        assert actions.SendMessage(serial, msg.ReopenLogs()) in story.actions


# --- stop -------------------------------------------------------------------------------------


def test_term_closes_first_then_asks_then_exits() -> None:
    story = Story(2).serve()
    story.actions.clear()
    story.signal("SIGTERM")
    kinds = [type(action) for action in story.actions if not isinstance(action, actions.Log)]
    assert kinds == [actions.CloseListeners, actions.SendMessage, actions.SendMessage]
    for proc in story.alive():
        assert proc.asked == msg.Stop(quick=False)
        story.exits(proc)
    assert story.exit_code == 0


def test_nothing_is_forked_during_a_stop() -> None:
    story = Story(2).serve()
    story.signal("SIGTERM")
    story.signal("SIGHUP")
    story.signal("SIGTTIN")
    story.exits(story.alive()[0], -11, "SIGSEGV")
    story.advance(10)
    assert len(story.alive()) == 1
    assert story.said("no reload (SIGHUP): the server is stopping")


def test_a_second_term_cuts_and_an_interrupt_more_kills() -> None:
    story = Story(1).serve()
    (proc,) = story.alive()
    story.signal("SIGTERM")
    story.signal("SIGTERM")
    assert proc.asked == msg.Stop(quick=True)
    story.signal("SIGTERM")
    assert story.kills() == []
    story.signal("SIGINT")
    assert story.kills() == [(1, "SIGKILL")]


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT"])
def test_quick_stop_is_bounded(name: str) -> None:
    story = Story(1, graceful_timeout_s=300.0).serve()
    story.signal(name)
    story.advance(QUICK_STOP_S)
    assert story.kills() == [(1, "SIGKILL")]
    story.exits(story.newest(), -9, "SIGKILL")
    assert story.exit_code == 0


def test_a_worker_that_got_ready_meanwhile_may_finish() -> None:
    story = Story(1, graceful_timeout_s=30.0).start()
    story.signal("SIGTERM")
    story.advance(1)
    story.ready(story.newest())
    story.advance(28)
    assert story.kills() == []
    story.advance(2)
    assert story.kills() == [(1, "SIGKILL")]


def test_a_stop_ends_the_check() -> None:
    story = Story(1).serve()
    story.signal("SIGHUP")
    story.signal("SIGTERM")
    assert story.took(actions.CancelCheck)
    story.exits(story.newest())
    assert story.exit_code == 0


def test_a_configuration_that_arrives_too_late_is_dropped() -> None:
    story = Story(1).serve()
    story.signal("SIGHUP")
    story.signal("SIGWINCH")
    story.tell(events.ConfigLoaded(2, Policy(workers=9)))
    assert actions.DropGeneration(2) in story.actions
    assert story.supervisor.count.target == 1


# --- pre_stop_delay ---------------------------------------------------------------------------


def test_a_stop_waits_for_balancers_and_serves_on() -> None:
    story = Story(2, pre_stop_delay_s=5.0).serve()
    story.signal("SIGTERM")
    assert story.supervisor.pending_stop is not None
    assert story.listeners_open
    assert all(proc.asked is None for proc in story.alive())
    assert story.said("SIGTERM: not ready any more, stopping in 5 s (pre_stop_delay)")
    story.exits(story.alive()[0], -11, "SIGSEGV")  # it is replaced: requests still come
    story.advance(4)
    story.all_ready()
    assert len(story.alive()) == 2
    story.signal("SIGHUP")
    assert story.said("no reload (SIGHUP): the server is stopping")
    story.advance(1)
    assert story.supervisor.pending_stop is None
    assert story.listeners_open is False
    for proc in story.alive():
        assert proc.asked == msg.Stop(quick=False)
        story.exits(proc)
    assert story.exit_code == 0


def test_a_second_term_begins_the_stop_and_a_third_cuts() -> None:
    story = Story(1, pre_stop_delay_s=60.0).serve()
    (proc,) = story.alive()
    story.signal("SIGTERM")
    assert proc.asked is None
    story.signal("SIGTERM")
    assert proc.asked == msg.Stop(quick=False)
    story.signal("SIGTERM")
    assert proc.asked == msg.Stop(quick=True)


@pytest.mark.parametrize("before", [[], ["SIGTERM"]])
def test_an_interrupt_does_not_wait_for_balancers(before: list[str]) -> None:
    story = Story(1, pre_stop_delay_s=60.0).serve()
    for name in [*before, "SIGINT"]:
        story.signal(name)
    assert story.newest().asked == msg.Stop(quick=True)
    assert not story.listeners_open


def test_a_server_that_never_served_does_not_wait() -> None:
    story = Story(1, pre_stop_delay_s=60.0).start()
    story.signal("SIGTERM")
    assert story.newest().asked == msg.Stop(quick=False)


def test_a_standstill_extends_pre_stop_delay() -> None:
    story = Story(1, pre_stop_delay_s=5.0).serve()
    story.signal("SIGTERM")
    story.now += 100
    story.tick()
    assert story.supervisor.pending_stop is not None
    story.advance(5)
    assert not story.listeners_open


def test_a_reload_under_way_goes_on_during_pre_stop_delay() -> None:
    story = Story(1, pre_stop_delay_s=5.0).serve()
    story.hup()
    story.signal("SIGTERM")
    story.ready(story.newest())
    assert story.supervisor.generation == 2
    story.advance(5)
    assert all(proc.asked for proc in story.alive())


# --- autoscaling --------------------------------------------------------------------------------


def loaded(story: Story, demand: int, seconds: float = 3.0) -> None:
    """Measure this many requests for so long; new workers get ready at once."""
    story.demand = demand
    for _ in range(round(seconds / SAMPLE_S)):
        story.now += SAMPLE_S
        story.measure_load()
        story.all_ready()
        for proc in story.alive():
            if proc.asked is not None:
                story.exits(proc)


def test_the_load_sets_the_number_of_workers_within_its_bounds() -> None:
    story = Story(2, max_workers=6, scale_down_delay_s=5.0).serve()
    loaded(story, 9)
    assert (story.supervisor.count.target, len(story.alive())) == (6, 6)
    assert story.said("scaled up to 4 from 2: 100% of the capacity is in use, and 7 more requests")
    assert actions.WorkerCountChanged(4, 2) in story.actions
    loaded(story, 0, 20)
    assert (story.supervisor.count.target, len(story.alive())) == (2, 2)
    assert story.said("scaled down to 5 from 6: fewer were enough for 5 s")


def test_the_least_busy_worker_is_retired() -> None:
    story = Story(2, max_workers=4, scale_down_delay_s=5.0).serve()
    loaded(story, 4)
    assert [proc.slot for proc in story.alive()] == [1, 2, 3, 4]
    # The model gives the one request to the newest worker.
    loaded(story, 1, 12)
    assert [proc.slot for proc in story.alive()] == [1, 4]


def test_ttin_and_ttou_move_the_lower_bound() -> None:
    story = Story(2, max_workers=4).serve()
    story.signal("SIGTTIN")
    assert (story.supervisor.count.low, story.supervisor.count.target) == (3, 3)
    assert story.said("SIGTTIN: at least 3 instead of 2 workers, at most 4")
    loaded(story, 9)
    assert story.supervisor.count.target == 4
    story.signal("SIGTTOU")
    assert (story.supervisor.count.low, story.supervisor.count.target) == (2, 4)
    for _ in range(3):
        story.signal("SIGTTIN")
    assert (story.supervisor.count.low, story.supervisor.count.target) == (4, 4)
    assert story.said("SIGTTIN: autoscaling goes up to 4 workers (workers = MIN:MAX)")


def test_a_reload_during_scaling_keeps_the_number_and_a_roll_back_too() -> None:
    story = Story(2, max_workers=6).serve()
    loaded(story, 9)
    story.hup()
    story.ready(story.newest())
    assert story.supervisor.generation == 2
    assert story.supervisor.count.target == 6
    for _ in range(3):
        story.advance(1)
        story.exits(story.newest(), 1)
    assert story.supervisor.generation == 1
    assert (story.supervisor.count.low, story.supervisor.count.target) == (2, 6)


def test_a_reload_changes_the_bounds() -> None:
    story = Story(2, max_workers=6).serve()
    loaded(story, 9)
    policy = story.supervisor.policy
    story.hup(replace(policy, workers=1, max_workers=4))
    story.ready(story.newest())
    assert (
        story.supervisor.count.low,
        story.supervisor.count.target,
        story.supervisor.count.most,
    ) == (1, 4, 4)
    story = Story(2, max_workers=6).serve()
    loaded(story, 9)
    story.hup(replace(policy, workers=3, max_workers=0))
    story.ready(story.newest())
    assert (story.supervisor.count.low, story.supervisor.count.target) == (3, 3)


def test_a_paused_server_is_not_scaled() -> None:
    story = Story(2, max_workers=6).serve()
    story.signal("SIGWINCH")
    loaded(story, 9)
    assert story.alive() == []
    story.signal("SIGTTIN")
    assert len(story.alive()) == 2
