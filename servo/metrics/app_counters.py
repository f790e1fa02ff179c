"""Reads the application's counters (`servo.cluster`) for /metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from servo.cluster.counters import decode
from servo.cluster.schedules import DUE

if TYPE_CHECKING:
    from servo.shared_memory.counters import CounterTable


@dataclass
class AppCounter:
    """All counters of one name.

    labels  the names of the labels
    values  the counters' values, by the labels' values
    """

    labels: tuple[str, ...]
    values: dict[tuple[str, ...], int]


class AppCounters:
    """Reads the counters, and skips those that something has overwritten.

    table  the server's table of counters
    """

    def __init__(self, table: CounterTable) -> None:
        self._table = table
        self._counters: dict[str, AppCounter] = {}
        # The place of each counter in the table, with the counter and its labels' values.
        self._places: dict[int, tuple[AppCounter, tuple[str, ...]]] = {}
        self._read = 0

    def read(self) -> dict[str, AppCounter]:
        """The counters by name, in the order of their creation. Their values never decrease."""
        self._read_names()
        for place, (counter, values) in self._places.items():
            value = self._table.value(place)
            counter.values[values] = max(value, counter.values[values])
        return self._counters

    def _read_names(self) -> None:
        if self._table.count == self._read:
            return
        names = self._table.names()
        for key, place in list(names.items())[self._read :]:
            found = decode(key)
            if found is None:
                continue
            name, labels = found
            if name == DUE:  # a moment, not a number of things
                continue
            counter = self._counters.setdefault(name, AppCounter(tuple(labels), {}))
            # `cluster.counter` refuses other labels, but two processes may add them at one moment.
            if counter.labels == tuple(labels):
                values = tuple(labels.values())
                counter.values[values] = 0
                self._places[place] = counter, values
        self._read = len(names)
