"""The memory that a pool's processes, callers and the arbiter share."""

from __future__ import annotations

import os

import pytest

from servo.pools import board as board_module
from servo.pools.board import (
    ABANDONED,
    BOOTING,
    BUCKETS_S,
    BUSY,
    DONE,
    FAILED,
    IDLE,
    TIMED_OUT,
    Board,
    Exit,
    bucket_of,
)


@pytest.fixture
def board():
    board = Board()
    yield board
    board.close()


def again(board):
    """The board as another process sees it."""
    return Board(os.dup(board.fd))


def test_a_row_shows_what_its_process_does(board):
    row = board.row(board.allocate(7))
    assert (row.serial, row.state, row.pid) == (7, BOOTING, 0)
    row.pid = 1234
    row.ready()
    assert (row.state, row.pid, row.started) == (IDLE, 1234, 0)
    row.begin("module.function", 42)
    assert (row.state, row.label, row.started) == (BUSY, "module.function", 1)
    assert row.since_ns > 0
    assert board.is_running(42)
    row.end(FAILED)
    assert not board.is_running(42)
    row.begin("f", 43)
    row.skip()
    assert not board.is_running(43)
    assert row.state == IDLE
    assert row.totals.outcomes == (0, 1, 1, 0)
    assert sum(row.totals.durations) == 1
    row.begin("x" * 1000, 1)
    assert row.label == "x" * 256
    row.begin("short", 1)
    assert row.label == "short"


def test_another_process_sees_the_same(board):
    other = again(board)
    row = board.row(board.allocate(3))
    row.begin("f", 42)
    assert (other.row(0).serial, other.row(0).label) == (3, "f")
    del row
    other.close()


def test_the_totals_of_ended_processes_are_kept(board):
    for serial in (1, 2):
        index = board.allocate(serial)
        row = board.row(index)
        row.begin("f", 42)
        row.end(DONE)
        row.begin("f", 42)
        row.end(ABANDONED)
        board.release(index)
        assert row.serial == 0
    board.count_lost()
    totals = board.ended_totals()
    assert totals.outcomes == (2, 0, 2, 1)
    assert sum(totals.durations) == 4
    assert totals.busy_ns > 0
    assert board.row(board.allocate(3)).totals.outcomes == (0, 0, 0, 0)


def test_exits_are_found_by_the_key_of_the_task_until_they_are_overwritten(board):
    board.record_exit(5, 42, 99, TIMED_OUT, "it took ä while")
    assert again(board).exit_of(42) == Exit(99, TIMED_OUT, "it took ä while")
    assert board.exit_of(43) is None
    board.record_exit(5 + 256, 43, 100, 0, "x" * 1000)
    assert board.exit_of(42) is None
    assert board.exit_of(43).reason == "x" * (27 * 8)


def test_the_key_of_a_dead_process_moves_from_its_row_to_its_exit(board):
    index = board.allocate(1)
    row = board.row(index)
    row.begin("f", 42)
    assert board.is_running(42)
    board.record_exit(1, row.key, 9, 0, "died")
    board.release(index)
    assert not board.is_running(42)
    assert board.exit_of(42) is not None


def test_the_rows_are_limited(board, monkeypatch):
    monkeypatch.setattr(board_module, "ROWS", 2)
    board.allocate(1)
    board.allocate(2)
    with pytest.raises(OSError, match="more than 2 processes"):
        board.allocate(3)
    board.release(0)
    assert board.allocate(3) == 0


def test_buckets():
    assert bucket_of(0) == 0
    assert bucket_of(int(BUCKETS_S[3] * 1e9)) == 3
    assert bucket_of(10**15) == len(BUCKETS_S)


def test_nobody_can_change_its_size(board):
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(board.fd, size)


def test_the_arbiter_does_not_believe_which_rows_are_free(board):
    """The application runs in the processes that write to the board."""
    first = board.allocate(1)
    board._row(first)[0] = 0
    assert board.allocate(2) != first
    board._row(5)[0] = 99
    assert [board.allocate(n) for n in range(3, 9)] == [2, 3, 4, 5, 6, 7]
    board.take_over(8)
    assert board.allocate(9) == 9


def test_a_label_has_no_control_characters(board):
    row = board.row(board.allocate(1))
    row.begin("a\nb [INFO] forged", 1)
    assert row.label == r"a\nb [INFO] forged"


def test_a_board_in_use_can_be_closed():
    board = Board()
    row = board.row(0)
    board.close()
    assert row.serial == 0  # the mapping lives as long as the row


def test_its_descriptor_can_be_closed_before_it(board):
    row = board.row(board.allocate(1))
    board.close_descriptor()
    board.close_descriptor()
    assert row.serial == 1
