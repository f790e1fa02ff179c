"""A bake: when a generation is rolled back after its reload, and by whom."""

from __future__ import annotations

import pytest
from unit.arbiter.core.test_molds import MoldStory
from unit.arbiter.core.test_supervisor import Story

from servo.arbiter.core import actions, events
from servo.arbiter.core.bake import Bake, ErrorShares
from servo.arbiter.core.policy import BAKE_RESPONSES, Policy
from servo.ipc import messages as msg


def reloaded(story: Story) -> Story:
    """Serve, and complete a reload to generation 2."""
    story.serve()
    story.hup()
    if 2 in story.molds:
        story.mold_ready(story.molds[2])
    end_retired(story)
    assert story.supervisor.generation == 2
    assert story.supervisor.reload is None
    return story


def end_retired(story: Story) -> None:
    for _ in range(20):
        for proc in story.alive():
            if proc.asked is not None:
                story.exits(proc)
        story.all_ready()


def generations(story: Story) -> list[int]:
    return [proc.generation for proc in story.alive()]


def responses(story: Story, errors: int, old: int = 0) -> None:
    """Every worker has given 100 responses, of which so many were 5xx."""
    counts = {proc.serial: (100, old if proc.generation == 1 else errors) for proc in story.alive()}
    story.tell(events.ResponsesCounted(counts))
    story.advance(1)


def test_without_bake_time_nothing_is_kept() -> None:
    story = reloaded(MoldStory(2))
    assert story.supervisor.bakes.current is None
    assert sorted(story.molds) == [2]
    answer = story.asks("rollback", None)
    assert answer.refused.startswith("there is nothing to roll back to: only generation 2 is kept")


def test_the_old_mold_is_kept_for_the_bake_time() -> None:
    story = reloaded(MoldStory(2, bake_time_s=60.0))
    assert sorted(story.molds) == [1, 2]
    assert story.said("generation 1 is kept for 60 s (bake_time)")
    story.advance(59)
    assert sorted(story.molds) == [1, 2]
    story.advance(1)
    assert sorted(story.molds) == [2]
    assert story.said("generation 2 has proved itself: generation 1 is dropped")
    assert story.asks("rollback", None).refused


def test_an_operator_rolls_back_to_the_old_code() -> None:
    story = reloaded(MoldStory(3, bake_time_s=60.0, reload_batch=2))
    answer = story.asks("rollback", None)
    assert (answer.refused, answer.result) == ("", {"generation": 1, "code": True})
    assert generations(story) == [2, 2, 2, 1, 1], "two at a time, new ones first"
    end_retired(story)
    assert generations(story) == [1, 1, 1]
    assert sorted(story.molds) == [1]
    assert story.said("generation 2 is rolled back to generation 1: servoctl rollback")
    assert story.took(actions.AdoptGeneration)[-1] == actions.AdoptGeneration(1)


def test_without_a_mold_only_the_settings_return() -> None:
    story = Story(2, bake_time_s=60.0).serve()
    story.hup(Policy(workers=3, bake_time_s=60.0))
    end_retired(story)
    assert generations(story) == [2, 2, 2]
    answer = story.asks("rollback", None)
    assert answer.result == {"generation": 1, "code": False}
    assert story.said("only the settings of generation 1 return: workers import the code that is")
    end_retired(story)
    assert generations(story) == [1, 1], "and their number"


def test_during_a_reload_a_rollback_gives_it_up() -> None:
    story = reloaded(MoldStory(1, bake_time_s=60.0))
    story.hup()
    assert story.asks("rollback", None).result == {"generation": 2, "code": True}
    assert story.said("reload (SIGHUP) rolled back: servoctl rollback")
    assert story.supervisor.bakes.current is not None, "the one before can still return"
    assert story.asks("rollback", None).result == {"generation": 1, "code": True}


def test_a_stopping_server_rolls_nothing_back() -> None:
    story = reloaded(MoldStory(1, bake_time_s=60.0))
    story.signal("SIGTERM")
    assert story.asks("rollback", None).refused == "the server is stopping"


def test_a_generation_that_answers_errors_is_rolled_back() -> None:
    story = MoldStory(2, bake_time_s=60.0).serve()
    responses(story, errors=0, old=2)
    story.hup()
    story.mold_ready(story.mold(2))
    story.retired_end()
    responses(story, errors=6)
    assert story.supervisor.generation == 2, "4 percentage points more are chance"
    responses(story, errors=8)
    assert story.said("rolled back to generation 1: 8% of its responses are 5xx (2% before)")
    story.retired_end()
    assert story.generations() == [1, 1]


