"""The scoreboard: one shared table of numbers, a row for each worker process.

The arbiter maps it before it forks. A worker writes its own row, from one thread, with plain item
assignments on the memoryview that `Scoreboard.row` gives (`row[IN_FLIGHT] += 1`); everybody may
read all rows. Only the arbiter allocates and releases rows. When a row is released its counters
are folded into a base, so that the totals never go back. No system call is made after the mapping.

A worker whose memory is damaged, or that somebody has taken over, may write anything anywhere in
the table. So the arbiter keeps what is its own (which rows are taken, by whom, the base) in its
memory as well, and only publishes it here. What it reads in a row it compares with what it read
before (`check`, once a second): a row that makes no sense is put right and reported. A checksum
tells other readers whether the base is the arbiter's.

What each word of a row holds, and how requests are counted in it, is in `words`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import operator
import os
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from servo.errors import ServoError
from servo.shared_memory.row_layout import (
    ACCEPTED,
    BEAT_NS,
    BYTES_IN,
    BYTES_OUT,
    CONNECTIONS,
    COUNTERS,
    GENERATION,
    IN_FLIGHT,
    LAG_US,
    LATENCY_0,
    LATENCY_SUM_NS,
    LOG_EXCEPTION,
    LOG_WARNING,
    OLDEST_START_NS,
    PID,
    ROW_WORDS,
    RSS_KIB,
    SERIAL,
    SHED,
    SLOT,
    STARTED_NS,
    STATE,
    STATE_FREE,
    STATE_NAMES,
    STATE_READY,
    STATE_SPAWNED,
    codes_in,
    latency_in,
    methods_in,
    requests_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

# --- the words of the header (two rows' size; row 0 follows it) ---------------------------------

_MAGIC = 0
_CAPACITY = 1
_HIGH = 2  # rows below this index have been used; a reader need not look further
_FOLDING = 3  # odd while a row is being folded into the base
_FIRST_COUNTER = BYTES_IN  # the lowest of COUNTERS
_BASE = 8  # the counters' base, at _BASE + (word - _FIRST_COUNTER): it fits up to the row's end
_HEADER_ROWS = 2  # the second one is the arbiter's (see `servo.metrics.arbiter_facts`)
_BASE_CHECKSUM = ROW_WORDS - 1  # behind the base

# No counter grows by so much between two looks: it would be a petabyte, or two weeks of requests.
MOST_GROWTH = 1 << 50
# No gauge is greater, and no clock further ahead.
_MOST_GAUGE = 1 << 32
_MOST_TOTAL = 1 << 62
_AHEAD_NS = 1 << 32
_COUNTER_RUNS = (slice(BYTES_IN, LOG_EXCEPTION + 1), slice(LATENCY_0, COUNTERS[-1] + 1))

_MAGIC_VALUE = 0x5365_7276_6F_30_32_00 | ROW_WORDS
# A fold takes microseconds. One whose process was killed in it never ends, and so does one that
# something else than the arbiter has begun; it isn't waited for.
_FOLD_NS = 20_000_000
_WORD = 8
_ROW_BYTES = ROW_WORDS * _WORD

# --- load ---------------------------------------------------------------------------------------

# While something is in flight a worker beats every 5 ms. A beat older than this is a blocked loop:
# a 1 s limit would switch the gate off, and beating while idle burns a core in a large pool.
BLOCKED_AFTER_NS = 10_000_000
# What `least_load` returns when no worker can take a connection: more than any load.
NO_LOAD = 1 << 64

# STATE, BEAT_NS, IN_FLIGHT, CONNECTIONS of each row, unpacked in one pass of C code.
_GATE = struct.Struct(f"=4Q{_ROW_BYTES - 4 * _WORD}x")


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


@dataclass(slots=True)
class _Owned:
    """What the arbiter knows of a row that it has allocated.

    pid       0 until the worker is forked
    good      the words as they made sense last
    reported  `check` has named the row
    """

    serial: int
    slot: int
    generation: int
    good: list[int]
    pid: int = 0
    reported: bool = False


class Totals(NamedTuple):
    """The counters of all workers that ever lived, and the gauges of those that live now.

    statuses   by class, 1xx to 5xx
    methods    of each of METHODS: by class of status
    codes      of each of STATUS_CODES, then the rest of each class; the count of 200 may be one too
               small or too great for an instant, for each worker
    log        entries of the error log: warnings, errors, critical ones, tracebacks
    """

    requests: int
    statuses: tuple[int, ...]
    bytes_in: int
    bytes_out: int
    accepted: int
    shed: int
    latency_sum_us: int
    latency: tuple[int, ...]
    methods: tuple[tuple[int, ...], ...]
    codes: tuple[int, ...]
    log: tuple[int, ...]
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
        size = (capacity + _HEADER_ROWS) * _ROW_BYTES
        self.fd = _allocate_file(size, directory)
        self._map(size)
        self._base = [0] * (ROW_WORDS - _FIRST_COUNTER)
        self._folding = 0
        self._owner = os.getpid()
        self._publish()

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """Map the scoreboard that another program image left in this open file, and own it.

        Raises ScoreboardError when the file is none, or was laid out by another version; the
        descriptor stays open then.
        """
        size = os.fstat(fd).st_size
        if size <= _HEADER_ROWS * _ROW_BYTES or size % _ROW_BYTES:
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
        self._rows = self._bytes[_HEADER_ROWS * _ROW_BYTES :]
        # How many rows there are.
        self.capacity = size // _ROW_BYTES - _HEADER_ROWS
        self._owned: dict[int, _Owned] = {}
        self._high = 0
        self._owner = -1
        self._last_totals: Totals | None = None
        self._last_base = [0] * (ROW_WORDS - _FIRST_COUNTER)

    def _publish(self) -> None:
        """Write what is the arbiter's own into the header, for others."""
        words = self._words
        words[_MAGIC] = _MAGIC_VALUE
        words[_CAPACITY] = self.capacity
        words[_HIGH] = self._high
        for place, count in enumerate(self._base, _BASE):
            words[place] = count
        words[_BASE_CHECKSUM] = checksum(self._base)
        words[_FOLDING] = self._folding  # last: it says that all else is written

    def allocate(self, serial: int, slot: int, generation: int, now_ns: int = 0) -> int:
        """Take the lowest free row for a worker that is about to be forked; return its index.

        `now_ns` (monotonic) becomes the row's start and first heartbeat. Raises ScoreboardFull.
        """
        words = self._words
        for index in range(self.capacity):
            if index not in self._owned:
                break
        else:
            raise ScoreboardFull(f"all {self.capacity} rows of the scoreboard are taken")
        start = (index + _HEADER_ROWS) * ROW_WORDS
        self._bytes[start * _WORD : start * _WORD + _ROW_BYTES] = bytes(_ROW_BYTES)
        words[start + SERIAL] = serial
        words[start + SLOT] = slot
        words[start + GENERATION] = generation
        words[start + BEAT_NS] = words[start + STARTED_NS] = now_ns
        words[start + STATE] = STATE_SPAWNED
        self._high = words[_HIGH] = max(self._high, index + 1)
        good = words[start : start + ROW_WORDS].tolist()
        self._owned[index] = _Owned(serial, slot, generation, good)
        return index

    def forked(self, index: int, pid: int) -> None:
        """The worker of a row has this pid."""
        self._owned[index].pid = pid
        self.row(index)[PID] = pid

    def row(self, index: int) -> memoryview:
        """The row's words, to be written by its worker (the state and pid also by the arbiter)."""
        if not 0 <= index < self.capacity:
            raise IndexError(index)
        start = (index + _HEADER_ROWS) * ROW_WORDS
        return self._words[start : start + ROW_WORDS]

    @property
    def arbiter_words(self) -> memoryview:
        """ROW_WORDS words that only the arbiter writes; see `metrics.arbiter_facts`."""
        return self._words[ROW_WORDS : _HEADER_ROWS * ROW_WORDS]

    def release(self, index: int) -> None:
        """Fold the row's counters into the base and free it. Its worker must be dead (waited for).

        Releasing a free row does nothing.
        """
        if index not in self._owned:
            return
        counts = self._read_owned(index)
        del self._owned[index]
        row = self.row(index)
        self._folding += 2
        # Odd until all is written: who reads meanwhile reads once more.
        self._words[_FOLDING] = self._folding - 1
        for word in COUNTERS:
            self._base[word - _FIRST_COUNTER] = _wrapped(
                self._base[word - _FIRST_COUNTER] + counts[word]
            )
            row[word] = 0
        row[STATE] = STATE_FREE
        self._publish()

    def check(self, now_ns: int) -> list[int]:
        """Put right what somebody else has written over. To be called by the arbiter, each second.

        Returns the serials of the workers whose rows made no sense, each of them once.
        """
        self._publish()
        bad = []
        for index, owned in self._owned.items():
            row = self.row(index)
            seen = row.tolist()
            if not _makes_sense(seen, owned, now_ns):
                for word, value in enumerate(_mended(owned, seen)):
                    row[word] = value
                if not owned.reported:
                    owned.reported = True
                    bad.append(owned.serial)
            else:
                owned.good = seen
        return bad

    def snapshot(self) -> list[RowSnapshot]:
        """Every row in use, in the order of the table."""
        return [_snapshot(index, row) for index, row in self._rows_in_use()]

    def requests(self) -> tuple[dict[int, int], int]:
        """Requests answered so far: by serial of the rows in use, and in all.

        For who folds rows, the arbiter: another process had better ask for `totals`.
        """
        total = requests_in([0] * _FIRST_COUNTER + self._read_base())
        rows = {}
        for _, row in self._rows_in_use():
            rows[row[SERIAL]] = count = requests_in(row)
            total += count
        return rows, total

    def totals(self) -> Totals:
        """The base and all rows in use, summed."""
        end_ns = time.monotonic_ns() + _FOLD_NS
        while True:
            before = self._words[_FOLDING]
            sums = self._read_base()
            rows = [row for _, row in self._rows_in_use()]
            # A row that another process folds meanwhile would be counted twice or not at all.
            if self._is_owner or (before % 2 == 0 and self._words[_FOLDING] == before):
                self._last_totals = _sum_up(sums, rows)
                return self._last_totals
            if time.monotonic_ns() >= end_ns:
                return self._last_totals or _sum_up(sums, rows)

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

    def ready(self) -> int:
        """How many workers accept connections."""
        used = self._rows[: self._words[_HIGH] * _ROW_BYTES]
        return sum(state == STATE_READY for state, *_ in _GATE.iter_unpack(used))

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

    @property
    def _is_owner(self) -> bool:
        # Forked workers have a copy of this object.
        return self._owner == os.getpid()

    def _read_base(self) -> list[int]:
        if self._is_owner:
            return self._base.copy()
        words = self._words[_BASE : _BASE_CHECKSUM + 1].tolist()
        if words.pop() == checksum(words):
            self._last_base = words
        # Else somebody has written over it, or the arbiter is just writing.
        return self._last_base.copy()

    def _read_owned(self, index: int) -> list[int]:
        """A row of the arbiter's, as it is or as it made sense last."""
        owned = self._owned[index]
        row = self.row(index).tolist()
        if not _makes_sense(row, owned):
            return _mended(owned, row)
        owned.good = row  # so that what is read next is no less
        return row

    def _rows_in_use(self) -> list[tuple[int, list[int]]]:
        if self._is_owner:
            return [(index, self._read_owned(index)) for index in sorted(self._owned)]
        found = []
        words = self._words
        for index in range(min(words[_HIGH], self.capacity)):
            start = (index + _HEADER_ROWS) * ROW_WORDS
            row = words[start : start + ROW_WORDS].tolist()
            if row[STATE] != STATE_FREE and row[STATE] < len(STATE_NAMES) and _plausible(row):
                found.append((index, row))
        return found


