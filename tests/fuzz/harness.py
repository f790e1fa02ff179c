"""Shared code of the fuzz targets: it feeds bytes to a connection and checks what must always hold.

An input is four bytes that choose limits and cuts, followed by the bytes of a client. The tests
import this module without atheris and replay the corpus.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from conformance.cases import framing_cases

from servo.http.events import Event, Refused, Request
from servo.http.h1.connection import H1Connection
from servo.http.limits import Limits

CORPUS = Path(__file__).resolve().parent / "corpus"

SMALL = Limits(
    request_line=60,
    header_count=6,
    header_field=60,
    header_total=160,
    body=40,
    trailer_count=2,
    chunk_extension=8,
    pipeline_depth=2,
    strict_targets=True,
)
# The parts of a request that must be the same for both parsers and for any cuts of the bytes.
_FIELDS = {name for name in vars(Request) if not name.startswith("_")}
SAME = sorted(_FIELDS - {"body", "more_body", "trailers", "expect_continue"})
# All statuses with which a connection may refuse by itself.
REFUSALS = {400, 413, 414, 417, 426, 431, 501, 505}
_CONTROLS = {*range(0x20)} - {9} | {0x7F}

Outcome = tuple[list[Any], int | None]


def limits_and_stream(data: bytes) -> tuple[Limits, bytes]:
    return (SMALL if data[0] & 1 else Limits()), data[4:]


def cuts(data: bytes) -> list[bytes]:
    """The stream in up to four pieces, chosen by the input's first bytes."""
    stream = data[4:]
    bounds = sorted({0, len(stream), *(n * len(stream) // 256 for n in data[1:4])})
    return [stream[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


def single_bytes(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


class Player:
    """A client, and an app that answers every request with 200."""

    def __init__(self, parser: str, limits: Limits) -> None:
        self.limits = limits
        self.connection = H1Connection(limits, parser=parser)
        self.whole: list[Any] = []
        self.request: Request | None = None
        self.body = b""
        # Whether the connection ended before all bytes of the client were read.
        self.closed = False

    def play(self, pieces: Iterable[bytes]) -> Outcome:
        """Feed the pieces; return the complete requests, and the status of the refusal, if any."""
        connection = self.connection
        for piece in pieces:
            status = self.act(connection.receive_data(piece))
            if connection.close_after:
                self.closed = True
                # After its end, a connection must not find another request.
                assert connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") is None
                return self.whole, status
        return self.whole, self.act(connection.receive_eof())

    def act(self, event: Event | None) -> int | None:
        connection = self.connection
        while event is not None:
            if isinstance(event, Refused):
                status = event.error.status
                assert status in REFUSALS, event.error
                assert event.error.reason.isprintable()
                answer = connection.refuse(event)
                assert answer.startswith(b"HTTP/1.1 %d " % status)
                assert b"\r\nConnection: close\r\n" in answer or status == 426
                assert connection.close_after
                return status
            if isinstance(event, Request):
                check_request(event, self.limits)
                self.request, self.body = event, event.body
            else:
                self.body += event.data
            if not event.more_body:
                assert self.request is not None
                check_body(self.request, self.body, self.limits)
                seen = [getattr(self.request, name) for name in SAME]
                self.whole.append((*seen, self.body, tuple(event.trailers)))
                answer = connection.send_response(200, [], b"")
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            event = connection.next_event()
        return None


def check_request(request: Request, limits: Limits) -> None:
    """Check what must be true of every request that an app gets."""
    assert request.method.isascii()
    assert request.version in ("1.0", "1.1")
    assert not set(request.target) & ({*range(0x21), *range(0x7F, 0x100)} | set(b"#"))
    assert not set(request.target.partition(b"?")[0]) & set(b'"<>')
    assert not limits.strict_targets or not set(request.target) & set(b'"<>')
    assert len(request.headers) <= limits.header_count
    for name, value in request.headers:
        assert name
        assert name == name.lower()
        assert not set(name) & (_CONTROLS | set(b" \t:"))
        assert not set(value) & _CONTROLS
        assert value == value.strip(b" \t")
    names = [name for name, _ in request.headers]
    assert names.count(b"host") == 1 or (request.version == "1.0" and b"host" not in names)
    assert names.count(b"content-length") <= 1
    assert not {b"content-length", b"transfer-encoding"} <= set(names)


def check_body(request: Request, body: bytes, limits: Limits) -> None:
    assert not limits.body or len(body) <= limits.body
    declared = dict(request.headers).get(b"content-length")
    if declared is not None:
        assert len(body) == int(declared)
    elif b"transfer-encoding" not in request.named:
        assert body == b""


def check_parser(parser: str, data: bytes) -> None:
    """Check the invariant of the targets `httptools` and `h11`."""
    if len(data) < 4:
        return
    limits, stream = limits_and_stream(data)
    whole = Player(parser, limits).play([stream])
    assert Player(parser, limits).play(cuts(data)) == whole
    if len(stream) < 600:
        assert Player(parser, limits).play(single_bytes(stream)) == whole


def seeds() -> Iterator[bytes]:
    """The conformance cases, and the inputs in the corpus."""
    for case in framing_cases():
        yield b"\0\x40\x80\xc0" + case.data
        yield b"\1\x20\x55\xaa" + case.data
    for path in sorted(CORPUS.iterdir()):
        if path.suffix != ".md":
            yield path.read_bytes()


def seeds_of(target: str) -> Iterator[bytes]:
    """A target's own seeds, if its inputs have another form; otherwise `seeds`."""
    own: Iterator[bytes] = getattr(import_module(f"fuzz.{target}"), "seeds", seeds)()
    return own
