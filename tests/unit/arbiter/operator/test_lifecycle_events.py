"""Lifecycle events for operators and the log."""

from __future__ import annotations

from typing import Any

from servo.arbiter.core.actions import RecordLifecycleEvent
from servo.arbiter.operator.lifecycle_events import MAX_TEXT, LifecycleEvent, event_of


def event(name: str, **values: Any) -> LifecycleEvent:
    return LifecycleEvent(name, 0.0, f"{name} happened", **values)


def test_an_event_as_a_dictionary_says_only_what_there_is() -> None:
    assert event("scaled", data={"workers": 3, "before": 2}, reason="servoctl").as_dict() == {
        "name": "scaled",
        "time": 0.0,
        "reason": "servoctl",
        "workers": 3,
        "before": 2,
        "text": "scaled happened",
    }
    assert event("ready", slot=1, pid=2).as_log_values() == {"name": "ready", "slot": 1, "pid": 2}


def test_an_action_gets_its_time_and_loses_the_start_of_long_texts() -> None:
    action = RecordLifecycleEvent(
        level="error", text="it failed", name="exited", slot=1, details="x" * MAX_TEXT + "the end"
    )
    made = event_of(action, 12.5)
    assert (made.name, made.time, made.slot, made.text) == ("exited", 12.5, 1, "it failed")
    assert made.details.startswith("… x")
    assert made.details.endswith("the end")
    assert len(made.details) == MAX_TEXT + 2
