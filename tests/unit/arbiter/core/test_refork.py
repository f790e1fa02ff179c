"""Reforks: which worker forks the next mold, and what happens if it does not."""

from __future__ import annotations

import json

import pytest
from simulation.world import Proc
from unit.arbiter.core.test_molds import MoldStory

from servo.arbiter.core import actions, events
from servo.arbiter.core.refork import Reforks, look_at_refork
from servo.arbiter.core.supervisor_state import restored, state_of
from servo.ipc import messages as msg


def served(story: MoldStory, *requests: int) -> None:
    """The workers, in their order, have served so many requests."""
    counts = {proc.serial: (n, 0) for proc, n in zip(story.alive(), requests, strict=True)}
    story.tell(events.ResponsesCounted(counts))
    story.advance(1)


def begun(**values: object) -> tuple[MoldStory, Proc]:
    """A server whose second worker has been asked to drain and to fork the next mold."""
    story = MoldStory(2, refork_after=100, **values).serve()
    _, second = story.alive()
    served(story, 100, 101)
    story.all_ready()
    assert isinstance(second.asked, msg.Retire)
    return story, second


def test_the_worker_with_the_most_requests_forks_the_next_mold() -> None:
    story = MoldStory(2, refork_after=100).serve()
    first, second = story.alive()
    served(story, 99, 99)
    assert story.took(actions.MakeMold) == []
    served(story, 100, 101)
    assert story.took(actions.MakeMold) == [actions.MakeMold(2, 1, second.serial)]
    assert story.said("refork (worker 2 (pid 103) has served 101 requests): it forks the next mold")
    assert second.asked is None, "its successor is ready first"
    story.all_ready()
    assert isinstance(second.asked, msg.Retire)
    story.forks_mold(second)
    story.exits(second)
    assert story.took(actions.AdoptMold) == [actions.AdoptMold(2, story.mold(2).pid)]
    story.mold_ready(story.mold(2))
    assert story.said("the mold of generation 2 (pid 105) is ready after 0.00 s")
    story.retired_end()
    assert story.generations() == [2, 2]
    assert first not in story.alive()
    assert story.said("refork (worker 2 (pid 103) has served 101 requests) finished")
    assert sorted(story.molds) == [2]


def test_a_release_is_reforked_once() -> None:
    story, worker = begun()
    story.forks_mold(worker)
    story.mold_ready(story.mold(2))
    story.retired_end()
    served(story, 1000, 1000)
    assert len(story.took(actions.MakeMold)) == 1
    story.hup()
    story.mold_ready(story.mold(3))
    story.retired_end()
    served(story, 100, 0)
    assert [action.generation for action in story.took(actions.MakeMold)] == [2, 4]


@pytest.mark.parametrize("error", ["2 of its threads hang in requests", ""])
def test_a_worker_that_forks_no_mold(error: str) -> None:
    story, worker = begun()
    if error:
        story.forks_mold(worker, error)
    story.exits(worker)
    reason = error or "ended before it had forked the next mold: exited with code 0"
    assert story.said("rolled back:")
    assert story.said(reason)
    story.retired_end()
    assert story.generations() == [1, 1]
    assert sorted(story.molds) == [1]
    served(story, 1000, 1000)
    assert len(story.took(actions.MakeMold)) == 1, "it is not tried again"


def test_a_worker_that_crashes_meanwhile() -> None:
    story = MoldStory(2, refork_after=100).serve()
    _, second = story.alive()
    served(story, 0, 100)
    story.exits(second, -11, "SIGSEGV")
    assert story.supervisor.reload is None
    story.advance(1)
    story.retired_end()
    assert story.generations() == [1, 1]


