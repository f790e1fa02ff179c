"""Lifecycle events: what hooks, the log, `servoctl events` and metrics all see alike.

The supervisor makes each of them once (`actions.RecordLifecycleEvent`), and this module adds the
time of day.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from servo.arbiter.core.actions import RecordLifecycleEvent

# What `servoctl events` and `servoctl logs` can look back on.
MAX_EVENTS = 1000
MAX_RECORDS = 1000
MAX_RECORDS_BYTES = 256 << 10
# A traceback of a failed import is longer than any other text; its end is what tells.
MAX_TEXT = 16_384


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """Something that happened to the server or to one of its workers.

    name        spawned, booting, ready, draining, exited (a worker); reload_started,
                reload_finished, reload_rolled_back, scaled, stopping (the server)
    time        seconds since the epoch
    text        as the log says it; `level` is the log's
    slot, serial, pid, generation   of the worker; None where there is none
    reason      of draining and exited: replaced, crashed, no_heartbeat …; of the others: who asked
    details     a traceback, or ""
    data        numbers by name: seconds of a reload; workers and before of a scaling
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

    def as_dict(self) -> dict[str, Any]:
        """What is there of it, fit for JSON."""
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
        """What a log line does not say anyway."""
        said = ("time", "text", "details")
        return {name: value for name, value in self.as_dict().items() if name not in said}


def event_of(action: RecordLifecycleEvent, time: float) -> LifecycleEvent:
    """The event that the supervisor announces, with its time of day."""
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


class Ring:
    """The last records, bounded in number and in characters."""

    def __init__(self, most: int, most_characters: int) -> None:
        self._records: deque[tuple[int, dict[str, Any]]] = deque()
        self._most = most
        self._most_characters = most_characters
        self._characters = 0

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; the oldest ones make room."""
        size = sum(len(value) for value in record.values() if isinstance(value, str))
        self._records.append((size, record))
        self._characters += size
        while len(self._records) > self._most or (
            self._characters > self._most_characters and len(self._records) > 1
        ):
            self._characters -= self._records.popleft()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([record for _, record in self._records])

    def __len__(self) -> int:
        return len(self._records)


def _end_of(text: str) -> str:
    return text if len(text) <= MAX_TEXT else "… " + text[-MAX_TEXT:]
