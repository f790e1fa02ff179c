"""Streams: the frames of responses, and the wait for windows."""

from __future__ import annotations

from array import array

import pytest
from h2frames import (
    CANCEL,
    DATA,
    GET,
    INTERNAL_ERROR,
    NO_ERROR,
    POST,
    data,
    head,
    reset,
)
from h2pair import PLAIN, Pair, shown

from servo.http.errors import LocalProtocolError
from servo.http.h2 import stream as stream_module


@pytest.mark.parametrize("view", [memoryview(array("H", b"wide")), memoryview(b"w-i-d-e-")[::2]])
def test_a_body_that_is_a_view_is_measured_in_bytes(view: memoryview) -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    stream.send_response(200, [(b"content-length", b"4")], view)
    pair.listen()
    assert pair.client.answers[1].body == b"wide"
    assert stream.body_sent == 4
    pair.still_serves()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_body_may_be_any_kind_of_bytes(kind: type) -> None:
    pair = Pair()
    whole, parts = pair.ask(head(1)), pair.ask(head(3))
    whole.send_response(200, PLAIN, kind(b"abcdef"))
    parts.start_response(200, PLAIN)
    parts.send_data(kind(b"abc"))
    parts.send_data(kind(b"def"))
    parts.end_response()
    pair.listen()
    for number in (1, 3):
        assert pair.client.answers[number].body == b"abcdef"
        assert pair.client.answers[number].ended


@pytest.mark.parametrize("body", ["abc", 3, None, [b"a"]])
def test_a_body_of_another_type_is_refused(body: object) -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    with pytest.raises(LocalProtocolError, match="made of bytes"):
        stream.send_response(200, PLAIN, body)
    stream.start_response(200, PLAIN)
    with pytest.raises(LocalProtocolError, match="made of bytes"):
        stream.send_data(body)


def test_fields_that_every_response_has() -> None:
    pair = Pair(more=b"X-A: 1\r\nX-B: 2, 3\r\n")
    pair.ask(head(1)).send_response(200, PLAIN, b"")
    pair.ask(head(3)).start_response(200, [])
    pair.listen()
    for number in (1, 3):
        fields = pair.client.answers[number].headers
        assert (fields["x-a"], fields["x-b"]) == ("1", "2, 3")


def test_fields_of_lines_are_kept_within_bounds() -> None:
    for number in range(3000):
        assert stream_module._field(b"X-A: %d\r\n" % number) == (b"x-a", b"%d" % number)
        stream_module._field(b"X-B: %b\r\n" % (b"v" * 600))
    assert len(stream_module._FIELDS) <= 1024
    assert max(map(len, stream_module._FIELDS)) <= 512


def test_a_response() -> None:
    pair = Pair()
    pair.ask(head(1)).send_response(
        200, [(b"Content-Type", b"text/plain"), ("X-Text", "str too")], b"hi"
    )
    pair.listen()
    answer = pair.client.answers[1]
    assert answer.headers == {
        ":status": "200",
        "content-type": "text/plain",
        "x-text": "str too",
        "content-length": "2",
        "server": "servo",
        **({"date": answer.headers["date"]} if "date" in answer.headers else {}),
    }
    assert (answer.body, answer.ended) == (b"hi", True)


def test_fields_of_the_connection_are_dropped() -> None:
    pair = Pair()
    fields = [(b"connection", b"close"), (b"keep-alive", b"1"), (b"transfer-encoding", b"chunked")]
    pair.ask(head(1)).send_response(200, [*fields, (b"upgrade", b"x")], b"")
    pair.listen()
    assert set(pair.client.answers[1].headers) <= {":status", "content-length", "server", "date"}


@pytest.mark.parametrize(
    "headers",
    [
        [(b"a b", b"c")],
        [(b":status", b"200")],
        [(b"a", b"b\r\nc: d")],
        [(b"a", b"b\0")],
        [("a", "\u20ac")],
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-length", b"x")],
        [(b"content-length", b"1")],
    ],
)
def test_a_response_that_cannot_be_sent(headers: list[tuple[bytes, bytes]]) -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    with pytest.raises(LocalProtocolError):
        stream.send_response(200, headers, b"too long")
    stream.send_response(500, PLAIN, b"sorry")
    pair.listen()
    assert pair.client.answers[1].status == 500


@pytest.mark.parametrize("status", [0, 99, 101, 199, 1000, "200\r\n", None])
def test_a_status_that_cannot_be_sent(status: int) -> None:
    stream = Pair().ask(head(1))
    with pytest.raises(LocalProtocolError):
        stream.send_response(status, PLAIN, b"")


