"""A WSGI application behind a real HTTP connection, without a socket."""

from __future__ import annotations

import os
from wsgiref.validate import validator

import pytest
from wsgi_exchange import Exchange, Wire


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_one_block_is_one_response_with_its_length():
    exchange = Exchange(hello)
    assert exchange.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-length: 5" in exchange.head.lower()
    assert exchange.body == b"hello"
    assert exchange.wire.sends == 0  # the driver sends it, in one piece


def test_several_blocks_of_a_list_are_joined():
    def app(environ, start_response):
        start_response("200 OK", [])
        return [b"a", b"", b"bc"]

    exchange = Exchange(app)
    assert b"content-length: 3" in exchange.head.lower()
    assert exchange.body == b"abc"


class Listed:
    """A response object over a list, like Django's."""

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
    assert not exchange.body.endswith(
        b"0\r\n\r\n"
    )  # the client must see that the response is incomplete
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


def test_a_failed_request_has_no_headers_of_the_one_before(caplog):
    """The access log and hooks read the headers of the response from the responder."""
    answers = iter(["ok", "fails", "late", "silent"])

    def app(environ, start_response):
        what = next(answers)
        if what in ("ok", "late"):
            start_response("202 Accepted", [("X-Secret", what)])
        if what != "ok":
            raise ValueError(what)
        return [b"x"]

    exchange = Exchange(app)
    assert exchange.responder.headers == [("X-Secret", "ok")]
    for _ in range(3):
        exchange.run(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert exchange.responder.headers == [("Content-Type", "text/plain; charset=utf-8")]
        assert exchange.responder.status == "500 Internal Server Error"


class Closing:
    """A response of these blocks. Its `close` records what was sent before, and may fail."""

    def __init__(self, blocks, wire, fails=False):
        self.blocks = blocks
        self.wire = wire
        self.fails = fails
        self.sent_before = None

    def __iter__(self):
        return iter(self.blocks)

    def close(self):
        self.sent_before = self.wire.data
        if self.fails:
            raise ValueError("in close")


def by_iterator(blocks):
    return (block for block in blocks)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("make", "headers", "written", "body"),
    [
        (list, [], b"", b"abc"),
        (list, [("Content-Length", "3")], b"", b"abc"),
        (by_iterator, [], b"", b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
        (by_iterator, [("Content-Length", "3")], b"", b"abc"),
        (by_iterator, [], b"w", b"1\r\nw\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"),
    ],
)
def test_the_response_is_complete_before_close(fails, make, headers, written, body, caplog):
    wire = Wire()
    response = Closing(make([b"a", b"bc"]), wire, fails)

    def app(environ, start_response):
        write = start_response("200 OK", headers)
        if written:
            write(written)
        return response

    exchange = Exchange(app, wire=wire)
    assert exchange.body == body
    assert response.sent_before == wire.data
    assert exchange.http.response_complete
    assert not exchange.http.close_after
    assert ("in close" in caplog.text) == fails
    exchange.run(b"GET /again HTTP/1.1\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), KeyboardInterrupt()])
def test_whatever_close_raises_is_logged(error, caplog):
    class Body(list):
        def close(self):
            raise error

    def app(environ, start_response):
        start_response("200 OK", [])
        return Body([b"x"])

    exchange = Exchange(app)
    assert exchange.body == b"x"
    assert "Error in close() of the response to GET '/'" in caplog.text


def test_an_error_page_is_out_before_close(caplog):
    wire = Wire()
    response = Closing(["text"], wire)

    def app(environ, start_response):
        start_response("200 OK", [])
        return response

    Exchange(app, wire=wire)
    assert response.sent_before.startswith(b"HTTP/1.1 500 ")


def test_a_file_is_with_the_driver_when_close_fails(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    file = path.open("rb")

    def fail():
        file.close()
        raise ValueError("in close")

    def app(environ, start_response):
        start_response("200 OK", [])
        wrapper = environ["wsgi.file_wrapper"](file)
        wrapper.close = fail
        return wrapper

    exchange = Exchange(app)
    assert "in close" in caplog.text
    assert os.pread(exchange.region.fd, 10, 0) == b"0123456789"
    assert not exchange.http.close_after
    exchange.region.close()


def test_close_is_called_when_the_client_is_gone():
    wire = Wire(gone=True)
    response = Closing(by_iterator([b"a", b"b"]), wire)

    def app(environ, start_response):
        start_response("200 OK", [])
        return response

    exchange = Exchange(app, wire=wire)
    assert response.sent_before == b""
    assert exchange.http.close_after


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
def test_violations_of_the_pep_are_a_500_and_logged(caplog, app, word):
    exchange = Exchange(app)
    assert exchange.head.startswith(b"HTTP/1.1 500 ")
    assert word in caplog.text
    assert b"C: d" not in exchange.wire.data


def test_a_lost_client_is_not_an_error_of_the_application(caplog):
    def app(environ, start_response):
        start_response("200 OK", [])
        yield b"x"

    exchange = Exchange(app, wire=Wire(gone=True))
    assert exchange.http.close_after
    assert caplog.text == ""


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
