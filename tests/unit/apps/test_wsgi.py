"""A WSGI application behind a real HTTP connection, without a socket."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import logging
import lzma
import os
import tempfile
import zipfile
from wsgiref.validate import validator

import pytest

from servo.apps.wsgi import WSGIResponder
from servo.apps.wsgi_environ import WSGIAdapter
from servo.apps.wsgi_file import FileRegion, FileWrapper
from servo.http.errors import ClientDisconnected
from servo.http.events import Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

log = logging.getLogger("test")


class Wire:
    """A transport that keeps what it is given."""

    def __init__(self, gone: bool = False) -> None:
        self.data = b""
        self.region = None
        self.sends = self.finished = 0
        self.gone = gone

    def send_all(self, data: bytes) -> None:
        if self.gone:
            raise ClientDisconnected("gone")
        self.sends += 1
        self.data += data

    def finish(self, rest) -> None:
        self.finished += 1
        if isinstance(rest, FileRegion):
            self.region = rest
            rest = rest.head
        self.data += bytes(rest)


class Exchange:
    """One request through an application."""

    def __init__(self, app, raw=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", wire=None, **options):
        self.wire = wire or Wire()
        self.http = H1Connection(Limits())
        self.adapter = WSGIAdapter(app, log=log, multithread=False, multiprocess=True, **options)
        self.responder = WSGIResponder(self.adapter, self.http, self.wire)
        self.template = self.adapter.template(("127.0.0.1", 80), ("127.0.0.2", 5000), "http")
        self.run(raw)

    def run(self, raw: bytes) -> None:
        request = self.http.receive_data(raw)
        assert isinstance(request, Request)
        body = io.BytesIO(request.body) if request.body else None
        self.environ = self.adapter.environ(self.template, request, body, len(request.body))
        rest = self.responder.run(self.environ)
        if rest:
            self.wire.finish(rest)

    @property
    def region(self) -> FileRegion | None:
        return self.wire.region

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


def test_a_failed_request_has_no_headers_of_the_one_before(caplog):
    """What the access log and hooks are told of a response."""
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
    """A response of these blocks whose `close` notes what was sent before it, and may fail."""

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


CONTENT = b"0123456789" * 1000


def served(file, headers=(), **options) -> tuple[bytes, FileRegion | None]:
    """The body that a client gets of a file, and the region for sendfile where there is one."""

    def app(environ, start_response):
        start_response("200 OK", list(headers))
        return environ["wsgi.file_wrapper"](file)

    exchange = Exchange(app, b"GET / HTTP/1.0\r\n\r\n", **options)
    region = exchange.region
    if region is None:
        return exchange.body, None
    with os.fdopen(region.fd, "rb", closefd=True) as copy:
        return exchange.body + os.pread(copy.fileno(), region.count, region.offset), region


def behind_it(file):
    """After a read of 2 bytes, when the descriptor's own position is somewhere else."""
    file.read(2)
    return file


class Delegating:
    """As Django's File and werkzeug's FileStorage."""

    def __init__(self, file):
        self.file = file

    def __getattr__(self, name):
        return getattr(self.file, name)


PLAIN = {
    "open": lambda path: path.open("rb"),
    "unbuffered": lambda path: path.open("rb", buffering=0),
    "for update": lambda path: path.open("r+b"),
    "descriptor": lambda path: os.fdopen(os.open(path, os.O_RDONLY), "rb"),
    "delegating": lambda path: Delegating(path.open("rb")),
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_a_plain_file_goes_by_sendfile_from_its_logical_position(tmp_path, make):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    body, region = served(behind_it(make(path)))
    assert body == CONTENT[2:]
    assert (region.offset, region.count) == (2, len(CONTENT) - 2)


def test_a_temporary_file_with_a_name_goes_by_sendfile():
    with tempfile.NamedTemporaryFile() as file:
        file.write(CONTENT)  # still in its buffer
        file.seek(2)
        body, region = served(file)
    assert body == CONTENT[2:]
    assert region is not None


def test_what_was_written_is_flushed_first():
    with tempfile.TemporaryFile() as file:
        file.write(CONTENT)
        file.seek(5)
        file.write(b"x")
        body, region = served(file)
    assert body == CONTENT[6:]
    assert region is not None


class Upper(io.FileIO):
    def read(self, size=-1):
        return super().read(size).upper()


class Rot(io.BufferedReader):
    def read(self, size=-1):
        return super().read(size).translate(bytes(reversed(range(256))))


def spooled(path):
    file = tempfile.SpooledTemporaryFile(max_size=10)  # noqa: SIM115  the test closes it
    file.write(path.read_bytes())
    file.seek(0)
    return file


@contextlib.contextmanager
def zipped(path):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "member")
    with zipfile.ZipFile(path.with_suffix(".zip")) as archive, archive.open("member") as member:
        yield member


