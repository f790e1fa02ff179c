"""The supervisor's state as JSON values, for an upgrade."""

from __future__ import annotations

import json

from unit.arbiter.core.test_supervisor import Story

from servo.arbiter.core import actions, events
from servo.arbiter.core.supervisor_state import restored, state_of
from servo.ipc import messages as msg


def test_the_restored_supervisor_goes_on_with_everything() -> None:
    story = Story(workers=3).serve()
    story.signal("SIGTTIN")
    story.all_ready()
    story.says(story.alive()[0], msg.ReplaceMe("recycled", "old"))
    story.ready(story.newest())
    before = story.supervisor
    state = json.loads(json.dumps(state_of(before)))
    after = restored(state)
    assert state_of(after) == state_of(before)
    assert (after.count.low, after.count.target) == (4, 4)
    assert [str(worker) for worker in after.workers] == [str(worker) for worker in before.workers]
    assert after.served


def test_nothing_of_the_supervisor_is_forgotten() -> None:
    """Each attribute is in the state, or belongs to something that no upgrade interrupts."""
    elsewhere = {"lifecycle", "queue", "served", "held", "exited"}
    # A bake ends with the program; the reload that follows begins another.
    elsewhere |= {"bakes"}
    not_meanwhile = {"reload", "upgrade", "pending_stop", "stopping", "started", "giving_up"}
    story = Story().serve()
    names = {name.removeprefix("_") for name in vars(story.supervisor)}
    # Of the count, autoscaling measures the load anew.
    names = names - {"count"} | {"target", "low"}
    assert names - elsewhere - not_meanwhile == set(state_of(story.supervisor))


def test_the_time_of_the_upgrade_counts_against_no_worker() -> None:
    story = Story(timeout_s=2.0).serve()
    story.signal("SIGUSR2")
    state = state_of(story.supervisor)
    after = restored(json.loads(json.dumps(state)))
    done = after.handle(events.Upgraded("upgraded"), story.now + 60)
    done += after.handle(events.Tick(), story.now + 60)
    assert not [each for each in done if "stood still" in getattr(each, "text", "")]
    assert not [action for action in done if isinstance(action, actions.KillWorker)]