def checksum(words: Iterable[int]) -> int:
    """A word that tells whether all of these were written by the arbiter."""
    return _wrapped(sum(words) + _MAGIC_VALUE)


def _wrapped(count: int) -> int:
    return count & (1 << 64) - 1


def _makes_sense(row: list[int], owned: _Owned, now_ns: int | None = None) -> bool:
    """Whether the row's worker can have written this, after what was seen of it before."""
    good = owned.good
    return bool(
        STATE_FREE < row[STATE] < len(STATE_NAMES)
        and (row[SERIAL], row[SLOT], row[GENERATION])
        == (owned.serial, owned.slot, owned.generation)
        and (not owned.pid or row[PID] == owned.pid)
        and row[STARTED_NS] == good[STARTED_NS]
        and max(row[IN_FLIGHT], row[CONNECTIONS], row[RSS_KIB]) < _MOST_GAUGE
        and (now_ns is None or max(row[BEAT_NS], row[OLDEST_START_NS]) < now_ns + _AHEAD_NS)
        and all(_grow(row[run], good[run]) for run in _COUNTER_RUNS)
    )


def _grow(counts: list[int], before: list[int]) -> bool:
    growth = list(map(operator.sub, counts, before))
    return bool(min(growth) >= 0 and max(growth) < MOST_GROWTH)


