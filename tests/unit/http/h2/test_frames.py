"""Frames by themselves: cutting bytes apart, the allowances, and the helpers for single frames."""

from __future__ import annotations

import struct

import pytest
from h2frames import END_HEADERS, HEADERS, PADDED, PREFACE, SETTINGS, data, frame, hello, ping

from servo.http.h2.frames import (
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    HAS_PRIORITY,
    PRIORITY,
    PROTOCOL_ERROR,
    Allowance,
    Frame,
    FrameReader,
    GoAwayError,
    depends_on_itself,
    frame_bytes,
    known_settings,
    spells_out_defaults,
    without_priority,
)
from servo.http.limits import H2Limits


def reader_after_hello(limits: H2Limits | None = None) -> FrameReader:
    reader = FrameReader(limits or H2Limits())
    reader.feed(hello())
    assert reader.next(0.0) is not None
    return reader


def test_an_allowance_refills_with_time_and_through_useful_work() -> None:
    allowance = Allowance(2, 10)
    assert allowance.spend(0.0)
    assert allowance.spend(0.0)
    assert not allowance.spend(0.0)
    assert allowance.spend(0.2)  # two came back, and one of them paid the debt
    allowance.earn(1)
    assert allowance.spend(0.2)
    assert not allowance.spend(0.2)


def test_an_allowance_never_holds_more_than_at_first() -> None:
    allowance = Allowance(1, 10)
    allowance.earn(100)
    assert allowance.spend(1000.0)
    assert not allowance.spend(1000.0)


def test_an_allowance_stays_touched_for_a_second() -> None:
    allowance = Allowance(100, 1000)
    assert not allowance.is_touched(0.0)
    for _ in range(20):
        allowance.spend(0.0)
    assert allowance.is_touched(0.0)
    assert allowance.is_touched(0.9)  # it is full again
    assert not allowance.is_touched(1.1)


def test_frames_come_however_the_bytes_are_cut() -> None:
    received = hello() + data(1, b"abc") + ping()
    whole = FrameReader(H2Limits())
    whole.feed(received)
    frames = [whole.next(0.0) for _ in range(3)]
    assert [each.type for each in frames if each is not None] == [4, 0, 6]
    assert whole.next(0.0) is None
    assert not whole.in_part
    pieces = FrameReader(H2Limits())
    found: list[Frame] = []
    for i in range(len(received)):
        pieces.feed(received[i : i + 1])
        one = pieces.next(0.0)
        found += [one] if one is not None else []
    assert found == frames
    assert pieces.next(0.0) is None
    assert not pieces.in_part


@pytest.mark.parametrize(
    ("received", "code"),
    [
        (b"GET / HTTP/1.1\r\n", PROTOCOL_ERROR),
        (PREFACE + ping(), PROTOCOL_ERROR),
        (PREFACE + frame(SETTINGS, 1, 0), PROTOCOL_ERROR),
        (PREFACE + frame(SETTINGS, 0, 0, b"x" * 16385)[:9], FRAME_SIZE_ERROR),
        (PREFACE + frame(SETTINGS, 0, 0, b"\0" * 6 * 65), ENHANCE_YOUR_CALM),
    ],
)
def test_a_bad_beginning(received: bytes, code: int) -> None:
    with pytest.raises(GoAwayError) as caught:
        read_all(received)
    assert caught.value.code == code


def read_all(received: bytes) -> None:
    reader = FrameReader(H2Limits())
    reader.feed(received)
    while reader.next(0.0) is not None:
        pass


def test_a_head_must_not_be_interrupted() -> None:
    reader = reader_after_hello()
    reader.feed(frame(HEADERS, 0, 1, b"\x82"))
    assert reader.next(0.0) is not None
    assert reader.in_head
    assert reader.in_part
    reader.feed(ping())
    with pytest.raises(GoAwayError, match="a frame within a head"):
        reader.next(0.0)


def test_control_frames_spend_the_allowance_and_data_does_not() -> None:
    reader = reader_after_hello(H2Limits(control=(2, 0)))
    reader.feed(data(1, b"x") * 10 + ping() * 2)
    for _ in range(11):
        assert reader.next(0.0) is not None
    with pytest.raises(GoAwayError) as caught:
        reader.next(0.0)
    assert caught.value.code == ENHANCE_YOUR_CALM


def test_the_next_frame_of_the_same_stream_is_recognised_by_its_header() -> None:
    reader = reader_after_hello()
    reader.feed(data(1, b"a") + data(1, b"b")[:9])
    reader.next(0.0)
    assert reader.goes_on
    assert reader.backlog == 9
    other = reader_after_hello()
    other.feed(data(1, b"a") + data(3, b"b"))
    other.next(0.0)
    assert not other.goes_on


def test_a_frame_as_bytes() -> None:
    assert frame_bytes(0, 1, 5, b"abc") == frame(0, 1, 5, b"abc")
    assert frame_bytes(4, 0, 0) == frame(4, 0, 0)


@pytest.mark.parametrize("padding", [b"", b"\x02"])
def test_the_priority_of_a_head(padding: bytes) -> None:
    flags = END_HEADERS | HAS_PRIORITY | (PADDED if padding else 0)
    rest = b"block" + b"\0" * (2 if padding else 0)

    def depending(on: int) -> Frame:
        payload = padding + struct.pack(">LB", on, 7) + rest
        return Frame(HEADERS, flags, 3, frame(HEADERS, flags, 3, payload))

    assert depends_on_itself(depending(3))
    assert depends_on_itself(depending(3 | 1 << 31))
    assert not depends_on_itself(depending(1))
    bare = frame(HEADERS, flags & ~HAS_PRIORITY, 3, padding + rest)
    assert without_priority(depending(3)) == bare


def test_a_priority_that_is_too_short_names_no_stream() -> None:
    assert not depends_on_itself(Frame(PRIORITY, 0, 3, frame(PRIORITY, 0, 3, b"\0\0\0")))
    assert not depends_on_itself(Frame(HEADERS, 0, 3, frame(HEADERS, 0, 3, b"\0\0\0\3\0")))


def payload(values: dict[int, int]) -> bytes:
    return b"".join(struct.pack(">HL", key, value) for key, value in values.items())


def test_settings_that_nobody_needs_are_removed() -> None:
    assert known_settings(payload({3: 100, 0xABCD: 1, 4: 65535})) == payload({3: 100, 4: 65535})
    assert known_settings(b"12345") is None
    assert known_settings(b"\0" * 6 * 65) is None


def test_a_client_that_spells_out_the_defaults() -> None:
    assert spells_out_defaults(payload({1: 4096, 2: 0, 4: 65535, 5: 16384, 3: 100}))
    assert not spells_out_defaults(payload({1: 65536, 2: 0, 4: 131072, 5: 16384}))
    assert not spells_out_defaults(payload({}))
    assert not spells_out_defaults(b"12345")
