"""The scoreboard: a table of numbers in shared memory, with one row for each worker process.

Workers report their heartbeat, load and counters here, and the arbiter, the metrics process and
other workers read them. The arbiter maps the memory before it forks, so every process sees the same
table. A worker writes to its own row with plain assignments (`row[IN_FLIGHT] += 1`), from one
thread, without locks or system calls. Any process may read all rows. Only the arbiter allocates
and releases rows. servo.shared_memory.row_layout defines the words of a row.

Folding. When a worker has ended, its row is needed for another worker. But its counters must not
disappear from the totals. So the arbiter adds them to the "base", a list of sums over all ended
workers, and then frees the row.

Reading during a fold (a seqlock). A reader that sees the row and the new base would count the
worker twice; a reader that sees the old base and no row would miss it. A lock would not be safe,
because a reader that dies while it holds the lock would stop the arbiter. Instead, the arbiter
increments the word _FOLDING before a fold, which makes it odd, and again after it, which makes it
even. A reader reads _FOLDING, then the table, then _FOLDING again. If both numbers are even and
equal, there was no fold meanwhile. Otherwise it reads again.

Distrust. A worker with damaged memory, or one that an attacker controls, may write any bytes
anywhere in the table. So the arbiter keeps its own data (the base, and the allocation of rows to
workers) in its own memory, and the table has only a copy. Once a second `check` compares each row
with its earlier state. It repairs and reports a row with impossible values. A checksum shows other
readers whether the arbiter has written the base.
"""

from __future__ import annotations

import contextlib
import mmap
import operator
import os
import struct
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from servo.errors import ServoError
from servo.shared_memory.memory_file import fill, open_file, seal
from servo.shared_memory.output_rings import OutputRings
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
    QUEUE_SUM_NS,
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
    THREAD_REQUESTS,
    THREAD_WAIT_SUM_NS,
    THREADS,
    UTILISATION,
    codes_in,
    latency_in,
    methods_in,
    queue_times_in,
    requests_in,
    thread_waits_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# --- the words of the header, which is as large as two rows; row 0 follows it -------------------

_MAGIC = 0
_CAPACITY = 1
_HIGH = 2  # the first row that has never been used: readers can stop there
_FOLDING = 3  # odd while a row is being folded into the base
_FIRST_COUNTER = BYTES_IN  # the lowest of COUNTERS
_BASE = 8  # the base: a counter's sum is at _BASE + (word - _FIRST_COUNTER)
_HEADER_ROWS = 2  # the second one is for servo.metrics.arbiter_facts
_BASE_CHECKSUM = ROW_WORDS - 1  # after the base

# A counter that grows by more than this within a second was overwritten. For an amount, this is a
# petabyte of bodies, or two weeks of latencies. The limit for counts is lower, so that random bits
# hardly ever stay below it: there are hundreds of counters.
MAX_GROWTH = 1 << 50
_MAX_COUNT_GROWTH = 1 << 32
_AMOUNTS = (BYTES_IN, BYTES_OUT, LATENCY_SUM_NS, QUEUE_SUM_NS, THREAD_WAIT_SUM_NS)
# A gauge above _MAX_GAUGE or a total above _MAX_TOTAL was overwritten, too, and so was a time more
# than _AHEAD_NS in the future.
_MAX_GAUGE = 1 << 32
_MAX_TOTAL = 1 << 62
_AHEAD_NS = 1 << 32
_COUNTER_RUNS = (slice(BYTES_IN, LOG_EXCEPTION + 1), slice(LATENCY_0, COUNTERS[-1] + 1))

_MAGIC_VALUE = 0x5365_7276_6F_30_32_00 | ROW_WORDS
# How long a reader waits for the end of a fold. A fold takes microseconds. But if the arbiter was
# killed during a fold, or a worker has overwritten _FOLDING, the fold never ends.
_FOLD_NS = 20_000_000
_WORD = 8
_ROW_BYTES = ROW_WORDS * _WORD

# --- load ---------------------------------------------------------------------------------------

