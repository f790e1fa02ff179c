"""The scoreboard: one shared table of numbers, a row for each worker process.

The arbiter maps it before it forks. A worker writes its own row, from one thread, with plain item
assignments on the memoryview that `Scoreboard.row` gives (`row[IN_FLIGHT] += 1`); everybody may
read all rows. Only the arbiter allocates and releases rows. When a row is released its counters
are folded into a base, so that the totals never go back. No system call is made after the mapping.

A row is a few cache lines of 64-bit words. The first line is what a sibling's gate reads.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
import tempfile
import time
from typing import NamedTuple

from servo.errors import ServoError

# --- the words of a row -------------------------------------------------------------------------

STATE = 0  # a STATE_* code
BEAT_NS = 1  # the last heartbeat, on the monotonic clock
IN_FLIGHT = 2  # requests being answered
CONNECTIONS = 3  # open connections
OLDEST_START_NS = 4  # when the oldest request in flight began, monotonic; 0 when none
SERIAL = 5
SLOT = 6
GENERATION = 7

PID = 8
REQUESTS = 9  # answered, refused ones included
STATUS_1XX = 10  # final responses by class; 1xx counts upgrades (101)
STATUS_2XX = 11
STATUS_3XX = 12
STATUS_4XX = 13
STATUS_5XX = 14
BYTES_IN = 15
BYTES_OUT = 16
ACCEPTED = 17  # connections ever accepted
SHED = 18  # requests refused with 503 because of limit_concurrency
LATENCY_SUM_US = 19  # of all requests in the histogram
LAG_US = 20  # how late the event loop or poller woke up last
RSS_KIB = 21
STARTED_NS = 22  # when the row was allocated, monotonic

LATENCY_0 = 24  # the histogram's first bucket; the others follow
LATENCY_BUCKETS = 20
ROW_WORDS = 48  # a whole number of cache lines (8 words each); the rest is spare

STATE_FREE = 0
STATE_SPAWNED = 1
STATE_BOOTING = 2
STATE_READY = 3
STATE_DRAINING = 4
STATE_EXITED = 5
STATE_NAMES = ("free", "spawned", "booting", "ready", "draining", "exited")

# The words that only ever grow, and are summed over all workers that ever lived.
_COUNTERS = (*range(REQUESTS, LATENCY_SUM_US + 1), *range(LATENCY_0, LATENCY_0 + LATENCY_BUCKETS))

# --- the words of the header (one row's size; row 0 follows it) ---------------------------------

_MAGIC = 0
_CAPACITY = 1
_HIGH = 2  # rows below this index have been used; a reader need not look further
_FOLDING = 3  # odd while a row is being folded into the base
_BASE = 8  # the counters' base, at _BASE + (word - REQUESTS): it fits up to the end of the row

_MAGIC_VALUE = 0x5365_7276_6F_30_31_00 | ROW_WORDS
# A fold takes microseconds; one whose process was killed in it never ends, and isn't waited for.
_READ_ATTEMPTS = 1000
_WORD = 8
_ROW_BYTES = ROW_WORDS * _WORD

# The clock of BEAT_NS, STARTED_NS and OLDEST_START_NS, the same in all processes of a machine.
now_ns = time.monotonic_ns

# --- load ---------------------------------------------------------------------------------------

# While something is in flight a worker beats every 5 ms. A beat older than this is a blocked loop:
# a 1 s limit would switch the gate off, and beating while idle burns a core in a large pool.
BLOCKED_AFTER_NS = 10_000_000
# What `least_load` returns when no worker can take a connection: more than any load.
NO_LOAD = 1 << 64

# STATE, BEAT_NS, IN_FLIGHT, CONNECTIONS of each row, unpacked in one pass of C code.
_GATE = struct.Struct(f"=4Q{_ROW_BYTES - 4 * _WORD}x")

# Bucket i holds latencies below 2**(16 + i) ns: 66 us, 131 us, ... 17 s; the last takes the rest.
_FIRST_BUCKET_BITS = 16
LATENCY_BOUNDS_S = (
    *((1 << (_FIRST_BUCKET_BITS + i)) / 1e9 for i in range(LATENCY_BUCKETS - 1)),
    float("inf"),
)
# The word to count a latency in, by the bit length of its nanoseconds: a driver that spares the
# call of `latency_bucket` writes `row[LATENCY_WORD[ns.bit_length()]] += 1`.
LATENCY_WORD = tuple(
    LATENCY_0 + min(max(bits - _FIRST_BUCKET_BITS, 0), LATENCY_BUCKETS - 1) for bits in range(65)
)


class ScoreboardError(ServoError):
    """The scoreboard can't be made, or a file is none."""


class ScoreboardFull(ScoreboardError):  # noqa: N818
    """Every row belongs to a worker that has not been released yet."""


