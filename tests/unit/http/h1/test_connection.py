"""An HTTP/1.1 connection in bytes: requests with both parsers, and responses."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from servo.http import serialise
from servo.http.errors import LocalProtocolError, ProtocolError
from servo.http.events import Data, Event, Refused, Request
from servo.http.h1.connection import PARSERS, H1Connection
from servo.http.limits import Limits

GET = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"

Make = Callable[..., H1Connection]


@pytest.fixture(params=PARSERS)
def make(request: pytest.FixtureRequest) -> Make:
    def connection(**limits: int) -> H1Connection:
        return H1Connection(replace(Limits(), **limits), parser=request.param)

    return connection


def asked(event: Event | None) -> Request:
    assert isinstance(event, Request)
    return event


def refused(event: Event | None) -> int:
    assert isinstance(event, Refused), event
    return event.error.status


def answer(connection: H1Connection) -> bytes:
    return connection.send_response(200, [], b"x")


def test_ordinary_request_is_one_event(make: Make) -> None:
    connection = make()
    request = asked(connection.receive_data(GET))
    assert (request.method, request.target, request.version) == ("GET", b"/a?b=c", "1.1")
    assert (request.path, request.query) == (b"/a", b"b=c")
    assert request.headers == [(b"host", b"h")]
    assert request.named == {b"host": b"h"}
    assert (request.body, request.more_body, request.content_length) == (b"", False, None)
    assert request.keep_alive
    assert connection.next_event() is None


def test_idle_between_requests(make: Make) -> None:
    connection = make()
    assert connection.idle
    connection.receive_data(GET)
    assert not connection.idle
    answer(connection)
    assert connection.idle
    assert connection.want_read
    assert not connection.close_after


def test_head_in_pieces(make: Make) -> None:
    connection = make()
    for i in range(len(GET) - 1):
        assert connection.receive_data(GET[i : i + 1]) is None
        assert connection.in_head
    assert asked(connection.receive_data(GET[-1:])).path == b"/a"
    assert not connection.in_head


def test_takes_bytearray_and_memoryview(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(memoryview(bytearray(GET + b"junk"))[: len(GET)]))
    answer(connection)
    assert asked(connection.receive_data(bytearray(GET))).headers == [(b"host", b"h")]


def test_body_with_the_head(make: Make) -> None:
    request = asked(make().receive_data(POST + b"hello"))
    assert (request.body, request.more_body, request.content_length) == (b"hello", False, 5)


def test_body_after_the_head(make: Make) -> None:
    connection = make()
    request = asked(connection.receive_data(POST))
    assert request.more_body
    first = connection.receive_data(b"hel")
    last = connection.receive_data(b"loGET")
    assert isinstance(first, Data)
    assert (first.data, first.more_body) == (b"hel", True)
    assert isinstance(last, Data)
    assert (last.data, last.more_body) == (b"lo", False)
    answer(connection)
    assert connection.next_event() is None
    assert connection.in_head


def test_chunked_body_is_merged_per_read(make: Make) -> None:
    connection = make()
    request = asked(connection.receive_data(CHUNKED + b"3\r\nhel\r\n2\r\nlo\r\n"))
    assert (request.body, request.more_body, request.content_length) == (b"hello", True, None)
    assert connection.receive_data(b"0\r\n") is None
    last = connection.receive_data(b"X-T: 1\r\n\r\n")
    assert isinstance(last, Data)
    assert (last.data, last.more_body, last.trailers) == (b"", False, ((b"x-t", b"1"),))


def test_trailers_stay_apart(make: Make) -> None:
    request = asked(make().receive_data(CHUNKED + b"0\r\nX-T: 1\r\nCookie: no\r\n\r\n"))
    assert request.trailers == [(b"x-t", b"1")]
    assert b"x-t" not in request.named


def test_pipelined_requests_come_one_by_one(make: Make) -> None:
    connection = make()
    paths = [asked(connection.receive_data(GET + POST + b"hello" + GET)).path]
    assert connection.next_event() is None
    for _ in range(2):
        answer(connection)
        paths.append(asked(connection.next_event()).path)
    answer(connection)
    assert connection.next_event() is None
    assert paths == [b"/a", b"/p", b"/a"]


def test_pipelined_violation_comes_in_its_turn(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(GET + b"GET / HTTP/9.9\r\n\r\n"))
    assert connection.receive_data(b"more") is None
    answer(connection)
    event = connection.next_event()
    assert refused(event) == 505
    assert isinstance(event, Refused)
    assert not event.in_body
    assert connection.refuse(event).startswith(b"HTTP/1.1 505 ")
    assert connection.close_after


def test_nothing_is_parsed_after_a_refusal(make: Make) -> None:
    connection = make()
    assert refused(connection.receive_data(b"GET / HTTP/9.9\r\n\r\n" + GET)) == 505
    assert connection.receive_data(GET) is None
    assert connection.next_event() is None
    assert not connection.want_read


def test_nothing_is_parsed_after_connection_close(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(GET[:-2] + b"Connection: foo, ClOsE\r\n\r\n" + GET))
    assert b"Connection: close\r\n" in answer(connection)
    assert connection.close_after
    assert connection.next_event() is None


def test_refusal_in_a_body_says_so(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(CHUNKED))
    event = connection.receive_data(b"xyz\r\n")
    assert isinstance(event, Refused)
    assert (event.in_body, event.method, event.target) == (True, "POST", b"/p")


def test_refusal_tells_what_could_be_read(make: Make) -> None:
    event = make().receive_data(b"GET /a HTTP/1.1\r\nHost: a b\r\n\r\n")
    assert isinstance(event, Refused)
    assert (event.method, event.target) == ("GET", b"/a")


@pytest.mark.parametrize("data", [b"", b"\r\n", b"\r\n\r\n"])
def test_end_while_idle_is_no_violation(make: Make, data: bytes) -> None:
    connection = make()
    connection.receive_data(data)
    assert connection.receive_eof() is None
    assert connection.close_after


def test_end_in_a_head(make: Make) -> None:
    connection = make()
    connection.receive_data(GET[:-1])
    assert refused(connection.receive_eof()) == 400


@pytest.mark.parametrize("data", [POST + b"hell", CHUNKED + b"5\r\nhello\r\n0\r\n"])
def test_end_in_a_body(make: Make, data: bytes) -> None:
    connection = make()
    asked(connection.receive_data(data))
    event = connection.receive_eof()
    assert refused(event) == 400
    assert isinstance(event, Refused)
    assert event.in_body


def test_half_closing_client_is_answered(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(GET + GET + POST))
    assert connection.receive_eof() is None
    assert b"Connection:" not in answer(connection)
    asked(connection.next_event())
    assert b"Connection: close\r\n" in answer(connection)
    assert connection.close_after


def test_end_after_an_unanswered_request(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(GET))
    assert connection.receive_eof() is None
    assert b"Connection: close\r\n" in answer(connection)
    assert connection.close_after


def test_draining_answers_what_was_received(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(GET + GET + GET[:9]))
    connection.close_next()
    assert b"Connection:" not in answer(connection)
    asked(connection.next_event())
    assert b"Connection: close\r\n" in answer(connection)
    assert connection.close_after


def test_draining_answers_one_more_on_an_idle_connection(make: Make) -> None:
    connection = make()
    connection.close_next()
    asked(connection.receive_data(GET))
    assert b"Connection: close\r\n" in answer(connection)


def test_reading_pauses_at_the_pipelining_depth(make: Make) -> None:
    connection = make(pipeline_depth=3)
    asked(connection.receive_data(GET * 3))
    assert connection.want_read
    connection.receive_data(GET)
    assert not connection.want_read
    for _ in range(3):
        answer(connection)
        asked(connection.next_event())
    assert connection.want_read


def test_a_burst_beyond_the_depth_is_answered(make: Make) -> None:
    connection = make(pipeline_depth=1)
    event = connection.receive_data(GET * 500)
    assert not connection.want_read
    for _ in range(500):
        asked(event)
        answer(connection)
        event = connection.next_event()
    assert event is None
    assert connection.want_read


def test_a_pipelined_upload_pauses_reading(make: Make) -> None:
    connection = make()
    asked(connection.receive_data(GET))
    connection.receive_data(POST.replace(b"5", b"99999999"))
    while connection.want_read:
        connection.receive_data(bytes(16384))
    answer(connection)
    request = asked(connection.next_event())
    assert request.more_body
    assert len(request.body) == 65536
    assert connection.want_read


@pytest.mark.parametrize("lines", [b"\r\n", b"\r\n\r\n"])
def test_empty_lines_before_a_request(make: Make, lines: bytes) -> None:
    connection = make()
    asked(connection.receive_data(lines + GET))
    answer(connection)
    assert connection.receive_data(lines) is None
    assert connection.idle
    asked(connection.receive_data(GET))


def test_empty_lines_are_bounded(make: Make) -> None:
    connection = make()
    event = None
    for _ in range(20):
        event = event or connection.receive_data(b"\r\n")
    assert refused(event) == 400


def test_empty_lines_before_several_requests_do_not_add_up(make: Make) -> None:
    """Each line in a read of its own, as a client sends it that ends each request with one."""
    connection = make()
    for _ in range(20):
        assert connection.receive_data(b"\r\n") is None
        asked(connection.receive_data(GET))
        answer(connection)


@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        b"Connection: upgrade\r\nUpgrade: foo\r\n",
        b"Upgrade: websocket\r\n",
    ],
)
def test_upgrade_that_is_not_taken_is_ignored(make: Make, fields: bytes) -> None:
    connection = make()
    request = asked(connection.receive_data(GET[:-2] + fields + b"\r\n" + GET))
    assert request.upgrade is None
    answer(connection)
    assert asked(connection.next_event()).headers == [(b"host", b"h")]


UPGRADE = b"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n\r\n"


def test_upgrade_taken_over(make: Make) -> None:
    connection = make()
    request = asked(connection.receive_data(GET[:-2] + UPGRADE + b"\x81\x00"))
    assert request.upgrade == b"websocket"
    connection.receive_data(b"\x82\x00")
    assert connection.take_over() == b"\x81\x00\x82\x00"
    assert connection.receive_data(b"\x81\x00") is None


def test_upgrade_not_taken_over_loses_nothing(make: Make) -> None:
    connection = make()
    assert asked(connection.receive_data(GET[:-2] + UPGRADE + GET)).upgrade == b"websocket"
    answer(connection)
    assert asked(connection.next_event()).upgrade is None


@pytest.mark.parametrize(
    ("head", "body"), [(POST, b"GET /"), (CHUNKED, b"5\r\nGET /\r\n0\r\n\r\n")]
)
def test_upgrade_with_a_body_is_ignored(make: Make, head: bytes, body: bytes) -> None:
    """llhttp takes what follows such a head for another protocol's, which would smuggle it in."""
    connection = make()
    request = asked(connection.receive_data(head[:-2] + UPGRADE + body + GET))
    assert (request.upgrade, request.body, request.more_body) == (None, b"GET /", False)
    answer(connection)
    assert asked(connection.next_event()).path == b"/a"