# A worker with requests in flight sends a heartbeat every 5 ms. If the last one is older than this,
# the worker is blocked, and other workers don't compare their load with it (see
# servo.workers.accept.gate). Idle workers can't block, so they send at most one heartbeat a second:
# with one every 5 ms, a large number of workers would use a whole CPU core.
BLOCKED_AFTER_NS = 10_000_000
# The result of `least_load` if no worker can take a connection. It is more than any load.
NO_LOAD = 1 << 64

# STATE, BEAT_NS, IN_FLIGHT and CONNECTIONS of a row. `iter_unpack` reads them for all rows in C,
# without an object for each row or a look-up for each word.
_GATE = struct.Struct(f"=4Q{_ROW_BYTES - 4 * _WORD}x")


class ScoreboardError(ServoError):
    """Raised if the scoreboard can't be created, or a file is not a scoreboard."""


class ScoreboardFull(ScoreboardError):  # noqa: N818
    """Raised if every row belongs to a worker that is not yet released."""


class RowSnapshot(NamedTuple):
    """A copy of one row. Its fields have the names of the words; `state` is a name."""

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
    utilisation: int
    threads: int
    thread_requests: int
    latency: tuple[int, ...]


@dataclass(slots=True)
class _Owned:
    """The arbiter's own data about a row that it has allocated.

    serial      the worker's serial
    slot        the worker's slot
    generation  the worker's generation
    last_good   the last copy of the row whose values were possible
    pid         the worker's pid; 0 before the fork
    reported    whether `check` has reported the row
    """

    serial: int
    slot: int
    generation: int
    last_good: list[int]
    pid: int = 0
    reported: bool = False


class Totals(NamedTuple):
    """The counters of all workers, including ended ones, and the gauges of live workers.

    requests        answered requests
    statuses        responses by class, 1xx to 5xx
    bytes_in        bytes of request bodies
    bytes_out       bytes of response bodies
    accepted        accepted connections
    shed            requests refused because of limit_concurrency
    latency_sum_us  the sum of all latencies, in microseconds
    latency         the histogram (see LATENCY_BOUNDS_S)
    queue_sum_us    the sum of all times in queues before a worker read the request
    queue_times     their histogram, with the same buckets
    wait_sum_us     the sum of all waits for a thread
    thread_waits    their histogram, with the same buckets
    methods         responses for each of METHODS, by class of status
    codes           responses for each of STATUS_CODES, then for each class those with other codes;
                    for a moment the count of 200 may be wrong by one for each worker
    log             entries of the error log: warning, error, critical, exception
    workers         live workers
    in_flight       requests that the application is running
    connections     open connections
    """

    requests: int
    statuses: tuple[int, ...]
    bytes_in: int
    bytes_out: int
    accepted: int
    shed: int
    latency_sum_us: int
    latency: tuple[int, ...]
    queue_sum_us: int
    queue_times: tuple[int, ...]
    wait_sum_us: int
    thread_waits: tuple[int, ...]
    methods: tuple[tuple[int, ...], ...]
    codes: tuple[int, ...]
    log: tuple[int, ...]
    workers: int
    in_flight: int
    connections: int


