"""The limits on a client's data, which is refused as soon as it exceeds one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat

import pytest

from servo.http.events import Data, Refused, Request
from servo.http.h1.connection import PARSERS, H1Connection
from servo.http.limits import Limits

START = b"GET / HTTP/1.1\r\nHost: h\r\n"
SMALL = Limits(request_line=60, header_count=5, header_field=80, header_total=200)


def verdict(data: bytes, parser: str, step: int, limits: Limits = SMALL) -> int:
    """200, or the status of the refusal; 0 while more is waited for."""
    connection = H1Connection(limits, parser=parser)
    for i in range(0, len(data), step):
        event = connection.receive_data(data[i : i + step])
        if event is not None:
            return event.error.status if isinstance(event, Refused) else 200
    return 0


def head(line: int = 0, fields: int = 0, field: int = 0, total: int = 0) -> bytes:
    """A head whose request line, number of fields, second field or all fields have this size."""
    data = START
    if line:
        data = data.replace(b"/ ", b"/%b " % (b"a" * (line - len("GET / HTTP/1.1"))))
    data += b"X: y\r\n" * (fields - 1)
    if field:
        data += b"A: " + b"b" * (field - 5) + b"\r\n"
    while total and total > len(data) - len(START) + len("Host: h\r\n"):
        left = min(total - (len(data) - len(START) + len("Host: h\r\n")), 70)
        data += b"A:" + b"b" * (left - 4) + b"\r\n"
    return data + b"\r\n"


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("within", "beyond", "status"),
    [
        (head(line=60), head(line=61), 414),
        (head(fields=5), head(fields=6), 431),
        (head(field=80), head(field=81), 431),
        (head(total=200), head(total=201), 431),
    ],
)
def test_limits_of_a_head(
    within: bytes, beyond: bytes, status: int, parser: str, step: int
) -> None:
    assert verdict(within, parser, step) == 200
    assert verdict(beyond, parser, step) == status
    # It is cut off before its end comes.
    assert verdict(beyond[:-2], parser, step) == status


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"A" * 9000, b"/", 501),
        (b"A" * 9000, b"/" + b"a" * 9000, 501),
        (b"A" * 30, b"/" + b"a" * 9000, 501),
        (b"get", b"/" + b"a" * 9000, 501),
        (b"A(" * 4500, b"/", 400),
        (b"G(T", b"/" + b"a" * 9000, 400),
        (b"BREW", b"/" + b"a" * 9000, 414),
        (b"GET", b"/" + b"a" * 9000, 414),
        (b"GET", b"/?" + b"a" * 9000, 414),
        (b"CONNECT", b"h" * 9000 + b":80", 414),
    ],
)
def test_what_is_too_long_in_a_request_line(
    method: bytes, target: bytes, status: int, parser: str, step: int
) -> None:
    data = b"%b %b HTTP/1.1\r\nHost: h\r\n\r\n" % (method, target)
    for limits in (SMALL, Limits()):
        assert verdict(data, parser, step, limits) == status
        assert verdict(data[: limits.request_line + 1], parser, step, limits) == status


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("target", [b'/p?f={"a":1}', b"/p?q=<b>", b'http://h/?"'])
def test_strict_targets(parser: str, target: bytes) -> None:
    data = b"GET %b HTTP/1.1\r\nHost: h\r\n\r\n" % target
    for step in (1, 10_000):
        assert verdict(data, parser, step, Limits()) == 200
        assert verdict(data, parser, step, Limits(strict_targets=True)) == 400


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "part",
    [
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\nHost: h\n\n",
        b"GET / HTTP/1.1\rHost: h\r\r",
        b"GET /\0",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\n folded",
        b"GET / HTTP/1.1\r\nHost : h\r\n",
        b"GET / HTTP/1.1\r\nHost: h\nX",
        b"POST / HTTP/1.1\r\nHost: h\r\nX: \x7f",
        b"get / HTTP/1.1\r\n",
        b"GET / HTTP/2.0\r\n",
    ],
)
def test_what_cannot_become_a_head_is_refused_at_once(part: bytes, parser: str) -> None:
    for step in (1, len(part)):
        if part.endswith(b"folded"):
            part += b"\r\n"
        assert verdict(part, parser, step) >= 400


FLOODS: dict[str, Callable[[], Iterator[bytes]]] = {
    "request line": lambda: repeat(b"a" * 65536),
    "request line without target": lambda: repeat(b"A" * 65536),
    "header lines": lambda: repeat(b"X-A: b\r\n" * 8192),
    "header line": lambda: repeat(b"b" * 65536),
    "spaces": lambda: repeat(b" " * 65536),
    "empty lines": lambda: repeat(b"\r\n" * 32768),
    "nothing but CR": lambda: repeat(b"\r" * 65536),
    "chunk extension": lambda: repeat(b";a" * 32768),
    "chunk size": lambda: repeat(b"0" * 65536),
    "trailers": lambda: repeat(b"X-A: b\r\n" * 8192),
}
BEGINNINGS = {
    "request line": b"GET /",
    "header lines": START,
    "header line": START + b"X: ",
    "spaces": START + b"X:",
    "chunk extension": START + b"Transfer-Encoding: chunked\r\n\r\n1",
    "chunk size": START + b"Transfer-Encoding: chunked\r\n\r\n",
    "trailers": START + b"Transfer-Encoding: chunked\r\n\r\n0\r\n",
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("what", FLOODS)
def test_floods_are_cut_off(what: str, parser: str) -> None:
    connection = H1Connection(Limits(), parser=parser)
    connection.receive_data(BEGINNINGS.get(what, b""))
    for read, data in enumerate(FLOODS[what]()):
        if isinstance(connection.receive_data(data), Refused):
            break
        assert read < 3
    assert connection.close_after


@pytest.mark.parametrize("parser", PARSERS)
def test_endless_pipeline_keeps_its_memory(parser: str) -> None:
    """A driver that heeds `want_read` never holds more than two reads' worth."""
    connection = H1Connection(Limits(), parser=parser)
    request = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    data = request * (65536 // len(request))
    answered = 0
    tracemalloc.start()
    try:
        event = connection.receive_data(data)
        for _ in range(4):
            while connection.want_read:
                assert connection.receive_data(data) is None
            assert tracemalloc.get_traced_memory()[0] < 400_000
            while event is not None:
                assert isinstance(event, Request)
                connection.send_response(200, [], b"")
                answered += 1
                event = connection.next_event()
            event = connection.receive_data(data)
    finally:
        tracemalloc.stop()
    assert answered >= 4 * len(data) // len(request)


def test_reader_that_heeds_nothing_is_not_served() -> None:
    connection = H1Connection(replace(Limits(), pipeline_depth=1))
    connection.receive_data(START + b"\r\n")
    connection.receive_data((START + b"\r\n") * 2)
    assert not connection.want_read


def test_tiny_chunks_are_merged() -> None:
    connection = H1Connection(Limits())
    connection.receive_data(START + b"Transfer-Encoding: chunked\r\n\r\n")
    event = connection.receive_data(b"1\r\nx\r\n" * 10_000)
    assert isinstance(event, Data)
    assert event.data == b"x" * 10_000
