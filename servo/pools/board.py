"""The board of a pool: memory that its processes, its callers and the arbiter share.

The arbiter makes it before it forks the processes that use it, and they inherit the mapping. The
kernel seals its size: otherwise a process could truncate it, and the arbiter would die of SIGBUS.
It has three parts:

* the totals of processes that have ended, which the arbiter writes;
* a row for each process, which only this process writes: its state, its task, its totals;
* the last exits, as a ring, which the arbiter writes. If a connection ends before the task does,
  the caller looks for the reason here. So the arbiter takes no part in a task, not even in a failed
  one.

The rows also tell whether a task has begun. A task has a key, which is unique in the pool. Its
process writes the key to its row before it begins the task, and removes it after the answer. If the
process dies, the key stays in the row until the arbiter has copied it to the exit. So if a key is
neither in a row nor in an exit, its task has not begun. A message from the process would tell the
same, but it would wake the caller once more for each task: this took half the throughput.

A writer changes one aligned word at a time, and a reader accepts any combination of words. A text
is written before the word that makes it valid. The arbiter does not trust a row, because the
application runs in the process that writes it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from typing import Final, NamedTuple

from servo.printable import printable_line

ROWS: Final = 256
_ROW_WORDS: Final = 64
_EXITS: Final = 256
_EXIT_WORDS: Final = 32
_HEAD_WORDS: Final = 64
_WORDS: Final = _HEAD_WORDS + ROWS * _ROW_WORDS + _EXITS * _EXIT_WORDS

# Linux's numbers: other systems have no memfd, and `fcntl` no such names there.
ADD_SEALS: Final = 1033
SIZE_SEALS: Final = 1 | 2 | 4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW

# States of a process.
FREE: Final = 0
BOOTING: Final = 1
IDLE: Final = 2
BUSY: Final = 3

# How a task can end: with a result, with an exception, given up by its caller, or with its process.
OUTCOMES: Final = ("done", "failed", "abandoned", "lost")
DONE: Final = 0
FAILED: Final = 1
ABANDONED: Final = 2
LOST: Final = 3

# The upper bounds of the histogram of durations, in seconds; the last bucket has none.
BUCKETS_S: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)

# The words of a row.
_SERIAL, _PID, _STATE, _SINCE_NS, _BUSY_NS, _STARTED, _LABEL_SIZE, _KEY = range(8)
_COUNTS = 8  # four words, by outcome; in the head at the same place
_DURATIONS = 16  # a word for each bucket; in the head at the same place
_LABEL = 32  # 32 words of text
_LABEL_BYTES: Final = (_ROW_WORDS - _LABEL) * 8

# The words of an exit.
_EXIT_SERIAL, _KIND, _REASON_SIZE, _EXIT_PID, _EXIT_KEY = range(5)
_REASON = 5
_REASON_BYTES: Final = (_EXIT_WORDS - _REASON) * 8

# The kinds of exits.
DIED: Final = 0
TIMED_OUT: Final = 1

_SUMS = (_BUSY_NS, *range(_COUNTS, _COUNTS + len(OUTCOMES)))
_SUMS_ALL: Final = (*_SUMS, *range(_DURATIONS, _DURATIONS + len(BUCKETS_S) + 1))


class Totals(NamedTuple):
    """Totals of a process or of a pool.

    busy_ns    nanoseconds in which tasks ran
    outcomes   the number of tasks, in the order of OUTCOMES
    durations  the number of tasks by duration, for each of BUCKETS_S and above
    """

    busy_ns: int
    outcomes: tuple[int, ...]
    durations: tuple[int, ...]


class Exit(NamedTuple):
    """Why a process ended: its pid, DIED or TIMED_OUT, and a text."""

    pid: int
    kind: int
    reason: str


class Row:
    """The row of one process, for the process itself and for readers.

    words   the row's part of the board
    """

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._text = words[_LABEL:].cast("B")

    # --- for the process --------------------------------------------------------------------------

    def ready(self) -> None:
        """Note that the process waits for a task."""
        self._words[_SINCE_NS] = time.monotonic_ns()
        self._words[_STATE] = IDLE

    def begin(self, label: str, key: int) -> None:
        """Note that a task begins.

        label   the name of its function
        key     its key
        """
        words, text = self._words, label.encode("utf-8", "replace")[:_LABEL_BYTES]
        words[_LABEL_SIZE] = 0
        self._text[: len(text)] = text
        words[_LABEL_SIZE] = len(text)
        words[_SINCE_NS] = time.monotonic_ns()
        words[_STARTED] += 1
        words[_STATE] = BUSY
        words[_KEY] = key

    def end(self, outcome: int) -> None:
        """Note that the task has ended.

        outcome   DONE, FAILED or ABANDONED
        """
        words, now = self._words, time.monotonic_ns()
        spent = max(0, now - words[_SINCE_NS])
        words[_KEY] = 0
        words[_STATE] = IDLE
        words[_SINCE_NS] = now
        words[_BUSY_NS] += spent
        words[_COUNTS + outcome] += 1
        words[_DURATIONS + bucket_of(spent)] += 1

    def skip(self) -> None:
        """Undo `begin`: the task does not run, because its caller has given it up."""
        words = self._words
        words[_KEY] = 0
        words[_STATE] = IDLE
        words[_SINCE_NS] = time.monotonic_ns()
        words[_COUNTS + ABANDONED] += 1

    # --- for readers ------------------------------------------------------------------------------

    @property
    def serial(self) -> int:
        """The serial of the process; 0 if the row is free."""
        return int(self._words[_SERIAL])

    @property
    def pid(self) -> int:
        """The pid of the process."""
        return int(self._words[_PID])

    @pid.setter
    def pid(self, pid: int) -> None:
        self._words[_PID] = pid

    @property
    def state(self) -> int:
        """BOOTING, IDLE or BUSY."""
        return int(self._words[_STATE])

    @property
    def since_ns(self) -> int:
        """When this state began, in monotonic nanoseconds."""
        return int(self._words[_SINCE_NS])

    @property
    def started(self) -> int:
        """The number of tasks begun so far: the serial of the running task."""
        return int(self._words[_STARTED])

    @property
    def key(self) -> int:
        """The key of the running task; 0 if there is none."""
        return int(self._words[_KEY])

    @property
    def label(self) -> str:
        """The name of the running task's function, without control characters."""
        size = min(_LABEL_BYTES, self._words[_LABEL_SIZE])
        return printable_line(bytes(self._text[:size]).decode("utf-8", "replace"))

    @property
    def totals(self) -> Totals:
        """The totals of the process."""
        return _totals(self._words)


