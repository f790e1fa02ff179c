"""The state of the screens of `servoctl monit`. Pure: no terminal, no socket, no clock.

Each screen takes the server's answers and the operator's keys. A key returns the action that the
driver (`servo.cli.monit`) has to perform, or None. `servo.cli.monit_view` draws the screens.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from servo.cli.show import reloaded, restarted, scaled
from servo.control.stacks import stack_lines
from servo.metrics.histograms import RecentHistogram, quantile
from servo.printable import printable_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.control.instances import Instance

# The smallest terminal that shows a screen, in characters.
MIN_WIDTH = 80
MIN_HEIGHT = 24
# How many measurements are kept. There is one a second, so they cover a minute.
SAMPLES = 60
# The percentiles cover the requests of this many seconds, as `requests_per_s` does.
_LATENCY_SAMPLES = 5
# How many events and log lines are kept; the server keeps no more.
_MAX_NOTES = 1000
# A log record may be a long traceback. The end of a longer text is left out.
_MAX_TEXT = 20_000
_MAX_FILTER = 200
# How many seconds a profile takes.
PROFILE_S = 5
# The lines by which the page keys scroll a stack.
_PAGE = 10

METRICS = ("rate", "p99", "cpu", "memory", "use")


@dataclass(frozen=True)
class Quit:
    """End `servoctl monit`."""


@dataclass(frozen=True)
class OpenList:
    """Show the list of servers."""


@dataclass(frozen=True)
class OpenServer:
    """Show a server."""

    instance: Instance


@dataclass(frozen=True)
class Send:
    """Send a command to the server; or profile a worker, which servoctl does itself.

    command   its name in the protocol, or "profile"
    args      its arguments
    """

    command: str
    args: dict[str, Any]


Action = Quit | OpenList | OpenServer | Send


def fits(width: int, height: int) -> bool:
    """Whether a terminal of this size can show a screen."""
    return width >= MIN_WIDTH and height >= MIN_HEIGHT


class History:
    """The measurements of a minute, one a second; None where there is none.

    count   how many measurements there have been since the start
    """

    def __init__(self) -> None:
        self._values: deque[float | None] = deque(maxlen=SAMPLES)
        self.count = 0

    def add(self, value: float | None, missed: int = 0) -> None:
        """Add a measurement.

        value    the measurement
        missed   how many seconds without a measurement came before
        """
        self._values.extend([None] * min(missed, SAMPLES))
        self._values.append(value)
        self.count += missed + 1

    @property
    def values(self) -> list[float | None]:
        """The measurements, oldest first."""
        return list(self._values)

    @property
    def last(self) -> float | None:
        """The latest measurement; None if there is none."""
        return self._values[-1] if self._values else None

    @property
    def known(self) -> list[float]:
        """The measurements without the missing ones."""
        return [value for value in self._values if value is not None]


def histories() -> dict[str, History]:
    """An empty history of each metric."""
    return {name: History() for name in METRICS}


@dataclass
class Worker:
    """A worker on the screen.

    row        its row in the server's latest answer
    history    its history by metric
    latencies  the latencies of its latest requests
    """

    row: dict[str, Any]
    history: dict[str, History] = field(default_factory=histories)
    latencies: RecentHistogram = field(default_factory=lambda: RecentHistogram(_LATENCY_SAMPLES))

    def update(self, row: dict[str, Any], missed: int) -> None:
        """Take a new row.

        row      the row
        missed   how many seconds without an answer came before
        """
        self.row = row
        if "latency" in row:
            self.latencies.add(row["latency"])
        p99 = quantile(self.latencies.counts, 0.99) if self.latencies else row.get("p99_s")
        values = {
            "rate": row.get("requests_per_s"),
            "p99": p99,
            "cpu": row.get("cpu_percent"),
            "memory": row.get("rss_bytes"),
            "use": row.get("utilisation"),
        }
        for name, value in values.items():
            self.history[name].add(value, missed)


class Mode(Enum):
    """The part of the screen that gets the keys."""

    NORMAL = "normal"
    HELP = "help"
    CONFIRM = "confirm"
    FILTER = "filter"
    STACK = "stack"


@dataclass(frozen=True)
class Message:
    """The result of a command, in one line.

    text     the text
    failed   whether the command has failed
    """

    text: str = ""
    failed: bool = False


class ServerList:
    """The list of servers.

    rows       a row for each server, as of `servoctl list`; None until they are known
    selected   the index of the selected row
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] | None = None
        self.instances: list[Instance] = []
        self.selected = 0

    def on_servers(self, instances: list[Instance], rows: list[dict[str, Any]]) -> None:
        """Take the running servers.

        instances   the servers
        rows        the row of each one
        """
        socket = self.instances[self.selected].socket if self.instances else ""
        sockets = [each.socket for each in instances]
        self.instances, self.rows = instances, rows
        if socket in sockets:
            self.selected = sockets.index(socket)
        self._select(self.selected)

    def on_key(self, key: str) -> Action | None:
        """Handle a key, and return the action that it causes."""
        if key == "q":
            return Quit()
        if key in ("up", "down"):
            self._select(self.selected + (1 if key == "down" else -1))
        elif key in ("enter", "right") and self.instances:
            return OpenServer(self.instances[self.selected])
        return None

    def _select(self, index: int) -> None:
        self.selected = max(0, min(index, len(self.instances) - 1))