def test_expectation_is_met_once(make: Make) -> None:
    connection = make()
    request = asked(connection.receive_data(POST[:-2] + b"Expect: 100-Continue\r\n\r\n"))
    assert request.expect_continue
    assert connection.send_continue() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert connection.send_continue() == b""
    connection.receive_data(b"hello")
    assert b"Connection:" not in answer(connection)


def test_expectation_is_not_met_when_the_body_is_there(make: Make) -> None:
    connection = make()
    head = POST[:-2] + b"Expect: 100-continue\r\n\r\n"
    assert not asked(connection.receive_data(head + b"h")).expect_continue
    assert connection.send_continue() == b""


def test_unmet_expectation_closes(make: Make) -> None:
    connection = make()
    connection.receive_data(POST[:-2] + b"Expect: 100-continue\r\n\r\n")
    assert b"Connection: close\r\n" in connection.start_response(413, [])
    assert connection.send_continue() == b""


def test_expectation_of_http_1_0_is_ignored(make: Make) -> None:
    head = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
    assert not asked(make().receive_data(head)).expect_continue


def test_declared_body_beyond_the_limit(make: Make) -> None:
    assert refused(make(body=4).receive_data(POST)) == 413
    asked(make(body=5).receive_data(POST))


def test_chunked_body_beyond_the_limit(make: Make) -> None:
    connection = make(body=4)
    asked(connection.receive_data(CHUNKED + b"4\r\nbody\r\n"))
    assert refused(connection.receive_data(b"1\r\n")) == 413


