"""Field lines: the grammar, and the limits, for any division of the bytes."""

from __future__ import annotations

import pytest

from servo.http.errors import ProtocolError
from servo.http.h1.field_lines import check_field_lines, check_line, split_fields
from servo.http.limits import Limits

SMALL = Limits(header_field=16, header_total=40)


def test_names_become_lower_case_and_values_lose_their_margins() -> None:
    assert split_fields(b"GET / HTTP/1.1\r\nHost: h\r\nX-A:\t b c \r\nEmpty:\r\n\r\n") == [
        (b"host", b"h"),
        (b"x-a", b"b c"),
        (b"empty", b""),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b" folded", "folded header line"),
        (b"no colon", "header line without a colon"),
        (b"Name : x", "white space before the colon of a header"),
        (b"N@me: x", "invalid header name"),
        (b": x", "invalid header name"),
        (b"Name: \x01", "control character in a header value"),
    ],
)
def test_a_fault_is_named(line: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        split_fields(b"\r\n" + line + b"\r\n\r\n")
    assert (caught.value.status, caught.value.reason) == (400, reason)


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (b"A: 12345678901234\r\n", "field line too long"),
        (b"A: 1234567\r\n" * 4, "field lines too long in total"),
        (b"A:1\r\n" * 4, "too many field lines"),
    ],
)
def test_limits_are_met_however_the_section_is_cut(section: bytes, reason: str) -> None:
    """The same limit is reported whether the lines come at once or byte by byte."""
    with pytest.raises(ProtocolError) as whole:
        check_field_lines(section, 0, 0, 3, SMALL)
    assert (whole.value.status, whole.value.reason) == (431, reason)
    with pytest.raises(ProtocolError) as pieces:
        check_byte_by_byte(section)
    assert pieces.value.reason == reason


def check_byte_by_byte(section: bytes) -> None:
    for end in range(1, len(section) + 1):
        check_field_lines(section[:end], 0, end - 1, 3, SMALL)


def test_a_section_within_its_limits_passes() -> None:
    check_field_lines(b"A: 1\r\nB: 2\r\n\r\nwhat follows is not looked at\x00", 0, 0, 3, SMALL)


def test_a_cr_at_the_end_may_be_half_of_a_crlf() -> None:
    assert check_line(b"abc\r", 0, -1, 0, 100) == 3
    with pytest.raises(ProtocolError):
        check_line(b"ab\rc", 0, -1, 0, 100)