class Scoreboard:
    """The table. Every process that is forked after its creation shares it.

    capacity   the number of rows, which never changes
    directory  the directory of a file on disk, unlinked at once; None for a file in memory

    output  the rings with the workers' output; None if the system has no memory for them

    Raises ScoreboardError if the space can't be allocated.
    """

    output: OutputRings | None = None

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
        with contextlib.suppress(OSError):  # it is the server's work that must go on
            self.output = OutputRings(capacity)

    @classmethod
    def attach(cls, fd: int) -> Scoreboard:
        """Map the scoreboard in an open file, as a reader.

        fd  the file's descriptor; `close` closes it

        Raises ScoreboardError if the file is not a scoreboard, or one of another version. Then the
        descriptor stays open.
        """
        size = os.fstat(fd).st_size
        if size <= _HEADER_ROWS * _ROW_BYTES or size % _ROW_BYTES:
            raise ScoreboardError(f"file descriptor {fd} is not a scoreboard: it has {size} bytes")
        if os.pread(fd, _WORD, 0) != _MAGIC_VALUE.to_bytes(_WORD, sys.byteorder):
            raise ScoreboardError(f"file descriptor {fd} is not a scoreboard of this version")
        board = cls.__new__(cls)
        board.fd = fd
        board._map(size)
        return board

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the arbiter's own data as JSON values, for `from_state`.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {
            "fd": pass_on(self.fd),
            "layout": _MAGIC_VALUE,
            "base": self._base,
            "folding": self._folding,
            "high": self._high,
            "output": self.output.to_state(pass_on) if self.output is not None else {},
            "owned": [
                [index, each.serial, each.slot, each.generation, each.pid, each.last_good]
                for index, each in self._owned.items()
            ],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], take: Callable[[int], int]) -> Scoreboard:
        """Take over the scoreboard of this process's previous program, after an upgrade.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it

        Raises ScoreboardError if its layout differs, and KeyError, TypeError, ValueError or OSError
        for an invalid state.
        """
        if state["layout"] != _MAGIC_VALUE:
            raise ScoreboardError("the scoreboard has the layout of another version")
        board = cls.attach(take(int(state["fd"])))
        board._base = [int(count) for count in state["base"]]
        board._folding = int(state["folding"])
        board._high = int(state["high"])
        for index, serial, slot, generation, pid, last_good in state["owned"]:
            board._owned[index] = _Owned(serial, slot, generation, last_good, pid)
        board._owner = os.getpid()
        board._publish()
        with contextlib.suppress(OSError):  # as above
            # Older versions have no rings.
            board.output = OutputRings.from_state(state.get("output", {}), take, board.capacity)
        return board

    def _map(self, size: int) -> None:
        self._mmap = mmap.mmap(self.fd, size)
        self._bytes = memoryview(self._mmap)
        self._words = self._bytes.cast("Q")
        self._rows = self._bytes[_HEADER_ROWS * _ROW_BYTES :]
        # The number of rows.
        self.capacity = size // _ROW_BYTES - _HEADER_ROWS
        self._owned: dict[int, _Owned] = {}
        self._high = 0
        self._owner = -1
        self._last_totals: Totals | None = None
        self._last_base = [0] * (ROW_WORDS - _FIRST_COUNTER)

    def _publish(self) -> None:
        """Copy the arbiter's own data into the header, for other processes."""
        words = self._words
        words[_MAGIC] = _MAGIC_VALUE
        words[_CAPACITY] = self.capacity
        words[_HIGH] = self._high
        for place, count in enumerate(self._base, _BASE):
            words[place] = count
        words[_BASE_CHECKSUM] = checksum(self._base)
        words[_FOLDING] = self._folding  # last, because it ends a fold

    def allocate(self, serial: int, slot: int, generation: int, now_ns: int = 0) -> int:
        """Allocate the first free row for a worker that is about to be forked.

        serial      the worker's serial
        slot        the worker's slot
        generation  the worker's generation
        now_ns      monotonic nanoseconds: the row's start and first heartbeat

        Returns the row's index. Raises ScoreboardFull.
        """
        words = self._words
        for index in range(self.capacity):
            if index not in self._owned:
                break
        else:
            raise ScoreboardFull(f"all {self.capacity} rows of the scoreboard are in use")
        start = (index + _HEADER_ROWS) * ROW_WORDS
        self._bytes[start * _WORD : start * _WORD + _ROW_BYTES] = bytes(_ROW_BYTES)
        words[start + SERIAL] = serial
        words[start + SLOT] = slot
        words[start + GENERATION] = generation
        words[start + BEAT_NS] = words[start + STARTED_NS] = now_ns
        words[start + STATE] = STATE_SPAWNED
        self._high = words[_HIGH] = max(self._high, index + 1)
        if self.output is not None:
            self.output.reset(index)
        good = words[start : start + ROW_WORDS].tolist()
        self._owned[index] = _Owned(serial, slot, generation, good)
        return index

    def forked(self, index: int, pid: int) -> None:
        """Note the pid of a row's worker after it was forked."""
        self._owned[index].pid = pid
        self.row(index)[PID] = pid

    def row(self, index: int) -> memoryview:
        """The words of a row. Its worker writes them. The arbiter may write the state and pid."""
        if not 0 <= index < self.capacity:
            raise IndexError(index)
        start = (index + _HEADER_ROWS) * ROW_WORDS
        return self._words[start : start + ROW_WORDS]

    @property
    def arbiter_words(self) -> memoryview:
        """ROW_WORDS words that only the arbiter writes (see servo.metrics.arbiter_facts)."""
        return self._words[ROW_WORDS : _HEADER_ROWS * ROW_WORDS]

    def release(self, index: int) -> None:
        """Add a row's counters to the base, and free the row. Does nothing for a free row.

        The row's worker must have been reaped: a live one would still write to the row.
        """
        if index not in self._owned:
            return
        counts = self._read_owned(index)
        del self._owned[index]
        row = self.row(index)
        self._folding += 2
        # Make it odd until all words are written, so that readers read again.
        self._words[_FOLDING] = self._folding - 1
        for word in COUNTERS:
            self._base[word - _FIRST_COUNTER] = _wrapped(
                self._base[word - _FIRST_COUNTER] + counts[word]
            )
            row[word] = 0
        row[STATE] = STATE_FREE
        self._publish()

    def check(self, now_ns: int) -> list[int]:
        """Repair words that other processes have overwritten. The arbiter calls this once a second.

        now_ns  monotonic nanoseconds

        Returns the serials of workers with impossible values in their rows, each worker only once.
        """
        self._publish()
        bad = []
        for index, owned in self._owned.items():
            row = self.row(index)
            seen = row.tolist()
            if not _makes_sense(seen, owned, now_ns):
                for word, value in enumerate(_repaired(owned, seen)):
                    row[word] = value
                if not owned.reported:
                    owned.reported = True
                    bad.append(owned.serial)
            else:
                owned.last_good = seen
        return bad

    def snapshot(self) -> list[RowSnapshot]:
        """A copy of every row in use, in the order of the table."""
        return [_snapshot(index, row) for index, row in self._rows_in_use()]

    def requests(self) -> tuple[dict[int, int], int]:
        """The numbers of answered requests: of each worker in the table, by serial, and of all.

        The second number includes ended workers. For the arbiter only. Other processes call
        `totals`, which waits for folds to end.
        """
        total = requests_in([0] * _FIRST_COUNTER + self._read_base())
        rows = {}
        for _, row in self._rows_in_use():
            rows[row[SERIAL]] = count = requests_in(row)
            total += count
        return rows, total

    def totals(self) -> Totals:
        """The sums of the base and all rows in use."""
        end_ns = time.monotonic_ns() + _FOLD_NS
        while True:
            before = self._words[_FOLDING]
            sums = self._read_base()
            rows = [row for _, row in self._rows_in_use()]
            # Use the result only if no row was folded meanwhile (see the top of this module).
            if self._is_owner or (before % 2 == 0 and self._words[_FOLDING] == before):
                self._last_totals = _sum_up(sums, rows)
                return self._last_totals
            if time.monotonic_ns() >= end_ns:
                return self._last_totals or _sum_up(sums, rows)

    def least_load(self, now_ns: int) -> int:
        """The smallest load of all workers that can take a connection; NO_LOAD if none can.

        now_ns  monotonic nanoseconds

        A load is `in_flight << 32 | connections`. So one comparison of integers is enough, and
        connections count only if the numbers of requests are equal. A worker can take a connection
        if it is ready and not blocked. It is blocked if it has requests in flight and its last
        heartbeat is older than BLOCKED_AFTER_NS.
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
        """The number of workers that accept connections."""
        used = self._rows[: self._words[_HIGH] * _ROW_BYTES]
        return sum(state == STATE_READY for state, *_ in _GATE.iter_unpack(used))

    def close(self) -> None:
        """Close this process's mapping and descriptor. Results of `row` stay usable."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        if self.output is not None:
            self.output.close()
        self._rows.release()
        self._words.release()
        self._bytes.release()
        # `close` fails while a memoryview of a row exists. Then the last view frees the memory.
        with contextlib.suppress(BufferError):
            self._mmap.close()

    @property
    def _is_owner(self) -> bool:
        # A forked worker has a copy of the arbiter's object, but is not the owner.
        return self._owner == os.getpid()

    def _read_base(self) -> list[int]:
        if self._is_owner:
            return self._base.copy()
        words = self._words[_BASE : _BASE_CHECKSUM + 1].tolist()
        if words.pop() == checksum(words):
            self._last_base = words
        # The base was overwritten, or the arbiter is just writing it.
        return self._last_base.copy()

    def _read_owned(self, index: int) -> list[int]:
        """The words of an allocated row; if they are impossible, those of the last good copy."""
        owned = self._owned[index]
        row = self.row(index).tolist()
        if not _makes_sense(row, owned):
            return _last_good(owned)
        owned.last_good = row  # the counters of the next read must not be smaller
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
    """A checksum word: it shows a reader whether the arbiter has written all of these words."""
    return _wrapped(sum(words) + _MAGIC_VALUE)


