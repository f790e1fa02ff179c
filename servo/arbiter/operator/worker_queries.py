"""Queries live workers about their stacks and requests, without blocking the arbiter.

`servoctl stack` and `servoctl requests` need an answer from a worker that may be busy or stuck. So
a query has up to three steps:

1. A message on the channel. A worker answers it between two requests.
2. Without an answer, a signal. The worker then writes into its dump file. faulthandler can write
   stacks even while C code holds the interpreter's lock.
3. If the file stays empty, the answer is None, and the worker counts as blocked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.ipc.messages import Report, WorkerQuery
from servo.workers.query_signals import REQUESTS_SIGNAL, STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.processes.workers import WorkerProcesses

# Seconds that a worker has to answer on its channel.
MESSAGE_S = 0.4
# Seconds that it then has to write its dump file.
SIGNAL_S = 0.6
# Seconds between two reads of a dump file. If the file has not grown, the dump is complete.
DUMP_POLL_S = 0.05

# A longer duration (1e9 s are 31 years) can't be true, and `servoctl` could not show it.
_MAX_DURATION_S = 1e9

STACK = "stack"
REQUESTS = "requests"

_SIGNALS = {STACK: STACK_SIGNAL, REQUESTS: REQUESTS_SIGNAL}


@dataclass(eq=False, slots=True)
class _Pending:
    number: int
    serial: int
    what: str
    interrupt: bool
    on_answer: Callable[[dict[str, Any] | None], None]
    due: float
    # The deadline for the dump file, in monotonic seconds; 0 before the signal is sent.
    dump_due: float = 0.0
    dump_text: str = ""


class WorkerQueries:
    """All unanswered queries.

    workers   the worker processes
    """

    def __init__(self, workers: WorkerProcesses) -> None:
        self._workers = workers
        self._pending: dict[int, _Pending] = {}
        self._last = 0

    def ask(
        self,
        serial: int,
        what: str,
        now: float,
        on_answer: Callable[[dict[str, Any] | None], None],
        *,
        reads: bool,
        interrupt: bool,
    ) -> None:
        """Ask a worker.

        serial     the worker's number
        what       STACK or REQUESTS
        now        monotonic seconds
        on_answer  takes the answer, or None if there is none
        reads      whether the worker already reads its channel
        interrupt  whether it has already set up its signal handlers
        """
        self._last += 1
        due = now + MESSAGE_S if reads else now
        self._pending[self._last] = _Pending(self._last, serial, what, interrupt, on_answer, due)
        if reads:
            self._workers.send(serial, WorkerQuery(self._last, what))

    def on_report(self, serial: int, report: Report) -> None:
        """Take a worker's answer from its channel.

        serial  the worker's number
        report  the answer
        """
        pending = self._pending.get(report.number)
        if pending is not None and pending.serial == serial:
            self._end(pending, report.values)

    def on_gone(self, serial: int) -> None:
        """Fail the queries of a worker that has ended.

        serial  the worker's number
        """
        for pending in list(self._pending.values()):
            if pending.serial == serial:
                self._end(pending, None)

    def wake_at(self) -> float:
        """The next time for `tick`, in monotonic seconds; infinity if there is none."""
        return min((pending.due for pending in self._pending.values()), default=float("inf"))

    def tick(self, now: float) -> None:
        """Take the next step of each query that has waited long enough.

        now  monotonic seconds
        """
        for pending in list(self._pending.values()):
            if now < pending.due:
                continue
            pending.due = now + DUMP_POLL_S
            if not pending.dump_due:
                self._interrupt(pending, now)
            else:
                self._read_dump_file(pending, now)

    def _interrupt(self, pending: _Pending, now: float) -> None:
        if any(
            each.dump_due and each.serial == pending.serial
            for each in self._pending.values()
            if each is not pending
        ):
            return  # an earlier query is still using the worker's dump file
        was_sent = pending.interrupt and self._workers.request_dump(
            pending.serial, _SIGNALS[pending.what]
        )
        if was_sent:
            pending.dump_due = now + SIGNAL_S
        else:
            self._end(pending, None)

    def _read_dump_file(self, pending: _Pending, now: float) -> None:
        text = self._workers.read_dump(pending.serial)
        if text and text == pending.dump_text:
            self._end(pending, _parse_dump(pending.what, text))
        elif now >= pending.dump_due:
            self._end(pending, None)
        pending.dump_text = text

    def _end(self, pending: _Pending, values: object) -> None:
        del self._pending[pending.number]
        pending.on_answer(_well_formed(pending.what, values))


def _parse_dump(what: str, text: str) -> object:
    if what == STACK:
        return {"text": text}
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _well_formed(what: str, values: object) -> dict[str, Any] | None:
    """Remove malformed parts of a worker's answer: a compromised worker can send anything."""
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
    """Return the valid rows of a list, and leave out all others.

    rows     a list from a worker, which may contain anything
    texts    the fields that must contain text
    seconds  the field that must contain a duration, unless the row lacks it; "" for none
    """
    found = []
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in texts):
            continue
        time_s = row.get(seconds, 0.0)
        if isinstance(time_s, (int, float)) and abs(time_s) < _MAX_DURATION_S:  # False for NaN
            found.append(row)
    return found