def test_a_mold_that_does_not_get_ready() -> None:
    story, worker = begun(boot_timeout_s=5.0)
    story.forks_mold(worker)
    story.exits(worker)
    story.advance(5)
    assert story.said("the mold of generation 2: it is not ready after 5 s (boot_timeout)")
    story.mold_ends(story.mold(2), "SIGABRT")
    assert story.said("rolled back: its mold ended: it is not ready after 5 s")
    assert story.said("the mold of generation 2 (pid 105) did not get ready")
    assert sorted(story.molds) == [1]


def test_a_canary_that_fails() -> None:
    story, worker = begun()
    story.forks_mold(worker)
    story.exits(worker)
    story.mold_ready(story.mold(2))
    (canary,) = [proc for proc in story.alive() if proc.generation == 2]
    story.says(canary, msg.BootFailed("boot", "a lock is held"))
    story.exits(canary, 3)
    assert story.said("rolled back: its first worker failed: a lock is held")
    assert story.generations() == [1, 1]
    assert sorted(story.molds) == [1]


def test_a_late_answer_is_for_nobody() -> None:
    story, worker = begun()
    story.asks("rollback", None)
    assert story.supervisor.reload is None
    story.forks_mold(worker)
    assert story.took(actions.AdoptMold) == []


def test_operators_go_first() -> None:
    story, _ = begun()
    answer = story.asks("reload", None)
    assert answer.result["generation"] == 3
    assert story.said("rolled back: a reload (servoctl) goes first")
    assert story.checking == 3
    story, _ = begun()
    assert not story.asks("upgrade", None).refused
    assert story.said("rolled back: an upgrade (servoctl) goes first")


def test_the_end_of_the_old_mold_ends_a_refork() -> None:
    story = MoldStory(2, refork_after=100).serve()
    served(story, 0, 100)
    story.mold_ends(story.mold(1), "SIGKILL")
    assert story.said("rolled back: the mold of generation 1 has ended")
    story.advance(1)
    assert story.checking == 3, "the reload that makes a new mold"


def test_a_new_generation_has_to_prove_itself_first() -> None:
    story = MoldStory(2, refork_after=100, bake_time_s=60.0).serve()
    story.hup()
    story.mold_ready(story.mold(2))
    story.retired_end()
    served(story, 200, 200)
    assert story.took(actions.MakeMold) == []
    story.advance(60)
    assert len(story.took(actions.MakeMold)) == 1


def test_bad_workers_of_a_refork_are_rolled_back() -> None:
    story, worker = begun(bake_time_s=60.0)
    story.forks_mold(worker)
    story.exits(worker)
    story.mold_ready(story.mold(2))
    story.retired_end()
    assert story.supervisor.generation == 2
    story.tell(events.ResponsesCounted({proc.serial: (100, 50) for proc in story.alive()}))
    story.advance(1)
    assert story.said("generation 2 is rolled back to generation 1")
    story.retired_end()
    assert story.generations() == [1, 1]
    assert sorted(story.molds) == [1]


@pytest.mark.parametrize("state", ["paused", "held"])
def test_no_refork_without_workers(state: str) -> None:
    story = MoldStory(1, refork_after=100).serve()
    setattr(story.supervisor, state, True)
    story.serving.floor = 0
    served(story, 200)
    assert story.supervisor.reload is None


def test_no_refork_during_an_upgrade_or_a_stop() -> None:
    story = MoldStory(1, refork_after=100).serve()
    story.asks("upgrade", None)
    served(story, 200)
    assert story.supervisor.reload is None
    story.stop_asked = True
    story.signal("SIGTERM")
    look_at_refork(story.supervisor, story.now)
    assert story.supervisor.reload is None


def test_an_upgrade_keeps_the_generations_that_were_reforked() -> None:
    story, worker = begun()
    story.forks_mold(worker)
    story.mold_ready(story.mold(2))
    story.retired_end()
    supervisor = restored(json.loads(json.dumps(state_of(story.supervisor))))
    assert supervisor.reforks.to_state() == [2]
    reforks = Reforks()
    reforks.restore([2])
    assert reforks.to_state() == [2]
