"""Any bytes written anywhere in the shared table: readers go on, and no counter goes back."""

from __future__ import annotations

import logging
import os
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from servo.logs.entry_counts import count_log
from servo.logs.error_log import ERROR_LOGGER
from servo.metrics import arbiter_facts as facts_module
from servo.metrics.arbiter_facts import Facts
from servo.metrics.families import Reader, families, status
from servo.shared_memory import row_layout
from servo.shared_memory.row_layout import ROW_WORDS, STATE_READY, count_request
from servo.shared_memory.scoreboard import Scoreboard, load_of

REASONS = ("asked", "crashed")
WORKERS = 3
SIZE = (WORKERS + 1 + 2) * ROW_WORDS * 8
GET_OK = row_layout.OK_WORDS["GET"][20]

INTERESTING = [0, 1, 6, 2**32, 2**61, 2**63, 2**64 - 1]
# An offset, a pattern, and the number of bytes to fill with the pattern (0: write it once).
junk = st.one_of(
    st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=64), st.just(0)),
    st.tuples(
        st.integers(0, SIZE // 8 - 1).map(lambda word: word * 8),
        st.sampled_from(INTERESTING).map(lambda value: value.to_bytes(8, "little")),
        st.sampled_from([8, 16, ROW_WORDS * 8, SIZE]),
    ),
    st.tuples(st.just(0), st.binary(min_size=7, max_size=99), st.just(SIZE)),
)


class Arbiter:
    """The parts of the arbiter that read the table, and a reader as in another process."""

    def __init__(self) -> None:
        self.board = Scoreboard(WORKERS + 1)
        self.memory = self.board._bytes
        self.facts = Facts(self.board.arbiter_words, REASONS)
        self.facts.begin(os.getpid())
        self.rows = {}
        for serial in range(1, WORKERS + 1):
            index = self.board.allocate(serial, serial, 1, time.monotonic_ns())
            self.board.forked(index, 4000 + serial)
            row = self.rows[index] = self.board.row(index)
            row[row_layout.STATE] = STATE_READY
            for _ in range(serial):
                count_request(row, "GET", 200, 1 << 19)
        other = Scoreboard.attach(os.dup(self.board.fd))
        self.other = other
        self.reader = Reader(other, Facts(other.arbiter_words, REASONS), [])

    def read(self) -> tuple[object, object]:
        """Read everything that the arbiter and the metrics process read. Returns their counters."""
        now = time.monotonic_ns()
        self.board.snapshot()
        rows, total = self.board.requests()
        assert set(rows) <= set(range(1, WORKERS + 2))
        assert total >= 0
        for board in (self.board, self.other):
            board.least_load(now)
            assert 0 <= board.ready() <= WORKERS + 1
        for row in self.rows.values():
            load_of(row)
        seen = self.reader.read(processes=False, queues=False)
        for family in families(seen):
            for sample in family.samples:
                float(sample[-1])
        status(seen)
        exits = (seen.facts.spawned, *seen.facts.exits.values())
        return self.board.totals(), (seen.totals, exits)

    def turn(self) -> list[int]:
        """Do what the arbiter's loop does once a second."""
        self.facts.publish(facts_module.SERVING, 1, (WORKERS,) * 3, False)
        self.facts.republish()
        return self.board.check(time.monotonic_ns())

    def close(self) -> None:
        self.other.close()
        self.board.close()


def counters(value: object) -> list[int]:
    if isinstance(value, tuple):
        fields = value[:-3] if hasattr(value, "connections") else value  # leaves out the gauges
        return [count for field in fields for count in counters(field)]
    assert isinstance(value, int)
    return [value]


def test_valid_rows_are_read() -> None:
    arbiter = Arbiter()
    mine, (others, _) = arbiter.read()
    assert mine.requests == others.requests == 6
    arbiter.close()


