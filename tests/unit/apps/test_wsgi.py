"""A WSGI application behind a real HTTP connection, without a socket."""

from __future__ import annotations

import io
import logging
import os
from wsgiref.validate import validator

import pytest

from servo.apps.wsgi import WSGIResponder
from servo.apps.wsgi_environ import WSGIAdapter
from servo.apps.wsgi_file import FileRegion, FileWrapper
from servo.http.errors import ClientDisconnected
from servo.http.events import Request
from servo.http.h1 import H1Connection
from servo.http.limits import Limits

log = logging.getLogger("test")


class Wire:
    """A transport that keeps what it is given, and takes at most `room` bytes at once."""

    def __init__(self, room: int = 1 << 30, gone: bool = False) -> None:
        self.data = b""
        self.sends = 0
        self.room = room
        self.gone = gone

    def send_all(self, data: bytes) -> None:
        if self.gone:
            raise ClientDisconnected("gone")
        self.sends += 1
        self.data += data

    def send_some(self, data: bytes) -> bytes:
        if self.gone:
            raise ClientDisconnected("gone")
        self.sends += 1
        self.data += bytes(data[: self.room])
        return data[self.room :]


class Exchange:
    """One request through an application."""

    def __init__(self, app, raw=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", wire=None, **options):
        self.wire = wire or Wire()
        self.http = H1Connection(Limits())
        self.adapter = WSGIAdapter(app, log=log, multithread=False, multiprocess=True, **options)
        self.responder = WSGIResponder(self.adapter, self.http, self.wire)
        self.template = self.adapter.template(("127.0.0.1", 80), ("127.0.0.2", 5000), "http")
        self.region = None
        self.run(raw)

    def run(self, raw: bytes) -> None:
        request = self.http.receive_data(raw)
        assert isinstance(request, Request)
        body = io.BytesIO(request.body) if request.body else None
        self.environ = self.adapter.environ(self.template, request, body, len(request.body))
        rest = self.responder.run(self.environ)
        if isinstance(rest, FileRegion):
            self.region = rest
            rest = rest.head
        self.wire.data += bytes(rest)

    @property
    def head(self) -> bytes:
        return self.wire.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.wire.data.partition(b"\r\n\r\n")[2]


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_one_block_is_one_response_with_its_length():
    exchange = Exchange(hello)
    assert exchange.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 5" in exchange.head.lower()
    assert exchange.body == b"hello"
    assert exchange.wire.sends == 0  # left to the driver, in one piece


def test_several_blocks_of_a_list_are_joined():
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"a", b"", b"bc"]

    exchange = Exchange(app)
    assert b"content-length: 3" in exchange.head.lower()
    assert exchange.body == b"abc"


class Listed:
    """A response object over a list, as Django's are."""

    def __init__(self, *blocks):
        self.blocks = list(blocks)
        self.closed = 0

    def __iter__(self):
        return iter(self.blocks)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("blocks", [(), (b"a",), (b"a", b"", b"bc")])
def test_an_iterator_over_a_list_is_one_response(blocks):
    response = Listed(*blocks)

    def app(environ, start_response):
        start_response("200 OK", [])
        return response

    exchange = Exchange(app)
    body = b"".join(blocks)
    assert b"content-length: %d" % len(body) in exchange.head.lower()
    assert exchange.body == body
    assert exchange.wire.sends == 0
    assert response.closed == 1


def test_an_iterator_over_a_list_behind_a_write():
    def app(environ, start_response):
        start_response("200 OK", [])(b"first")
        return Listed(b"second")

    exchange = Exchange(app)
    assert exchange.body == b"5\r\nfirst\r\n6\r\nsecond\r\n0\r\n\r\n"


def test_a_generator_is_chunked_and_each_block_goes_out_at_once():
    exchange = None
    seen = []

    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"one"
        seen.append(wire.data)
        yield b"two"

    wire = Wire()
    exchange = Exchange(app, wire=wire)
    assert seen[0].endswith(b"3\r\none\r\n")
    assert exchange.body == b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"


def test_what_the_socket_does_not_take_of_the_last_block_is_left_to_the_driver():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "1000")])
        yield b"x" * 1000

    exchange = Exchange(app, wire=Wire(room=300))
    assert exchange.wire.sends == 1
    assert exchange.body == b"x" * 1000


def test_a_block_that_is_all_of_the_body_goes_out_before_the_application_goes_on():
    seen = []

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        yield b"whole"
        seen.append((wire.sends, wire.data))

    wire = Wire()
    exchange = Exchange(app, wire=wire)
    assert exchange.body == b"whole"
    assert seen == [(1, wire.data)]
    assert exchange.http.idle


