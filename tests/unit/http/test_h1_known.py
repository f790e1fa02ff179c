"""Fields that repeat on a connection are judged once: never must that show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.http.events import Refused, Request
from servo.http.h1 import H1Connection
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
    b"GET /" + FIELDS,
    b"GET / HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\nCookie: a=c\r\n\r\n",
    b"GET / HTTP/1.0\r\nHost: example.com\r\nAccept: */*\r\nCookie: a=b\r\n\r\n",
]


@pytest.mark.parametrize("parser", ["httptools", "h11"])
@pytest.mark.parametrize("head", HEADS)
def test_a_known_connection_sees_what_a_new_one_sees(parser: str, head: bytes) -> None:
    fresh = H1Connection(Limits(), parser=parser)
    assert facts(exchange(warm(parser), head)) == facts(exchange(fresh, head))


@given(st.lists(st.sampled_from([*HEADS[:3], HEADS[-2], HEADS[16]]), max_size=12))
def test_any_sequence_of_heads(heads: list[bytes]) -> None:
    connection = H1Connection(Limits())
    for head in heads:
        event = exchange(connection, head)
        assert facts(event) == facts(exchange(H1Connection(Limits()), head))
        if isinstance(event, Refused) or connection.close_after:
            break


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
        b"HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n",
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
