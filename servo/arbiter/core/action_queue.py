"""The queue that collects actions while the supervisor handles one event.

The supervisor and `WorkerLifecycle` decide in many small steps, and each step appends its actions.
After the event, the supervisor takes all actions and returns them to the loop, in the same order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from servo.arbiter.core.actions import Log, RecordLifecycleEvent

if TYPE_CHECKING:
    from servo.arbiter.core.actions import Action
    from servo.arbiter.core.exit_reasons import ExitReason
    from servo.arbiter.core.worker_table import WorkerEntry


class ActionQueue:
    """The actions decided so far for the current event."""

    def __init__(self) -> None:
        self._actions: list[Action] = []

    def do(self, *actions: Action) -> None:
        """Append actions."""
        self._actions += actions

    def log(self, level: str, text: str) -> None:
        """Append a line for the log.

        level  a name of `logging`'s levels, in lower case
        """
        self.do(Log(level, text))

    def record(self, name: str, level: str, text: str, **values: Any) -> None:
        """Append a lifecycle event, with its line for the log.

        name    the event's name
        level   see `log`
        text    the line
        values  the other fields of `RecordLifecycleEvent`
        """
        self.do(RecordLifecycleEvent(level, text, name=name, **values))

    def record_worker(
        self,
        worker: WorkerEntry,
        name: str,
        level: str,
        text: str,
        reason: ExitReason | None = None,
        details: str = "",
    ) -> None:
        """Append a lifecycle event of one worker, with its line for the log.

        worker   the worker with the new state
        name     the event's name: the new state
        level    see `log`
        text     the line
        reason   why the worker drains or has exited
        details  a traceback, or ""
        """
        self.record(
            name,
            level,
            text,
            slot=worker.slot,
            serial=worker.serial,
            pid=worker.pid,
            generation=worker.generation,
            reason=reason.name.lower() if reason is not None else "",
            details=details,
        )

    def take(self) -> list[Action]:
        """Return all actions, and empty the queue."""
        taken, self._actions = self._actions, []
        return taken
