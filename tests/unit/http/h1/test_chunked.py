"""The chunked coding: refused forms, and the limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from servo.http.errors import ProtocolError
from servo.http.h1.chunked import ChunkedReader
from servo.http.limits import Limits


def read(data: bytes, step: int = 0, **limits: int) -> tuple[bytes, int, bool, ChunkedReader]:
    """Body, bytes used and completeness, with the data in pieces of `step` bytes."""
    reader = ChunkedReader(replace(Limits(), **limits))
    if not step:
        return *reader.read(data, 0), reader
    body, start, complete = b"", 0, False
    for end in range(step, len(data) + step, step):
        part, start, complete = reader.read(data[:end], start)
        body += part
        if complete:
            break
    return body, start, complete, reader


VALID = {
    b"0\r\n\r\n": b"",
    b"5\r\nhello\r\n0\r\n\r\n": b"hello",
    b"a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n": b"01234567890123456789",
    b"0005\r\nhello\r\n0\r\n\r\n": b"hello",
    b"5;a\r\nhello\r\n0;b=c\r\n\r\n": b"hello",
    b'5 ; a = b ;\tc="d;\\"e"\r\nhello\r\n0\r\n\r\n': b"hello",
    b"2\r\n\r\n\r\n0\r\n\r\n": b"\r\n",
    b"5\r\nhello\r\n0\r\nX: y\r\n\r\n": b"hello",
}


@pytest.mark.parametrize("step", [0, 1, 2, 3])
@pytest.mark.parametrize("data", VALID)
def test_valid(data: bytes, step: int) -> None:
    body, used, complete, _ = read(data + (b"" if step else b"GET / HTTP/1.1\r\n"), step)
    assert (body, used, complete) == (VALID[data], len(data), True)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"0 \r\n\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b"5g\r\nhello\r\n",
        b"G\r\n",
        b"5\nhello",
        b"5\n;\r\nhello\r\n",
        b"5\rhello",
        b"5;\r\nhello\r\n",
        b"5;a\nb\r\nhello\r\n",
        b"5;a=\rb\r\nhello\r\n",
        b"5;a=\0b\r\nhello\r\n",
        b"5;a=\x7fb\r\nhello\r\n",
        b"5;a=b c\r\nhello\r\n",
        b'5;a="b\r\nhello\r\n',
        b"5;=b\r\nhello\r\n",
        b"5,a\r\nhello\r\n",
        b"\xb2\r\nhi\r\n",
        b"0" * 17 + b"\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"0\n\n",
        b"0\r\n\n",
        b"0\r\nX\r\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\n X: y\r\n\r\n",
        b"0\r\nX: y\r\n z\r\n\r\n",
        b"0\r\nX: a\nY: b\r\n\r\n",
        b"0\r\nX: a\0\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n\r\n",
        b"0\r\nHost: evil\r\n\r\n",
    ],
)
def test_malformed(data: bytes, step: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        read(data, step)
    assert caught.value.status == 400


@pytest.mark.parametrize("size", [b"FFFFFFFFFFFFFFFF", b"8000000000000000"])
def test_sizes_beyond_reason(size: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        read(size + b"\r\n")
    assert caught.value.status == 413


def test_body_limit_is_met_before_the_data() -> None:
    assert read(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", body=5)[2]
    with pytest.raises(ProtocolError) as caught:
        read(b"3\r\nabc\r\n3\r\n", body=5)
    assert caught.value.status == 413


def test_extension_limit() -> None:
    assert read(b"1;" + b"a" * 9 + b"\r\nx\r\n0\r\n\r\n", chunk_extension=10)[2]
    for step in (0, 1):
        for end in (b"", b"\r\nx\r\n0\r\n\r\n"):
            with pytest.raises(ProtocolError, match="extensions too long"):
                read(b"1;" + b"a" * 20 + end, step, chunk_extension=10)


def test_extensions_of_a_whole_body_are_limited() -> None:
    chunk = b"1;aaaaaaaaa\r\nx\r\n"
    assert read(chunk * 16 + b"0\r\n\r\n", chunk_extension=10)[2]
    with pytest.raises(ProtocolError, match="extensions"):
        read(chunk * 17 + b"0\r\n\r\n", chunk_extension=10)


@pytest.mark.parametrize("step", [0, 1])
def test_trailer_limits(step: int) -> None:
    trailers = b"X: y\r\n" * 3
    _, _, complete, reader = read(b"0\r\n" + trailers + b"\r\n", step, trailer_count=3)
    assert complete
    assert reader.trailers == [(b"x", b"y")] * 3
    for limits in ({"trailer_count": 2}, {"header_total": 17}, {"header_field": 5}):
        for end in (b"", b"\r\n"):
            with pytest.raises(ProtocolError) as caught:
                read(b"0\r\n" + trailers + end, step, **limits)
            assert caught.value.status == 431


def test_senders_identity_is_not_taken_from_trailers() -> None:
    dropped = b"Authorization: a\r\nCookie: b\r\nX-Forwarded-For: c\r\nProxy-X: d\r\nTE: e\r\n"
    reader = read(b"0\r\n" + dropped + b"Vary: *\r\nContent-Type: t\r\n\r\n")[3]
    assert reader.trailers == [(b"vary", b"*"), (b"content-type", b"t")]
