"""Lines of responses are cached. No response may depend on earlier ones."""

from __future__ import annotations

from array import array
from collections import UserString
from decimal import Decimal
from fractions import Fraction
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servo.http import serialise
from servo.http.errors import LocalProtocolError
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class AnyCase(str):
    """Equal, with its hash, to a str that has other letters."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class AnyCaseBytes(bytes):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, bytes) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


class AnyPair(tuple[Any, ...]):
    """Equal to the pair (x-a, b), and of its hash, whatever is in it."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash(("x-a", "b"))


PLAIN: list[Any] = [
    ("x-a", "b"),
    (b"x-a", b"b"),
    ("X-A", "b"),
    ("x-b", ""),
    ("content-length", "2"),
    ("Content-Length", " 2"),
    (b"content-length", b"02"),
    ("content-length", "3"),
    ("content-length", "x"),
    ("accept-charset", "z"),  # as long as content-length
    ("connection", "close"),
    ("transfer-encoding", "chunked"),
    ("server", "me"),
    ("date", "now"),
    ("set-cookie", "a=b"),
]
ODD: list[Any] = [
    ["x-a", "b"],
    ("x-a", b"b"),
    (b"x-a", bytearray(b"b")),
    (b"x-a", memoryview(b"b")),
    ("x-a", UserString("b")),
    ("x-a", AnyCase("B")),
    (AnyCase("X-A"), AnyCase("B")),
    (AnyCase("Content-Length"), AnyCase("2")),
    (AnyCaseBytes(b"X-A"), AnyCaseBytes(b"B")),
    AnyPair(("x-evil", "z")),
    AnyPair(("x-a", "b\r\nx-evil: z")),
    ("x-a", "b\r\nx-evil: z"),
    ("x-a", "b\0"),
    ("x-a",),
    ("x-a", "b", "c"),
    "ab",
    None,
    (1, 2),
    ("x-a", "\u20ac"),
]
STATUSES: list[Any] = [
    *(200, 200.0, Decimal(200), Fraction(200), HTTPStatus.OK, "200 OK", b"200 OK", "200"),
    *(AnyCase("200 ok"), AnyCase("200 Ok"), UserString("200 OK"), "200 ok", None, "200 O\0K"),
    *(1, True, False, 1.0, 204, 204.0, "204 No Content", 304, 199, 1000, [200]),
]
BODIES: list[Any] = [
    *(b"", b"hi", b"hello", bytearray(b"hi"), memoryview(b"hi"), "hi", [b"hi", b"ho"], None),
    *(array("H", b"hiho"), memoryview(array("H", b"hiho")), memoryview(b"hiho")[::2]),
]

Response = tuple[Any, list[Any], Any]


def forget() -> None:
    for kept in (
        *(serialise.LINES, serialise._VALUES, serialise.LENGTHS, serialise.LENGTH_LINES),
        *(serialise.STATUSES, serialise._BODILESS),
    ):
        kept.clear()


def answer(response: Response, way: str) -> object:
    """What becomes of a response: its lines, in any order where they may be, or the error."""
    status, headers, body = response
    connection = H1Connection(Limits(), server=None, date=False)
    connection.receive_data(GET)
    given = tuple(headers) if way == "tuple" else [*headers]
    try:
        if way == "start":
            sent = connection.start_response(status, given) + connection.send_data(body)
        else:
            sent = connection.send_response(status, given, body)
    except (LocalProtocolError, TypeError) as error:
        return type(error), connection.response_started
    head, _, rest = bytes(sent).partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    lengths = [line for line in lines if line.startswith(b"Content-Length: ")]
    others = [line for line in lines if line not in lengths]
    facts = (connection.status, connection.body_sent, connection.close_after)
    return first, lengths, others, rest, facts


def one_of(values: list[Any]) -> st.SearchStrategy[Any]:
    """As `sampled_from`, which hashes the values."""
    return st.integers(0, len(values) - 1).map(values.__getitem__)


responses = st.tuples(
    one_of(STATUSES) | st.sampled_from([200, "200 OK"]),
    st.lists(one_of(PLAIN) | one_of(PLAIN[:5]) | one_of(ODD), max_size=4),
    one_of(BODIES) | st.just(b"hi"),
)


@pytest.mark.slow
@given(st.lists(responses, min_size=2, max_size=8), st.sampled_from(["list", "tuple"]))
@example([(200, [], b"hi"), (200.0, [], b"hi")], "list")
@example([(200, [("x-a", "b")], b"hi"), (200, [("x-a", UserString("b"))], b"hi")], "list")
@example([(200, [("x-a", "b")], b"hi"), (200, [(AnyCase("X-A"), AnyCase("B"))], b"hi")], "list")
@example([(AnyCase("200 ok"), [], b"hi"), ("200 OK", [], b"hi")], "list")
@example([(200, [("x-a", "b")], b"hi"), (200, [AnyPair(("x-evil", "z"))], b"hi")], "list")
def test_warm_as_cold(sequence: list[Response], way: str) -> None:
    cold = []
    for response in sequence:
        forget()
        cold.append(answer(response, way))
    forget()
    for _ in range(2):
        assert [answer(response, way) for response in sequence] == cold


@pytest.mark.slow
@given(st.lists(responses, min_size=2, max_size=6))
def test_warm_as_cold_for_a_stream(sequence: list[Response]) -> None:
    sequence = [(status, headers, b"") for status, headers, _ in sequence]
    cold = []
    for response in sequence:
        forget()
        cold.append(answer(response, "start"))
    forget()
    for _ in range(2):
        assert [answer(response, "start") for response in sequence] == cold


@pytest.mark.slow
@given(st.lists(one_of(STATUSES), min_size=2, max_size=12))
def test_statuses(statuses: list[Any]) -> None:
    def line(status: Any) -> object:
        try:
            return serialise.status_line(status)
        except LocalProtocolError:
            return LocalProtocolError

    cold = []
    for status in statuses:
        forget()
        cold.append(line(status))
    forget()
    for _ in range(2):
        assert [line(status) for status in statuses] == cold


@pytest.mark.parametrize("status", [True, 1, 1.0, 200.0, Decimal(200), b"200 OK"])
def test_no_status(status: Any) -> None:
    serialise.status_line(200)
    with pytest.raises(LocalProtocolError):
        serialise.status_line(status)


@pytest.mark.parametrize("body", BODIES[-2:])
def test_a_view_of_wider_items_is_measured_in_bytes(body: memoryview) -> None:
    for way in ("list", "tuple"):
        first, lengths, _, rest, _ = answer((200, [], body), way)  # type: ignore[misc]
        assert first == b"HTTP/1.1 200 OK"
        assert rest == body.tobytes()
        assert lengths == [b"Content-Length: %d" % len(rest)]


@pytest.mark.slow
def test_all_that_is_kept_is_bounded() -> None:
    forget()
    for n in range(1500):
        answer(
            (200 + n % 800, [(f"x-{n}", "v"), ("x-y", str(n)), ("x-z", "v" * 600)], b"x"), "list"
        )
        serialise.length_line(n * 4)
        serialise.length_line(n * 4 + 1)
        serialise.length_line(n * 4 + 2)
        assert len(serialise.LINES) <= serialise._LINES_BOUND
        assert len(serialise._VALUES) <= serialise._LINES_BOUND
    assert len(serialise.LENGTHS) == len(serialise.LENGTH_LINES) <= serialise._LENGTHS_BOUND
    assert len(serialise.STATUSES) <= serialise._STATUSES_BOUND
    assert max(map(len, serialise.LINES.values())) <= serialise.LINE_LENGTH_BOUND
