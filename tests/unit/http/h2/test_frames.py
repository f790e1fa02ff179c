"""Frames: splitting bytes, the allowances, and the helpers for single frames."""

from __future__ import annotations

import struct

import pytest
from h2frames import DATA, END_HEADERS, HEADERS, PADDED, PREFACE, SETTINGS, data, frame, hello, ping

from servo.http.h2.frames import (
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HAS_PRIORITY,
    PRIORITY,
    PROTOCOL_ERROR,
    Allowance,
    ClientKind,
    Frame,
    FrameReader,
    GoAwayError,
    content,
    depends_on_itself,
    frame_bytes,
    kind_of_client,
    read_settings,
    settings_payload,
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
    assert [fields(each) for each in found] == [fields(each) for each in frames if each]
    assert pieces.next(0.0) is None
    assert not pieces.in_part


@pytest.mark.parametrize(
    ("received", "code"),
    [
        (b"GET / HTTP/1.1\r\n", PROTOCOL_ERROR),
        (PREFACE + ping(), PROTOCOL_ERROR),
        (PREFACE + frame(SETTINGS, 1, 0), PROTOCOL_ERROR),
        (PREFACE + frame(SETTINGS, 0, 0, b"x" * 16385)[:9], FRAME_SIZE_ERROR),
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


def fields(each: Frame) -> tuple[int, int, int, bytes]:
    return each.type, each.flags, each.stream, each.payload


def test_a_head_must_not_be_interrupted() -> None:
    reader = reader_after_hello()
    reader.feed(frame(HEADERS, 0, 1, b"\x82"))
    assert reader.next(0.0) is not None
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
        return Frame(HEADERS, flags, 3, padding + struct.pack(">LB", on, 7) + rest)

    assert depends_on_itself(depending(3))
    assert depends_on_itself(depending(3 | 1 << 31))
    assert not depends_on_itself(depending(1))
    assert content(depending(1)) == b"block"
    assert content(Frame(HEADERS, flags & ~HAS_PRIORITY, 3, padding + rest)) == b"block"


def test_a_priority_that_is_too_short_names_no_stream() -> None:
    assert not depends_on_itself(Frame(PRIORITY, 0, 3, b"\0\0\0"))
    assert not depends_on_itself(Frame(HEADERS, 0, 3, b"\0\0\0\3\0"))


def test_a_flag_of_priority_means_nothing_for_data() -> None:
    assert content(Frame(DATA, HAS_PRIORITY, 3, b"abcdef")) == b"abcdef"


@pytest.mark.parametrize(
    ("kind", "flags", "bad", "code"),
    [
        (DATA, PADDED, b"", FRAME_SIZE_ERROR),
        (DATA, PADDED, b"\1", PROTOCOL_ERROR),
        (HEADERS, HAS_PRIORITY, b"\0" * 4, FRAME_SIZE_ERROR),
        (HEADERS, HAS_PRIORITY | PADDED, b"\0" * 5, FRAME_SIZE_ERROR),
        (HEADERS, HAS_PRIORITY | PADDED, b"\2" + b"\0" * 6, PROTOCOL_ERROR),
    ],
)
def test_padding_that_does_not_fit(kind: int, flags: int, bad: bytes, code: int) -> None:
    with pytest.raises(GoAwayError) as caught:
        content(Frame(kind, flags, 3, bad))
    assert caught.value.code == code


def payload(values: dict[int, int]) -> bytes:
    return b"".join(struct.pack(">HL", key, value) for key, value in values.items())


def test_settings_are_read_in_order_with_unknown_ones() -> None:
    values = {3: 100, 0xABCD: 1, 4: 65535}
    assert read_settings(payload(values)) == list(values.items())
    assert read_settings(settings_payload(values)) == list(values.items())


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"12345", FRAME_SIZE_ERROR),
        (b"\0" * 6 * 65, ENHANCE_YOUR_CALM),
        (payload({2: 2}), PROTOCOL_ERROR),
        (payload({8: 2}), PROTOCOL_ERROR),
        (payload({4: 1 << 31}), FLOW_CONTROL_ERROR),
        (payload({5: 16383}), PROTOCOL_ERROR),
        (payload({5: 1 << 24}), PROTOCOL_ERROR),
    ],
)
def test_wrong_settings(bad: bytes, code: int) -> None:
    with pytest.raises(GoAwayError) as caught:
        read_settings(bad)
    assert caught.value.code == code


def test_settings_of_the_wrong_length_tell_nothing_about_the_client() -> None:
    chromium = payload({1: 65536, 2: 0, 4: 6 << 20, 6: 256 << 10})
    assert kind_of_client(chromium) is ClientKind.CHROMIUM
    assert kind_of_client(chromium + b"1") is ClientKind.ORDINARY
