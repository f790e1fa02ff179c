"""Counters that all processes of a server add to, for applications.

    HITS = cluster.counter("hits")
    HITS.add()
    HITS.value()  # of the whole server

The counters are in shared memory: servo.shared_memory.counters explains how. They start at 0 with
the server, and keep their values when processes end or are killed, in reloads and in upgrades.

Outside a server, in a shell or a test, the counters belong to this process and its children.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any, Final

from servo.shared_memory.counters import MAX_NAME_BYTES, CounterTable

MAX_LABELS: Final = 8
# The longest name. The labels need the rest of MAX_NAME_BYTES.
MAX_NAME_LENGTH: Final = 100
# The size of the table outside a server.
_LOCAL_CAPACITY = 1000
_LOCAL_ROWS = 64

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
# The names of Servo's own counters, which `counter` refuses.
OWN_PREFIX: Final = "servo_"


class Counter:
    """A counter of the whole server; see `counter`.

    name    its name
    labels  its labels and their values
    """

    __slots__ = ("_key", "_place", "_table", "labels", "name")

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        self.name = name
        self.labels = labels
        self._key = json.dumps([name, labels], separators=(",", ":"), sort_keys=True).encode()
        self._table: CounterTable | None = None
        self._place = 0

    def __repr__(self) -> str:
        labels = "".join(f", {name}={value!r}" for name, value in self.labels.items())
        return f"<cluster.counter({self.name!r}{labels})>"

    def add(self, amount: int = 1) -> None:
        """Add to the counter. Takes less than a microsecond, and never waits for another process.

        amount  a whole number, 0 or more

        The addition is not lost, even if this process is killed right after it. Raises TypeError or
        ValueError for another amount, and CountersFull if too many processes use counters.
        """
        if amount.__class__ is not int:
            raise TypeError(f"a counter adds whole numbers, not {amount!r}")
        if amount < 0:
            raise ValueError(f"a counter only grows: it can't add {amount}")
        self.change(amount)

    def change(self, amount: int) -> None:
        """Add any whole number. For Servo itself: an application's counter must only grow."""
        table = self._table
        if table is None or table is not _table:
            table = self.bind()
        table.add(self._place, amount)

    def value(self) -> int:
        """The sum of all additions in all processes of the server, ended ones included."""
        table = self._table
        if table is None or table is not _table:
            table = self.bind()
        return table.value(self._place)

    def bind(self) -> CounterTable:
        """Find this counter's place in the table of the server. Raises as `counter`."""
        table = installed()
        _check_label_names(table, self)
        self._place = table.place_of(self._key)
        self._table = table
        return table


def counter(name: str, /, **labels: object) -> Counter:
    """Get the server's counter with this name and these labels. It is created with the value 0.

    name    letters, digits and underscores, as Prometheus wants; not beginning with "servo_"
    labels  values that distinguish counters of one name, such as `route="/"`; each combination is
            a counter of its own

    /metrics shows all counters. Raises ValueError for a name or label that is not valid, and
    CountersFull if the table has no room (`cluster_counters`).
    """
    _check_name(name, "a counter's name")
    key: Any = name
    if labels:
        labels = {each: str(value) for each, value in labels.items()}
        key = (name, *sorted(labels.items()))
    found = _counters.get(key)
    if found is None:
        found = _checked(name, labels)
        if _table is not None:
            found.bind()
        if len(_counters) < _MOST_KNOWN:
            _counters[key] = found
    elif _table is not None and found._table is not _table:
        found.bind()
    return found


# The counters that this process has asked for, by name and labels.
_counters: dict[Any, Counter] = {}
# More than this many are not remembered, so that wrong labels can't fill the memory.
_MOST_KNOWN = 10_000
# The server's table; None before the server starts, or outside of one until a counter is used.
_table: CounterTable | None = None


def install(table: CounterTable | None) -> None:
    """Let all counters of this process, and of the processes it forks, use this table."""
    global _table
    _table = table


def installed() -> CounterTable:
    """Return the table that this process uses, and make one outside of a server."""
    global _table
    if _table is None:
        _table = CounterTable(_LOCAL_CAPACITY, _LOCAL_ROWS)
    return _table


def decode(key: bytes) -> tuple[str, dict[str, str]] | None:
    """The name and labels of a counter in the table; None if something has overwritten them.

    key  its name in the table
    """
    try:
        name, labels = json.loads(key)
        _checked(name, labels, own=True)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return name, labels


def _checked(name: Any, labels: dict[str, Any], own: bool = False) -> Counter:
    _check_name(name, "a counter's name")
    if name.startswith(OWN_PREFIX) and not own:
        raise ValueError(f"names that begin with {OWN_PREFIX} are Servo's own: {name!r}")
    if name.endswith("_total"):
        raise ValueError(f"/metrics appends _total to a counter's name: leave it out of {name!r}")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"a counter can have {MAX_LABELS} labels, not {len(labels)}: {name!r}")
    for label in labels:
        _check_name(label, "a label's name")
        if label.startswith("__"):
            raise ValueError(f"names of labels that begin with __ are Prometheus' own: {label!r}")
    found = Counter(name, {label: str(labels[label]) for label in sorted(labels)})
    if len(found._key) > MAX_NAME_BYTES:
        raise ValueError(
            f"the name and labels of the counter {name!r} have {len(found._key)} bytes in JSON, "
            f"more than {MAX_NAME_BYTES}"
        )
    return found


# The names of the labels of each counter in `_labels_table`, by the counter's name, and how many
# names of that table they include.
_label_names: dict[str, list[str]] = {}
_labels_read = 0
_labels_table: CounterTable | None = None


def _check_label_names(table: CounterTable, counter: Counter) -> None:
    """Raise ValueError if the server has a counter of this name with other names of labels."""
    global _labels_read, _labels_table
    if _labels_table is not table:
        _label_names.clear()
        _labels_read, _labels_table = 0, table
    names = table.names()
    for key in itertools.islice(names, _labels_read, None):
        found = decode(key)
        if found is not None:
            _label_names.setdefault(found[0], list(found[1]))
    _labels_read = len(names)
    known = _label_names.get(counter.name)
    if known is not None and known != list(counter.labels):
        raise ValueError(
            f"the counter {counter.name!r} has the labels {known} elsewhere, "
            f"not {list(counter.labels)}: all counters of one name need the same labels"
        )


def _check_name(name: Any, what: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{what} must be text, not {name!r}")
    if len(name) > MAX_NAME_LENGTH:
        raise ValueError(f"{what} can have {MAX_NAME_LENGTH} characters: {name[:40]!r}…")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} has only letters, digits and underscores, not {name!r}")