def test_a_generation_whose_workers_die_is_rolled_back() -> None:
    story = reloaded(MoldStory(2, bake_time_s=600.0))
    for _ in range(3):
        assert story.supervisor.generation == 2
        story.exits(story.newest(), -11, "SIGSEGV")
        story.advance(20)
        story.all_ready()
    assert story.said("its workers have failed 3 times (0 in the same time before)")
    assert story.supervisor.generation == 1


def test_a_generation_that_fails_its_health_checks_is_rolled_back() -> None:
    story = reloaded(MoldStory(2, bake_time_s=600.0))
    for _ in range(3):
        assert story.supervisor.generation == 2
        story.says(story.newest(), msg.ReplaceMe("unhealthy", "GET /health answers 500"))
        story.retired_end()
        story.advance(20)
    assert story.said("its workers have failed 3 times (0 in the same time before)")
    assert story.supervisor.generation == 1


def test_recycled_workers_are_no_failures() -> None:
    story = reloaded(MoldStory(2, bake_time_s=600.0))
    for _ in range(5):
        story.says(story.newest(), msg.ReplaceMe("recycled"))
        story.retired_end()
        story.advance(20)
    assert story.supervisor.generation == 2


def test_a_server_whose_workers_died_before_has_more_patience() -> None:
    story = MoldStory(2, bake_time_s=600.0).serve()
    for _ in range(2):
        story.exits(story.newest(), -11, "SIGSEGV")
        story.advance(20)
        story.all_ready()
    story.hup()
    story.mold_ready(story.mold(2))
    story.retired_end()
    for _ in range(4):
        story.exits(story.newest(), -11, "SIGSEGV")
        story.advance(20)
        story.all_ready()
    assert story.supervisor.generation == 2
    story.exits(story.newest(), -11, "SIGSEGV")
    story.advance(20)
    assert story.supervisor.generation == 1


def test_deaths_during_the_reload_count_against_the_new_generation() -> None:
    story = MoldStory(3, bake_time_s=600.0).serve()
    story.hup()
    story.mold_ready(story.mold(2))
    story.all_ready()
    crashing = next(proc for proc in story.alive() if proc.generation == 2)
    story.exits(crashing, -11, "SIGSEGV")
    assert story.supervisor.reload is not None
    story.advance(1)
    story.retired_end()
    assert story.supervisor.reload is None
    for _ in range(2):
        assert story.supervisor.generation == 2
        story.advance(20)
        story.all_ready()
        story.exits(story.newest(), -11, "SIGSEGV")
    story.advance(1)
    assert story.said("its workers have failed 3 times (0 in the same time before)")
    assert story.supervisor.generation == 1


def test_a_standstill_does_not_hide_the_deaths_before_it() -> None:
    story = MoldStory(2, bake_time_s=60.0).serve()
    for _ in range(2):
        story.exits(story.newest(), -11, "SIGSEGV")
        story.advance(10)
        story.all_ready()
    story.now += 600
    story.tick()
    story.hup()
    story.mold_ready(story.mold(2))
    story.retired_end()
    for _ in range(4):
        story.exits(story.newest(), -11, "SIGSEGV")
        story.advance(10)
        story.all_ready()
    assert story.supervisor.generation == 2


def test_the_counters_of_exited_workers_are_added_up() -> None:
    shares = ErrorShares()
    for serial in range(1, 1001):
        shares.count(1, serial, 10, 1)
        shares.fold({serial})
    assert shares.of(1) == (10_000, 1000)
    assert len(shares._counts[1]) == 2


def test_the_old_mold_may_die_meanwhile() -> None:
    story = reloaded(MoldStory(2, bake_time_s=60.0))
    story.mold_ends(story.mold(1), "SIGKILL")
    assert story.supervisor.reload is None, "nothing needs it"
    text = "the mold of generation 1 has ended, and its code with it"
    assert story.asks("rollback", None).refused == text
    responses(story, errors=50)
    assert story.said(f"it can't be rolled back: {text}")
    assert story.supervisor.generation == 2
    assert story.supervisor.bakes.current is None


