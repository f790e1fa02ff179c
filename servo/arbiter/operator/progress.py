"""The progress of a reload, restart or stop, for the caller that requested it. Pure.

Each class gets every lifecycle event, in order, and returns the news for its caller.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servo.arbiter.operator.lifecycle_events import LifecycleEvent

_GONE_WRONG = ("boot_failed", "boot_timeout", "crashed", "exited", "out_of_memory", "left")


@dataclass
class Step:
    """News for a caller: a note, or the end.

    note         the values of an interim note, or {}
    result       the values of a successful end, or None
    failed       the reason for a failure, or ""
    rolled_back  whether a failed reload was rolled back
    details      a traceback, or ""
    """

    note: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    failed: str = ""
    rolled_back: bool = False
    details: str = ""


class ReloadProgress:
    """Follows a reload; if it is given up for a later one, follows that.

    generation  the number of the new generation
    workers     the number of workers to replace
    """

    def __init__(self, generation: int, workers: int) -> None:
        self.generation = generation
        self._workers = workers
        self._new: dict[int, int] = {}
        self._replaced = 0

    def see(self, event: LifecycleEvent) -> Step | None:
        """The step to report to the caller; None if the event does not concern it."""
        name = event.name
        if name == "draining" and event.reason == "replaced" and event.slot is not None:
            return self._on_replaced(event.slot, event.pid)
        if event.generation is None or event.generation < self.generation:
            return None
        if name == "reload_started":
            return Step(_note(event, "started"))
        if name == "ready" and event.slot is not None and event.pid is not None:
            self._new[event.slot] = event.pid
            return Step(_note(event, "ready", slot=event.slot, pid=event.pid))
        if name == "reload_finished":
            result = {
                "generation": event.generation,
                "replaced": self._replaced,
                "seconds": round(event.data["seconds"], 3),
            }
            return Step(result=result)
        if name == "reload_rolled_back":
            return Step(failed=event.reason, rolled_back=True, details=event.details)
        return None

    def given_up(self, stopping: bool) -> Step:
        """The step that ends the wait if no reload is in progress or waiting.

        stopping  whether the server is stopping
        """
        return Step(failed="the server is stopping" if stopping else "the reload was given up")

    def _on_replaced(self, slot: int, pid: int | None) -> Step | None:
        if not self._new:
            return None  # an earlier reload
        self._replaced += 1
        done, of = self._replaced, max(self._workers, self._replaced)
        new = self._new.get(slot)
        text = f"worker {slot} replaced: pid {pid} -> {new or 'its successor'} ({done}/{of})"
        note = {"step": "replaced", "slot": slot, "old_pid": pid, "pid": new, "done": done}
        return Step({**note, "of": of, "text": text})


class RestartProgress:
    """Follows the replacement of one worker.

    slot, serial, pid  those of the replaced worker
    """

    def __init__(self, slot: int, serial: int, pid: int | None) -> None:
        self._slot = slot
        self._serial = serial
        self._pid = pid
        self._successors: dict[int, int | None] = {}

    def see(self, event: LifecycleEvent) -> Step | None:
        """The step to report to the caller; None if the event does not concern it."""
        if event.serial == self._serial:
            if event.name not in ("draining", "exited"):
                return None
            pid = next(reversed(self._successors.values()), None)
            asked = event.name == "draining" and event.reason in ("restarted", "replaced")
            trouble = "" if asked else event.text
            result = {"slot": self._slot, "old_pid": self._pid, "pid": pid, "trouble": trouble}
            return Step(result=result)
        if event.slot != self._slot or (event.serial or 0) < self._serial:
            return None
        if event.name == "ready" and event.serial is not None:
            self._successors[event.serial] = event.pid
            return Step(_note(event, "ready", slot=event.slot, pid=event.pid))
        lost = event.name in ("draining", "exited") and event.reason in _GONE_WRONG
        if lost and event.serial not in self._successors:
            text = f"its successor failed: {event.text.partition(chr(10))[0]}"
            return Step(failed=f"{text}; the old worker goes on", details=event.details)
        return None


class StopProgress:
    """Follows a stop: each worker's exit. The control service reports when the stop is complete."""

    def see(self, event: LifecycleEvent) -> Step | None:
        """The step to report to the caller; None if the event does not concern it."""
        if event.name == "exited":
            return Step(_note(event, "exited", slot=event.slot, pid=event.pid))
        return None


class UpgradeProgress:
    """Follows an upgrade until it fails or the new program closes the connection.

    The new program keeps the events, so `servoctl` connects again and asks it for the later ones.
    """

    def see(self, event: LifecycleEvent) -> Step | None:
        """The step to report to the caller; None if the event does not concern it."""
        if event.name == "upgrade_failed":
            return Step(failed=event.reason, details=event.details)
        return None


Progress = ReloadProgress | RestartProgress | StopProgress | UpgradeProgress


def _note(event: LifecycleEvent, step: str, **values: Any) -> dict[str, Any]:
    return {"step": step, **values, "text": event.text}
