"""Lifecycle events, for hooks, the log, `servoctl events` and metrics.

The supervisor makes each event (`actions.RecordLifecycleEvent`). It has no clock, so this module
adds the time of day.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.actions import RecordLifecycleEvent

# Characters of an event's text. If a traceback is longer, its end is kept, because the end names
# the error.
MAX_TEXT = 16_384


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """A change of the state of the server or of a worker.

    name        spawned, booting, ready, draining, exited (a worker); reload_started,
                reload_finished, reload_rolled_back, rolled_back, refork_started, refork_finished,
                refork_rolled_back, scaled, stopping (the server)
    time        seconds since the epoch
    text        the text of its log line
    level       the level of its log line
    slot, serial, pid, generation   those of the worker; None for an event of the server
    reason      for draining and exited: replaced, crashed, no_heartbeat …; otherwise the cause,
                such as "SIGHUP" or "servoctl"
    details     a traceback, or ""
    data        numbers by name: "seconds" of a reload, "workers" and "before" of a scaling
    """

    name: str
    time: float
    text: str
    level: str = "info"
    slot: int | None = None
    serial: int | None = None
    pid: int | None = None
    generation: int | None = None
    reason: str = ""
    details: str = ""
    data: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> LifecycleEvent:
        """Restore an event from the dict that `dataclasses.asdict` made. Raises TypeError."""
        return cls(**state)

    def as_dict(self) -> dict[str, Any]:
        """The event as a dict of JSON values, without fields that are not set."""
        values: dict[str, Any] = {"name": self.name, "time": round(self.time, 3)}
        for name in ("slot", "serial", "pid", "generation"):
            if (value := getattr(self, name)) is not None:
                values[name] = value
        values.update(
            {name: text for name in ("reason", "details") if (text := getattr(self, name))}
        )
        values.update({name: round(number, 3) for name, number in self.data.items()})
        values["text"] = self.text
        return values

    def as_log_values(self) -> dict[str, Any]:
        """The values that the text of the log line does not contain."""
        in_text = ("time", "text", "details")
        return {name: value for name, value in self.as_dict().items() if name not in in_text}


def event_of(action: RecordLifecycleEvent, time: float) -> LifecycleEvent:
    """Make a LifecycleEvent from the supervisor's action.

    action  the action
    time    seconds since the epoch
    """
    return LifecycleEvent(
        name=action.name,
        time=time,
        text=_end_of(action.text),
        level=action.level,
        slot=action.slot,
        serial=action.serial,
        pid=action.pid,
        generation=action.generation,
        reason=action.reason,
        details=_end_of(action.details),
        data=dict(action.data),
    )


def _end_of(text: str) -> str:
    return text if len(text) <= MAX_TEXT else "… " + text[-MAX_TEXT:]