ZERO, ONE = bytes(8), b"\1" + bytes(7)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
# Counters that may be true, in rows that make no sense.
@example([((0, ZERO, SIZE), False, False), ((0, ONE, SIZE), False, False)] * 2)
@given(st.lists(st.tuples(junk, st.booleans(), st.booleans()), min_size=1, max_size=6))
def test_readers_survive_any_bytes_and_no_counter_goes_back(steps) -> None:
    arbiter = Arbiter()
    try:
        before = counters(arbiter.read())
        served = 6
        for (offset, pattern, size), turns, releases in steps:
            data = (pattern * (size // len(pattern) + 1))[: SIZE - offset]
            arbiter.memory[offset : offset + len(data)] = data
            arbiter.facts.count_event("exited", "crashed")
            after = counters(arbiter.read())
            assert all(map(int.__le__, before, after))
            before = after
            if turns:
                arbiter.turn()
                assert arbiter.turn() == []  # everything is repaired
                row = next(iter(arbiter.rows.values()), None)
                if row is not None:
                    count_request(row, "GET", 200, 1 << 19)
                    arbiter.board.totals()  # a count that was never read may be lost
                    served += 1
            if releases and arbiter.rows:
                index, _ = arbiter.rows.popitem()
                arbiter.board.release(index)
        arbiter.turn()
        for index in arbiter.rows:
            arbiter.board.release(index)
        assert arbiter.board.snapshot() == []
        assert arbiter.board.totals().requests >= served
        # All rows can be allocated again.
        for serial in range(10, 10 + WORKERS + 1):
            arbiter.board.allocate(serial, serial, 2)
    finally:
        arbiter.close()


OVER_A_ROW = [
    pytest.param(row_layout.SERIAL, 9, id="serial"),
    pytest.param(row_layout.SLOT, 9, id="slot"),
    pytest.param(row_layout.GENERATION, 9, id="generation"),
    pytest.param(row_layout.PID, 1, id="pid"),
    pytest.param(row_layout.STATE, 0, id="free"),
    pytest.param(row_layout.STATE, 77, id="state"),
    pytest.param(row_layout.BEAT_NS, 2**63, id="beat"),
    pytest.param(row_layout.OLDEST_START_NS, 2**63, id="oldest"),
    pytest.param(row_layout.IN_FLIGHT, 2**40, id="in flight"),
    pytest.param(row_layout.CONNECTIONS, 2**64 - 1, id="connections"),
    pytest.param(row_layout.STARTED_NS, 5, id="started"),
    pytest.param(row_layout.BYTES_OUT, 2**64 - 1, id="counter"),
    pytest.param(GET_OK, 0, id="counter back"),
]


@pytest.mark.parametrize(("word", "value"), OVER_A_ROW)
def test_an_impossible_row_is_reported_once_and_repaired(word, value) -> None:
    arbiter = Arbiter()
    assert arbiter.turn() == []
    good = arbiter.rows[1].tolist()
    arbiter.rows[1][word] = value
    assert arbiter.turn() == [2]
    assert arbiter.rows[1].tolist() == good
    arbiter.rows[1][word] = value
    assert arbiter.turn() == []
    assert arbiter.rows[1].tolist() == good
    assert arbiter.board.totals().requests == 6
    arbiter.close()


def test_a_row_that_a_worker_writes_makes_sense() -> None:
    arbiter = Arbiter()
    row = arbiter.rows[0]
    for turn in range(5):
        row[row_layout.STATE] = row_layout.STATE_BOOTING + turn % 4
        row[row_layout.BEAT_NS] = time.monotonic_ns()
        row[row_layout.IN_FLIGHT] = turn
        row[row_layout.BYTES_IN] += 10**12
        for word in row_layout.COUNTERS:
            row[word] += 10**9
        assert arbiter.turn() == []
    arbiter.close()


def used_of_header(arbiter: Arbiter) -> list[int]:
    header = arbiter.board._words[:ROW_WORDS].tolist()
    return [*header[:4], *header[8:]]


def test_the_header_is_repaired_within_a_second() -> None:
    arbiter = Arbiter()
    arbiter.board.release(2)
    header = used_of_header(arbiter)
    arbiter.memory[: ROW_WORDS * 8] = b"\xff" * ROW_WORDS * 8
    _, (others, _) = arbiter.read()
    assert others.requests >= 3
    arbiter.turn()
    assert used_of_header(arbiter) == header
    _, (others, _) = arbiter.read()
    assert others.requests == 6
    arbiter.close()


def test_the_counter_of_log_entries_can_not_overflow() -> None:
    arbiter = Arbiter()
    row = arbiter.rows[0]
    logger = logging.getLogger(ERROR_LOGGER)
    count_log(row)
    try:
        row[row_layout.LOG_WARNING] = 2**64 - 1
        logger.warning("counted")
    finally:
        count_log(None)
    assert row[row_layout.LOG_WARNING] == 1
    arbiter.close()


def test_random_bits_that_are_small_for_bytes_are_no_count_of_requests() -> None:
    arbiter = Arbiter()
    row = next(iter(arbiter.rows.values()))
    arbiter.read()
    row[row_layout.SERIAL] = 99  # so the row is repaired
    row[GET_OK] += 1 << 49
    row[row_layout.BYTES_OUT] += 1 << 49
    assert arbiter.read()[1][0].requests == 6
    assert len(arbiter.turn()) == 1
    mine, (others, _) = arbiter.read()
    assert mine.requests == others.requests == 6
    assert mine.bytes_out == others.bytes_out == 1 << 49
    arbiter.close()