@pytest.mark.parametrize(
    ("method", "status", "length"),
    [("HEAD", 200, "2"), ("GET", 304, None), ("GET", 204, None), ("HEAD", 304, None)],
)
def test_a_response_without_a_body(method: str, status: int, length: str | None) -> None:
    pair = Pair()
    stream = pair.ask(head(1, [(":method", method), *GET[1:]]))
    stream.send_response(status, PLAIN, b"hi")
    pair.listen()
    answer = pair.client.answers[1]
    assert (answer.status, answer.body, answer.ended) == (status, b"", True)
    assert answer.headers.get("content-length") == length
    assert DATA not in pair.client.frames


def test_head_in_parts() -> None:
    pair = Pair()
    stream = pair.ask(head(1, [(":method", "HEAD"), *GET[1:]]))
    stream.start_response(200, [(b"content-length", b"1000")])
    stream.send_data(b"x" * 10)
    stream.end_response()
    pair.listen()
    answer = pair.client.answers[1]
    assert (answer.headers["content-length"], answer.body, answer.ended) == ("1000", b"", True)
    assert answer.reset is None


def test_a_response_in_parts_with_trailers() -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    stream.start_response(200, PLAIN)
    for part in (b"one ", b"", b"two"):
        stream.send_data(part)
        pair.listen()
    stream.end_response([(b"X-Sum", b"1"), (b"content-length", b"9"), (b"connection", b"x")])
    pair.listen()
    answer = pair.client.answers[1]
    assert (answer.body, answer.ended, answer.trailers) == (b"one two", True, {"x-sum": "1"})
    assert "content-length" not in answer.headers
    assert "transfer-encoding" not in answer.headers


def test_early_hints_and_continue() -> None:
    pair = Pair()
    stream = pair.ask(head(1, [*POST, ("expect", "100-continue")], end=False))
    stream.send_informational(103, [(b"link", b"</a.css>")])
    assert stream.send_continue() == b""
    stream.send_continue()
    stream.send_response(200, PLAIN, b"hi")
    with pytest.raises(LocalProtocolError):
        stream.send_informational(103, [])
    pair.listen()
    heads = pair.client.answers[1].heads
    assert [fields[":status"] for fields in heads] == ["103", "100", "200"]
    assert heads[0]["link"] == "</a.css>"


def test_no_continue_once_the_body_comes() -> None:
    pair = Pair()
    stream = pair.ask(head(1, [*POST, ("expect", "100-continue")], end=False))
    pair.say(data(1, b"x"))
    stream.send_continue()
    pair.listen()
    assert pair.client.answers[1].heads == []


def test_more_than_was_declared_is_not_sent() -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    stream.start_response(200, [(b"content-length", b"3")])
    stream.send_data(b"ab")
    with pytest.raises(LocalProtocolError):
        stream.send_data(b"cd")


@pytest.mark.parametrize("whole", [True, False])
def test_less_than_was_declared_ends_in_a_reset(whole: bool) -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    if whole:
        stream.send_response(200, [(b"content-length", b"3")], b"ab")
    else:
        stream.start_response(200, [(b"content-length", b"3")])
        stream.send_data(b"ab")
        stream.end_response()
    pair.listen()
    answer = pair.client.answers[1]
    assert (answer.body, answer.ended, answer.reset) == (b"ab", False, INTERNAL_ERROR)


def test_an_answer_before_the_body_is_there() -> None:
    """RFC 9113 section 8.1: a whole response, then a reset that is no error."""
    pair = Pair()
    stream = pair.ask(head(1, POST, end=False))
    stream.send_response(403, PLAIN, b"no")
    pair.listen()
    answer = pair.client.answers[1]
    assert (answer.status, answer.ended, answer.reset) == (403, True, NO_ERROR)
    assert pair.say(data(1, b"late")) == []
    pair.still_serves()


def test_a_reset_stream_swallows_its_response() -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    stream.start_response(200, PLAIN)
    stream.send_data(b"x" * 100_000)
    assert shown(pair.say(reset(1))) == [(1, "reset", CANCEL)]
    stream.send_data(b"more")
    stream.end_response()
    pair.listen()
    assert (stream.closed, stream.queued) == (True, 0)
    assert len(pair.client.answers[1].body) <= 65_535
    assert not pair.client.answers[1].ended
    pair.still_serves()
