"""Workers that use too much memory, in a world of model processes."""

from __future__ import annotations

from simulation.world import Proc, World

from servo.arbiter.core import events
from servo.arbiter.core.memory_limits import SOON_S
from servo.arbiter.core.policy import Policy
from servo.ipc import messages as msg

MIB = 1 << 20


class Story(World):
    """A world in which processes do only what the test says. Sizes are in MB."""

    def __init__(self, workers: int = 2, soft: int = 0, hard: int = 0, boots_with: int = 50):
        policy = Policy(
            workers, max_memory_bytes=soft * MIB, max_memory_hard_bytes=hard * MIB, timeout_s=0
        )
        super().__init__(policy)
        self.boots_with = boots_with
        self.tell(events.Started())
        self.all_ready()

    def all_ready(self) -> None:
        for proc in [*self.procs.values()]:
            if not proc.ready:
                proc.ready = True
                proc.memory = self.boots_with * MIB
                self.says(proc, msg.Ready())
                self.measure(proc)

    def on_kill(self, proc: Proc, signal: str) -> None:
        proc.killed = True

    def grow(self, proc: Proc, size: int) -> None:
        proc.memory = size * MIB
        self.measure()

    def replacing(self) -> list[int]:
        return [worker.slot for worker in self.supervisor.workers if worker.replace_reason]

    def said(self, text: str) -> int:
        return sum(text in line for line in self.log)


def test_a_worker_above_the_soft_limit_is_replaced_new_first() -> None:
    story = Story(2, soft=100)
    first, _ = story.procs.values()
    story.advance(SOON_S)
    story.grow(first, 99)
    assert not story.said("too much memory") or first.memory >= 0.9 * 100 * MIB
    story.grow(first, 120)
    assert story.replacing() == [1]
    assert first.asked is None
    assert story.said("worker 1 (pid 101) will be replaced: it uses too much memory (")
    story.all_ready()
    assert first.asked == msg.Retire("max_memory")


def test_one_at_a_time_and_the_largest_first() -> None:
    story = Story(3, soft=100)
    story.advance(SOON_S)
    first, second, third = story.procs.values()
    first.memory, second.memory, third.memory = 110 * MIB, 130 * MIB, 120 * MIB
    story.measure()
    story.measure()
    assert story.replacing() == [2]
    story.all_ready()
    story.measure()
    assert story.replacing() == [2, 3]  # the second drains
    assert second.asked is not None


def test_each_worker_has_a_limit_of_its_own() -> None:
    story = Story(7, soft=100)
    story.advance(SOON_S)
    replaced_at = {}
    procs = [*story.procs.values()]
    for size in range(90, 101):
        for proc in procs:
            proc.memory = size * MIB
        for _ in procs:
            story.measure()
            story.all_ready()
        for proc in procs:
            if proc.asked is not None:
                replaced_at.setdefault(proc.slot, size)
    assert sorted(replaced_at) == [1, 2, 3, 4, 5, 6, 7]
    # They have 50 MB to grow by, so their limits are between 95 and 100 MB.
    assert sorted(replaced_at.values()) == [96, 97, 97, 98, 99, 99, 100]


def test_a_limit_below_the_size_after_boot_is_reported_once() -> None:
    story = Story(3, soft=40, hard=50)
    for _ in range(5):
        story.advance(10)
        story.measure()
    assert story.replacing() == []
    assert story.last_serial == 3
    assert (
        story.said(
            "max_worker_memory (40 MB) has no effect: worker 1 (pid 101) uses 50 MB after its "
            "boot; set at least 80M"
        )
        == 1
    )
    assert story.said("max_worker_memory_hard (50 MB) has no effect") == 1
    assert story.said("has no effect") == 2


def test_workers_that_reach_the_limit_soon_are_replaced_ever_more_seldom() -> None:
    story = Story(1, soft=100)
    for _ in range(600):
        story.advance(1.0)
        for proc in [*story.procs.values()]:
            if proc.asked is not None:
                story.exits(proc)
        story.all_ready()
        story.grow([*story.procs.values()][-1], 110)
    # Without a pause there would be 600 of them.
    assert 20 < story.last_serial < 40
    assert story.said("would be replaced less often") == 1
    assert story.said("with 150M, they would")


def test_a_worker_above_the_hard_limit_is_killed_with_its_stacks() -> None:
    story = Story(2, soft=100, hard=150)
    story.advance(SOON_S)
    first, _ = story.procs.values()
    story.grow(first, 151)
    assert story.said(
        "worker 1 (pid 101): it uses 151 MB (max_worker_memory_hard is 150 MB); aborting it, its "
        "stacks follow"
    )
    assert first.killed
    story.exits(first, -6, "SIGABRT")
    assert [proc.slot for proc in story.procs.values()] == [2, 1]


def test_a_draining_worker_is_killed_too() -> None:
    story = Story(1, hard=150)
    (first,) = story.procs.values()
    story.asks("restart-worker", 1)
    story.all_ready()
    assert first.asked is not None
    story.grow(first, 200)
    assert first.killed


def test_no_replacement_for_memory_during_a_reload() -> None:
    story = Story(2, soft=100)
    story.advance(SOON_S)
    story.signal("SIGHUP")
    first, _ = story.procs.values()
    story.grow(first, 120)
    assert story.replacing() == []
    story.config_checked("a bad value")
    story.measure()
    assert story.replacing() == [1]


def test_a_new_generation_is_warned_anew() -> None:
    story = Story(1, soft=40)
    (first,) = story.procs.values()
    story.signal("SIGHUP")
    story.config_checked(None)
    story.all_ready()
    story.exits(first)
    assert story.said("has no effect") == 2
