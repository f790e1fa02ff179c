"""The rules for request heads: each rule with both parsers, and its status."""

from __future__ import annotations

import pytest

from servo.http import headers
from servo.http.errors import ProtocolError
from servo.http.events import Refused, Request
from servo.http.h1.connection import PARSERS, H1Connection
from servo.http.headers import check_host, map_names
from servo.http.limits import Limits


def receive(data: bytes, parser: str) -> Request | int:
    """The request, or the status of its refusal."""
    event = H1Connection(Limits(), parser=parser).receive_data(data)
    if isinstance(event, Refused):
        return event.error.status
    assert isinstance(event, Request)
    return event


def line(request_line: bytes) -> bytes:
    return request_line + b"\r\nHost: h\r\n\r\n"


def field(*lines: bytes) -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: h\r\n" + b"".join(x + b"\r\n" for x in lines) + b"\r\n"


REFUSED = {
    400: [
        line(b"GET /p"),
        line(b"GET  /p HTTP/1.1"),
        line(b"GET /p  HTTP/1.1"),
        line(b" GET /p HTTP/1.1"),
        line(b"GET /p HTTP/1.1 "),
        line(b"GET /p x HTTP/1.1"),
        line(b"GET\t/p\tHTTP/1.1"),
        line(b"GET /p http/1.1"),
        line(b"GET /p HTTP/11"),
        line(b"GET /p HTTP/1.1x"),
        line(b"GET /p HTTP /1.1"),
        line(b"GET /p"),
        line(b"OPTIONS * RTSP/1.0"),
        line(b"SOURCE /p ICE/1.0"),
        line(b"G(T /p HTTP/1.1"),
        line(b"G\x80T /p HTTP/1.1"),
        line(b"GET p HTTP/1.1"),
        line(b"GET * HTTP/1.1"),
        line(b"GET *x HTTP/1.1"),
        line(b"GET ftp://h/ HTTP/1.1"),
        line(b"GET h:80 HTTP/1.1"),
        line(b"GET http:///p HTTP/1.1"),
        line(b"GET http://a@/p HTTP/1.1"),
        line(b"GET http://a@@b/p HTTP/1.1"),
        line(b"GET http://a@b@c/p HTTP/1.1"),
        line(b"GET http://a b/p HTTP/1.1"),
        line(b"GET http://a:x/p HTTP/1.1"),
        line(b"GET http://[::1/p HTTP/1.1"),
        line(b"CONNECT / HTTP/1.1"),
        line(b"CONNECT h HTTP/1.1"),
        *(line(b"GET /%bp HTTP/1.1" % bytes([c])) for c in b'"<>#\0\x01\x7f\x80\xff\x0b\x0c'),
        *(line(b"GET /p?%b HTTP/1.1" % bytes([c])) for c in b"#\0\x01\x7f\x80\xff\x0b\x0c"),
        line(b'GET /"?a HTTP/1.1'),
        line(b"GET /<?<#> HTTP/1.1"),
        line(b"GET /p?a b HTTP/1.1"),
        line(b'GET http://h"/p?q HTTP/1.1'),
        line(b"GET http://h/<p>?q HTTP/1.1"),
        line(b'OPTIONS *?" HTTP/1.1'),
        line(b'CONNECT h:80?" HTTP/1.1'),
        b"GET /p HTTP/1.1\r\n\r\n",
        b"GET /p HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET http://h/p HTTP/1.1\r\n\r\n",
        b"GET http://h/p HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /p HTTP/1.0\r\nHost: a/b\r\n\r\n",
        field(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        field(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        field(b"Content-Length: 5", b"Content-Length: 5"),
        field(b"Content-Length: 5", b"content-LENGTH: 6"),
        field(b"Content-Length: 5, 5"),
        field(b"Content-Length:"),
        field(b"Content-Length: +5"),
        field(b"Content-Length: -0"),
        field(b"Content-Length: 0x5"),
        field(b"Content-Length: 5_0"),
        field(b"Content-Length: \xb2"),
        field(b"Content-Type: a/b", b"Content-Type: c/d"),
        field(b"Transfer-Encoding:"),
        field(b"Transfer-Encoding: ,"),
        field(b"Transfer-Encoding: chunked,"),
        field(b"Transfer-Encoding: chunked, chunked"),
        field(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        field(b"Transfer-Encoding: chunked, gzip"),
        field(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        field(b"Transfer-Encoding: \x0bchunked"),
        field(b"Transfer-Encoding: chu nked"),
        field(b"Transfer-Encoding: \xa0chunked"),
        b"POST /p HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        field(b"X-A : b"),
        field(b"X-A\t: b"),
        field(b"X-A"),
        field(b": b"),
        field(b" X-A: b"),
        field(b"X-A: b", b" c"),
        field(b"X-A: b", b"\tc"),
        field(b"X-A: b", b" "),
        field(b"X(A): b"),
        field(b"X\x80A: b"),
        field(b"X-A: b\rc"),
        field(b"X-A: b\nc"),
        field(b"X-A: b\n c"),
        *(field(b"X-A: b%bc" % bytes([c])) for c in (0, 1, 7, 8, 0x0B, 0x0C, 0x1F, 0x7F)),
        *(field(b"X%bA: b" % bytes([c])) for c in b'\0 \t"(),/;<=>?@[\\]{}\x7f'),
    ],
    413: [field(b"Content-Length: 18446744073709551621"), field(b"Content-Length: " + b"9" * 40)],
    417: [field(b"Expect: x"), field(b"Expect: 100-continue, x"), field(b"Expect:")],
    501: [
        line(b"get /p HTTP/1.1"),
        line(b"G /p HTTP/1.1"),
        line(b"GET# /p HTTP/1.1"),
        line(b"A-METHOD-OF-MORE-THAN-20 /p HTTP/1.1"),
        line(b"CONNECT h:443 HTTP/1.1"),
        field(b"Transfer-Encoding: gzip"),
        field(b"Transfer-Encoding: identity"),
        field(b"Transfer-Encoding: chunkedx"),
        field(b"Transfer-Encoding: gzip, chunked"),
        field(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"),
        field(b"Transfer-Encoding: chunked;a=b"),
    ],
    505: [
        line(b"GET /p HTTP/0.9"),
        line(b"GET /p HTTP/1.2"),
        line(b"GET /p HTTP/2.0"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
}


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("status", "data"), [(status, data) for status, cases in REFUSED.items() for data in cases]
)
def test_refused(status: int, data: bytes, parser: str) -> None:
    assert receive(data, parser) == status


TARGET_CHARS = [bytes([c]) for c in range(0x21, 0x7F) if c not in b'"#<>']

ACCEPTED = [
    line(b"GET / HTTP/1.1"),
    line(b"GET //a//b HTTP/1.1"),
    line(b"GET /?a=[1]&b={2}|3^4`5\\6 HTTP/1.1"),
    line(b"GET /%zz?%00 HTTP/1.1"),
    line(b'GET /p?f={"a":1}&q=<b> HTTP/1.1'),
    line(b'GET /p??"? HTTP/1.1'),
    line(b'GET http://h/p?q="<b>" HTTP/1.1'),
    line(b'GET http://h?"<> HTTP/1.1'),
    line(b'BREW /p?"<> HTTP/1.1'),
    *(line(b"GET /%b?%b HTTP/1.1" % (c, c)) for c in TARGET_CHARS),
    line(b"OPTIONS * HTTP/1.1"),
    line(b"-BLARGH /p HTTP/1.1"),
    line(b"SETUP /p HTTP/1.1"),
    line(b"SOURCE /p HTTP/1.1"),
    line(b"PROPFIND /p HTTP/1.1"),
    b"GET /p HTTP/1.1\r\nHost:\r\n\r\n",
    b"GET /p HTTP/1.0\r\n\r\n",
    b"GET /p HTTP/1.1\r\nhOST:h\r\n\r\n",
    field(b"Content-Length: 0"),
    field(b"Content-Length: 00 \t"),
    field(b"Content-Length: 9223372036854775807"),
    field(b"Transfer-Encoding: Chunked \t "),
    field(b"Transfer-Encoding:\tchunked"),
    field(b"X-A:"),
    field(b"X-A: \t"),
    field(b"X-A: \t b \t c \t"),
    field(b"X-A: caf\xc3\xa9 \xff"),
    field(b"X.A|b~c'd*e: f:g"),
    field(b"X-A: b", b"X-A: c", b"x-a: d"),
    field(b"Connection: Content-Length, close", b"Content-Length: 0"),
    field(b"Connection: ,", b"Connection: ,,"),
    field(b"Connection: upgrade", b"Upgrade: h2c"),
    field(b"Proxy-Connection: close"),
]


FIELDS = [name for name in vars(Request) if not name.startswith("_")]


@pytest.mark.parametrize("data", ACCEPTED)
def test_accepted_alike(data: bytes) -> None:
    first, second = (receive(data, parser) for parser in PARSERS)
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    for name in FIELDS:
        assert getattr(first, name) == getattr(second, name)


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        (b"http://a/p?q=1?2", b"/p", b"q=1?2", b"a"),
        (b"HTTPS://a:8080/p", b"/p", b"", b"a:8080"),
        (b"http://a", b"/", b"", b"a"),
        (b"http://a?q", b"/", b"q", b"a"),
        (b"http://[::1]:80/p", b"/p", b"", b"[::1]:80"),
        (b"http://user:pass@a/p", b"/p", b"", b"a"),
    ],
)
def test_absolute_target_overrides_host(
    target: bytes, path: bytes, query: bytes, host: bytes, parser: str
) -> None:
    data = b"GET %b HTTP/1.1\r\nX-A: 1\r\nHost: other\r\n\r\n" % target
    request = receive(data, parser)
    assert isinstance(request, Request)
    assert (request.target, request.path, request.query) == (target, path, query)
    assert sorted(request.headers) == [(b"host", host), (b"x-a", b"1")]
    assert request.named[b"host"] == host


def test_absolute_target_gives_http_1_0_its_host() -> None:
    request = receive(b"GET http://a/ HTTP/1.0\r\n\r\n", "httptools")
    assert isinstance(request, Request)
    assert request.headers == [(b"host", b"a")]


@pytest.mark.parametrize(
    ("version", "connection", "keeps"),
    [
        (b"1.1", None, True),
        (b"1.1", b"keep-alive", True),
        (b"1.1", b"foo", True),
        (b"1.1", b"CLOSE", False),
        (b"1.1", b"keep-alive, close", False),
        (b"1.1", b"a ,\tclose\t, b", False),
        (b"1.1", b"closed", True),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive", True),
        (b"1.0", b"close, keep-alive", False),
        (b"1.0", b"foo", False),
    ],
)
def test_persistence(version: bytes, connection: bytes | None, keeps: bool) -> None:
    lines = b"" if connection is None else b"Connection: %b\r\n" % connection
    for parser in PARSERS:
        request = receive(b"GET / HTTP/%b\r\nHost: h\r\n%b\r\n" % (version, lines), parser)
        assert isinstance(request, Request)
        assert request.keep_alive is keeps


def test_repeated_connection_fields_are_one_list() -> None:
    for parser in PARSERS:
        request = receive(field(b"Connection: close", b"Connection: keep-alive"), parser)
        assert isinstance(request, Request)
        assert not request.keep_alive
        assert request.named[b"connection"] == b"close, keep-alive"


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a",
        b"a.example",
        b"a:",
        b"a:0",
        b"a:65535",
        b"127.0.0.1:80",
        b"0.0.0.0=5000",
        b"a_b-c~d",
        b"%41",
        b"[::1]",
        b"[::1]:80",
        b"[::ffff:1.2.3.4]",
    ],
)
def test_valid_hosts(host: bytes) -> None:
    check_host(host)


@pytest.mark.parametrize(
    "host",
    [
        b"a/b",
        b"a@b",
        b"a:x",
        b"a:65536",
        b"a:123456",
        b"a:80:80",
        b":80",
        b"a b",
        b"a,b",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"%4",
        b"::1",
        b"[::1",
        b"[]",
        b"[::1]x",
        b"[::g]",
        b"[1.2.3.4]",
        b"[fe80::1%25eth0]",
        b"caf\xc3\xa9",
        b"a\tb",
    ],
)
def test_invalid_hosts(host: bytes) -> None:
    with pytest.raises(ProtocolError):
        check_host(host)


def test_hosts_that_are_remembered_are_bounded() -> None:
    for number in range(3000):
        check_host(b"h%d.example" % number)
    check_host(b"h" * 300)
    with pytest.raises(ProtocolError):
        check_host(b"h h")
    assert len(headers.VALID_HOSTS) <= 1024
    assert b"h2999.example" in headers.VALID_HOSTS
    assert not {b"h" * 300, b"h h"} & headers.VALID_HOSTS


def test_header_map() -> None:
    headers = [(b"x_a", b"1"), (b"x-a", b"2")]
    assert map_names(headers, "drop") == [(b"x-a", b"2")]
    assert map_names(headers, "dangerous") == headers
    with pytest.raises(ProtocolError):
        map_names(headers, "refuse")
    assert map_names(headers[1:], "refuse") == headers[1:]
