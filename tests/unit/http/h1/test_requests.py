"""Bytes in, events out, over both parsers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

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
    import gc

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