class Board:
    """The board of a pool.

    fd      the descriptor of its memory, which this object closes; None: make a new board

    Raises OSError.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = _new_memory() if fd is None else fd
        self._map = mmap.mmap(self.fd, _WORDS * 8)
        self._words = memoryview(self._map).cast("Q")
        # The arbiter's own list of the rows in use. Those of the board could be written over.
        self._used: set[int] = set()

    def close(self) -> None:
        """Unmap the board. Rows must not be used any more."""
        self.close_descriptor()
        self._words.release()
        try:
            self._map.close()
        except BufferError:  # a row is still referred to; the mapping ends with it
            return

    def close_descriptor(self) -> None:
        """Close the descriptor, and keep the mapping."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # --- for the arbiter --------------------------------------------------------------------------

    def allocate(self, serial: int) -> int:
        """Take a free row for a process; return its index. Raises OSError if there is none.

        serial   the serial of the process
        """
        index = next((each for each in range(ROWS) if each not in self._used), None)
        if index is None:
            raise OSError(f"a pool can't have more than {ROWS} processes")
        self._used.add(index)
        words = self._row(index)
        words[:] = memoryview(bytes(_ROW_WORDS * 8)).cast("Q")
        words[_STATE] = BOOTING
        words[_SINCE_NS] = time.monotonic_ns()
        words[_SERIAL] = serial
        return index

    def take_over(self, index: int) -> None:
        """Note that a row is in use, after an upgrade."""
        self._used.add(index)

    def release(self, index: int) -> None:
        """Free the row of a process that has ended, and add its totals to those of the pool."""
        words, head = self._row(index), self._words
        self._used.discard(index)
        words[_STATE] = FREE
        words[_KEY] = 0
        # In this order, a reader may miss these totals for a moment, but never counts them twice.
        words[_SERIAL] = 0
        for place in _SUMS_ALL:
            head[place] = (head[place] + words[place]) % (1 << 64)

    def count_lost(self) -> None:
        """Count a task whose process ended before the task did."""
        self._words[_COUNTS + LOST] += 1

    def record_exit(self, serial: int, key: int, pid: int, kind: int, reason: str) -> None:
        """Record why a process ended, for the caller of its task. Do this before `release`.

        serial  the serial of the process; it is the place in the ring, too
        key     the key of its task; 0 if it had none
        pid     its process id
        kind    DIED or TIMED_OUT
        reason  the reason in words
        """
        words = self._exit(serial)
        text = reason.encode("utf-8", "replace")[:_REASON_BYTES]
        words[_EXIT_SERIAL] = 0
        words[_REASON:].cast("B")[: len(text)] = text
        words[_REASON_SIZE] = len(text)
        words[_KIND] = kind
        words[_EXIT_PID] = pid
        words[_EXIT_KEY] = key
        words[_EXIT_SERIAL] = serial

    # --- for all ----------------------------------------------------------------------------------

    def row(self, index: int) -> Row:
        """The row with this index."""
        return Row(self._row(index))

    def is_running(self, key: int) -> bool:
        """Whether a process has begun the task with this key, and has not finished it."""
        start, end = _HEAD_WORDS + _KEY, _HEAD_WORDS + ROWS * _ROW_WORDS
        return key in self._words[start:end:_ROW_WORDS].tolist()

    def exit_of(self, key: int) -> Exit | None:
        """Why the process that ran the task with this key ended; None if none has recently."""
        start = _HEAD_WORDS + ROWS * _ROW_WORDS
        keys = self._words[start + _EXIT_KEY : _WORDS : _EXIT_WORDS].tolist()
        if key not in keys:
            return None
        words = self._exit(keys.index(key))
        text = bytes(words[_REASON:].cast("B")[: min(_REASON_BYTES, words[_REASON_SIZE])])
        found = Exit(words[_EXIT_PID], words[_KIND], text.decode("utf-8", "replace"))
        return found if words[_EXIT_SERIAL] and words[_EXIT_KEY] == key else None

    def live_rows(self) -> list[Row]:
        """The rows of the processes that have not ended."""
        return [row for row in map(self.row, range(ROWS)) if row.serial]

    def ended_totals(self) -> Totals:
        """The totals of all processes that have ended."""
        return _totals(self._words)

    def _row(self, index: int) -> memoryview:
        start = _HEAD_WORDS + index * _ROW_WORDS
        return self._words[start : start + _ROW_WORDS]

    def _exit(self, number: int) -> memoryview:
        start = _HEAD_WORDS + ROWS * _ROW_WORDS + number % _EXITS * _EXIT_WORDS
        return self._words[start : start + _EXIT_WORDS]


def _new_memory() -> int:
    """Make the memory of a board: a memfd whose size can't be changed. Raises OSError."""
    fd = os.memfd_create("servo-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, _WORDS * 8)
        fcntl.fcntl(fd, ADD_SEALS, SIZE_SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


def _totals(words: memoryview) -> Totals:
    outcomes = tuple(words[_COUNTS : _COUNTS + len(OUTCOMES)])
    durations = tuple(words[_DURATIONS : _DURATIONS + len(BUCKETS_S) + 1])
    return Totals(words[_BUSY_NS], outcomes, durations)


def bucket_of(duration_ns: int) -> int:
    """The index of the bucket for a task that took so long."""
    seconds = duration_ns / 1e9
    return next((n for n, bound in enumerate(BUCKETS_S) if seconds <= bound), len(BUCKETS_S))
