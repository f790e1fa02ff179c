"""Collecting the actions of one event."""

from __future__ import annotations

from servo.arbiter.core.action_queue import ActionQueue
from servo.arbiter.core.actions import CloseListeners, Exit, Log, RecordLifecycleEvent
from servo.arbiter.core.exit_reasons import ExitReason
from servo.arbiter.core.worker_table import WorkerEntry


def test_actions_are_taken_once_in_their_order() -> None:
    queue = ActionQueue()
    queue.do(CloseListeners(), Exit(0))
    queue.log("info", "bye")
    assert queue.take() == [CloseListeners(), Exit(0), Log("info", "bye")]
    assert queue.take() == []


def test_an_event_of_a_worker_has_its_numbers_and_reason() -> None:
    queue = ActionQueue()
    worker = WorkerEntry(serial=5, slot=2, generation=3, spawned_at=1.0)
    worker.pid = 77
    queue.record_worker(worker, "exited", "error", "it ended", ExitReason.CRASHED, "Traceback")
    assert queue.take() == [
        RecordLifecycleEvent(
            "error",
            "it ended",
            name="exited",
            slot=2,
            serial=5,
            pid=77,
            generation=3,
            reason="crashed",
            details="Traceback",
        )
    ]
