"""The layout of a row: no words overlap, and sums agree however requests are counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.shared_memory import row_layout, scoreboard
from servo.shared_memory.row_layout import (
    LATENCY_BOUNDS_S,
    LATENCY_BUCKETS,
    ROW_WORDS,
    count_request,
    count_response,
    latency_bucket,
)
from servo.shared_memory.scoreboard import (
    Scoreboard,
)

NOW = 10**12


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


def test_the_words_fit_in_whole_cache_lines_and_do_not_overlap():
    named = {name: value for name, value in vars(row_layout).items() if isinstance(value, int)}
    single = [
        named[name]
        for name in named
        if name.isupper()
        and not name.startswith(("_", "STATE_"))
        and name not in ("ROW_WORDS", "CLASSES", "LATENCY_BUCKETS", "UTILISATION_WINDOW_NS")
        and not name.endswith("_0")
        and name not in ("STATUS_REST", "FULL_UTILISATION", "LIKE_IN_FLIGHT")
    ]
    taken = [
        *single,
        *range(row_layout.LATENCY_0, row_layout.LATENCY_0 + LATENCY_BUCKETS),
        *range(
            row_layout.METHOD_0, row_layout.METHOD_0 + len(row_layout.METHODS) * row_layout.CLASSES
        ),
        *range(row_layout.STATUS_0, row_layout.STATUS_0 + len(row_layout.STATUS_CODES)),
        *range(row_layout.STATUS_REST, row_layout.STATUS_REST + row_layout.CLASSES),
        *range(row_layout.OK_0, row_layout.OK_0 + len(row_layout.OK_METHODS) * LATENCY_BUCKETS),
        *range(row_layout.QUEUE_0, row_layout.QUEUE_0 + LATENCY_BUCKETS),
        *range(row_layout.THREAD_WAIT_0, row_layout.THREAD_WAIT_0 + LATENCY_BUCKETS),
    ]
    assert len(taken) == len(set(taken))
    assert max(taken) < ROW_WORDS
    assert ROW_WORDS % 8 == 0
    assert (
        max(row_layout.STATE, row_layout.BEAT_NS, row_layout.IN_FLIGHT, row_layout.CONNECTIONS) < 8
    )
    assert scoreboard._BASE + ROW_WORDS - scoreboard._FIRST_COUNTER <= ROW_WORDS


@pytest.mark.parametrize(
    ("method", "status", "shown_method", "shown_class", "shown_code"),
    [
        ("GET", 200, "GET", 2, 200),
        ("PATCH", 404, "PATCH", 4, 404),
        ("OPTIONS", 599, "OPTIONS", 5, None),
        ("GET", 299, "GET", 2, None),
        ("BREW", 418, "other", 4, 418),
        ("get", 101, "other", 1, 101),
        ("", 400, "other", 4, 400),
        ("GET", 0, "GET", 5, None),
        ("GET", 999, "GET", 5, None),
    ],
)
def test_a_response_is_counted_by_method_class_and_code(
    table, method, status, shown_method, shown_class, shown_code
):
    count_response(table.row(ready(table)), method, status)
    totals = table.totals()
    by_method = dict(zip(row_layout.METHODS, totals.methods, strict=True))
    assert by_method[shown_method][shown_class - 1] == totals.requests == sum(totals.codes) == 1
    place = totals.codes.index(1)
    rest = len(row_layout.STATUS_CODES) + shown_class - 1
    assert place == (rest if shown_code is None else row_layout.STATUS_CODES.index(shown_code))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "POST", "HEAD", "PUT", "BREW"]),
            st.sampled_from([101, 200, 201, 204, 299, 304, 404, 500, 599]),
            st.integers(0, 10**12),
        )
    )
)
def test_however_requests_are_counted_the_sums_agree(served):
    table = Scoreboard(2)
    row = table.row(table.allocate(1, 1, 1))
    for method, status, elapsed in served:
        count_request(row, method, status, elapsed)
    for _ in range(2):
        totals = table.totals()
        assert totals.requests == len(served) == sum(totals.latency) == sum(totals.codes)
        assert sum(totals.statuses) == len(served)
        of_get = totals.methods[row_layout.METHODS.index("GET")]
        for number, count in enumerate(of_get, 1):
            assert count == sum(m == "GET" and s // 100 == number for m, s, _ in served)
        for code, count in zip(row_layout.STATUS_CODES, totals.codes, strict=False):
            assert count == sum(status == code for _, status, _ in served)
        for bucket, count in enumerate(totals.latency):
            assert count == sum(latency_bucket(elapsed) == bucket for _, _, elapsed in served)
        table.release(0)  # then the same sums must come from the base
    table.close()


@given(st.integers(0, 2**63))
def test_a_latency_falls_below_its_buckets_bound_and_not_below_the_one_before(ns):
    bucket = latency_bucket(ns)
    for i, method in enumerate(row_layout.OK_METHODS):
        word = row_layout.OK_0 + i * LATENCY_BUCKETS + bucket
        assert row_layout.OK_WORDS[method][ns.bit_length()] == word < ROW_WORDS
    assert ns / 1e9 <= LATENCY_BOUNDS_S[bucket]
    if bucket:
        assert ns / 1e9 >= LATENCY_BOUNDS_S[bucket - 1]


def test_the_buckets_grow_up_to_infinity():
    assert len(LATENCY_BOUNDS_S) == LATENCY_BUCKETS
    assert list(LATENCY_BOUNDS_S) == sorted(LATENCY_BOUNDS_S)
    assert LATENCY_BOUNDS_S[0] < 0.0001 < 10 < LATENCY_BOUNDS_S[-2] < LATENCY_BOUNDS_S[-1]
