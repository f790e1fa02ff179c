"""The table of the application's counters, in memory that all processes of a server share.

Each process has a row with a cell for each counter, and adds only to its own cells. The value of a
counter is the sum of its cells. So no process waits for another, and an addition is a single write
of 8 bytes: a process may be killed at any moment, and the sum has all additions that have returned.

Rows. A process takes a row when it first adds something. It locks the row's byte (see
servo.shared_memory.locks), and the kernel releases the lock when the process ends. The cells keep
their values, and the next process that takes the row adds to them. So the counts of ended processes
need no other place, and nobody has to notice that a process has ended. It does not matter who
started the process: the arbiter, a mold, or the application.

Names. A process that needs a new counter writes its name into the table, under the lock of a byte,
and then increments the number of names. If it is killed in between, the next one writes over the
unfinished name. A counter's place never changes, and no name is ever removed.

A worker that an attacker controls can write anything into the table. Readers must not fail because
of that; but the table does not protect the application's counters from the application's workers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from servo.errors import ClusterError
from servo.shared_memory.locks import LockFile
from servo.shared_memory.memory_file import fill, open_file, seal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# The words of the header.
_MAGIC = 0
_CAPACITY = 1  # of counters
_ROWS = 2
_COUNT = 3  # how many counters have a name
_HIGH = 4  # the first row that has never been used: readers can stop there
_HEADER_BYTES = 4096

_WORD = 8
# A name takes this much room, with two bytes for its length before it.
_NAME_BYTES = 256
MAX_NAME_BYTES = _NAME_BYTES - 2
_MAGIC_VALUE = 0x5365_7276_6F_63_0100 | _WORD

# The lock of the names. Those of the rows begin at 0.
_NAMES_LOCK = 1 << 32
# The lock of the names is held for microseconds. After this many seconds, its holder is stopped.
_NAMES_TIMEOUT_S = 5.0
_NAMES_INTERVAL_S = 0.001


class CounterTableError(ClusterError):
    """Raised if the table of counters can't be created or used."""


class CountersFull(CounterTableError):  # noqa: N818
    """Raised if the table has no room for another counter, or for another process."""


