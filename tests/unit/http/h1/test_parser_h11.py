"""Invariants for random bytes.

The requests and the errors depend neither on the division of the stream nor on the parser.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from conformance.cases import framing_cases
from hypothesis import given, settings
from hypothesis import strategies as st

from servo.http.events import Event, Refused, Request
from servo.http.h1.connection import PARSERS, H1Connection
from servo.http.limits import Limits

SEEDS = [case.data for case in framing_cases()]
SEEDS.append(b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.0\r\n\r\n")
PIECES = [
    *(bytes([c]) for c in b'\0\t\n\r "#%*,-./:;<=>?@[]_{|}\x7f\x80\xff05aGz'),
    b"\r\n",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1",
    b"GET /",
    b"Host: x\r\n",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
]
SMALL = Limits(
    request_line=40,
    header_count=4,
    header_field=40,
    header_total=100,
    body=20,
    trailer_count=2,
    chunk_extension=8,
    pipeline_depth=2,
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A case of the corpus with a few mutations."""
    data = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(0, 3))):
        position = draw(st.integers(0, len(data)))
        removed = draw(st.integers(0, 3))
        data = data[:position] + draw(st.sampled_from(PIECES)) + data[position + removed :]
    return data


def play(parser: str, limits: Limits, pieces: Iterable[bytes]) -> tuple[list[Any], int | None]:
    """The requests that were whole, and the status of the refusal at the end, if there was one."""
    connection = H1Connection(limits, parser=parser)
    whole: list[Any] = []
    request: Request | None = None
    body = b""

    def act(event: Event | None) -> int | None:
        nonlocal request, body
        while event is not None:
            if isinstance(event, Refused):
                return event.error.status
            if isinstance(event, Request):
                request, body = event, event.body
            else:
                body += event.data
            if not event.more_body:
                assert request is not None
                seen = [getattr(request, name) for name in SAME]
                whole.append((*seen, body, tuple(event.trailers)))
                connection.send_response(200, [], b"")
            event = connection.next_event()
        return None

    for piece in pieces:
        status = act(connection.receive_data(piece))
        if connection.close_after:
            return whole, status
    return whole, act(connection.receive_eof())


_FIELDS = {name for name in vars(Request) if not name.startswith("_")}
SAME = sorted(_FIELDS - {"body", "more_body", "trailers", "expect_continue"})


@given(streams(), st.sampled_from([Limits(), SMALL]))
@settings(max_examples=300)
def test_parsers_agree(data: bytes, limits: Limits) -> None:
    first, second = (play(parser, limits, [data]) for parser in PARSERS)
    assert first == second


@given(streams(), st.sampled_from([Limits(), SMALL]), st.sampled_from(PARSERS), st.data())
@settings(max_examples=300)
def test_any_split_gives_the_same(
    data: bytes, limits: Limits, parser: str, draws: st.DataObject
) -> None:
    cuts = sorted(draws.draw(st.lists(st.integers(0, len(data)), max_size=4), label="cuts"))
    bounds = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    whole = play(parser, limits, [data])
    assert play(parser, limits, pieces) == whole
    assert play(parser, limits, [data[i : i + 1] for i in range(len(data))]) == whole


@given(st.binary(max_size=200), st.sampled_from(PARSERS))
@settings(max_examples=200)
def test_nothing_raises(data: bytes, parser: str) -> None:
    play(parser, SMALL, [data])
    play(parser, SMALL, [b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", data])