class RowSnapshot(NamedTuple):
    """One row as it was read; the names are those of the words, `state` is a name."""

    row_index: int
    serial: int
    slot: int
    generation: int
    pid: int
    state: str
    beat_ns: int
    in_flight: int
    oldest_start_ns: int
    connections: int
    requests: int
    statuses: tuple[int, ...]
    bytes_in: int
    bytes_out: int
    accepted: int
    shed: int
    latency_sum_us: int
    lag_us: int
    rss_kib: int
    started_ns: int
    latency: tuple[int, ...]


class Totals(NamedTuple):
    """The counters of all workers that ever lived, and the gauges of those that live now."""

    requests: int
    statuses: tuple[int, ...]
    bytes_in: int
    bytes_out: int
    accepted: int
    shed: int
    latency_sum_us: int
    latency: tuple[int, ...]
    workers: int
    in_flight: int
    connections: int


class Scoreboard:
    """The table, mapped and shared with every process forked after it was made.

    `capacity` is the number of rows, fixed. `directory` puts an unlinked file there in place of an
    anonymous memory file. Raises ScoreboardError when the space can't be had.
    """

    def __init__(self, capacity: int, directory: str | None = None) -> None:
        if capacity < 1:
            raise ScoreboardError(f"a scoreboard of {capacity} rows is too small")
        size = (capacity + 1) * _ROW_BYTES
        self.fd = _allocate_file(size, directory)
        self._map(size)
        self._words[_MAGIC] = _MAGIC_VALUE
        self._words[_CAPACITY] = capacity

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """Map the scoreboard that another program image left in this open file, and own it.

        Raises ScoreboardError when the file is none, or was laid out by another version; the
        descriptor stays open then.
        """
        size = os.fstat(fd).st_size
        if size < 2 * _ROW_BYTES or size % _ROW_BYTES:
            raise ScoreboardError(f"file descriptor {fd} is no scoreboard: it has {size} bytes")
        if os.pread(fd, _WORD, 0) != _MAGIC_VALUE.to_bytes(_WORD, sys.byteorder):
            raise ScoreboardError(f"file descriptor {fd} is no scoreboard of this version")
        board = cls.__new__(cls)
        board.fd = fd
        board._map(size)
        return board

    def _map(self, size: int) -> None:
        self._mmap = mmap.mmap(self.fd, size)
        self._bytes = memoryview(self._mmap)
        self._words = self._bytes.cast("Q")
        self._rows = self._bytes[_ROW_BYTES:]

    @property
    def capacity(self) -> int:
        """How many rows there are."""
        return self._words[_CAPACITY]

    def allocate(self, serial: int, slot: int, generation: int, now_ns: int = 0) -> int:
        """Take the lowest free row for a worker that is about to be forked; return its index.

        `now_ns` (monotonic) becomes the row's start and first heartbeat. Raises ScoreboardFull.
        """
        words = self._words
        for index in range(words[_CAPACITY]):
            start = (index + 1) * ROW_WORDS
            if words[start + STATE] == STATE_FREE:
                break
        else:
            raise ScoreboardFull(f"all {words[_CAPACITY]} rows of the scoreboard are taken")
        self._bytes[start * _WORD : start * _WORD + _ROW_BYTES] = bytes(_ROW_BYTES)
        words[start + SERIAL] = serial
        words[start + SLOT] = slot
        words[start + GENERATION] = generation
        words[start + BEAT_NS] = words[start + STARTED_NS] = now_ns
        words[start + STATE] = STATE_SPAWNED
        words[_HIGH] = max(words[_HIGH], index + 1)
        return index

    def row(self, index: int) -> memoryview:
        """The row's words, to be written by its worker (the state and pid also by the arbiter)."""
        if not 0 <= index < self.capacity:
            raise IndexError(index)
        return self._words[(index + 1) * ROW_WORDS : (index + 2) * ROW_WORDS]

    def release(self, index: int) -> None:
        """Fold the row's counters into the base and free it. Its worker must be dead (waited for).

        Releasing a free row does nothing.
        """
        row = self.row(index)
        if row[STATE] == STATE_FREE:
            return
        words = self._words
        words[_FOLDING] += 1
        for word in _COUNTERS:
            words[_BASE - REQUESTS + word] += row[word]
            row[word] = 0
        row[STATE] = STATE_FREE
        words[_FOLDING] += 1

    def snapshot(self) -> list[RowSnapshot]:
        """Every row in use, in the order of the table."""
        return [_snapshot(index, row) for index, row in self._rows_in_use()]

    def totals(self) -> Totals:
        """The base and all rows in use, summed."""
        for _ in range(_READ_ATTEMPTS):
            before = self._words[_FOLDING]
            sums = self._words[_BASE : _BASE + ROW_WORDS - REQUESTS].tolist()
            rows = [row for _, row in self._rows_in_use()]
            # A row that another process folds meanwhile would be counted twice or not at all.
            if before % 2 == 0 and self._words[_FOLDING] == before:
                break
        for row in rows:
            for word in _COUNTERS:
                sums[word - REQUESTS] += row[word]
        sums = [0] * REQUESTS + sums
        return Totals(
            requests=sums[REQUESTS],
            statuses=tuple(sums[STATUS_1XX : STATUS_5XX + 1]),
            bytes_in=sums[BYTES_IN],
            bytes_out=sums[BYTES_OUT],
            accepted=sums[ACCEPTED],
            shed=sums[SHED],
            latency_sum_us=sums[LATENCY_SUM_US],
            latency=tuple(sums[LATENCY_0 : LATENCY_0 + LATENCY_BUCKETS]),
            workers=len(rows),
            in_flight=sum(row[IN_FLIGHT] for row in rows),
            connections=sum(row[CONNECTIONS] for row in rows),
        )

    def least_load(self, now_ns: int) -> int:
        """The smallest load of the workers that can take a connection; NO_LOAD when there is none.

        A load is `in_flight << 32 | connections`. Only ready workers count, and of those with
        requests in flight only the ones whose heartbeat is younger than BLOCKED_AFTER_NS.
        """
        least = NO_LOAD
        oldest_beat = now_ns - BLOCKED_AFTER_NS
        used = self._rows[: self._words[_HIGH] * _ROW_BYTES]
        for state, beat, in_flight, connections in _GATE.iter_unpack(used):
            if state == STATE_READY and (not in_flight or beat >= oldest_beat):
                load: int = in_flight << 32 | connections
                if load < least:
                    least = load
        return least

    def close(self) -> None:
        """Give up this process's mapping and descriptor; the rows handed out stay usable."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self._rows.release()
        self._words.release()
        self._bytes.release()
        # Refused while a row is still in use somewhere: the last one that goes frees the memory.
        with contextlib.suppress(BufferError):
            self._mmap.close()

    def _rows_in_use(self) -> list[tuple[int, list[int]]]:
        found = []
        words = self._words
        for index in range(words[_HIGH]):
            start = (index + 1) * ROW_WORDS
            row = words[start : start + ROW_WORDS].tolist()
            if row[STATE] != STATE_FREE:
                found.append((index, row))
        return found


def latency_bucket(ns: int) -> int:
    """The histogram's bucket for a latency: 0 to LATENCY_BUCKETS - 1, see LATENCY_BOUNDS_S."""
    bucket = ns.bit_length() - _FIRST_BUCKET_BITS
    if bucket <= 0:
        return 0
    return bucket if bucket < LATENCY_BUCKETS else LATENCY_BUCKETS - 1


