"""Answers out, as bytes."""

from __future__ import annotations

from typing import Any

import pytest

from servo.http import serialise
from servo.http.errors import LocalProtocolError, ProtocolError
from servo.http.events import Refused
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
KEPT_1_0 = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"

Fields = dict[bytes, bytes]


def asked(data: bytes = GET, **options: Any) -> H1Connection:
    connection = H1Connection(Limits(), **{"server": None, "date": False, **options})
    connection.receive_data(data)
    return connection


def parts(response: bytes) -> tuple[bytes, Fields, bytes]:
    head, _, body = response.partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fields: Fields = {}
    for line in lines:
        name, _, value = line.partition(b": ")
        assert name.lower() not in fields, f"twice: {name!r}"
        fields[name.lower()] = value
    return status, fields, body


@pytest.mark.parametrize("time", ["first", "second"])
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, [(b"content-type", b"text/plain"), (b"content-length", b"2")]),
        ("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")]),
        (200, [(b"content-type", b"text/plain")]),
        (200, [[b"content-type", b"text/plain"], [b"content-length", b"2"]]),
        (200, ((b"content-type", bytearray(b"text/plain")), (b"content-length", b"2"))),
        (200, [(b"content-type", b"text/plain"), (b"content-length", b"2"), ("TE", "x")]),
    ],
)
def test_whole_response(time: str, status: Any, headers: Any) -> None:
    connection = asked()
    response = connection.send_response(status, headers, b"hi")
    assert parts(response) == (
        b"HTTP/1.1 200 OK",
        {b"content-type": b"text/plain", b"content-length": b"2"},
        b"hi",
    )
    assert connection.response_complete
    assert connection.response_started
    assert (connection.status, connection.body_sent) == (200, 2)
    assert not connection.close_after


def test_headers_may_come_from_a_generator() -> None:
    for _ in range(2):
        headers = ((name, b"1") for name in (b"x-a", b"x-b"))
        fields = parts(asked().send_response(200, headers, b""))[1]
        assert fields == {b"x-a": b"1", b"x-b": b"1", b"content-length": b"0"}


def test_equal_lengths_are_sent_once() -> None:
    twice = [(b"content-length", b"2")] * 2
    for _ in range(2):
        assert parts(asked().send_response(200, twice, b"hi"))[1] == {b"content-length": b"2"}


@pytest.mark.parametrize("method", ["send_response", "start_response"])
@pytest.mark.parametrize(
    "headers",
    [
        [(b"x", b"a\r\nSet-Cookie: b")],
        [(b"x", b"a\nb")],
        [(b"x", b"a\0b")],
        [(b"x\r\ny", b"a")],
        [(b"x y", b"a")],
        [(b"x:", b"a")],
        [(b"", b"a")],
        [("x", "a\r\nb")],
        [("x", "\u20ac")],
        [("x", 5)],
        [("x",)],
        [None],
        [(b"content-length", b"2\r\n")],
        [(b"content-length", b"-2")],
        [(b"content-length", b"0x2")],
        [(b"content-length", b"2"), (b"content-length", b"3")],
        [(b"date", b"a\r\nb")],
        [(b"server", b"a\nb")],
    ],
)
def test_invalid_headers_are_the_apps_error(method: str, headers: Any) -> None:
    connection = asked()
    arguments = (200, headers, b"hi") if method == "send_response" else (200, headers)
    for _ in range(2):
        with pytest.raises(LocalProtocolError):
            getattr(connection, method)(*arguments)
    assert not connection.response_started
    assert connection.send_response(500, [], b"").startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("status", [100, 101, 199, 1000, "OK", "200\r\nX: y", "2000 OK", "1", None])
def test_invalid_status(status: Any) -> None:
    with pytest.raises(LocalProtocolError):
        asked().send_response(status, [], b"")


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (404, b"HTTP/1.1 404 Not Found"),
        (599, b"HTTP/1.1 599 "),
        ("299 Made up", b"HTTP/1.1 299 Made up"),
        ("200", b"HTTP/1.1 200 "),
    ],
)
def test_status_lines(status: Any, line: bytes) -> None:
    for _ in range(2):
        assert parts(asked().send_response(status, [], b""))[0] == line


