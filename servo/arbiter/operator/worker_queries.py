"""Asking live workers what they do, without waiting for any of them.

First by a message, which a worker answers between two requests. One that does not, as its thread is
busy, is asked by a signal, and writes into its dump file: faulthandler does so even for a stuck
interpreter. After that it is said to be blocked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.ipc.messages import Inquiry, Report
from servo.workers.context import REQUESTS_SIGNAL, STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.processes.workers import Children

# How long a worker may take to answer on its channel, and then to write its dump file.
MESSAGE_S = 0.4
SIGNAL_S = 0.6
# How often a dump file is looked at; complete is what has not grown between two looks.
LOOK_S = 0.05

# No request runs for longer than this; a program that shows times can't show any.
_LONG_S = 1e9

STACK = "stack"
REQUESTS = "requests"

_SIGNALS = {STACK: STACK_SIGNAL, REQUESTS: REQUESTS_SIGNAL}


@dataclass(eq=False, slots=True)
class _Pending:
    number: int
    serial: int
    what: str
    interrupt: bool
    tell: Callable[[dict[str, Any] | None], None]
    due: float
    ends: float = 0.0
    seen: str = ""


class Inquiries:
    """All questions that are open."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._pending: dict[int, _Pending] = {}
        self._last = 0

    def ask(
        self,
        serial: int,
        what: str,
        now: float,
        tell: Callable[[dict[str, Any] | None], None],
        *,
        reads: bool,
        interrupt: bool,
    ) -> None:
        """Ask a worker; `tell` gets its answer, or None when there is none.

        reads      it is far enough to read its channel
        interrupt  it is far enough to be asked by a signal
        """
        self._last += 1
        due = now + MESSAGE_S if reads else now
        self._pending[self._last] = _Pending(self._last, serial, what, interrupt, tell, due)
        if reads:
            self._children.send(serial, Inquiry(self._last, what))

    def on_report(self, serial: int, report: Report) -> None:
        """A worker has answered on its channel."""
        pending = self._pending.get(report.number)
        if pending is not None and pending.serial == serial:
            self._end(pending, report.values)

    def on_gone(self, serial: int) -> None:
        """A worker has ended."""
        for pending in list(self._pending.values()):
            if pending.serial == serial:
                self._end(pending, None)

    def wake_at(self) -> float:
        """When `tick` has something to do; infinity for never."""
        return min((pending.due for pending in self._pending.values()), default=float("inf"))

    def tick(self, now: float) -> None:
        """Go on with those that have waited long enough."""
        for pending in list(self._pending.values()):
            if now < pending.due:
                continue
            pending.due = now + LOOK_S
            if not pending.ends:
                self._interrupt(pending, now)
            else:
                self._look(pending, now)

    def _interrupt(self, pending: _Pending, now: float) -> None:
        if any(
            each.ends and each.serial == pending.serial
            for each in self._pending.values()
            if each is not pending
        ):
            return  # its dump file is being used
        asked = pending.interrupt and self._children.ask(pending.serial, _SIGNALS[pending.what])
        if asked:
            pending.ends = now + SIGNAL_S
        else:
            self._end(pending, None)

    def _look(self, pending: _Pending, now: float) -> None:
        text = self._children.dumped(pending.serial)
        if text and text == pending.seen:
            self._end(pending, _read_dump(pending.what, text))
        elif now >= pending.ends:
            self._end(pending, None)
        pending.seen = text

    def _end(self, pending: _Pending, values: object) -> None:
        del self._pending[pending.number]
        pending.tell(_well_formed(pending.what, values))


def _read_dump(what: str, text: str) -> object:
    if what == STACK:
        return {"text": text}
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _well_formed(what: str, values: object) -> dict[str, Any] | None:
    """A worker's answer without what makes no sense in it: one that somebody has taken over can
    answer anything."""
    if not isinstance(values, dict):
        return None
    if what == REQUESTS:
        return {
            "requests": _only(values.get("requests"), ("client", "method", "target"), "seconds")
        }
    if isinstance(values.get("text"), str):
        return {"text": values["text"]}
    parts = {part: _only(values.get(part), ("name", "stack")) for part in ("threads", "tasks")}
    left_out = values.get("left_out")
    return {**parts, "left_out": left_out if isinstance(left_out, int) else 0}


def _only(rows: object, texts: tuple[str, ...], seconds: str = "") -> list[dict[str, Any]]:
    """Those of a list's rows that have these texts, and perhaps a time."""
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in texts):
            continue
        time_s = row.get(seconds, 0.0)
        if isinstance(time_s, (int, float)) and abs(time_s) < _LONG_S:  # nor NaN
            found.append(row)
    return found