def test_unknown_parser() -> None:
    with pytest.raises(ValueError, match="no such parser"):
        H1Connection(Limits(), parser="regex")


def test_connection_is_freed_without_the_collector(make: Make) -> None:
    """10,000 connections a second must not wait for the garbage collector."""

    def alive() -> int:
        return sum(type(each) is H1Connection for each in gc.get_objects())

    gc.disable()
    try:
        before = alive()
        connection = H1Connection(Limits(), parser=PARSERS[0])
        connection.receive_data(GET)
        assert alive() == before + 1
        del connection
        assert alive() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("parser", PARSERS)
def test_a_refusal_leaves_nothing_to_the_collector(parser: str) -> None:
    """Its traceback would hold frames, with all that was read, until the collector runs."""

    def refuse(raw: bytes) -> None:
        connection = H1Connection(Limits(), parser=parser)
        event = connection.receive_data(raw)
        while not isinstance(event, Refused):
            event = connection.next_event() or connection.receive_data(b"x")
        connection.refuse(event)

    gc.collect()
    gc.disable()
    try:
        for raw in (
            # Not what h11 itself refuses: it leaves a cycle of its own.
            b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx",
        ):
            refuse(raw)
            assert gc.collect() == 0, raw
    finally:
        gc.enable()


# --- responses ----------------------------------------------------------------------------------