class ServerScreen:
    """One server: its totals, workers, events and log.

    name   the server's name

    status      the server's latest answer to "status"; {} before the first one
    workers     its workers, in the order of their slots
    selected    the serial number of the selected worker; None without workers
    totals      the history of each metric over all workers, and of "errors": 5xx responses a second
    events      the latest events, oldest first
    logs        the latest log records, oldest first
    problem     why the server can't be reached now; "" if it can
    seen_at     when the latest answer came, in the driver's seconds
    mode        the part of the screen that gets the keys
    question    what the operator has to confirm
    message     the result of the latest command
    filter      the expression that log lines must match; None for all lines
    typed       the text of the filter as typed so far
    stack       the lines of the stack on the screen
    scrolled    the number of its lines above the screen
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.status: dict[str, Any] = {}
        self.workers: list[Worker] = []
        self.selected: int | None = None
        self.totals = {**histories(), "errors": History()}
        self.events: deque[dict[str, Any]] = deque(maxlen=_MAX_NOTES)
        self.logs: deque[dict[str, Any]] = deque(maxlen=_MAX_NOTES)
        self.problem = ""
        self.seen_at = 0.0
        self.mode = Mode.NORMAL
        self.question = ""
        self.message = Message()
        self.filter: re.Pattern[str] | None = None
        self.typed = ""
        self.stack: list[str] = []
        self.scrolled = 0
        self._to_confirm: Send | None = None
        self._errors = -1
        self._is_profiling = False

    # --- what the server sends --------------------------------------------------------------------

    def on_snapshot(
        self, status: dict[str, Any], rows: Iterable[dict[str, Any]], now: float
    ) -> None:
        """Take the server's answers.

        status   the answer to "status"
        rows     the rows of the answer to "workers", with `cpu_percent` and `rss_bytes`
        now      the driver's seconds
        """
        missed = max(0, round(now - self.seen_at) - 1) if self.status else 0
        if status["pid"] != self.status.get("pid", status["pid"]):
            self.workers, self._errors = [], -1  # another process has taken the server's place
        self.name, self.status, self.seen_at, self.problem = status["name"], status, now, ""
        known = {worker.row["serial"]: worker for worker in self.workers}
        slot = self.selected_slot
        self.workers = []
        for row in rows:
            worker = known.get(row["serial"]) or Worker(row)
            worker.update(row, missed)
            self.workers.append(worker)
        self._keep_selection(slot)
        self._add_totals(missed)

    def on_lost(self, problem: str) -> None:
        """Note that the server can't be reached.

        problem   why not, in one line
        """
        self.problem = printable_line(problem)

    def on_notes_restarted(self, name: str) -> None:
        """Forget the events or log records: the server sends all that it keeps again.

        name   "events" or "logs"
        """
        self._notes(name).clear()

    def on_note(self, name: str, note: dict[str, Any]) -> None:
        """Take an event or a log record.

        name   "events" or "logs"
        note   the event or record
        """
        if len(note["text"]) > _MAX_TEXT:
            note = {**note, "text": note["text"][:_MAX_TEXT]}
        self._notes(name).append(note)

    def on_progress(self, text: str) -> None:
        """Show a step of a command that is being carried out."""
        self.message = Message(_first_line(text))

    def on_result(self, send: Send, result: dict[str, Any]) -> None:
        """Take the result of a command.

        send     the command
        result   its result
        """
        if send.command == "stack":
            self.stack = [printable_line(line) for line in stack_lines(result)]
            self.mode, self.scrolled, self.message = Mode.STACK, 0, Message()
            return
        if send.command == "profile":
            self._is_profiling = False
            text = f"profile of worker {result['slot']} (pid {result['pid']}): {result['file']}"
            self.message = Message(_first_line(text))
            return
        texts = {"reload": reloaded, "scale": scaled, "restart-worker": restarted}
        self.message = Message(_first_line(texts[send.command](result)))

    def on_failure(self, send: Send, error: str) -> None:
        """Note that a command has failed.

        send    the command
        error   why, in one line
        """
        self._is_profiling = self._is_profiling and send.command != "profile"
        self.message = Message(f"{send.command}: {_first_line(error)}", failed=True)

    def _notes(self, name: str) -> deque[dict[str, Any]]:
        return self.logs if name == "logs" else self.events

    def _add_totals(self, missed: int) -> None:
        recent = [counts for worker in self.workers if (counts := worker.latencies.counts)]
        latency = [sum(counts) for counts in zip(*recent, strict=True)]
        errors = self.status["statuses"].get("5xx", 0)
        values: dict[str, float | None] = {
            "rate": self.status.get("requests_per_s"),
            "p99": quantile(latency, 0.99),
            "cpu": self._sum("cpu"),
            "memory": self._sum("memory"),
            "use": self.status.get("utilisation"),
            "errors": max(0, errors - self._errors) if self._errors >= 0 else 0,
        }
        self._errors = errors
        for name, value in values.items():
            self.totals[name].add(value, missed)

    def _sum(self, metric: str) -> float | None:
        last = [worker.history[metric].last for worker in self.workers]
        known = [value for value in last if value is not None]
        return sum(known) if known else None

    # --- the selection ----------------------------------------------------------------------------

    @property
    def selected_index(self) -> int:
        """The index of the selected worker; 0 without workers."""
        serials = [worker.row["serial"] for worker in self.workers]
        return serials.index(self.selected) if self.selected in serials else 0

    @property
    def selected_slot(self) -> int | None:
        """The slot of the selected worker; None without workers."""
        return self.workers[self.selected_index].row["slot"] if self.workers else None

    def _keep_selection(self, slot: int | None) -> None:
        """Keep the selected worker. If it has ended, select the newest worker of its slot.

        slot   the slot of the worker that was selected
        """
        serials = [worker.row["serial"] for worker in self.workers]
        if self.selected in serials:
            return
        heirs = [each.row["serial"] for each in self.workers if each.row["slot"] == slot]
        self.selected = max(heirs) if heirs else next(iter(serials), None)

    def _move(self, by: int) -> None:
        if self.workers:
            index = max(0, min(self.selected_index + by, len(self.workers) - 1))
            self.selected = self.workers[index].row["serial"]

    # --- keys -------------------------------------------------------------------------------------

    def on_key(self, key: str) -> Action | None:
        """Handle a key, and return the action that it causes.

        key   a character, or a name such as "up", "enter" or "escape"
        """
        if self.mode is Mode.FILTER:
            self._edit_filter(key)
            return None
        if self.mode is Mode.CONFIRM:
            return self._confirm(key)
        if key == "q":
            return Quit()
        if self.mode is Mode.HELP:
            self.mode = Mode.NORMAL
            return None
        if self.mode is Mode.STACK:
            self._scroll(key)
            return None
        return self._command(key)

    def _command(self, key: str) -> Action | None:
        if key in ("up", "down"):
            self._move(1 if key == "down" else -1)
        elif key == "?":
            self.mode = Mode.HELP
        elif key == "/":
            self.mode, self.typed = Mode.FILTER, self.filter.pattern if self.filter else ""
        elif key == "l":
            return OpenList()
        elif key == "escape":
            self.message, self.filter = Message(), None
        elif key in ("+", "="):
            return self._begin(Send("scale", {"to": "+1"}), "starting one more worker")
        elif key == "-":
            self._ask(Send("scale", {"to": "-1"}), "Run one worker fewer?")
        elif key == "r":
            self._ask(Send("reload", {}), "Reload: load new code and configuration?")
        elif key in ("k", "s", "p"):
            return self._command_for_worker(key)
        return None

    def _command_for_worker(self, key: str) -> Action | None:
        slot = self.selected_slot
        if slot is None:
            self.message = Message("there is no worker", failed=True)
        elif key == "k":
            pid = self.workers[self.selected_index].row["pid"]
            self._ask(Send("restart-worker", {"slot": slot}), f"Restart worker {slot} (pid {pid})?")
        elif key == "p" and self._is_profiling:
            self.message = Message("a worker is being profiled already", failed=True)
        elif key == "p":
            self._is_profiling = True
            text = f"profiling worker {slot} for {PROFILE_S} s"
            return self._begin(Send("profile", {"slot": slot}), text)
        else:
            return self._begin(Send("stack", {"slot": slot}), f"reading the stack of worker {slot}")
        return None

    def _begin(self, send: Send, text: str) -> Send:
        self.message = Message(text)
        return send

    def _ask(self, send: Send, question: str) -> None:
        self.mode, self.question, self._to_confirm = Mode.CONFIRM, question, send

    def _confirm(self, key: str) -> Action | None:
        if key not in ("y", "n", "q", "escape"):
            return None
        self.mode, send, self._to_confirm = Mode.NORMAL, self._to_confirm, None
        if key == "y" and send is not None:
            return self._begin(send, f"{send.command}: sent")
        self.message = Message("not done")
        return None

    def _scroll(self, key: str) -> None:
        by = {"up": -1, "down": 1, "pageup": -_PAGE, "pagedown": _PAGE, " ": _PAGE}.get(key)
        if by is None:
            self.mode = Mode.NORMAL
        else:
            self.scrolled = max(0, min(self.scrolled + by, len(self.stack) - 1))

    # --- the filter -------------------------------------------------------------------------------

    @property
    def filter_problem(self) -> str:
        """Why the typed filter is not a regular expression; "" if it is one."""
        try:
            re.compile(self.typed)
        except re.error as error:
            return str(error)
        return ""

    def matching_logs(self) -> list[dict[str, Any]]:
        """The log records that the filter selects, oldest first."""
        if self.filter is None:
            return list(self.logs)
        return [record for record in self.logs if self.filter.search(record["text"])]

    def _edit_filter(self, key: str) -> None:
        if key == "escape":
            self.mode = Mode.NORMAL
        elif key == "enter":
            if not self.filter_problem:
                self.filter = re.compile(self.typed, re.IGNORECASE) if self.typed else None
                self.mode = Mode.NORMAL
        elif key == "backspace":
            self.typed = self.typed[:-1]
        elif len(key) == 1 and len(self.typed) < _MAX_FILTER:
            self.typed += key


def _first_line(text: str) -> str:
    return printable_line(text.partition("\n")[0])
