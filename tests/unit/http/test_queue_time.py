"""How long a request has waited in queues, by the fields of proxies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.http.queue_time import MAX_NS, queue_ns

S = 1_000_000_000
NOW_NS = 1_700_000_000 * S + 500_000_000


def since(value: bytes, name: bytes = b"x-request-start") -> int:
    return queue_ns({b"host": b"h", name: value}, NOW_NS)


@pytest.mark.parametrize(
    ("value", "waited_ms"),
    [
        (b"t=1700000000.123", 377),  # nginx
        (b"1700000000123", 377),  # Heroku
        (b"t=1700000000123", 377),  # HAProxy: t=%Ts%ms
        (b"t=1700000000123456", 376.544),  # HAProxy and Apache
        (b"1700000000123456789", 376.543211),
        (b"1700000000", 500),
        (b"t=1700000000.4999999999999", 0.000001),
        (b"1700000000123.5", 376.5),
        (b"t=1699999998.500", 2000),
    ],
)
def test_forms(value: bytes, waited_ms: float) -> None:
    assert since(value) == round(waited_ms * 1_000_000)


def test_the_other_name() -> None:
    assert since(b"t=1700000000.123", b"x-queue-start") == 377_000_000
    named = {b"x-request-start": b"soon", b"x-queue-start": b"t=1700000000.400"}
    assert queue_ns(named, NOW_NS) == 100_000_000
    named = {b"x-request-start": b"1700000000.3", b"x-queue-start": b"t=1700000000.400"}
    assert queue_ns(named, NOW_NS) == 200_000_000


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"t=", b"soon", b"-1700000000.1", b"+1700000000", b"1700000000 ", b"1_700_000_000"),
        *(b"T=1700000000", b"t=t=1700000000", b"1700000000.", b"nan", b"inf", b"1e9", b"0x1"),
        *(b"1700000000,1700000000", b"\xd9\xa1" * 10, b"t=1700000000\x00"),
        b"9" * 20,
        b"1" * 21,
        b"1700000000." + b"1" * 10_000,
        b"1600000000",  # three years ago
        b"1800000000",  # three years from now
        b"0",
    ],
)
def test_what_is_not_a_time_is_ignored(value: bytes) -> None:
    assert since(value) == -1


def test_without_the_fields() -> None:
    assert queue_ns({b"host": b"h"}, NOW_NS) == -1


@pytest.mark.parametrize(
    ("seconds_ago", "expected"),
    [(-0.2, 0), (-500, 0), (-601, -1), (599, 599 * S), (601, -1)],
)
def test_it_is_never_negative_and_has_a_limit(seconds_ago: float, expected: int) -> None:
    start_us = (NOW_NS - int(seconds_ago * S)) // 1000
    assert since(b"%d" % start_us) == expected


@given(st.binary(max_size=60) | st.from_regex(rb"(t=)?[0-9]{1,22}(\.[0-9]{1,12})?", fullmatch=True))
def test_any_bytes_give_a_possible_time(value: bytes) -> None:
    assert -1 <= since(value) <= MAX_NS


@given(st.integers(0, MAX_NS // 1000), st.sampled_from([1, 1_000, 1_000_000, 1_000_000_000]))
def test_every_unit_gives_the_same_time(waited_us: int, unit_ns: int) -> None:
    start_ns = NOW_NS - waited_us * 1000
    found = since(b"t=%d.%09d" % (start_ns // unit_ns, start_ns % unit_ns * 10**9 // unit_ns))
    assert found == NOW_NS - start_ns