def load_of(row: memoryview) -> int:
    """The load of one's own row, to be compared with `least_load`."""
    load: int = row[IN_FLIGHT] << 32 | row[CONNECTIONS]
    return load


def _snapshot(index: int, row: list[int]) -> RowSnapshot:
    state = row[STATE]
    return RowSnapshot(
        row_index=index,
        serial=row[SERIAL],
        slot=row[SLOT],
        generation=row[GENERATION],
        pid=row[PID],
        state=STATE_NAMES[state] if state < len(STATE_NAMES) else f"unknown ({state})",
        beat_ns=row[BEAT_NS],
        in_flight=row[IN_FLIGHT],
        oldest_start_ns=row[OLDEST_START_NS],
        connections=row[CONNECTIONS],
        requests=row[REQUESTS],
        statuses=tuple(row[STATUS_1XX : STATUS_5XX + 1]),
        bytes_in=row[BYTES_IN],
        bytes_out=row[BYTES_OUT],
        accepted=row[ACCEPTED],
        shed=row[SHED],
        latency_sum_us=row[LATENCY_SUM_US],
        lag_us=row[LAG_US],
        rss_kib=row[RSS_KIB],
        started_ns=row[STARTED_NS],
        latency=tuple(row[LATENCY_0 : LATENCY_0 + LATENCY_BUCKETS]),
    )


def _allocate_file(size: int, directory: str | None) -> int:
    """An unnamed file of zeros with all its space allocated. Raises ScoreboardError."""
    place = f"in {directory}" if directory else "in memory"
    try:
        fd = _open_file(directory)
    except OSError as error:
        raise ScoreboardError(f"the scoreboard can't be made {place}: {error}") from error
    try:
        _fill(fd, size)
    except OSError as error:
        os.close(fd)
        raise ScoreboardError(
            f"the scoreboard needs {size} bytes {place}, which can't be allocated: {error}"
        ) from error
    return fd


def _open_file(directory: str | None) -> int:
    if directory is None and hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("servo-scoreboard", os.MFD_CLOEXEC)
        except OSError:
            # Some sandboxes and old kernels have no memfd; an unlinked file does as well.
            directory = None
    fd, path = tempfile.mkstemp(prefix="servo-scoreboard-", dir=directory)
    try:
        os.unlink(path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _fill(fd: int, size: int) -> None:
    # A sparse file on a full file system would end its writer by SIGBUS at the first touch of a
    # page, so the space is taken now, where its lack is an error that can be reported.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    view = memoryview(bytes(size))
    while view:
        view = view[os.write(fd, view) :]