def _mended(owned: _Owned, row: list[int]) -> list[int]:
    """The row without what makes no sense: its worker's last good words."""
    good = owned.good.copy()
    good[PID] = owned.pid
    # Its worker has counted on, so as much of that as may be true is kept.
    for word in COUNTERS:
        if 0 <= row[word] - good[word] < MOST_GROWTH:
            good[word] = row[word]
    return good


def _plausible(row: list[int]) -> bool:
    """Whether a row can be true; for who does not know what was in it before."""
    most: int = max(row[IN_FLIGHT], row[CONNECTIONS], *(row[word] for word in COUNTERS))
    return most < _MOST_TOTAL


def load_of(row: memoryview) -> int:
    """The load of one's own row, to be compared with `least_load`."""
    load: int = row[IN_FLIGHT] << 32 | row[CONNECTIONS]
    return load


def _sum_up(base: list[int], rows: list[list[int]]) -> Totals:
    counts = [0] * _FIRST_COUNTER + base
    for row in rows:
        for word in COUNTERS:
            counts[word] += row[word]
    methods = methods_in(counts)
    return Totals(
        requests=sum(map(sum, methods)),
        statuses=tuple(map(sum, zip(*methods, strict=True))),
        bytes_in=counts[BYTES_IN],
        bytes_out=counts[BYTES_OUT],
        accepted=counts[ACCEPTED],
        shed=counts[SHED],
        latency_sum_us=counts[LATENCY_SUM_NS] // 1000,
        latency=latency_in(counts),
        methods=methods,
        codes=codes_in(counts, methods),
        log=tuple(counts[LOG_WARNING : LOG_EXCEPTION + 1]),
        workers=len(rows),
        in_flight=sum(row[IN_FLIGHT] for row in rows),
        connections=sum(row[CONNECTIONS] for row in rows),
    )