class CounterTable:
    """The counters of all processes that are forked after its creation.

    capacity  the number of counters, which never changes
    rows      how many processes can use it at once

    locks     the locks on the bytes of its file

    Raises CounterTableError if the file can't be created.
    """

    def __init__(self, capacity: int, rows: int) -> None:
        size = _HEADER_BYTES + capacity * (_NAME_BYTES + rows * _WORD)
        try:
            fd = open_file("servo-cluster", None)
            try:
                # It takes no memory before it is used: see `_create` and `_take_row`.
                os.ftruncate(fd, size)
                fill(fd, 0, _HEADER_BYTES)
                os.fchmod(fd, 0o666)  # workers open it again, perhaps as another user
                seal(fd)
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise CounterTableError(f"can't create the table of counters: {error}") from error
        self._map(fd, capacity, rows)
        self._header[_CAPACITY], self._header[_ROWS] = capacity, rows
        self._header[_MAGIC] = _MAGIC_VALUE

    @classmethod
    def attach(cls, fd: int) -> CounterTable:
        """Map the table in an open file.

        fd  the file's descriptor; `close` closes it

        Raises CounterTableError if the file is not a table of this version. Then the descriptor
        stays open.
        """
        words = memoryview(os.pread(fd, 3 * _WORD, 0))
        magic, capacity, rows = words.cast("Q") if len(words) == 3 * _WORD else (0, 0, 0)
        size = _HEADER_BYTES + capacity * (_NAME_BYTES + rows * _WORD)
        if magic != _MAGIC_VALUE or not rows or os.fstat(fd).st_size != size:
            raise CounterTableError(f"file descriptor {fd} is not a table of counters")
        table = cls.__new__(cls)
        table._map(fd, capacity, rows)
        return table

    def _map(self, fd: int, capacity: int, rows: int) -> None:
        self.fd = fd
        self.capacity = capacity
        self.rows = rows
        self._mmap = mmap.mmap(fd, _HEADER_BYTES + capacity * (_NAME_BYTES + rows * _WORD))
        self._bytes = memoryview(self._mmap)
        self._header = self._bytes[:_HEADER_BYTES].cast("Q")
        self._cells_at = _HEADER_BYTES + capacity * _NAME_BYTES
        self._cells = self._bytes[self._cells_at :].cast("q")
        self.locks = LockFile(fd)
        self.locks.on_fork = self._forget_row
        self._forget_row()
        self._places: dict[bytes, int] = {}  # the names that this process has read
        self._names_lock = threading.Lock()

    def to_state(self, pass_on: Callable[[int], int]) -> dict[str, Any]:
        """Return the table as JSON values, for `from_state`.

        pass_on  keeps a descriptor open for the next program, and returns it
        """
        return {"fd": pass_on(self.fd), "layout": _MAGIC_VALUE, "byteorder": sys.byteorder}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], take: Callable[[int], int]) -> CounterTable:
        """Take over the table of this process's previous program, after an upgrade.

        state  the result of that program's `to_state`
        take   claims a descriptor from the previous program, and returns it

        Raises CounterTableError if its layout differs, and KeyError, TypeError, ValueError or
        OSError for an invalid state.
        """
        if state["layout"] != _MAGIC_VALUE or state["byteorder"] != sys.byteorder:
            raise CounterTableError("the table of counters has the layout of another version")
        return cls.attach(take(int(state["fd"])))

    def add(self, place: int, amount: int) -> None:
        """Add to a counter.

        place   the counter's place, from `place_of`
        amount  a whole number

        Raises CountersFull if too many processes use the table, and ValueError if the counter would
        exceed 63 bits.
        """
        # The lock is for the threads of this process. A signal handler may add while its own thread
        # is here, so it is an RLock; Python runs no handler in the middle of the addition.
        with self._row_lock:
            row = self._row
            if row is None:
                row = self._take_row()
            row[place] += amount

    def value(self, place: int) -> int:
        """The sum over all processes, live and ended."""
        return sum(self._cells[place : self._high * self.capacity : self.capacity])

    def place_of(self, name: bytes) -> int:
        """The place of the counter with this name, which is added to the table if it is new.

        name  at most MAX_NAME_BYTES

        Raises CountersFull if the table is full.
        """
        with self._names_lock:
            if name not in self._places:
                self._read_names()
            if name not in self._places:
                with self._names_locked():
                    self._read_names()
                    if name not in self._places:
                        self._create(name)
            return self._places[name]

    @property
    def count(self) -> int:
        """How many counters the table has."""
        return min(self._header[_COUNT], self.capacity)

    def names(self) -> dict[bytes, int]:
        """The place of each counter, by name, in the order of their creation."""
        with self._names_lock:
            self._read_names()
            return dict(self._places)

    def close(self) -> None:
        """Close this process's mapping and descriptors. Its row is free for another process."""
        if self.fd < 0:
            return
        self.locks.close()
        os.close(self.fd)
        self.fd = -1
        self._forget_row()
        for view in (self._header, self._cells, self._bytes):
            view.release()
        with contextlib.suppress(BufferError):  # a thread is just adding to its row
            self._mmap.close()

    @property
    def _high(self) -> int:
        return min(self._header[_HIGH], self.rows)

    def _forget_row(self) -> None:
        # A forked child takes a row of its own. Another thread of the parent may have held the
        # locks at the fork.
        self._row: memoryview | None = None
        self._row_lock = threading.RLock()
        self._names_lock = threading.Lock()

    def _take_row(self) -> memoryview:
        with self._names_locked():
            # Begin with the lowest row, because readers read all rows up to the highest one.
            index = next((each for each in range(self.rows) if self.locks.try_lock(each)), None)
            if index is None:
                raise CountersFull(
                    f"{self.rows} processes use the server's counters already (scoreboard_size)"
                )
            start = index * self.capacity
            try:
                if index >= self._high:  # `fill` may write zeros
                    fill(self.fd, self._cells_at + start * _WORD, self.capacity * _WORD)
            except OSError as error:
                self.locks.unlock(index)
                raise CounterTableError(
                    f"no memory for this process's counters: {error}"
                ) from error
            self._header[_HIGH] = max(self._high, index + 1)
        self._row = row = self._cells[start : start + self.capacity]
        return row

    def _read_names(self) -> None:
        """Read the names that other processes have added."""
        for place in range(len(self._places), self.count):
            start = _HEADER_BYTES + place * _NAME_BYTES
            length = min(int.from_bytes(self._bytes[start : start + 2], "little"), MAX_NAME_BYTES)
            name = bytes(self._bytes[start + 2 : start + 2 + length])
            # Names differ, unless something has overwritten them. There must be one for each place.
            while name in self._places:
                name += b"?"
            self._places[name] = place

    def _create(self, name: bytes) -> None:
        place = len(self._places)
        if place >= self.capacity:
            raise CountersFull(
                f"the server has {self.capacity} counters already; labels with many values, such as"
                " a user's name, take one each (cluster_counters)"
            )
        if len(name) > MAX_NAME_BYTES:
            raise ValueError(f"a counter's name has {len(name)} bytes, more than {MAX_NAME_BYTES}")
        start = _HEADER_BYTES + place * _NAME_BYTES
        try:
            fill(self.fd, start, _NAME_BYTES)
        except OSError as error:
            raise CounterTableError(f"no memory for another counter: {error}") from error
        data = len(name).to_bytes(2, "little") + name
        self._bytes[start : start + len(data)] = data
        self._header[_COUNT] = place + 1  # last: now the name is complete
        self._places[name] = place

    @contextlib.contextmanager
    def _names_locked(self) -> Iterator[None]:
        """Hold the lock of the names and of the number of rows, against other processes."""
        end = time.monotonic() + _NAMES_TIMEOUT_S
        while not self.locks.try_lock(_NAMES_LOCK):
            if time.monotonic() >= end:
                raise CounterTableError(
                    "another process is stopped while it holds the lock of the table of counters"
                )
            time.sleep(_NAMES_INTERVAL_S)
        try:
            yield
        finally:
            self.locks.unlock(_NAMES_LOCK)
