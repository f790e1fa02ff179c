"""`cluster.counter` outside of a server, and with the table of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from servo import cluster
from servo.cluster import counters
from servo.cluster.counters import decode, install, installed
from servo.shared_memory.counters import CounterTable


@pytest.fixture(autouse=True)
def table() -> Iterator[CounterTable]:
    """The table of a server."""
    table = CounterTable(capacity=6, rows=4)
    install(table)
    yield table
    install(None)
    table.close()
    counters._counters.clear()


def test_add_and_value() -> None:
    hits = cluster.counter("hits")
    hits.add()
    hits.add(5)
    hits.add(0)
    assert hits.value() == 6
    assert cluster.counter("hits") is hits
    assert repr(hits) == "<cluster.counter('hits')>"


def test_labels_make_counters_of_their_own() -> None:
    first, second = (
        cluster.counter("hits", route="/", code=200),
        cluster.counter("hits", code=404, route="/"),
    )
    first.add(2)
    second.add(3)
    assert (first.value(), second.value()) == (2, 3)
    assert cluster.counter("hits", code="200", route="/") is first
    assert first.labels == {"code": "200", "route": "/"}
    assert repr(first) == "<cluster.counter('hits', code='200', route='/')>"


def test_values_that_are_equal_but_read_differently() -> None:
    cluster.counter("hits", kind=1).add()
    assert cluster.counter("hits", kind=True).value() == 0


def test_a_counter_may_be_called_name() -> None:
    cluster.counter("hits", name="x").add()
    assert cluster.counter("hits", name="x").value() == 1


@pytest.mark.parametrize(
    ("amount", "error", "text"),
    [
        (-1, ValueError, "only grows"),
        (1.5, TypeError, r"whole numbers, not 1\.5"),
        ("1", TypeError, "whole numbers, not '1'"),
        (True, TypeError, "whole numbers, not True"),
    ],
)
def test_wrong_amounts(amount: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        cluster.counter("hits").add(amount)


@pytest.mark.parametrize(
    ("name", "labels", "text"),
    [
        ("x" * 101, {}, "can have 100 characters"),
        ("cache.hits", {}, "only letters, digits and underscores"),
        ("", {}, "only letters"),
        ("2fast", {}, "only letters"),
        ("größe", {}, "only letters"),
        ("servo_requests", {}, "Servo's own"),
        ("hits_total", {}, "appends _total"),
        ("hits", {f"l{each}": 1 for each in range(9)}, "8 labels, not 9"),
        ("hits", {"a-b": 1}, "a label's name has only letters"),
        ("hits", {"__a": 1}, "Prometheus' own"),
        ("hits", {"user": "x" * 300}, "more than 254"),
    ],
)
def test_wrong_names(name: str, labels: dict[str, Any], text: str, table: CounterTable) -> None:
    with pytest.raises(ValueError, match=text):
        cluster.counter(name, **labels)
    assert table.count == 0


def test_a_name_that_is_no_text() -> None:
    with pytest.raises(TypeError, match="must be text, not 5"):
        cluster.counter(5)  # type: ignore[arg-type]


def test_other_labels_under_the_same_name() -> None:
    cluster.counter("hits", route="/")
    with pytest.raises(ValueError, match=r"has the labels \['route'\] elsewhere, not \[\]"):
        cluster.counter("hits")


def test_a_full_table_names_its_setting() -> None:
    for each in range(6):
        cluster.counter("hits", user=each)
    with pytest.raises(cluster.CountersFull, match="cluster_counters"):
        cluster.counter("hits", user=6)
    with pytest.raises(cluster.ClusterError):
        cluster.counter("hits", user=6)
    assert cluster.counter("hits", user=5).value() == 0


def test_a_counter_from_before_the_server(table: CounterTable) -> None:
    """A configuration file is read before the server has its table."""
    install(None)
    early = cluster.counter("early")
    install(table)
    early.add(2)
    assert table.names() == {b'["early",{}]': 0}
    assert cluster.counter("early") is early
    assert early.value() == 2


def test_outside_of_a_server_counters_work_in_the_process_and_its_children() -> None:
    install(None)
    hits = cluster.counter("local")
    hits.add()
    pid = os.fork()
    if pid == 0:
        hits.add(4)
        os._exit(0)
    os.waitpid(pid, 0)
    assert hits.value() == 5
    installed().close()


def test_few_counters_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_MOST_KNOWN", 1)
    first = cluster.counter("a")
    second = cluster.counter("b")
    second.add()
    assert cluster.counter("a") is first
    assert cluster.counter("b") is not second
    assert cluster.counter("b").value() == 1


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"\xff",
        b"[]",
        b"3",
        b'["x"]',
        b'["x",3]',
        b'["a b",{}]',
        b'["x",{"a":1,"":2}]',
        b"[" * 99999,
    ],
)
def test_an_overwritten_name_is_no_counter(key: bytes) -> None:
    assert decode(key) is None


def test_a_name_is_decoded() -> None:
    assert decode(b'["x",{"a":"1"}]') == ("x", {"a": "1"})
    assert decode(b'["servo_jobs",{}]') == ("servo_jobs", {})
