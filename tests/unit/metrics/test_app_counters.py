"""The application's counters on /metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from servo.metrics.app_counters import AppCounters
from servo.shared_memory.counters import CounterTable


@pytest.fixture
def table() -> Iterator[CounterTable]:
    table = CounterTable(capacity=8, rows=4)
    yield table
    table.close()


def add(table: CounterTable, key: bytes, amount: int) -> None:
    table.add(table.place_of(key), amount)


def test_counters_by_name_and_labels(table: CounterTable) -> None:
    counters = AppCounters(table)
    assert counters.read() == {}
    add(table, b'["hits",{"route":"/"}]', 2)
    add(table, b'["hits",{"route":"/a"}]', 3)
    add(table, b'["jobs",{}]', 1)
    found = counters.read()
    assert list(found) == ["hits", "jobs"]
    assert found["hits"].labels == ("route",)
    assert found["hits"].values == {("/",): 2, ("/a",): 3}
    assert found["jobs"].values == {(): 1}
    add(table, b'["hits",{"route":"/"}]', 5)
    assert counters.read()["hits"].values["/",] == 7


def test_other_labels_of_a_name_are_left_out(table: CounterTable) -> None:
    add(table, b'["hits",{"route":"/"}]', 2)
    add(table, b'["hits",{}]', 3)
    assert AppCounters(table).read()["hits"].values == {("/",): 2}


def test_values_never_decrease(table: CounterTable) -> None:
    add(table, b'["hits",{}]', 2)
    counters = AppCounters(table)
    counters.read()
    add(table, b'["hits",{}]', -10)
    assert counters.read()["hits"].values == {(): 2}


def test_an_overwritten_name_is_left_out(table: CounterTable) -> None:
    add(table, b'["hits",{}]', 2)
    add(table, b"junk\xff", 2)
    os.pwrite(table.fd, b"\xff" * 100, 4096 + 512)
    assert list(AppCounters(table).read()) == ["hits"]
