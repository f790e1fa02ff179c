"""The scoreboard: rows, folding, the load that the gate reads, and the memory behind the table."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from servo.shared_memory import row_layout, scoreboard
from servo.shared_memory.row_layout import (
    LATENCY_BUCKETS,
    ROW_WORDS,
    count_request,
    count_response,
    latency_bucket,
)
from servo.shared_memory.scoreboard import (
    NO_LOAD,
    Scoreboard,
    ScoreboardError,
    ScoreboardFull,
    load_of,
)

NOW = 10**12
MS = 1_000_000
GET_2XX = row_layout.METHOD_0 + 1


@pytest.fixture
def table():
    table = Scoreboard(4)
    yield table
    table.close()


def ready(table: Scoreboard, in_flight: int = 0, connections: int = 0, beat: int = NOW) -> int:
    index = table.allocate(1, 1, 1)
    row = table.row(index)
    row[row_layout.STATE] = row_layout.STATE_READY
    row[row_layout.IN_FLIGHT] = in_flight
    row[row_layout.CONNECTIONS] = connections
    row[row_layout.BEAT_NS] = beat
    return index


def test_a_fresh_row_is_spawned_and_otherwise_empty(table):
    index = table.allocate(serial=7, slot=3, generation=2, now_ns=NOW)
    (seen,) = table.snapshot()
    assert (seen.row_index, seen.serial, seen.slot, seen.generation) == (index, 7, 3, 2)
    assert seen.state == "spawned"
    assert seen.beat_ns == seen.started_ns == NOW
    assert seen.requests == seen.pid == seen.connections == 0
    assert seen.statuses == (0,) * 5
    assert seen.latency == (0,) * LATENCY_BUCKETS


def test_a_reused_row_keeps_nothing_of_its_last_worker(table):
    index = ready(table, in_flight=3, connections=4)
    row = table.row(index)
    for word in range(ROW_WORDS):
        row[word] = row[word] or 9
    table.release(index)
    assert table.snapshot() == []
    assert table.allocate(8, 1, 1) == index
    (seen,) = table.snapshot()
    assert seen.in_flight == seen.connections == seen.lag_us == seen.requests == 0


def test_a_full_table_refuses_and_a_released_row_is_free_again(table):
    indices = [table.allocate(serial, serial, 1) for serial in range(4)]
    assert indices == [0, 1, 2, 3]
    with pytest.raises(ScoreboardFull, match="all 4 rows"):
        table.allocate(9, 9, 1)
    table.release(2)
    assert table.allocate(9, 9, 1) == 2


def test_releasing_a_free_row_does_nothing(table):
    table.release(1)
    index = ready(table)
    table.row(index)[GET_2XX] = 5
    table.release(index)
    table.release(index)
    assert table.totals().requests == 5


def test_rows_outside_of_the_table_are_refused(table):
    for index in (-1, 4):
        with pytest.raises(IndexError):
            table.row(index)
    with pytest.raises(ScoreboardError):
        Scoreboard(0)


def test_totals_survive_the_worker_and_gauges_do_not(table):
    first, second = ready(table, 1, 2), ready(table, 3, 4)
    for index in (first, second):
        row = table.row(index)
        for status in [200] * 9 + [503]:
            count_request(row, "GET", status, 3 * MS)
        row[row_layout.BYTES_OUT] += 1000
    assert table.requests() == ({1: 10}, 20)
    table.release(first)
    assert table.requests() == ({1: 10}, 20)
    totals = table.totals()
    assert totals.requests == 20
    assert totals.statuses == (0, 18, 0, 0, 2)
    assert totals.bytes_out == 2000
    assert totals.latency[latency_bucket(3 * MS)] == sum(totals.latency) == 20
    assert (totals.workers, totals.in_flight, totals.connections) == (1, 3, 4)


# --- the gate's view ----------------------------------------------------------------------------


def test_least_load_is_requests_first_then_connections(table):
    assert table.least_load(NOW) == NO_LOAD
    ready(table, in_flight=2, connections=1)
    assert table.least_load(NOW) == 2 << 32 | 1
    index = ready(table, in_flight=1, connections=900)
    assert table.least_load(NOW) == 1 << 32 | 900 == load_of(table.row(index))
    ready(table, in_flight=1, connections=3)
    assert table.least_load(NOW) == 1 << 32 | 3


def test_ready_counts_workers_that_accept(table):
    assert table.ready() == 0
    index = ready(table, in_flight=0, connections=0)
    ready(table, in_flight=5, connections=9)
    assert table.ready() == 2
    table.row(index)[row_layout.STATE] = row_layout.STATE_DRAINING
    assert table.ready() == 1


def test_a_busy_worker_without_a_fresh_beat_is_not_counted(table):
    index = ready(table, in_flight=1, beat=NOW - 10 * MS)
    assert table.least_load(NOW) == 1 << 32
    assert table.least_load(NOW + 1) == NO_LOAD
    table.row(index)[row_layout.IN_FLIGHT] = 0
    assert table.least_load(NOW + 10**10) == 0


@pytest.mark.parametrize("state", [0, 1, 2, 4, 5])
def test_only_ready_workers_are_counted(table, state):
    table.row(ready(table))[row_layout.STATE] = state
    assert table.least_load(NOW) == NO_LOAD


def test_the_largest_counts_still_make_a_load(table):
    ready(table, in_flight=2**32 - 1, connections=2**32 - 1)
    assert table.least_load(NOW) < NO_LOAD


# --- the memory ---------------------------------------------------------------------------------


def test_a_child_writes_what_the_parent_reads(table):
    index = table.allocate(1, 1, 1)
    pid = os.fork()
    if pid == 0:
        row = table.row(index)
        row[GET_2XX] += 41
        row[GET_2XX] += 1
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert table.totals().requests == 42


def test_a_process_that_mapped_it_earlier_sees_rows_allocated_later(table):
    other = Scoreboard.attach(os.dup(table.fd))
    ready(table, connections=5)
    assert other.least_load(NOW) == 5
    assert [row.connections for row in other.snapshot()] == [5]
    other.close()


def test_attach_refuses_other_files(tmp_path):
    path = tmp_path / "file"
    for content, reason in ((b"x" * 10, "10 bytes"), (bytes(ROW_WORDS * 8 * 4), "version")):
        path.write_bytes(content)
        fd = os.open(path, os.O_RDWR)
        with pytest.raises(ScoreboardError, match=reason):
            Scoreboard.attach(fd)
        os.close(fd)


def test_a_directory_holds_an_unlinked_file_allocated_in_full(tmp_path):
    table = Scoreboard(16, str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    status = os.fstat(table.fd)
    assert status.st_nlink == 0
    assert status.st_blocks * 512 >= status.st_size == 18 * ROW_WORDS * 8
    assert not os.get_inheritable(table.fd)
    ready(table)
    table.close()


def test_a_missing_directory_raises_a_scoreboard_error(tmp_path):
    with pytest.raises(ScoreboardError, match="missing"):
        Scoreboard(4, str(tmp_path / "missing"))


def test_a_full_file_system_raises_a_scoreboard_error(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ScoreboardError, match=r"allocate \d+ bytes in memory.*No space left"):
        Scoreboard(4)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("memfd", ["absent", "refused"])
def test_without_memfd_and_fallocate_an_ordinary_file_does(monkeypatch, memfd):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    if memfd == "absent":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.delattr(os, "posix_fallocate")
    table = Scoreboard(4)
    assert os.fstat(table.fd).st_nlink == 0
    ready(table, connections=3)
    assert table.least_load(NOW) == 3
    table.close()


def test_a_row_stays_usable_after_close(table):
    row = table.row(table.allocate(1, 1, 1))
    table.close()
    row[row_layout.ACCEPTED] += 1
    assert row[row_layout.ACCEPTED] == 1


def test_a_fold_that_never_ends_does_not_block_readers(table):
    index = ready(table)
    table.row(index)[GET_2XX] = 3
    table._words[scoreboard._FOLDING] += 1
    assert table.totals().requests == 3


# --- any history --------------------------------------------------------------------------------


class AnyHistory(RuleBasedStateMachine):
    """Workers start, count and end in any order. The totals are the sum of everything counted."""

    rows = Bundle("rows")

    def __init__(self) -> None:
        super().__init__()
        self.table = Scoreboard(6)
        self.live: dict[int, int] = {}
        self.counted = 0
        self.serial = 0
        self.seen = 0

    @rule(target=rows)
    def allocate(self):
        self.serial += 1
        if len(self.live) == 6:
            with pytest.raises(ScoreboardFull):
                self.table.allocate(self.serial, 1, 1)
            return None
        index = self.table.allocate(self.serial, 1, 1)
        assert index not in self.live
        self.live[index] = self.serial
        return index, self.serial

    @rule(row=rows, count=st.integers(1, 1000))
    def count(self, row, count):
        if row is None or self.live.get(row[0]) != row[1]:
            return
        words = self.table.row(row[0])
        words[GET_2XX] += count
        self.counted += count

    @rule(row=consumes(rows))
    def release(self, row):
        if row is not None:
            self.table.release(row[0])
            del self.live[row[0]]

    @invariant()
    def totals_are_all_that_was_counted_and_never_go_back(self):
        totals = self.table.totals()
        assert totals.requests == totals.statuses[1] == self.counted >= self.seen
        self.seen = totals.requests
        assert totals.workers == len(self.live)
        assert {row.row_index: row.serial for row in self.table.snapshot()} == self.live

    def teardown(self):
        self.table.close()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=20, stateful_step_count=15)


def test_the_size_of_the_file_can_not_be_changed():
    """If a worker could truncate it, SIGBUS would kill the arbiter when it reads the table."""
    board = Scoreboard(3)
    size = os.fstat(board.fd).st_size
    for other in (0, size - 1, size + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(board.fd, other)
    board.close()


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="there is no /dev/shm")
def test_a_file_in_dev_shm_works_without_seals():
    board = Scoreboard(3, "/dev/shm")
    assert board.capacity == 3
    board.close()


def test_totals_are_right_while_another_process_folds_rows():
    """Workers count, end and are folded all the time. Totals neither go back nor run ahead."""
    table = Scoreboard(6)
    # Only the arbiter's own thread may read through the arbiter's object. This one reads as another
    # process does.
    other = Scoreboard.attach(os.dup(table.fd))
    done = threading.Event()
    counted = [0]

    def life() -> Iterator[None]:
        for serial in range(400):
            index = table.allocate(serial, 1, 1)
            row = table.row(index)
            for _ in range(5):
                counted[0] += 1
                count_response(row, "GET", 200)
            table.release(index)
            yield

    def run() -> None:
        for _ in life():
            continue
        done.set()

    # The reader falls back on these totals when a thread is held up in the middle of a fold.
    last = other.totals().requests
    thread = threading.Thread(target=run)
    thread.start()
    while not done.is_set():
        totals = other.totals()
        ahead = counted[0]
        assert last <= totals.requests <= ahead
        last = totals.requests
    thread.join()
    assert other.totals().requests == table.totals().requests == counted[0] == 2000
    other.close()
    table.close()


def test_the_next_program_goes_on_with_rows_and_sums(table):
    gone = table.allocate(1, 1, 1)
    count_request(table.row(gone), "GET", 200, MS)
    table.release(gone)
    index = ready(table, in_flight=3)
    table.forked(index, 4711)
    count_request(table.row(index), "GET", 200, MS)
    state = json.loads(json.dumps(table.to_state(lambda fd: fd)))
    after = Scoreboard.from_state(state, os.dup)
    assert after.totals() == table.totals()
    assert after.snapshot() == table.snapshot()
    assert after.check(NOW) == []
    # It is the owner: it knows which rows are free, and notices one that was overwritten.
    other = after.allocate(2, 2, 1)
    assert other != index
    after.row(index)[row_layout.PID] = 1
    assert after.check(NOW) == [1]
    after.release(index)
    assert after.totals().requests == 2
    after.close()


def test_the_table_of_another_layout_is_refused(table):
    state = {**table.to_state(lambda fd: fd), "layout": 0}
    with pytest.raises(ScoreboardError, match="layout of another version"):
        Scoreboard.from_state(state, os.dup)