def test_hop_by_hop_headers_are_the_servers() -> None:
    names = ["Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "TE", "Proxy-Connection"]
    headers = [(name, "keep-alive") for name in names] + [("Trailer", "X-T")]
    for _ in range(2):
        fields = parts(asked().send_response(200, headers, b""))[1]
        assert fields == {b"content-length": b"0", b"trailer": b"X-T"}


def test_app_may_close() -> None:
    connection = asked()
    response = connection.send_response(200, [("Connection", "foo, Close")], b"")
    assert parts(response)[1][b"connection"] == b"close"
    assert connection.close_after


def test_date_and_server() -> None:
    connection = asked(server=b"servo", date=True)
    serialise.set_clock(784111777.5)
    fields = parts(connection.send_response(200, [], b""))[1]
    assert fields[b"date"] == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert fields[b"server"] == b"servo"
    connection.receive_data(GET)
    serialise.set_clock(784111778)
    fields = parts(connection.send_response(200, [], b""))[1]
    assert fields[b"date"] == b"Sun, 06 Nov 1994 08:49:38 GMT"


@pytest.mark.parametrize("request_bytes", [GET, GET_1_0, KEPT_1_0])
@pytest.mark.parametrize("given", [("Date", "today"), ("server", "mine")])
def test_date_and_server_of_the_app_win(request_bytes: bytes, given: tuple[str, str]) -> None:
    connection = asked(request_bytes, server=b"servo", date=True)
    serialise.set_clock(784111777)
    fields = parts(connection.send_response(200, [given], b""))[1]
    assert fields[given[0].lower().encode()] == given[1].encode()
    assert {b"date", b"server"} <= fields.keys()


def test_streamed_response_is_chunked() -> None:
    connection = asked()
    head = connection.start_response(200, [("Content-Type", "text/plain")])
    assert parts(head)[1] == {b"content-type": b"text/plain", b"transfer-encoding": b"chunked"}
    assert not connection.raw_body
    assert connection.send_data(b"hello world") == b"b\r\nhello world\r\n"
    assert connection.send_data(b"") == b""
    assert not connection.response_complete
    assert connection.end_response() == b"0\r\n\r\n"
    assert connection.response_complete
    assert connection.body_sent == 11
    assert not connection.close_after
    assert connection.idle


def test_trailers() -> None:
    connection = asked()
    connection.start_response(200, [])
    trailers = [("X-T", "1"), ("Content-Length", "5"), ("Transfer-Encoding", "gzip")]
    assert connection.end_response(trailers) == b"0\r\nX-T: 1\r\n\r\n"


def test_trailers_are_validated() -> None:
    connection = asked()
    connection.start_response(200, [])
    with pytest.raises(LocalProtocolError):
        connection.end_response([("X-T", "1\r\n\r\nHTTP/1.1 200 OK")])


def test_streamed_response_of_known_length() -> None:
    connection = asked()
    head = connection.start_response(200, [(b"Content-Length", b"11")])
    assert parts(head)[1] == {b"content-length": b"11"}
    assert connection.raw_body
    assert connection.send_data(b"hello") == b"hello"
    connection.account(6)
    assert connection.end_response() == b""
    assert not connection.close_after
    assert connection.body_sent == 11


def test_too_long_a_body() -> None:
    connection = asked()
    connection.start_response(200, [("Content-Length", "3")])
    with pytest.raises(LocalProtocolError):
        connection.send_data(b"four")
    assert connection.close_after


def test_too_long_a_whole_response_sends_nothing() -> None:
    connection = asked()
    for _ in range(2):
        with pytest.raises(LocalProtocolError):
            connection.send_response(200, [("Content-Length", "3")], b"four")
    assert not connection.response_started
    assert not connection.close_after


def test_too_short_a_body_closes() -> None:
    connection = asked()
    connection.start_response(200, [("Content-Length", "3")])
    connection.send_data(b"no")
    assert connection.end_response() == b""
    assert connection.close_after


def test_too_short_a_whole_response_closes() -> None:
    for _ in range(2):
        connection = asked()
        fields = parts(connection.send_response(200, [("Content-Length", "3")], b"no"))[1]
        assert fields == {b"content-length": b"3", b"connection": b"close"}
        assert connection.close_after


@pytest.mark.parametrize("given", [("2", "3"), ("2", "2", "3")])
@pytest.mark.parametrize("closes", [False, True])
def test_two_lengths_are_refused_though_each_was_sent_before(
    given: tuple[str, ...], closes: bool
) -> None:
    """What is known from before takes a short way: two lengths are how responses are smuggled."""
    for body in (b"no", b"yes"):
        asked().send_response(200, [("Content-Length", str(len(body)))], body)
    connection = asked(GET[:-2] + b"Connection: close\r\n\r\n" if closes else GET)
    with pytest.raises(LocalProtocolError, match="two different"):
        connection.send_response(200, [("Content-Length", length) for length in given], b"no")


def test_the_last_response_says_so_whatever_is_known() -> None:
    for _ in range(3):
        connection = asked(GET[:-2] + b"Connection: close\r\n\r\n")
        response = connection.send_response(200, [("X-Known", "1")], b"ok")
        assert parts(response) == (
            b"HTTP/1.1 200 OK",
            {b"x-known": b"1", b"content-length": b"2", b"connection": b"close"},
            b"ok",
        )
        assert connection.response_complete
        assert connection.close_after


@pytest.mark.parametrize("status", [204, 304, "204 No Content", "304 Not Modified"])
def test_bodiless_statuses(status: Any) -> None:
    connection = asked(GET + GET)
    _, fields, body = parts(connection.send_response(status, [], b"swallowed"))
    assert (fields, body) == ({}, b"")
    connection.next_event()
    head = connection.start_response(status, [("ETag", '"x"')])
    assert parts(head)[1] == {b"etag": b'"x"'}
    assert connection.send_data(b"swallowed") == b""
    assert connection.end_response() == b""
    assert not connection.close_after


def test_204_has_no_length_and_304_may() -> None:
    assert parts(asked().send_response(204, [("Content-Length", "5")], b""))[1] == {}
    fields = parts(asked().send_response(304, [("Content-Length", "5")], b""))[1]
    assert fields == {b"content-length": b"5"}


def test_head_is_answered_like_get_without_the_body() -> None:
    assert parts(asked(HEAD).send_response(200, [], b"four"))[1:] == (
        {b"content-length": b"4"},
        b"",
    )
    connection = asked(HEAD)
    head = connection.start_response(200, [("Content-Length", "5")])
    assert parts(head)[1] == {b"content-length": b"5"}
    assert connection.send_data(b"hello") == b""
    assert connection.end_response() == b""
    assert connection.idle


@pytest.mark.parametrize("length", [[], [("Content-Length", "2")]])
def test_http_1_0_client(length: Any) -> None:
    connection = asked(GET_1_0)
    head = connection.start_response(200, length)
    assert b"transfer-encoding" not in parts(head)[1]
    assert parts(head)[1][b"connection"] == b"close"
    assert connection.raw_body
    assert connection.send_data(b"hi") == b"hi"
    assert connection.end_response([("X-T", "1")]) == b""
    assert connection.close_after


def test_http_1_0_client_that_keeps_alive() -> None:
    connection = asked(KEPT_1_0 + KEPT_1_0)
    fields = parts(connection.send_response(200, [], b"hi"))[1]
    assert fields[b"connection"] == b"keep-alive"
    assert not connection.close_after
    assert connection.next_event() is not None
    fields = parts(connection.start_response(200, []))[1]
    assert fields == {b"connection": b"close"}
    assert connection.close_after


def test_answer_before_the_body_came_closes() -> None:
    connection = asked(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe")
    fields = parts(connection.send_response(403, [], b"no"))[1]
    assert fields[b"connection"] == b"close"
    assert connection.close_after
    assert connection.receive_data(b"llo" + GET) is None


def test_answer_while_the_body_comes() -> None:
    connection = asked(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe")
    assert b"connection" not in parts(connection.start_response(200, []))[1]
    connection.receive_data(b"llo")
    connection.end_response()
    assert not connection.close_after


def test_answer_that_overtakes_the_body_closes() -> None:
    connection = asked(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe")
    connection.start_response(200, [])
    connection.end_response()
    assert connection.close_after


def test_early_hints() -> None:
    connection = asked()
    hints = [("Link", "</a.css>; rel=preload")]
    expected = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    assert connection.send_informational(103, hints) == expected
    assert asked(GET_1_0).send_informational(103, hints) == b""
    with pytest.raises(LocalProtocolError):
        connection.send_informational(101, [])
    connection.start_response(200, [])
    with pytest.raises(LocalProtocolError):
        connection.send_informational(103, hints)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.send_response(200, [], b""),
        lambda c: c.start_response(200, []),
        lambda c: c.send_data(b"x"),
        lambda c: c.end_response(),
        lambda c: c.account(1),
        lambda c: c.send_informational(103, []),
    ],
)
def test_nothing_can_be_sent_when_nothing_is_owed(call: Any) -> None:
    connection = H1Connection(Limits())
    with pytest.raises(LocalProtocolError):
        call(connection)
    connection.receive_data(GET)
    connection.send_response(200, [], b"")
    with pytest.raises(LocalProtocolError):
        call(connection)


def test_refusal() -> None:
    connection = asked(b"GET / HTTP/3.0\r\n\r\n", server=b"servo")
    event = Refused(ProtocolError(505, "unsupported HTTP version"))
    status, fields, body = parts(connection.refuse(event))
    assert status == b"HTTP/1.1 505 HTTP Version Not Supported"
    assert fields[b"connection"] == b"close"
    assert fields[b"content-length"] == str(len(body)).encode()
    assert body == b"505 HTTP Version Not Supported: unsupported HTTP version\n"
    assert connection.close_after
    assert connection.response_complete
    assert connection.status == 505


def test_refusal_of_the_drivers_own() -> None:
    connection = asked()
    event = Refused(ProtocolError(503, "too many requests at once"))
    fields = parts(connection.refuse(event, [("Retry-After", "1")]))[1]
    assert fields[b"retry-after"] == b"1"


def test_refusal_of_a_head_is_not_confused_with_the_answer_before() -> None:
    connection = asked()
    connection.send_response(200, [], b"")
    connection.receive_data(b"GET")
    timeout = Refused(ProtocolError(408, "the head took too long"))
    assert connection.refuse(timeout).startswith(b"HTTP/1.1 408 ")


def test_refusal_after_the_answer_has_begun() -> None:
    connection = asked(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n")
    connection.start_response(200, [])
    event = connection.receive_eof()
    assert isinstance(event, Refused)
    assert connection.refuse(event) == b""
    assert connection.close_after
    with pytest.raises(LocalProtocolError):
        connection.send_data(b"x")


def test_refusal_of_head_request_has_no_body() -> None:
    connection = asked(HEAD)
    response = connection.refuse(Refused(ProtocolError(503, "overload")))
    assert parts(response)[2] == b""


def test_caches_are_bounded() -> None:
    connection = H1Connection(Limits())
    for i in range(6000):
        connection.receive_data(GET)
        headers = [("X-Request", str(i)), (f"X-{i}", "1"), ("Content-Length", str(i))]
        connection.send_response(200 + i % 799, headers, bytes(i))
        connection.receive_data(GET)
        connection.send_response(f"200 {i}", [(b"Set-Cookie", b"a=%d" % i)], b"")
    assert len(serialise.LINES) <= 1024
    assert len(serialise.STATUSES) <= 256
    assert len(serialise.LENGTHS) <= 4096
    assert set(serialise.LENGTHS.values()) == serialise.LENGTH_LINES
    assert not any(line.startswith(b"Set-Cookie") for line in serialise.LINES.values())
    for cache in (serialise.LINES, serialise.STATUSES, serialise.LENGTHS):
        cache.clear()
    serialise.LENGTH_LINES.clear()


def test_a_value_that_changes_is_not_cached_for_ever() -> None:
    serialise.LINES.clear()
    for i in range(200):
        asked().send_response(200, [("X-Trace", str(i))], b"")
    assert len(serialise.LINES) < 64
