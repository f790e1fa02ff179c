"""Reading the error log's own file: older lines than the arbiter remembers."""

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

# As much of the file's end as is looked through for the lines that are asked for.
MAX_TAIL_BYTES = 16 << 20
_POLL_S = 0.2
# servo.logs.error_log.TextFormatter's lines, without their colours.
_TEXT = re.compile(r"\[[^\]]+\] \[(\d+)\] \[([A-Z]+)\] (.*)", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


class LogFilter:
    """Which records are wanted.

    slot     only this worker's; None: everybody's
    levels   of these levels
    pattern  whose text this matches somewhere
    """

    def __init__(self, slot: int | None, levels: Iterable[str], pattern: re.Pattern[str]) -> None:
        self._slot = slot
        self._levels = frozenset(levels)
        self._pattern = pattern
        self._pids: set[int] = set()

    def learn(self, workers: list[dict[str, Any]]) -> None:
        """The file's lines have only pids: these workers live now."""
        self._pids = {row["pid"] for row in workers if row["slot"] == self._slot}

    def takes(self, record: dict[str, Any]) -> bool:
        """Whether a record is wanted."""
        if self._slot is not None:
            slot = record.get("slot")
            if slot != self._slot and (slot is not None or record["pid"] not in self._pids):
                return False
        return record["level"] in self._levels and bool(self._pattern.search(record["text"]))


def tail_file(path: str, lines: int, wanted: LogFilter) -> list[dict[str, Any]]:
    """The last records of the file that are wanted. Raises OSError."""
    with open(path, encoding="utf-8", errors="replace") as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_TAIL_BYTES:
            file.seek(size - MAX_TAIL_BYTES)
            file.readline()
        return list(deque(filter(wanted.takes, records(file)), maxlen=lines))


def follow_file(path: str, wanted: LogFilter) -> Generator[dict[str, Any], None, None]:
    """The wanted records that are written from now on, through rotations. Ends never."""
    file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115  closed in `_follow`
    file.seek(0, os.SEEK_END)
    return _follow(path, file, wanted)


def _follow(path: str, file: TextIO, wanted: LogFilter) -> Generator[dict[str, Any], None, None]:
    while True:
        with file:
            while True:
                yield from filter(wanted.takes, records(file))
                if _is_replaced(path, file):
                    break
                time.sleep(_POLL_S)
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115  closed above


def records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The records of a log: a line that begins none (of a traceback) belongs to the one before."""
    record: dict[str, Any] | None = None
    for raw in lines:
        line = _plain(raw.rstrip("\n"))
        begun = parse(line)
        if begun is not None:
            if record is not None:
                yield record
            record = begun
        elif record is not None:
            record["line"] += "\n" + line
            record["text"] += "\n" + line
    if record is not None:
        yield record


def _plain(line: str) -> str:
    """A line that is safe to print: without colours, other control characters escaped."""
    return printable(_COLOUR.sub("", line))


def parse(line: str) -> dict[str, Any] | None:
    """The record that a line begins, in either format of the log; None for none."""
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
    """Whether another file is at the path by now, or this one was cut."""
    try:
        there = os.stat(path)
    except OSError:
        return False  # between the two steps of a rotation
    ours = os.fstat(file.fileno())
    return not os.path.samestat(there, ours) or there.st_size < file.tell()