def _wrapped(count: int) -> int:
    return count & (1 << 64) - 1


def _makes_sense(row: list[int], owned: _Owned, now_ns: int | None = None) -> bool:
    """Whether the values of a row are possible, compared with its last good copy."""
    good = owned.last_good
    return bool(
        STATE_FREE < row[STATE] < len(STATE_NAMES)
        and (row[SERIAL], row[SLOT], row[GENERATION])
        == (owned.serial, owned.slot, owned.generation)
        and (not owned.pid or row[PID] == owned.pid)
        and row[STARTED_NS] == good[STARTED_NS]
        and max(row[IN_FLIGHT], row[CONNECTIONS], row[RSS_KIB]) < _MAX_GAUGE
        and (now_ns is None or max(row[BEAT_NS], row[OLDEST_START_NS]) < now_ns + _AHEAD_NS)
        and all(_have_grown_plausibly(row[run], good[run]) for run in _COUNTER_RUNS)
    )


def _have_grown_plausibly(counts: list[int], before: list[int]) -> bool:
    growth = list(map(operator.sub, counts, before))
    return bool(min(growth) >= 0 and max(growth) < MAX_GROWTH)


def _last_good(owned: _Owned) -> list[int]:
    good = owned.last_good.copy()
    good[PID] = owned.pid
    return good


