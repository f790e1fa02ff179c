"""Rings of output: each worker keeps its latest log lines in shared memory, for operators.

A worker writes what its application prints and logs into its own ring, with a few assignments and
without a system call. The arbiter reads the rings only while an operator asks. The memory outlives
the worker, so the arbiter can read the last words of a worker that was killed.

One file has the rings of all workers, because every process inherits its descriptor. A row of it
belongs to the worker with the same row of the scoreboard, and has two rings (`APP` and `ACCESS`).
The kernel allocates only the pages that are written.

A ring begins with a header: HEAD and TAIL are the positions after the newest and at the oldest
entry, counted in bytes since the ring was reset. The byte at position p is at p modulo the ring's
size. The writer first moves TAIL past the entries that it overwrites, then writes the new entry,
and then moves HEAD. So a reader copies the bytes from TAIL to HEAD, and drops those before the TAIL
that it reads afterwards. A checksum shows an entry that was cut anyway. Entries have sequence
numbers, so a reader can count those that were overwritten before it read them.

A worker with damaged memory, or one that an attacker controls, may write any bytes. So the arbiter
never maps the file, takes no number from it without a check, and treats a ring that makes no sense
as empty.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import threading
import time
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from servo.ipc.messages import MAX_TIME_S
from servo.shared_memory.memory_file import open_file, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Area(NamedTuple):
    """A ring's place in a row: offset and size in bytes, multiples of the largest page size."""

    offset: int
    size: int


APP = Area(0, 128 << 10)
ACCESS = Area(128 << 10, 64 << 10)
_ROW_BYTES = ACCESS.offset + ACCESS.size
# Rows beyond those of the scoreboard, for molds. The molds of the last few generations may exist.
MOLD_ROWS = 4

# What an entry is: a record of logging, or a part of the text of a standard stream.
RECORD, STDOUT, STDERR, ACCESS_LINES = range(4)
LEVELS = ("debug", "info", "warning", "error", "critical")

# A longer text is cut. The text in the log's file, or on the standard stream, is whole.
MAX_TEXT_BYTES = 8192
MAX_NAME_BYTES = 200

_HEADER_BYTES = 64
_HEADER = struct.Struct("=2Q")
_HEAD = 0
_TAIL = 1
# The checksum of the payload, its length, the sequence number, the time, the thread, kind, level,
# and the length of the logger's name, which begins the payload.
_ENTRY = struct.Struct("=IIQdIBBH")
_MAX_PAYLOAD = MAX_TEXT_BYTES + MAX_NAME_BYTES + 64
_LAYOUT = 1


class Entry(NamedTuple):
    """One entry of a ring.

    time    seconds since the epoch
    thread  the thread that wrote it
    kind    RECORD, STDOUT, STDERR or ACCESS_LINES
    level   one of LEVELS; "" if it is unknown
    name    the logger's name
    text    the text
    """

    time: float
    thread: int
    kind: int
    level: str
    name: str
    text: str


class Reading(NamedTuple):
    """What `OutputRings.read` has found.

    entries   the new entries, oldest first
    position  where to continue
    sequence  the sequence number to expect there
    lost      the number of entries that were overwritten before they were read
    """

    entries: list[Entry]
    position: int
    sequence: int
    lost: int


class RingWriter:
    """Writes into a ring. Any thread may call `append`, also in a signal handler.

    memory  the ring's memory: its header, and the bytes of the entries
    """

    def __init__(self, memory: memoryview) -> None:
        self._words = memory[:_HEADER_BYTES].cast("Q")
        self._data = memory[_HEADER_BYTES:]
        self._size = len(self._data)
        self._words[_TAIL] = self._words[_HEAD] = 0
        self._head = self._tail = self._sequence = 0
        # The sizes of the kept entries. Don't read them from the memory, which may be damaged.
        self._sizes: deque[int] = deque()
        self._lock = threading.RLock()
        self._is_busy = False

    def append(self, kind: int, level: int, name: bytes, text: bytes) -> None:
        """Add an entry, over the oldest ones.

        kind   RECORD, STDOUT, STDERR or ACCESS_LINES
        level  an index of LEVELS; another number if the level is unknown
        name   the logger's name, or b""
        text   UTF-8; a longer one than MAX_TEXT_BYTES is cut
        """
        if len(text) > MAX_TEXT_BYTES:
            text = _cut(text)
        payload = name[:MAX_NAME_BYTES] + text
        with self._lock:
            if self._is_busy:
                # This is a signal handler that has interrupted this method. The reader notices the
                # gap in the sequence.
                self._sequence += 1
                return
            self._is_busy = True
            try:
                entry = _ENTRY.pack(
                    zlib.crc32(payload),
                    len(payload),
                    self._sequence,
                    time.time(),
                    threading.get_ident() >> 8 & 0xFFFF_FFFF,
                    kind,
                    level,
                    len(payload) - len(text),
                )
                self._sequence += 1
                self._write(entry + payload)
            finally:
                self._is_busy = False

    def _write(self, entry: bytes) -> None:
        length, size = len(entry), self._size
        end = self._head + length
        if end - self._tail > size:
            while end - self._tail > size:
                self._tail += self._sizes.popleft()
            self._words[_TAIL] = self._tail
        start = self._head % size
        first = size - start
        if length <= first:
            self._data[start : start + length] = entry
        else:
            self._data[start:] = entry[:first]
            self._data[: length - first] = entry[first:]
        self._sizes.append(length)
        self._head = self._words[_HEAD] = end


