"""Reads the error log's file, which has older lines than the arbiter keeps in memory."""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TextIO

from servo.printable import printable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

# How many bytes at the end of the file are searched for past lines.
MAX_TAIL_BYTES = 16 << 20
_POLL_S = 0.2
# A line of servo.logs.error_log.TextFormatter, without colours.
_TEXT = re.compile(r"\[[^\]]+\] \[(\d+)\] \[([A-Z]+)\] (.*)", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class LogFilter:
    """Selects records by worker, level and text.

    slot      the worker's slot; None: records of all workers and of the arbiter
    levels    the levels to select
    pattern   a pattern that the text must contain
    """

    def __init__(self, slot: int | None, levels: Iterable[str], pattern: re.Pattern[str]) -> None:
        self._slot = slot
        self._levels = frozenset(levels)
        self._pattern = pattern
        self._pids: set[int] = set()

    def set_workers(self, workers: list[dict[str, Any]]) -> None:
        """Note the pids of the chosen worker: lines of a file have pids, but no slots.

        workers   the rows of the running workers
        """
        self._pids = {row["pid"] for row in workers if row["slot"] == self._slot}

    def matches(self, record: dict[str, Any]) -> bool:
        """Whether a record is selected."""
        if self._slot is not None:
            slot = record.get("slot")
            if slot != self._slot and (slot is not None or record["pid"] not in self._pids):
                return False
        return record["level"] in self._levels and bool(self._pattern.search(record["text"]))


def tail_file(path: str, lines: int, wanted: LogFilter) -> list[dict[str, Any]]:
    """The last records of a file that a filter selects.

    path     the file's path
    lines    how many records to return at most
    wanted   selects records

    Raises OSError.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TAIL_BYTES:
            file.seek(size - MAX_TAIL_BYTES)
            file.readline()
        return list(deque(filter(wanted.matches, parse_records(file)), maxlen=lines))


def follow_file(path: str, wanted: LogFilter) -> Generator[dict[str, Any], None, None]:
    """Yield new records of a file as they are written, even after rotations. Never ends.

    path     the file's path
    wanted   selects records

    Raises OSError.
    """
    file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115  closed in `_follow`
    file.seek(0, os.SEEK_END)
    return _follow(path, file, wanted)


def _follow(path: str, file: TextIO, wanted: LogFilter) -> Generator[dict[str, Any], None, None]:
    while True:
        with file:
            while True:
                yield from filter(wanted.matches, parse_records(file))
                if _is_replaced(path, file):
                    break
                time.sleep(_POLL_S)
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115  closed above


def parse_records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Join the lines of a log into records.

    A line that doesn't begin a record, such as one of a traceback, belongs to the previous record.
    """
    record: dict[str, Any] | None = None
    for raw in lines:
        line = _printable_line(raw.rstrip("\n"))
        new = parse_line(line)
        if new is not None:
            if record is not None:
                yield record
            record = new
        elif record is not None:
            record["line"] += "\n" + line
            record["text"] += "\n" + line
    if record is not None:
        yield record


def _printable_line(line: str) -> str:
    """Make a line safe to print: remove colours and escape other control characters."""
    return printable(_COLOUR.sub("", line))


def parse_line(line: str) -> dict[str, Any] | None:
    """Parse the first line of a record, in either of the log's formats; None for other lines."""
    match = _TEXT.fullmatch(line)
    if match is not None:
        return {"pid": int(match[1]), "level": match[2].lower(), "text": match[3], "line": line}
    if not line.startswith("{"):
        return None
    try:
        values = json.loads(line)
        text = "\n".join([values["message"], *filter(None, [values.get("exc")])])
        return {"pid": values["pid"], "level": values["level"].lower(), "text": text, "line": line}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_replaced(path: str, file: TextIO) -> bool:
    """Whether the path now has another file, or this file was truncated."""
    try:
        current = os.stat(path)
    except OSError:
        return False  # a rotation has moved the old file but not yet created the new one
    ours = os.fstat(file.fileno())
    return not os.path.samestat(current, ours) or current.st_size < file.tell()