PLAIN_GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
GET_1_0 = b"GET / HTTP/1.0\r\n\r\n"
KEPT_1_0 = b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
HEAD_REQUEST = b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"

Fields = dict[bytes, bytes]


def owing(data: bytes = PLAIN_GET, **options: Any) -> H1Connection:
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
    connection = owing()
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
        fields = parts(owing().send_response(200, headers, b""))[1]
        assert fields == {b"x-a": b"1", b"x-b": b"1", b"content-length": b"0"}


def test_equal_lengths_are_sent_once() -> None:
    twice = [(b"content-length", b"2")] * 2
    for _ in range(2):
        assert parts(owing().send_response(200, twice, b"hi"))[1] == {b"content-length": b"2"}


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
    connection = owing()
    arguments = (200, headers, b"hi") if method == "send_response" else (200, headers)
    for _ in range(2):
        with pytest.raises(LocalProtocolError):
            getattr(connection, method)(*arguments)
    assert not connection.response_started
    assert connection.send_response(500, [], b"").startswith(b"HTTP/1.1 500 ")


@pytest.mark.parametrize("status", [100, 101, 199, 1000, "OK", "200\r\nX: y", "2000 OK", "1", None])
def test_invalid_status(status: Any) -> None:
    with pytest.raises(LocalProtocolError):
        owing().send_response(status, [], b"")


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
        assert parts(owing().send_response(status, [], b""))[0] == line