def packed(module):
    def make(path):
        with module.open(path.with_suffix(".packed"), "wb") as file:
            file.write(path.read_bytes())
        return module.open(path.with_suffix(".packed"), "rb")

    return make


def patched(path):
    file = path.open("rb")
    pieces = iter([CONTENT, b""])
    file.read = lambda size=-1: next(pieces)
    os.truncate(path, 5)
    return file


class Borrowed(io.BytesIO):
    """Has the descriptor of something else."""

    def fileno(self):
        return os.open(__file__, os.O_RDONLY)


OTHERS = {
    "gzip": packed(gzip),
    "bz2": packed(bz2),
    "lzma": packed(lzma),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "a descriptor of something else": lambda path: Borrowed(path.read_bytes()),
    "spooled": spooled,
    "member of an archive": zipped,
    "a read of its own": patched,
    "a buffer over another raw file": lambda path: io.BufferedReader(packed(gzip)(path)),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_other_files_are_read(tmp_path, make):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with make(path) as file:
        assert served(file) == (CONTENT, None)


def test_subclasses_that_read_otherwise_are_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a\x01")
    assert served(Rot(io.FileIO(path))) == (b"\x9e\xfe", None)
    assert served(Upper(path)) == (b"A\x01", None)


def test_a_text_file_is_an_error(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_text("text")
    assert served(path.open())[1] is None
    assert "a response body is made of bytes, not str" in caplog.text


def test_files_without_a_size_are_read():
    """Those of /proc are regular, and empty to fstat."""
    with open("/proc/self/status", "rb") as file:
        body, region = served(file)
    assert b"Name:" in body
    assert region is None
    with open("/dev/zero", "rb") as file:
        assert served(file, [("Content-Length", "100")]) == (bytes(100), None)


def test_a_closed_file_is_an_error(tmp_path, caplog):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    file = path.open("rb")
    file.close()
    served(file)
    assert "closed file" in caplog.text


def test_a_wrapper_seeks_as_its_file_does(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        wrapper = FileWrapper(file, 4)
        assert wrapper.seekable()
        assert wrapper.seek(-6, os.SEEK_END) == len(CONTENT) - 6
        assert wrapper.tell() == len(CONTENT) - 6
        assert list(wrapper) == [b"4567", b"89"]
        wrapper.seek(3)
        assert served(file)[0] == CONTENT[3:]

    class Stream:
        def read(self, size):
            return b""

    assert not FileWrapper(Stream()).seekable()
    with pytest.raises(AttributeError):
        FileWrapper(Stream()).seek(0)


def test_a_range_at_the_end_of_a_file_is_not_read_to(tmp_path):
    """As werkzeug does it for Flask's `send_file`."""
    werkzeug = pytest.importorskip("werkzeug.wsgi")

    class Counting(io.FileIO):
        seen = 0

        def read(self, size=-1):
            data = super().read(size)
            self.seen += len(data)
            return data

    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    file = Counting(path)
    part = werkzeug._RangeWrapper(FileWrapper(file, 100), len(CONTENT) - 10, 10)
    assert b"".join(part) == CONTENT[-10:]
    assert file.seen == 10
    part.close()


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
