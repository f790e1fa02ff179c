"""Repeated fields of a connection are parsed only once, without any effect for clients."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.http.events import Data, Refused, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

FIELDS = b"HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\nCookie: a=b\r\n\r\n"


def exchange(connection: H1Connection, head: bytes) -> Request | Refused:
    event = connection.receive_data(head)
    assert isinstance(event, (Request, Refused))
    if isinstance(event, Request) and not event.more_body:
        connection.send_response(200, [], b"")
    return event


def facts(event: Request | Refused) -> object:
    if isinstance(event, Refused):
        return event.error.status
    return (
        event.method,
        event.target,
        event.path,
        event.query,
        event.version,
        event.headers,
        event.keep_alive,
        event.expect_continue,
        event.upgrade,
        event.content_length,
        event.body,
        event.more_body,
        event.named,
    )


def warm(parser: str = "httptools") -> H1Connection:
    """A connection that knows FIELDS."""
    connection = H1Connection(Limits(), parser=parser)
    for _ in range(3):
        exchange(connection, b"GET /warm " + FIELDS)
    assert connection._known is not None
    return connection


HEADS = [
    b"GET / " + FIELDS,
    b"HEAD /x?y=1&z " + FIELDS,
    b"DELETE /%20 " + FIELDS,
    b"GET  / " + FIELDS,
    b"GET / x " + FIELDS,
    b"GET /\x00 " + FIELDS,
    b"GET /#f " + FIELDS,
    b'GET /p?f={"a":1}&q=<b> ' + FIELDS,
    b'GET /"?a ' + FIELDS,
    b"GET /p?<#> " + FIELDS,
    b"GET " + FIELDS,
    b" GET / " + FIELDS,
    b"GE(T / " + FIELDS,
    b"CONNECT example.com:80 " + FIELDS,
    b"CONNECT /x " + FIELDS,
    b"OPTIONS * " + FIELDS,
    b"GET http://other.example/p?q " + FIELDS,
    b"GET p " + FIELDS,
    b"BREW / " + FIELDS,
    # The known fields as the end of other ones.
    b"GET / HTTP/1.1\r\nX: " + FIELDS,
    b"GET / HTTP/1.1\r\nX: a b " + FIELDS,
    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX: y " + FIELDS,
    b"GET / HTTP/1.1\r\nContent-Length: 5\r\nX: " + FIELDS,
    b"GET / HTTP/1.0\r\nX: " + FIELDS,
    # The same without a space, so that splitting at spaces still gives three parts.
    b"GET / HTTP/1.1\r\nX:" + FIELDS,
    b"POST / HTTP/1.1\r\nContent-Length:42\r\nX:" + FIELDS,
    b"POST / HTTP/1.1\r\nTransfer-Encoding:chunked\r\nX:" + FIELDS,
    b"GET / HTTP/1.1\r\nHost:other.example\r\nX:" + FIELDS,
    b"GET / HTTP/1.1\r\nX:\x00" + FIELDS,
    b"GET / HTTP/1.1\nX:" + FIELDS,
    b"GET / HTTP/1.1\rX:" + FIELDS,
    b"GET /a foo" + FIELDS,
    b"GET / HTTP/1.1" + FIELDS,
    b"GET /" + FIELDS,
    b"GET / HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\nCookie: a=c\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: example.com\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
]


@pytest.mark.parametrize("parser", ["httptools", "h11"])
@pytest.mark.parametrize("head", HEADS)
def test_a_known_connection_sees_what_a_new_one_sees(parser: str, head: bytes) -> None:
    fresh = H1Connection(Limits(), parser=parser)
    assert facts(exchange(warm(parser), head)) == facts(exchange(fresh, head))


def after(connection: H1Connection, first: Request | Refused) -> Request | Refused | None:
    """What the head is that follows another in one read."""
    assert isinstance(first, Request)
    connection.send_response(200, [], b"")
    event = connection.next_event()
    assert event is None or isinstance(event, (Request, Refused))
    return event


@pytest.mark.parametrize("parser", ["httptools", "h11"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("between", [b"", b"\r\n", b"\r", b"\n", b" "])
def test_a_pipelined_head_is_what_it_is_on_a_new_connection(
    parser: str, head: bytes, between: bytes
) -> None:
    seen = []
    for connection in (warm(parser), H1Connection(Limits(), parser=parser)):
        first = connection.receive_data(b"GET /first " + FIELDS + between + head)
        event = after(connection, first)  # type: ignore[arg-type]
        seen.append(None if event is None else facts(event))
    assert seen[0] == seen[1]


@given(st.lists(st.sampled_from(HEADS), max_size=12), st.booleans())
def test_any_sequence_of_heads_in_one_read(heads: list[bytes], warmed: bool) -> None:
    connection = warm() if warmed else H1Connection(Limits())
    event = connection.receive_data(b"".join(heads))
    for head in heads:
        assert isinstance(event, (Request, Refused))
        expected = exchange(H1Connection(Limits()), head)
        if isinstance(expected, Request) and expected.more_body:
            break  # the next head is the body
        assert facts(event) == facts(expected)
        if isinstance(event, Refused):
            break
        event = after(connection, event)
        if connection.close_after:
            break


def test_pipelined_requests_with_the_same_fields_are_parsed_once() -> None:
    connection = H1Connection(Limits())
    event = connection.receive_data(b"".join(b"GET /%d " % n + FIELDS for n in range(6)))
    fields = set()
    for number in range(6):
        assert isinstance(event, Request)
        assert event.target == b"/%d" % number
        fields.add(id(event.named))
        connection.send_response(200, [], b"")
        event = connection.next_event()
    assert event is None
    assert len(fields) < 4


@given(st.lists(st.sampled_from(HEADS), max_size=12))
def test_any_sequence_of_heads(heads: list[bytes]) -> None:
    connection = H1Connection(Limits())
    for head in heads:
        event = exchange(connection, head)
        assert facts(event) == facts(exchange(H1Connection(Limits()), head))
        if isinstance(event, Refused) or event.more_body or connection.close_after:
            break


REMEMBERED = [
    FIELDS,
    FIELDS[:7] + b"0" + FIELDS[8:],
    b"HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n",
    b"HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    b"HTTP/1.1\r\nX: HTTP/1.1\r\nHost: h\r\n\r\n",
]
HIDDEN = [
    b"",
    b"HTTP/1.1\r\nContent-Length:42\r\nX:",
    b"HTTP/1.1\r\nTransfer-Encoding:chunked\r\nX:",
    b"HTTP/1.1\r\nHost:other\r\nX:",
    b"HTTP/1.1\r\n",
    b"HTTP/1.1",
    b"foo",
    b"\x00",
    b" ",
    b"\r\n",
]


@pytest.mark.parametrize("parser", ["httptools", "h11"])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("fields", REMEMBERED)
@pytest.mark.parametrize("methods", [("GET", "GET"), ("POST", "GET"), ("GET", "POST")])
def test_nothing_hides_in_front_of_the_fields_that_are_remembered(
    fields: bytes, hidden: bytes, methods: tuple[str, str], parser: str
) -> None:
    before, after = (method.encode() + b" /p " for method in methods)
    connection = H1Connection(Limits(), parser=parser)
    for _ in range(3):
        event = connection.receive_data(before + fields)
        while isinstance(event, Request | Data) and event.more_body:
            event = connection.receive_data(b"abc")
        if not isinstance(event, Request | Data) or connection.close_after:
            return
        connection.send_response(200, [], b"")
        if connection.close_after:
            return
    event = exchange(connection, after + hidden + fields)
    fresh = H1Connection(Limits(), parser=parser)
    assert facts(event) == facts(exchange(fresh, after + hidden + fields))


def test_what_an_app_does_to_its_headers_stays_with_it() -> None:
    connection = warm()
    event = exchange(connection, b"GET / " + FIELDS)
    assert isinstance(event, Request)
    event.headers.append((b"x-evil", b"1"))
    again = exchange(connection, b"GET / " + FIELDS)
    assert isinstance(again, Request)
    assert (b"x-evil", b"1") not in again.headers


@pytest.mark.parametrize(
    "fields",
    [
        b"HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        b"HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_fields_that_say_more_than_themselves_are_not_remembered(fields: bytes) -> None:
    connection = H1Connection(Limits())
    for _ in range(4):
        event = connection.receive_data(b"GET / " + fields)
        assert isinstance(event, Request)
        while event is not None and event.more_body:
            event = connection.receive_data(b"hi")
        connection.send_response(200, [], b"")
        assert connection._known is None


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"", b"{}", b"hello", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]),
            st.sampled_from([b"POST", b"PUT", b"GET"]),
            st.integers(0, 200),
        ),
        min_size=1,
        max_size=10,
    ),
    st.sampled_from(["httptools", "h11"]),
)
def test_bodies_behind_known_fields(requests: list[tuple[bytes, bytes, int]], parser: str) -> None:
    """However a request is cut in two, it is what was sent; the next one is not touched."""
    connection = H1Connection(Limits(), parser=parser)
    for body, method, cut in requests:
        raw = b"%b /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
            method,
            len(body),
            body,
        )
        found, seen, more = b"", None, True
        for part in (raw[:cut], raw[cut:]):
            event = connection.receive_data(part) if part else None
            while event is not None:
                assert not isinstance(event, Refused)
                if isinstance(event, Request):
                    seen = (event.method, event.target, event.content_length)
                    found += event.body
                else:
                    found += event.data
                more = event.more_body
                event = connection.next_event()
        assert seen == (method.decode(), b"/p", len(body))
        assert (found, more) == (body, False)
        connection.send_response(200, [], b"")
        assert connection.idle


def test_a_body_behind_known_fields_is_bounded_and_no_second_request() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n"
    connection = H1Connection(Limits())
    for _ in range(3):
        event = connection.receive_data(head + b"hi" + head)
        assert isinstance(event, Request)
        assert (event.body, event.more_body) == (b"hi", False)
        connection.send_response(200, [], b"")
        event = connection.next_event()
        assert isinstance(event, Request)
        assert event.more_body
        last = connection.receive_data(b"yo")
        assert last is not None
        connection.send_response(200, [], b"")
        assert connection.idle


def test_long_fields_are_not_remembered_and_an_idle_connection_forgets() -> None:
    connection = H1Connection(Limits())
    head = b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 5000 + b"\r\n\r\n"
    for _ in range(3):
        exchange(connection, head)
    assert connection._known is None
    connection = warm()
    connection.forget()
    assert connection._known is None
    assert isinstance(exchange(connection, b"GET / " + FIELDS), Request)