def _snapshot(index: int, row: list[int]) -> RowSnapshot:
    state = row[STATE]
    methods = methods_in(row)
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
        requests=sum(map(sum, methods)),
        statuses=tuple(map(sum, zip(*methods, strict=True))),
        bytes_in=row[BYTES_IN],
        bytes_out=row[BYTES_OUT],
        accepted=row[ACCEPTED],
        shed=row[SHED],
        latency_sum_us=row[LATENCY_SUM_NS] // 1000,
        lag_us=row[LAG_US],
        rss_kib=row[RSS_KIB],
        started_ns=row[STARTED_NS],
        latency=latency_in(row),
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
        _seal(fd)
    except OSError as error:
        os.close(fd)
        raise ScoreboardError(
            f"the scoreboard needs {size} bytes {place}, which can't be allocated: {error}"
        ) from error
    return fd


def _open_file(directory: str | None) -> int:
    if directory is None and hasattr(os, "memfd_create"):
        try:
            return os.memfd_create("servo-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            # Some sandboxes and old kernels have no memfd; an unlinked file does as well.
            directory = None
    import tempfile  # not needed otherwise

    fd, path = tempfile.mkstemp(prefix="servo-scoreboard-", dir=directory)
    try:
        os.unlink(path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _seal(fd: int) -> None:
    """Let nobody change the file's size: a worker that somebody has taken over could cut it, and
    whoever touched the table then, the arbiter too, would be ended by SIGBUS."""
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        # An ordinary file knows no seals, and one of a tmpfs (/dev/shm) takes none.
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise


def _fill(fd: int, size: int) -> None:
    # A sparse file on a full file system would end its writer by SIGBUS at the first touch of a
    # page, so the space is taken now, where its lack is an error that can be reported.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    view = memoryview(bytes(size))
    while view:
        view = view[os.write(fd, view) :]
