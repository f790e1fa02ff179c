"""The load gate, with a real scoreboard and fake times."""

from __future__ import annotations

import pytest

from servo.shared_memory import row_layout
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.accept.gate import MAX_WAITS, Gate

NOW = 10**12


@pytest.fixture
def board():
    board = Scoreboard(8)
    yield board
    board.close()


def worker(board, connections=0, in_flight=0, beat=NOW, state=row_layout.STATE_READY):
    serial = len(board.snapshot()) + 1
    row = board.row(board.allocate(serial, serial, 1))
    row[row_layout.STATE] = state
    row[row_layout.CONNECTIONS] = connections
    row[row_layout.IN_FLIGHT] = in_flight
    row[row_layout.BEAT_NS] = beat
    return row


def test_the_least_loaded_is_let_through(board):
    own = worker(board, connections=3)
    worker(board, connections=3)
    worker(board, connections=9)
    assert Gate(board, own, alone=False).admits(NOW)


def test_the_busier_waits_a_few_times_and_then_takes_it(board):
    own = worker(board, connections=3)
    worker(board, connections=2)
    gate = Gate(board, own, alone=False)
    answers = [gate.admits(NOW) for _ in range(2 * (MAX_WAITS + 1))]
    assert answers == ([False] * MAX_WAITS + [True]) * 2


def test_requests_in_flight_weigh_more_than_connections(board):
    own = worker(board, connections=1, in_flight=1)
    worker(board, connections=100)
    assert not Gate(board, own, alone=False).admits(NOW)


@pytest.mark.parametrize(
    "sibling",
    [
        {"in_flight": 1, "beat": NOW - 20_000_000},  # its loop is blocked
        {"state": row_layout.STATE_DRAINING},
        {"state": row_layout.STATE_BOOTING},
    ],
)
def test_siblings_that_can_not_accept_do_not_count(board, sibling):
    own = worker(board, connections=5, in_flight=2)
    worker(board, **sibling)
    assert Gate(board, own, alone=False).admits(NOW)


def test_a_worker_alone_needs_no_gate(board):
    own = worker(board, connections=5)
    worker(board)
    assert Gate(board, own, alone=True).admits(NOW)