def bad_during_the_next_reload(workers: int = 2) -> Story:
    """The mold of generation 3 imports the repaired release; generation 2 has been rolled back."""
    story = reloaded(MoldStory(workers, bake_time_s=60.0))
    story.hup()
    responses(story, errors=50)
    assert story.said("generation 2 is rolled back to generation 1: 50% of its responses are 5xx")
    assert story.said("reload (SIGHUP) goes on: it replaces generation 1")
    assert story.supervisor.generation == 1
    return story


def test_the_old_generation_returns_while_the_next_reload_goes_on() -> None:
    story = bad_during_the_next_reload()
    end_retired(story)
    assert generations(story) == [1, 1], "the mold of generation 3 is still not ready"
    story.mold_ready(story.molds[3])
    end_retired(story)
    assert story.supervisor.reload is None
    assert generations(story) == [3, 3]
    assert story.asks("rollback", None).result == {"generation": 1, "code": True}


def test_the_canary_comes_before_the_rest_of_the_old_generation() -> None:
    story = bad_during_the_next_reload()
    assert generations(story) == [2, 2, 1]
    story.mold_ready(story.molds[3])
    assert generations(story) == [2, 2, 1, 3]
    assert story.alive()[2].asked == msg.Retire("not_needed")
    end_retired(story)
    assert generations(story) == [3, 3]


def test_a_next_reload_that_fails_returns_to_the_old_generation() -> None:
    story = bad_during_the_next_reload()
    end_retired(story)
    story.mold_ready(story.molds[3])
    story.exits(story.newest(), 4)
    end_retired(story)
    assert story.supervisor.reload is None
    assert story.said("rolled back: its first worker failed")
    assert generations(story) == [1, 1]


def test_a_next_reload_that_fails_late_restores_the_old_number_of_workers() -> None:
    story = Story(2, bake_time_s=60.0).serve()
    story.hup(Policy(workers=3, bake_time_s=60.0))
    end_retired(story)
    story.signal("SIGHUP")
    responses(story, errors=50)
    assert story.supervisor.count.target == 2
    story.config = Policy(workers=5)
    story.config_checked(None)
    story.ready(story.newest())
    assert (story.supervisor.generation, story.supervisor.count.target) == (3, 5)
    for _ in range(3):
        story.exits(story.newest(), -11, "SIGSEGV")
        story.advance(1)
    assert story.said("rolled back: its workers failed 3 times")
    assert (story.supervisor.generation, story.supervisor.count.target) == (1, 2)


def test_a_reload_goes_on_if_the_bad_generation_can_not_be_rolled_back() -> None:
    story = reloaded(MoldStory(2, bake_time_s=60.0))
    story.mold_ends(story.mold(1), "SIGKILL")
    story.hup()
    responses(story, errors=50)
    assert story.said("it can't be rolled back: the mold of generation 1 has ended")
    assert story.supervisor.reload is not None


def test_the_next_reload_ends_the_bake() -> None:
    story = reloaded(MoldStory(1, bake_time_s=60.0))
    story.hup()
    story.mold_ready(story.molds[3])
    end_retired(story)
    assert story.asks("rollback", None).result == {"generation": 2, "code": True}
    assert sorted(story.molds) == [2, 3]


def test_a_generation_that_never_served_is_not_kept() -> None:
    story = Story(1, wait_for_change=True, bake_time_s=60.0).start()
    story.exits(story.newest(), 4)
    story.config = story.supervisor.policy
    story.tell(events.FileChanged(("app.py",)))
    story.config_checked(None)
    story.all_ready()
    assert story.supervisor.generation == 2
    assert story.supervisor.bakes.current is None


def test_a_standstill_extends_the_bake() -> None:
    story = reloaded(MoldStory(1, bake_time_s=60.0))
    story.now += 600
    story.tick()
    assert story.supervisor.bakes.current is not None


@pytest.mark.parametrize(
    ("responses", "bad"), [(BAKE_RESPONSES - 1, False), (BAKE_RESPONSES, True)]
)
def test_few_responses_prove_nothing(responses: int, bad: bool) -> None:
    shares = ErrorShares()
    bake = Bake(2, 1, until=100.0, old_restarts=0)
    assert bake.problem(shares, 0) == ""
    shares.count(2, 7, responses, responses)
    assert bool(bake.problem(shares, 0)) is bad
    shares.keep({1: None})
    assert shares.of(2) == (0, 0)