@pytest.mark.parametrize("more", ["write", "yield"])
def test_more_than_all_of_the_body_closes_the_connection(more, caplog):
    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Length", "5")])
        if more == "write":
            write(b"whole")
        blocks = [b"more"] if more == "write" else [b"whole", b"more"]
        return (block for block in blocks)

    exchange = Exchange(app)
    assert exchange.body == b"whole"
    assert exchange.http.close_after
    assert "more body than Content-Length says" in caplog.text


def test_write_is_supported():
    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Length", "4")])
        write(b"ab")
        return [b"cd"]

    assert Exchange(app).body == b"abcd"


def test_close_is_called_even_after_an_error(caplog):
    closed = []

    class Body:
        def __iter__(self):
            yield b"a"
            raise ValueError("in the middle")

        def close(self):
            closed.append(True)

    def app(environ, start_response):
        start_response("200 OK", [])
        return Body()

    exchange = Exchange(app)
    assert closed == [True]
    assert not exchange.body.endswith(b"0\r\n\r\n")  # the client must see that it is cut
    assert exchange.http.close_after
    assert "in the middle" in caplog.text


@pytest.mark.parametrize(
    "error",
    [ValueError("secret detail"), SystemExit(1), GeneratorExit(), KeyboardInterrupt()],
)
def test_an_error_before_the_head_is_a_500_without_details(caplog, error):
    def app(environ, start_response):
        raise error

    exchange = Exchange(app)
    assert exchange.head.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in exchange.wire.data
    assert "Traceback" in caplog.text
    # The connection goes on: more may be pipelined.
    assert not exchange.http.close_after
    assert b"connection:" not in exchange.head.lower()


def test_exc_info_replaces_a_head_that_was_not_sent():
    def app(environ, start_response):
        start_response("200 OK", [])
        try:
            raise ValueError("oops")
        except ValueError:
            import sys

            start_response("503 Busy", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"busy"]

    assert Exchange(app).head.startswith(b"HTTP/1.1 503 Busy\r\n")


@pytest.mark.parametrize(
    ("app", "word"),
    [
        (lambda environ, start_response: [b"x"], "start_response"),
        (lambda environ, start_response: start_response(200, []) and [], "status"),
        (lambda environ, start_response: start_response("200 OK", []) and ["text"], "bytes"),
        (lambda environ, start_response: start_response("200 OK", [("A", "b\r\nC: d")]) and [], ""),
        (
            lambda environ, start_response: (
                start_response("200 OK", []),
                start_response("200 OK", []),
            ),
            "twice",
        ),
    ],
)
def test_what_breaks_the_pep_is_a_500_and_said(caplog, app, word):
    exchange = Exchange(app)
    assert exchange.head.startswith(b"HTTP/1.1 500 ")
    assert word in caplog.text
    assert b"C: d" not in exchange.wire.data


def test_a_client_that_is_gone_is_no_error_of_the_application(caplog):
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"x"

    exchange = Exchange(app, wire=Wire(gone=True))
    assert exchange.http.close_after
    assert caplog.text == ""


def test_a_file_becomes_a_region_for_sendfile(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    file = path.open("rb")
    file.read(2)

    def app(environ, start_response):
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file)

    exchange = Exchange(app)
    region = exchange.region
    assert (region.offset, region.count) == (2, 8)
    assert b"content-length: 8" in exchange.head.lower()
    assert file.closed
    assert os.pread(region.fd, 8, 2) == b"23456789"
    region.close()


def test_a_file_without_a_descriptor_is_read_in_blocks():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "5")])
        return FileWrapper(io.BytesIO(b"hello"))

    exchange = Exchange(app)
    assert exchange.region is None
    assert exchange.body == b"hello"


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /?a=b HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
        b"HEAD / HTTP/1.0\r\n\r\n",
    ],
)
def test_clean_under_wsgiref_validate(raw, caplog):
    exchange = Exchange(validator(hello), raw)
    assert exchange.head.split(b" ", 2)[1] == b"200"
    assert caplog.text == ""


@pytest.mark.parametrize(("version", "hinted"), [(b"1.1", True), (b"1.0", False)])
def test_early_hints(version, hinted):
    class Hinted(Exchange):
        def run(self, raw):
            self.template["wsgi.early_hints"] = self.responder.early_hints
            super().run(raw)

    def app(environ, start_response):
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
        return hello(environ, start_response)

    data = Hinted(app, b"GET / HTTP/%b\r\nHost: x\r\n\r\n" % version).wire.data
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
    assert data.startswith(hints) == hinted
    assert data.count(b"HTTP/1.1 ") == 1 + hinted


def test_early_hints_come_too_late():
    class Hinted(Exchange):
        def run(self, raw):
            self.template["wsgi.early_hints"] = self.responder.early_hints
            super().run(raw)

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"begun")
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
        return []

    result = Hinted(app)
    assert b"103" not in result.wire.data
    assert result.http.close_after
