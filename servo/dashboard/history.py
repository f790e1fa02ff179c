"""Keeps the samples of the last ten minutes and the last events, as JSON.

The samples are also written to a file in memory that the arbiter holds. So they survive the end of
this process: the next one reads them. The file is a sequence of lines, and is written anew from
time to time, because a line can't be removed.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

log = logging.getLogger("servo.error")

MOST_SAMPLES = 600
MOST_EVENTS = 200
# The samples of many workers are long. If all samples together have more bytes, the oldest ones
# lose the rows of their workers.
MOST_BYTES = 4 << 20
# An event's details, such as a traceback, may be long.
MOST_EVENT_BYTES = 8192
# When the file has this many bytes more than the samples, it is written anew.
_WASTE = 4 << 20


class Entry(NamedTuple):
    """A sample, an event, or the description of the server.

    position   entries are numbered in the order in which they were added
    kind       "sample", "event" or "server"
    number     the number of the sample, or of the sample before an event
    data       JSON
    """

    position: int
    kind: str
    number: int
    data: bytes


class History:
    """The samples, events and the description of one server.

    file   the descriptor of the file for samples; -1: samples are only kept in this process
    """

    def __init__(self, file: int = -1) -> None:
        self._file = file
        self._written = 0
        self._position = 0
        self._bytes = 0
        self._with_workers = 0  # how many of the samples, the latest ones, have rows of workers
        self._samples: deque[Entry] = deque()
        self._events: deque[Entry] = deque(maxlen=MOST_EVENTS)
        self.server = Entry(0, "server", 0, b"{}")
        self._restore()

    @property
    def last_number(self) -> int:
        """The number of the latest sample; 0 without any."""
        return self._samples[-1].number if self._samples else 0

    @property
    def samples(self) -> list[bytes]:
        """The samples as JSON, oldest first."""
        return [entry.data for entry in self._samples]

    @property
    def events(self) -> list[bytes]:
        """The events as JSON, oldest first."""
        return [entry.data for entry in self._events]

    def add_sample(self, sample: dict[str, Any]) -> None:
        """Add a sample with a higher number than the last one."""
        line = _json(sample)
        self._keep(sample["n"], line)
        self._append(line)

    def add_event(self, event: dict[str, Any]) -> None:
        """Add an event, or replace its details if they are too long."""
        line = _json(event)
        if len(line) > MOST_EVENT_BYTES:
            line = _json({**event, "details": "", "text": event["text"][-2048:]})
        self._events.append(self._entry("event", self.last_number, line))

    def set_server(self, server: dict[str, Any]) -> bool:
        """Set the description of the server. Returns whether it has changed."""
        line = _json(server)
        if line == self.server.data:
            return False
        self.server = self._entry("server", self.last_number, line)
        return True

    def position_after(self, number: int | None) -> int:
        """The position from which a reader continues.

        number   the number of the last sample that the reader knows; None: it knows all
        """
        if number is None:
            return self._position
        known = [entry.position for entry in self._samples if entry.number <= number]
        return known[-1] if known else 0

    def after(self, position: int) -> list[Entry]:
        """The entries with a higher position, in order.

        position   the position of the last entry that the reader has got
        """
        new: list[Entry] = [self.server] if self.server.position > position else []
        for entries in (self._samples, self._events):
            new += takewhile(lambda entry: entry.position > position, reversed(entries))
        return sorted(new)

    def _entry(self, kind: str, number: int, data: bytes) -> Entry:
        self._position += 1
        return Entry(self._position, kind, number, data)

    def _keep(self, number: int, line: bytes) -> None:
        self._samples.append(self._entry("sample", number, line))
        self._with_workers += 1
        self._bytes += len(line)
        if len(self._samples) > MOST_SAMPLES:
            self._bytes -= len(self._samples.popleft().data)
            self._with_workers = min(self._with_workers, len(self._samples))
        while self._bytes > MOST_BYTES and self._with_workers > 1:
            index = len(self._samples) - self._with_workers
            long = self._samples[index]
            short = long._replace(data=_json({**json.loads(long.data), "workers": []}))
            self._samples[index] = short
            self._bytes += len(short.data) - len(long.data)
            self._with_workers -= 1

    # --- the file ---------------------------------------------------------------------------------

    def _append(self, line: bytes) -> None:
        if self._file < 0:
            return
        try:
            if self._written > self._bytes + _WASTE:
                os.ftruncate(self._file, 0)
                self._written = 0
                line = b"\n".join(self.samples)
            line += b"\n"
            self._written += os.pwrite(self._file, line, self._written)
        except OSError as error:
            log.error("The dashboard's history can't be kept for a restart: %s", error)
            self._file = -1

    def _restore(self) -> None:
        if self._file < 0:
            return
        size = os.fstat(self._file).st_size
        data = os.pread(self._file, size, 0)
        self._written = data.rfind(b"\n") + 1  # the last line is incomplete after a SIGKILL
        for line in data[: self._written].splitlines():
            with suppress(ValueError, KeyError, TypeError):
                self._keep(int(json.loads(line)["n"]), line)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
