"""The progress of a reload, a restart and a stop, for the caller."""

from __future__ import annotations

from typing import Any

from servo.arbiter.operator.lifecycle_events import LifecycleEvent
from servo.arbiter.operator.progress import (
    ReloadProgress,
    RestartProgress,
    StopProgress,
    UpgradeProgress,
)


def event(name: str, **values: Any) -> LifecycleEvent:
    return LifecycleEvent(name, 0.0, f"{name} happened", **values)


def test_a_good_reload() -> None:
    progress = ReloadProgress(2, 2)
    steps = [
        progress.see(each)
        for each in [
            event("spawned", slot=1, serial=3, pid=13, generation=2),
            event("ready", slot=1, serial=3, pid=13, generation=2),
            event("draining", slot=1, serial=1, pid=11, generation=1, reason="replaced"),
            event("exited", slot=1, serial=1, pid=11, generation=1, reason="replaced"),
            event("ready", slot=2, serial=4, pid=14, generation=2),
            event("draining", slot=2, serial=2, pid=12, generation=1, reason="replaced"),
            event("reload_finished", generation=2, data={"seconds": 1.5}),
        ]
    ]
    replaced = [step.note["text"] for step in steps if step and step.note.get("done")]
    assert replaced == [
        "worker 1 replaced: pid 11 -> 13 (1/2)",
        "worker 2 replaced: pid 12 -> 14 (2/2)",
    ]
    assert steps[-1] is not None
    assert steps[-1].result == {"generation": 2, "replaced": 2, "seconds": 1.5}


def test_a_reload_that_is_rolled_back() -> None:
    step = ReloadProgress(2, 2).see(
        event("reload_rolled_back", generation=2, reason="it raised", details="Traceback")
    )
    assert step is not None
    assert (step.failed, step.rolled_back, step.details) == ("it raised", True, "Traceback")


def test_the_reload_before_is_not_ours() -> None:
    progress = ReloadProgress(3, 2)
    for name in ("reload_rolled_back", "reload_finished", "ready"):
        assert progress.see(event(name, slot=1, pid=1, generation=2, reason="")) is None
    old = event("draining", slot=1, pid=1, generation=1, reason="replaced")
    assert progress.see(old) is None
    started = progress.see(event("reload_started", generation=3))
    assert started is not None
    assert started.note["step"] == "started"
    assert progress.given_up(stopping=True).failed == "the server is stopping"
    assert progress.given_up(stopping=False).failed == "the reload was given up"


def test_a_restart() -> None:
    progress = RestartProgress(2, 5, 15)
    assert progress.see(event("ready", slot=1, serial=6, pid=16)) is None
    ready = progress.see(event("ready", slot=2, serial=7, pid=17))
    assert ready is not None
    assert ready.note["pid"] == 17
    step = progress.see(event("draining", slot=2, serial=5, pid=15, reason="restarted"))
    assert step is not None
    assert step.result == {"slot": 2, "old_pid": 15, "pid": 17, "trouble": ""}


def test_a_restart_whose_successor_can_not_boot() -> None:
    progress = RestartProgress(2, 5, 15)
    step = progress.see(
        event("draining", slot=2, serial=7, pid=17, reason="boot_failed", details="Traceback")
    )
    assert step is not None
    assert "its successor failed" in step.failed
    assert step.details == "Traceback"


def test_a_restart_of_a_worker_that_dies_first() -> None:
    step = RestartProgress(2, 5, 15).see(event("exited", slot=2, serial=5, pid=15))
    assert step is not None
    assert step.result == {"slot": 2, "old_pid": 15, "pid": None, "trouble": "exited happened"}


def test_a_stop() -> None:
    progress = StopProgress()
    assert progress.see(event("stopping")) is None
    step = progress.see(event("exited", slot=1, pid=11))
    assert step is not None
    assert step.note["slot"] == 1


def test_an_upgrade_up_to_its_failure() -> None:
    progress = UpgradeProgress()
    assert progress.see(event("upgrade_started", generation=2)) is None
    step = progress.see(event("upgrade_failed", reason="no memory", details="Traceback"))
    assert step is not None
    assert (step.failed, step.details, step.rolled_back) == ("no memory", "Traceback", False)
