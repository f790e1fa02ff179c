"""The log lines that operators see: the arbiter's own, and the output of the workers.

The workers keep their output in rings (see servo.shared_memory.output_rings). Nothing happens here
until an operator asks. Then the arbiter reads the rings, and sorts their records and its own by
time. While an operator follows, it looks for new entries every POLL_S seconds, but spends at most a
tenth of its time on this: if workers write without end, it looks less often, and the lines that
were overwritten meanwhile are counted.

When a worker has ended, its last records are copied, because its ring will get another owner.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from servo.arbiter.operator.feed import Feed
from servo.arbiter.operator.output_records import OutputRecords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from servo.control.server import Caller
    from servo.shared_memory.output_rings import Area, OutputRings

POLL_S = 0.05
# After a look, wait for this many times its duration.
_REST = 10
# How many records are kept of a worker that has ended, and how many of all such workers.
MAX_LAST_RECORDS = 250
MAX_ENDED_RECORDS = 1000
# The most records, and characters of their texts, that an operator gets of the past.
MAX_RECORDS = 1000
MAX_CHARACTERS = 256 << 10

_by_time = itemgetter("time")


@dataclass(frozen=True, slots=True)
class Source:
    """A process that writes into a ring.

    key    identifies it among all processes that write now
    row    its row of the rings
    names  the values that name it in its records, such as `slot` and `pid`
    """

    key: int
    row: int
    names: Mapping[str, Any]


@dataclass(slots=True)
class _Cursor:
    """How far a ring has been read for the followers.

    records   joins the entries
    position  as in `output_rings.Reading`
    sequence  as in `output_rings.Reading`
    """

    records: OutputRecords
    position: int = 0
    sequence: int = 0


class WorkerOutput:
    """The records of all workers in one of their rings, and the callers that follow them.

    rings    the rings; None if the system has no memory for them
    area     the ring
    sources  returns the processes that write
    own      the arbiter's own records; None if this ring needs none
    clock    returns monotonic seconds

    ended    the last records of workers that have ended
    """

    def __init__(
        self,
        rings: OutputRings | None,
        area: Area,
        sources: Callable[[], Iterable[Source]],
        own: Feed | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ended = Feed(MAX_ENDED_RECORDS, MAX_CHARACTERS)
        self._rings = rings
        self._area = area
        self._sources = sources
        self._own = own
        self._clock = clock
        self._ended_keys: set[int] = set()
        self._followers: list[Caller] = []
        self._cursors: dict[int, _Cursor] = {}
        # The followers' next records, from the arbiter and from workers that have ended.
        self._pending: list[dict[str, Any]] = []
        self._next_look = float("inf")
        if own is not None:
            own.on_record = self.add

    def records(self) -> list[dict[str, Any]]:
        """The past records by time, at most MAX_RECORDS."""
        found = [self.ended.records]
        if self._own is not None:
            found.append(self._own.records)
        for source in self._live():
            records = OutputRecords(source.names)
            entries = self._read(source, _Cursor(records))[0]
            found.append(records.feed(entries, time.time()) + records.flush())
        return fair_share(found, MAX_RECORDS, MAX_CHARACTERS)

    def show(self, caller: Caller, follow: bool) -> None:
        """Send a caller the past records.

        follow  whether to send it new records, too
        """
        if not follow:
            caller.notes(self.records())
            caller.done({})
            return
        self.flush()
        if not self._followers:
            self._pending.clear()
            self._cursors = {each.key: self._at_end(each) for each in self._live()}
        caller.notes(self.records())
        caller.following = True
        self._followers.append(caller)
        self._next_look = self._clock() + POLL_S

    def add(self, record: dict[str, Any]) -> None:
        """Send a record of the arbiter to the followers at the next look, sorted by time."""
        if self._followers:
            self._pending.append(record)

    def wake_at(self) -> float:
        """When to call `tick` next, in seconds of the clock; infinity if nobody follows."""
        return self._next_look

    def tick(self, now: float) -> None:
        """Send the followers new records, if it is time.

        now  seconds of the clock
        """
        if now >= self._next_look:
            self._look()
            after = self._clock()
            self._next_look = after + max(POLL_S, _REST * (after - now))
            if not self._followers:
                self._next_look = float("inf")
                self._cursors.clear()
                self._pending.clear()

    def end(self, source: Source) -> None:
        """Copy the last records of a process that was reaped."""
        cursor = self._cursors.pop(source.key, None)
        if cursor is not None:
            self._pending += self._new(source, cursor) + cursor.records.flush()
        records = OutputRecords(source.names)
        entries = self._read(source, _Cursor(records))[0]
        found = records.feed(entries, time.time()) + records.flush()
        for record in found[-MAX_LAST_RECORDS:]:
            self.ended.append(record)
        self._ended_keys.add(source.key)

    def flush(self) -> None:
        """Send the followers all new records, including those that may still go on."""
        self._look(flush=True)

    def _look(self, flush: bool = False) -> None:
        """Send the followers all new records.

        flush  whether to send the records that may still go on, too
        """
        self._followers = [caller for caller in self._followers if not caller.gone]
        if not self._followers:
            return
        found, self._pending = self._pending, []
        for source in self._live():
            cursor = self._cursors.get(source.key)
            if cursor is None:
                cursor = self._cursors[source.key] = _Cursor(OutputRecords(source.names))
            found += self._new(source, cursor)
            if flush:
                found += cursor.records.flush()
        if found:
            found.sort(key=_by_time)
            for caller in self._followers:
                caller.notes(found)

    def _new(self, source: Source, cursor: _Cursor) -> list[dict[str, Any]]:
        entries, lost = self._read(source, cursor)
        if not entries and not cursor.records.waits:
            return []
        records = cursor.records.feed(entries, time.time())
        if lost:
            text = f"{lost} lines of this worker are missing here: it wrote too many at once"
            gap = {"time": entries[0].time, "level": "warning", **source.names, "text": text}
            records.insert(0, gap)
        return records

    def _at_end(self, source: Source) -> _Cursor:
        cursor = _Cursor(OutputRecords(source.names))
        self._read(source, cursor)
        return cursor

    def _read(self, source: Source, cursor: _Cursor) -> tuple[list[Any], int]:
        """Read a ring from a cursor on, and move the cursor."""
        if self._rings is None or source.row < 0:  # it has no row before its fork
            return [], 0
        reading = self._rings.read(source.row, self._area, cursor.position, cursor.sequence)
        cursor.position, cursor.sequence = reading.position, reading.sequence
        return reading.entries, reading.lost

    def _live(self) -> list[Source]:
        """The processes whose rings are still theirs."""
        sources = list(self._sources())
        self._ended_keys.intersection_update(source.key for source in sources)
        return [source for source in sources if source.key not in self._ended_keys]


def fair_share(
    sources: list[list[dict[str, Any]]], most: int, most_characters: int
) -> list[dict[str, Any]]:
    """The newest records of several sources by time, within limits.

    A source that has many records must not displace those of the others. So each source first gets
    an equal share of the limits. What is left goes to the newest of the remaining records.

    sources          the records of each source, oldest first
    most             how many records to return
    most_characters  how many characters their texts may have together
    """
    sources = [records for records in sources if records]
    if not sources:
        return []
    kept: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    share, characters = most // len(sources), most_characters // len(sources)
    for records in sources:
        count = _fitting(records, share, characters)
        kept += records[len(records) - count :]
        others += records[: len(records) - count]
    others.sort(key=_by_time)
    left = most_characters - sum(len(record["text"]) for record in kept)
    count = _fitting(others, most - len(kept), left)
    kept += others[len(others) - count :]
    kept.sort(key=_by_time)
    return kept


def _fitting(records: list[dict[str, Any]], most: int, characters: int) -> int:
    """How many of the newest records fit into the limits."""
    count = 0
    for record in reversed(records):
        characters -= len(record["text"])
        if count >= most or characters < 0:
            break
        count += 1
    return count