class OutputRings:
    """The file with the rings of all workers.

    rows  the number of rows of the scoreboard

    fd    the file's descriptor; -1 after `close`

    Raises OSError if the file can't be created.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.fd = open_file("servo-output", None)
        try:
            os.ftruncate(self.fd, (rows + MOLD_ROWS) * _ROW_BYTES)
            seal(self.fd)
        except OSError:
            self.close()
            raise

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return this object as JSON values, for `from_state` after an upgrade.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {"fd": pass_on(self.fd), "rows": self.rows, "layout": _LAYOUT}

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], take: Callable[[int], int], rows: int
    ) -> OutputRings:
        """Take over the rings of this process's previous program, or make new ones.

        state  the result of that program's `to_state`; {} if it had no rings
        take   claims a descriptor from the previous program, and returns it
        rows   the number of rows of the scoreboard

        Raises OSError, KeyError, TypeError and ValueError.
        """
        if not state:
            return cls(rows)
        fd = take(int(state["fd"]))
        if (state["layout"], state["rows"]) != (_LAYOUT, rows):
            os.close(fd)
            return cls(rows)
        rings = cls.__new__(cls)
        rings.rows, rings.fd = rows, fd
        return rings

    def mold_row(self, generation: int) -> int:
        """The row of a generation's mold, which only has the ring APP."""
        return self.rows + generation % MOLD_ROWS

    def reset(self, row: int) -> None:
        """Empty the rings of a row before a new worker gets it."""
        for area in (APP, ACCESS):
            os.pwrite(self.fd, bytes(_HEADER_BYTES), row * _ROW_BYTES + area.offset)

    def writer(self, row: int, area: Area) -> RingWriter:
        """Empty a ring, and return its writer. Raises OSError.

        row   the row of the calling process
        area  APP or ACCESS
        """
        offset = row * _ROW_BYTES + area.offset
        # Before Python 3.13, a mapping keeps a copy of the descriptor.
        more: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        memory = mmap.mmap(self.fd, area.size, offset=offset, **more)
        return RingWriter(memoryview(memory))

    def read(self, row: int, area: Area, position: int = 0, sequence: int = 0) -> Reading:
        """Read the entries of a ring from a position on. Raises OSError.

        row       the row of the worker that writes it
        area      APP or ACCESS
        position  the `position` of the previous reading; 0 for all entries
        sequence  the `sequence` of the previous reading
        """
        start = row * _ROW_BYTES + area.offset
        size = area.size - _HEADER_BYTES
        head, tail = self._header(start)
        if head == position or not tail <= head <= tail + size:
            return Reading([], position, sequence, 0)
        first = position if tail <= position < head else tail
        data = self._bytes(start + _HEADER_BYTES, size, first, head)
        # The writer may have overwritten the first of these bytes since.
        tail = self._header(start)[1]
        skipped = max(0, tail - first)
        entries, following, lost = [], sequence, 0
        for number, entry in _parse(data[skipped:]):
            if (position or following) and number > following:
                lost += number - following
            following = number + 1
            entries.append(entry)
        return Reading(entries, head, following, lost)

    def close(self) -> None:
        """Close this process's descriptor. The rings of a writer stay mapped."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _header(self, start: int) -> tuple[int, int]:
        head, tail = _HEADER.unpack(os.pread(self.fd, _HEADER.size, start))
        return head, tail

    def _bytes(self, start: int, size: int, first: int, end: int) -> bytes:
        """Copy the bytes of a ring from one position to another."""
        offset = first % size
        data = os.pread(self.fd, min(end - first, size - offset), start + offset)
        if len(data) < end - first:
            data += os.pread(self.fd, end - first - len(data), start)
        return data


def _parse(data: bytes) -> list[tuple[int, Entry]]:
    """The entries in a part of a ring, with their sequence numbers. Stops at a damaged entry."""
    found = []
    place = 0
    while place + _ENTRY.size <= len(data):
        crc, length, number, when, thread, kind, level, name = _ENTRY.unpack_from(data, place)
        place += _ENTRY.size
        payload = data[place : place + length]
        place += length
        if (
            length > _MAX_PAYLOAD
            or name > length
            or len(payload) < length
            or zlib.crc32(payload) != crc
            or not 0 <= when < MAX_TIME_S
        ):
            break
        entry = Entry(
            when,
            thread,
            kind,
            LEVELS[level] if level < len(LEVELS) else "",
            payload[:name].decode("utf-8", "backslashreplace"),
            payload[name:].decode("utf-8", "backslashreplace"),
        )
        found.append((number, entry))
    return found


def _cut(text: bytes) -> bytes:
    end = MAX_TEXT_BYTES
    while end > MAX_TEXT_BYTES - 4 and text[end] & 0xC0 == 0x80:
        end -= 1  # don't cut a character of UTF-8 into two
    newline = b"\n" if text.endswith(b"\n") else b""
    left_out = f" … ({len(text) - end - len(newline)} bytes left out)".encode()
    return text[:end] + left_out + newline