def test_hop_by_hop_headers_are_the_servers() -> None:
    names = ["Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "TE", "Proxy-Connection"]
    headers = [(name, "keep-alive") for name in names] + [("Trailer", "X-T")]
    for _ in range(2):
        fields = parts(owing().send_response(200, headers, b""))[1]
        assert fields == {b"content-length": b"0", b"trailer": b"X-T"}


def test_app_may_close() -> None:
    connection = owing()
    response = connection.send_response(200, [("Connection", "foo, Close")], b"")
    assert parts(response)[1][b"connection"] == b"close"
    assert connection.close_after


def test_date_and_server() -> None:
    connection = owing(server=b"servo", date=True)
    serialise.set_clock(784111777.5)
    fields = parts(connection.send_response(200, [], b""))[1]
    assert fields[b"date"] == b"Sun, 06 Nov 1994 08:49:37 GMT"
    assert fields[b"server"] == b"servo"
    connection.receive_data(PLAIN_GET)
    serialise.set_clock(784111778)
    fields = parts(connection.send_response(200, [], b""))[1]
    assert fields[b"date"] == b"Sun, 06 Nov 1994 08:49:38 GMT"


@pytest.mark.parametrize("request_bytes", [PLAIN_GET, GET_1_0, KEPT_1_0])
@pytest.mark.parametrize("given", [("Date", "today"), ("server", "mine")])
def test_date_and_server_of_the_app_win(request_bytes: bytes, given: tuple[str, str]) -> None:
    connection = owing(request_bytes, server=b"servo", date=True)
    serialise.set_clock(784111777)
    fields = parts(connection.send_response(200, [given], b""))[1]
    assert fields[given[0].lower().encode()] == given[1].encode()
    assert {b"date", b"server"} <= fields.keys()


@pytest.mark.parametrize("request_bytes", [PLAIN_GET, GET_1_0, KEPT_1_0])
@pytest.mark.parametrize("given", [[], [("Server", "mine")], [("Connection", "close")]])
def test_fields_that_every_response_has(request_bytes: bytes, given: list[tuple[str, str]]) -> None:
    more = b"X-A: 1\r\nX-B: 2, 3\r\n"
    for _ in range(2):
        connection = owing(request_bytes, more=more)
        fields = parts(connection.send_response(200, given, b"body"))[1]
        assert (fields[b"x-a"], fields[b"x-b"]) == (b"1", b"2, 3")
    connection = owing(request_bytes, more=more)
    assert b"\r\nX-A: 1\r\nX-B: 2, 3\r\n" in connection.start_response(200, given)
    assert more in owing(more=more).refuse(Refused(ProtocolError(503, "busy")))
    assert b"X-A" not in owing().send_response(200, given, b"")


def test_streamed_response_is_chunked() -> None:
    connection = owing()
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
    connection = owing()
    connection.start_response(200, [])
    trailers = [("X-T", "1"), ("Content-Length", "5"), ("Transfer-Encoding", "gzip")]
    assert connection.end_response(trailers) == b"0\r\nX-T: 1\r\n\r\n"


def test_trailers_are_validated() -> None:
    connection = owing()
    connection.start_response(200, [])
    with pytest.raises(LocalProtocolError):
        connection.end_response([("X-T", "1\r\n\r\nHTTP/1.1 200 OK")])


def test_streamed_response_of_known_length() -> None:
    connection = owing()
    head = connection.start_response(200, [(b"Content-Length", b"11")])
    assert parts(head)[1] == {b"content-length": b"11"}
    assert connection.raw_body
    assert connection.send_data(b"hello") == b"hello"
    connection.account(6)
    assert connection.end_response() == b""
    assert not connection.close_after
    assert connection.body_sent == 11


def test_too_long_a_body() -> None:
    connection = owing()
    connection.start_response(200, [("Content-Length", "3")])
    with pytest.raises(LocalProtocolError):
        connection.send_data(b"four")
    assert connection.close_after


def test_too_long_a_whole_response_sends_nothing() -> None:
    connection = owing()
    for _ in range(2):
        with pytest.raises(LocalProtocolError):
            connection.send_response(200, [("Content-Length", "3")], b"four")
    assert not connection.response_started
    assert not connection.close_after


def test_too_short_a_body_closes() -> None:
    connection = owing()
    connection.start_response(200, [("Content-Length", "3")])
    connection.send_data(b"no")
    assert connection.end_response() == b""
    assert connection.close_after


def test_too_short_a_whole_response_closes() -> None:
    for _ in range(2):
        connection = owing()
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
        owing().send_response(200, [("Content-Length", str(len(body)))], body)
    connection = owing(PLAIN_GET[:-2] + b"Connection: close\r\n\r\n" if closes else PLAIN_GET)
    with pytest.raises(LocalProtocolError, match="two different"):
        connection.send_response(200, [("Content-Length", length) for length in given], b"no")


def test_the_last_response_says_so_whatever_is_known() -> None:
    for _ in range(3):
        connection = owing(PLAIN_GET[:-2] + b"Connection: close\r\n\r\n")
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
    connection = owing(PLAIN_GET + PLAIN_GET)
    _, fields, body = parts(connection.send_response(status, [], b"swallowed"))
    assert (fields, body) == ({}, b"")
    connection.next_event()
    head = connection.start_response(status, [("ETag", '"x"')])
    assert parts(head)[1] == {b"etag": b'"x"'}
    assert connection.send_data(b"swallowed") == b""
    assert connection.end_response() == b""
    assert not connection.close_after


def test_204_has_no_length_and_304_may() -> None:
    assert parts(owing().send_response(204, [("Content-Length", "5")], b""))[1] == {}
    fields = parts(owing().send_response(304, [("Content-Length", "5")], b""))[1]
    assert fields == {b"content-length": b"5"}


def test_head_is_answered_like_get_without_the_body() -> None:
    assert parts(owing(HEAD_REQUEST).send_response(200, [], b"four"))[1:] == (
        {b"content-length": b"4"},
        b"",
    )
    connection = owing(HEAD_REQUEST)
    head = connection.start_response(200, [("Content-Length", "5")])
    assert parts(head)[1] == {b"content-length": b"5"}
    assert connection.send_data(b"hello") == b""
    assert connection.end_response() == b""
    assert connection.idle


@pytest.mark.parametrize("length", [[], [("Content-Length", "2")]])
def test_http_1_0_client(length: Any) -> None:
    connection = owing(GET_1_0)
    head = connection.start_response(200, length)
    assert b"transfer-encoding" not in parts(head)[1]
    assert parts(head)[1][b"connection"] == b"close"
    assert connection.raw_body
    assert connection.send_data(b"hi") == b"hi"
    assert connection.end_response([("X-T", "1")]) == b""
    assert connection.close_after


def test_http_1_0_client_that_keeps_alive() -> None:
    connection = owing(KEPT_1_0 + KEPT_1_0)
    fields = parts(connection.send_response(200, [], b"hi"))[1]
    assert fields[b"connection"] == b"keep-alive"
    assert not connection.close_after
    assert connection.next_event() is not None
    fields = parts(connection.start_response(200, []))[1]
    assert fields == {b"connection": b"close"}
    assert connection.close_after


def test_answer_before_the_body_came_closes() -> None:
    connection = owing(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe")
    fields = parts(connection.send_response(403, [], b"no"))[1]
    assert fields[b"connection"] == b"close"
    assert connection.close_after
    assert connection.receive_data(b"llo" + PLAIN_GET) is None


def test_answer_while_the_body_comes() -> None:
    connection = owing(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe")
    assert b"connection" not in parts(connection.start_response(200, []))[1]
    connection.receive_data(b"llo")
    connection.end_response()
    assert not connection.close_after


def test_answer_that_overtakes_the_body_closes() -> None:
    connection = owing(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhe")
    connection.start_response(200, [])
    connection.end_response()
    assert connection.close_after


def test_early_hints() -> None:
    connection = owing()
    hints = [("Link", "</a.css>; rel=preload")]
    expected = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    assert connection.send_informational(103, hints) == expected
    assert owing(GET_1_0).send_informational(103, hints) == b""
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
    connection.receive_data(PLAIN_GET)
    connection.send_response(200, [], b"")
    with pytest.raises(LocalProtocolError):
        call(connection)


def test_refusal() -> None:
    connection = owing(b"GET / HTTP/3.0\r\n\r\n", server=b"servo")
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
    connection = owing()
    event = Refused(ProtocolError(503, "too many requests at once"))
    fields = parts(connection.refuse(event, [("Retry-After", "1")]))[1]
    assert fields[b"retry-after"] == b"1"


def test_refusal_of_a_head_is_not_confused_with_the_answer_before() -> None:
    connection = owing()
    connection.send_response(200, [], b"")
    connection.receive_data(b"GET")
    timeout = Refused(ProtocolError(408, "the head took too long"))
    assert connection.refuse(timeout).startswith(b"HTTP/1.1 408 ")


def test_refusal_after_the_answer_has_begun() -> None:
    connection = owing(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n")
    connection.start_response(200, [])
    event = connection.receive_eof()
    assert isinstance(event, Refused)
    assert connection.refuse(event) == b""
    assert connection.close_after
    with pytest.raises(LocalProtocolError):
        connection.send_data(b"x")


def test_refusal_of_head_request_has_no_body() -> None:
    connection = owing(HEAD_REQUEST)
    response = connection.refuse(Refused(ProtocolError(503, "overload")))
    assert parts(response)[2] == b""


def test_caches_are_bounded() -> None:
    connection = H1Connection(Limits())
    for i in range(6000):
        connection.receive_data(PLAIN_GET)
        headers = [("X-Request", str(i)), (f"X-{i}", "1"), ("Content-Length", str(i))]
        connection.send_response(200 + i % 799, headers, bytes(i))
        connection.receive_data(PLAIN_GET)
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
        owing().send_response(200, [("X-Trace", str(i))], b"")
    assert len(serialise.LINES) < 64
