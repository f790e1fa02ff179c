"""Roll-backs that give up a reload; `test_bake` has those after one."""

from __future__ import annotations

from unit.arbiter.core.test_supervisor import Story

from servo.arbiter.core.rollback import give_up_reload, look_at_bake, roll_back


def test_a_reload_in_progress_is_given_up_with_the_one_that_follows() -> None:
    story = Story(1).serve()
    story.hup()
    story.signal("SIGHUP")
    supervisor = story.supervisor
    assert roll_back(supervisor, "on purpose", story.now) == ""
    assert supervisor.reload is None
    assert supervisor.generation == 1
    assert roll_back(supervisor, "again", story.now).startswith("there is nothing to roll back to")


def test_without_a_reload_or_a_bake_nothing_happens() -> None:
    supervisor = Story(1).serve().supervisor
    give_up_reload(supervisor, "on purpose", 1000.0)
    look_at_bake(supervisor, 1000.0)
    assert supervisor.queue.take() == []
