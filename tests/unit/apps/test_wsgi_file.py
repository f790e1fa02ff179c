"""Files as bodies of WSGI responses: sent by sendfile if possible, and otherwise read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import tempfile
import zipfile

import pytest
from wsgi_exchange import Exchange

from servo.apps.wsgi_file import FileRegion, FileWrapper


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
    """The body that the client gets for a file, and the region for sendfile; None if it is read."""

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
    """A file after a read of 2 bytes, which has moved the descriptor's own position further."""
    file.read(2)
    return file


class Delegating:
    """A wrapper like Django's File and werkzeug's FileStorage."""

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
    """An object whose descriptor belongs to another file than its `read`."""

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


def test_subclasses_with_a_read_of_their_own_are_read(tmp_path):
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
    """For fstat, files in /proc are regular and empty."""
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


def test_the_start_of_a_range_is_reached_without_reading(tmp_path):
    """This is how werkzeug sends a range for Flask's `send_file`."""
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