def _repaired(owned: _Owned, row: list[int]) -> list[int]:
    """A repaired row: the last good copy, with those new counters that are possible."""
    good = _last_good(owned)
    # The worker has counted more since then.
    for word in COUNTERS:
        most = MAX_GROWTH if word in _AMOUNTS else _MAX_COUNT_GROWTH
        if 0 <= row[word] - good[word] < most:
            good[word] = row[word]
    return good


def _plausible(row: list[int]) -> bool:
    """Whether the values of a row are possible, for a reader without an earlier copy."""
    most: int = max(row[IN_FLIGHT], row[CONNECTIONS], *(row[word] for word in COUNTERS))
    return most < _MAX_TOTAL


def load_of(row: memoryview) -> int:
    """The load of a row's worker, to compare with `least_load`."""
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
        queue_sum_us=counts[QUEUE_SUM_NS] // 1000,
        queue_times=queue_times_in(counts),
        wait_sum_us=counts[THREAD_WAIT_SUM_NS] // 1000,
        thread_waits=thread_waits_in(counts),
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
        utilisation=row[UTILISATION],
        threads=row[THREADS],
        thread_requests=row[THREAD_REQUESTS],
        latency=latency_in(row),
    )


def _allocate_file(size: int, directory: str | None) -> int:
    """Create an unnamed file of zeros with its space allocated. Raises ScoreboardError."""
    place = f"in {directory}" if directory else "in memory"
    try:
        fd = open_file("servo-scoreboard", directory)
    except OSError as error:
        raise ScoreboardError(f"can't create the scoreboard {place}: {error}") from error
    try:
        fill(fd, 0, size)
        seal(fd)
    except OSError as error:
        os.close(fd)
        raise ScoreboardError(
            f"can't allocate {size} bytes {place} for the scoreboard: {error}"
        ) from error
    return fd
