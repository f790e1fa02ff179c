"""Measures of saturation, from rows that a real scoreboard has written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from servo.metrics import saturation
from servo.metrics.saturation import Threads
from servo.shared_memory import row_layout
from servo.shared_memory.scoreboard import Scoreboard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servo.shared_memory.scoreboard import RowSnapshot

NOW_NS = 1_000_000_000_000
S = 1_000_000_000


@pytest.fixture
def table() -> Iterator[Scoreboard]:
    table = Scoreboard(4)
    yield table
    table.close()


def row_of(table: Scoreboard, **words: int) -> RowSnapshot:
    """A ready worker's row with the given words, by name."""
    row = table.row(table.allocate(1, 1, 1, NOW_NS))
    row[row_layout.STATE] = row_layout.STATE_READY
    row[row_layout.BEAT_NS] = NOW_NS
    for name, value in words.items():
        row[getattr(row_layout, name.upper())] = value
    (snapshot,) = table.snapshot()
    return snapshot


@pytest.mark.parametrize(
    ("in_flight", "connections", "silent_s", "is_blocked"),
    [
        (1, 1, 0.04, False),  # a heartbeat comes every 5 ms
        (1, 1, 0.06, True),
        (0, 1, 1.5, False),  # ... once a second
        (0, 1, 2.5, True),
        (0, 0, 9.0, False),  # ... every 5 s
        (0, 0, 11.0, True),
    ],
)
def test_a_worker_without_heartbeats_is_blocked(
    table: Scoreboard, in_flight: int, connections: int, silent_s: float, is_blocked: bool
) -> None:
    beat_ns = NOW_NS - int(silent_s * S)
    row = row_of(table, in_flight=in_flight, connections=connections, beat_ns=beat_ns)
    assert saturation.blocked_s(row, NOW_NS) == pytest.approx(silent_s if is_blocked else 0.0)


@pytest.mark.parametrize("state", [row_layout.STATE_SPAWNED, row_layout.STATE_BOOTING])
def test_a_worker_that_boots_is_not_blocked(table: Scoreboard, state: int) -> None:
    row = row_of(table, state=state, in_flight=1, beat_ns=NOW_NS - 60 * S)
    assert saturation.blocked_s(row, NOW_NS) == 0.0


def test_a_draining_worker_can_be_blocked(table: Scoreboard) -> None:
    state = row_layout.STATE_DRAINING
    row = row_of(table, state=state, in_flight=1, beat_ns=NOW_NS - 60 * S)
    assert saturation.blocked_s(row, NOW_NS) == 60.0


def test_a_worker_without_any_heartbeat_is_not_blocked(table: Scoreboard) -> None:
    assert saturation.blocked_s(row_of(table, in_flight=1, beat_ns=0), NOW_NS) == 0.0


def test_a_heartbeat_in_the_future_is_no_negative_time(table: Scoreboard) -> None:
    row = row_of(table, in_flight=1, beat_ns=NOW_NS + S)
    assert saturation.blocked_s(row, NOW_NS) == 0.0


def test_the_lag_of_a_blocked_worker_is_not_its_last_one(table: Scoreboard) -> None:
    row = row_of(table, in_flight=1, lag_us=3000)
    assert saturation.lag_s(row, NOW_NS) == pytest.approx(0.003)
    assert saturation.lag_s(row, NOW_NS + 2 * S) == pytest.approx(2.0)


def test_utilisation_is_what_the_worker_measured(table: Scoreboard) -> None:
    row = row_of(table, utilisation=250_000, in_flight=1)
    assert saturation.utilisation(row, NOW_NS) == pytest.approx(0.25)


@pytest.mark.parametrize(("silent_s", "expected"), [(1, 0.4), (4, 0.85), (5, 1.0), (900, 1.0)])
def test_a_blocked_worker_is_in_full_use(table: Scoreboard, silent_s: int, expected: float) -> None:
    row = row_of(table, utilisation=250_000, in_flight=1, beat_ns=NOW_NS - silent_s * S)
    assert saturation.utilisation(row, NOW_NS) == pytest.approx(expected)


def test_an_overwritten_utilisation_is_no_more_than_full(table: Scoreboard) -> None:
    assert saturation.utilisation(row_of(table, utilisation=1 << 63), NOW_NS) == 1.0


def test_the_server_is_as_busy_as_its_ready_workers(table: Scoreboard) -> None:
    row_of(table, utilisation=500_000)
    for state, millionths in [
        (row_layout.STATE_READY, 1_000_000),
        (row_layout.STATE_BOOTING, 0),
        (row_layout.STATE_DRAINING, 0),
    ]:
        row = table.row(table.allocate(2, 2, 1, NOW_NS))
        row[row_layout.STATE], row[row_layout.UTILISATION] = state, millionths
        row[row_layout.BEAT_NS] = NOW_NS
    assert saturation.server_utilisation(table.snapshot(), NOW_NS) == pytest.approx(0.75)
    assert saturation.server_utilisation([], NOW_NS) is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"threads": 0, "in_flight": 3}, None),  # the event loop runs the application
        ({"threads": 4, "in_flight": 3}, (3, 1, 0)),
        ({"threads": 4, "in_flight": 7}, (4, 0, 3)),
        ({"threads": 4, "in_flight": 7, "thread_requests": 2}, (2, 2, 0)),
    ],
)
def test_threads(table: Scoreboard, words: dict[str, int], expected: Threads | None) -> None:
    words = {"thread_requests": row_layout.LIKE_IN_FLIGHT, **words}
    assert saturation.threads(row_of(table, **words)) == expected


def test_the_threads_of_all_workers(table: Scoreboard) -> None:
    for state, in_flight in [
        (row_layout.STATE_READY, 5),
        (row_layout.STATE_DRAINING, 1),
        (row_layout.STATE_BOOTING, 1),
    ]:
        row = table.row(table.allocate(1, 1, 1, NOW_NS))
        row[row_layout.STATE], row[row_layout.IN_FLIGHT] = state, in_flight
        row[row_layout.THREADS] = 4
        row[row_layout.THREAD_REQUESTS] = row_layout.LIKE_IN_FLIGHT
    assert saturation.server_threads(table.snapshot()) == (5, 3, 1)
    assert saturation.server_threads([]) is None
