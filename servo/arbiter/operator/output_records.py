"""Makes the records that operators see from the entries in a worker's ring. No I/O.

An entry of a standard stream is what the application wrote with one call. Usually this is a line.
But without Python's buffering it is only a part of one, and `traceback.print_exc` writes each line
of a traceback by itself. This module joins such parts: the parts of a line, and the lines of a
traceback, become one record. Several threads may write at a time, so each thread's parts are joined
separately.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.shared_memory.output_rings import ACCESS_LINES, MAX_TEXT_BYTES, RECORD, STDOUT, Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# How long the rest of an incomplete line, or of a traceback, is waited for.
LINE_S = 0.5
TRACEBACK_S = 0.04
# The most threads whose incomplete records are held back.
MAX_OPEN = 64
_MAX_CHARACTERS = 2 * MAX_TEXT_BYTES

_TRACEBACK = re.compile(
    r"^(  \+ Exception Group )?Traceback \(most recent call last\):$", re.MULTILINE
)
_CHAIN = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
# The status in a line of the access log, in the usual formats. Clients can't forge it: their quotes
# are escaped.
_STATUS = re.compile(r'" ([1-5])\d\d |"status": ([1-5])\d\d,')
# Colours and movements of the cursor.
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# The part of a line that a progress bar has overwritten: all before its last carriage return.
_OVERWRITTEN = re.compile(r"^.*\r(?=[^\r\n])", re.MULTILINE)


@dataclass(slots=True)
class _Open:
    """A record that may go on.

    entry         its first part
    text          all of its parts
    due           when to stop waiting, in seconds since the epoch
    is_traceback  whether it has the beginning of a traceback
    """

    entry: Entry
    text: str
    due: float
    is_traceback: bool = False

    @property
    def is_line_open(self) -> bool:
        return not self.text.endswith("\n")


class OutputRecords:
    """Turns the entries of one ring into records, in the form of the arbiter's own records.

    names  the values of a record that name the process: `slot` and `pid` of a worker
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names
        self._open: dict[tuple[int, int], _Open] = {}

    def feed(self, entries: Iterable[Entry], now: float) -> list[dict[str, Any]]:
        """Add entries. Returns the records that are complete, or have waited for long enough.

        entries  the next entries of the ring
        now      seconds since the epoch
        """
        done: list[dict[str, Any]] = []
        for entry in entries:
            if entry.kind == RECORD:
                self._end(done, entry, entry.text)
            elif entry.kind == ACCESS_LINES:
                for line in entry.text.splitlines():
                    self._end(done, entry, line)
            else:
                self._add_part(done, entry, now)
        for key in [key for key, record in self._open.items() if now >= record.due]:
            self._close(done, key)
        return done

    def flush(self) -> list[dict[str, Any]]:
        """Return the records that are held back, because nothing follows or nobody waits."""
        done: list[dict[str, Any]] = []
        for key in list(self._open):
            self._close(done, key)
        return done

    @property
    def waits(self) -> bool:
        """Whether records are held back."""
        return bool(self._open)

    def _add_part(self, done: list[dict[str, Any]], entry: Entry, now: float) -> None:
        key = (entry.kind, entry.thread)
        record = self._open.get(key)
        if record is not None and not _continues(record, entry.text):
            self._close(done, key)
            record = None
        if record is None:
            if len(self._open) >= MAX_OPEN:
                self._close(done, next(iter(self._open)))
            record = self._open[key] = _Open(entry, "", 0.0)
        record.text += entry.text
        if not record.is_traceback and "Traceback" in record.text:
            record.is_traceback = _TRACEBACK.search(record.text) is not None
        record.due = now + (LINE_S if record.is_line_open else TRACEBACK_S)
        if not (record.is_traceback or record.is_line_open):
            self._close(done, key)

    def _close(self, done: list[dict[str, Any]], key: tuple[int, int]) -> None:
        record = self._open.pop(key)
        self._end(done, record.entry, record.text, record.is_traceback)

    def _end(
        self, done: list[dict[str, Any]], entry: Entry, text: str, is_traceback: bool = False
    ) -> None:
        text = _CONTROL_SEQUENCE.sub("", text).rstrip("\n")
        if "\r" in text:
            text = _OVERWRITTEN.sub("", text.replace("\r\n", "\n").rstrip("\r"))
        if not text.strip():
            return
        values = {"time": entry.time, "level": entry.level, **self._names, "text": text}
        if entry.kind == RECORD:
            if entry.name not in ("", "servo.error"):
                values["logger"] = entry.name
        elif entry.kind == ACCESS_LINES:
            values["stream"] = "access"
            values["level"] = _level_of_status(text)
        else:
            is_stdout = entry.kind == STDOUT
            values["stream"] = "stdout" if is_stdout else "stderr"
            usual = "info" if is_stdout else "warning"
            values["level"] = "error" if is_traceback else entry.level or usual
        if not values["level"]:
            values["level"] = "info"
        done.append(values)


def _level_of_status(line: str) -> str:
    """The level of a line of the access log: "error" for a 5xx, "warning" for a 4xx."""
    match = _STATUS.search(line)
    first = match[1] or match[2] if match is not None else ""
    return {"5": "error", "4": "warning"}.get(first, "info")


def _continues(record: _Open, text: str) -> bool:
    """Whether a part belongs to the record before it."""
    if len(record.text) + len(text) > _MAX_CHARACTERS:
        return False
    if record.is_line_open:
        return True
    lines = record.text.rstrip("\n").splitlines()
    last = lines[-1] if lines else ""
    if text.startswith("Traceback ("):
        return last in _CHAIN
    if text.startswith((" ", "\t")):
        return True
    if last.startswith((" ", "\t", "Traceback (")):
        return True  # this is the line that names the exception
    return text.startswith("\n") and text.strip("\n") in _CHAIN
