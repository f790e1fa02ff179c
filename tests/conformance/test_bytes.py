"""Both corpora, as bytes, with both parsers: whole, byte by byte, and split at every position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from conformance.cases import (
    GUNICORN_ABSENT,
    GUNICORN_FILE,
    Case,
    Outcome,
    Seen,
    framing_cases,
    gunicorn_cases,
    judge,
    warm_ups,
)

from servo.http.errors import ProtocolError
from servo.http.events import Data, Event, Refused, Request
from servo.http.forwarded import TrustedPeers, resolve_client
from servo.http.h1.connection import PARSERS, H1Connection
from servo.http.headers import map_names
from servo.http.limits import Limits
from servo.http.proxy_protocol import ProxyProtocolReader

FRAMING = framing_cases()
GUNICORN = gunicorn_cases()
# Cases with at most this many bytes are split at each position.
SPLIT_BOUND = 300


class Echo:
    """A minimal driver: it records each complete request and answers it."""

    def __init__(self, case: Case, parser: str) -> None:
        self.settings = case.settings
        self.connection = H1Connection(limits_of(case.settings), parser=parser)
        mode = case.settings.get("proxy_protocol")
        self.proxy = ProxyProtocolReader(mode) if mode else None
        self.trusted = TrustedPeers(case.settings.get("forwarded_allow_ips", "127.0.0.1,::1"))
        self.request: Request | None = None
        self.body = b""
        self.seen: list[Seen] = []
        self.response = b""
        self.closed = False

    def feed(self, data: bytes) -> None:
        if self.proxy is not None:
            try:
                result = self.proxy.feed(data)
            except ProtocolError as error:
                self.act(Refused(error))
                return
            if result is None:
                return
            self.proxy = None
            data = result[1]
        if data:
            self.act(self.connection.receive_data(data))

    def end(self) -> None:
        self.act(self.connection.receive_eof())
        self.closed = self.closed or self.connection.close_after

    def act(self, event: Event | None) -> None:
        while event is not None and not self.closed:
            if isinstance(event, Refused):
                self.refuse(event)
                return
            if isinstance(event, Request):
                self.request, self.body = event, event.body
            else:
                self.body += event.data
            if not event.more_body:
                self.answer(event)
            event = self.connection.next_event()

    def answer(self, last: Request | Data) -> None:
        request = self.request
        assert request is not None
        try:
            resolve_client(request.headers, ("127.0.0.1", 50000), self.trusted)
            headers = map_names(request.headers, self.settings.get("header_map", "drop"))
        except ProtocolError as error:
            self.refuse(Refused(error))
            return
        self.seen.append(
            Seen(
                request.method,
                request.path.decode("latin-1"),
                self.body,
                request.query.decode("latin-1"),
                tuple(as_text(headers)),
                tuple(as_text(last.trailers)),
            )
        )
        self.response += self.connection.send_response(200, [], b"seen")
        self.closed = self.connection.close_after

    def refuse(self, event: Refused) -> None:
        if event.in_body and self.request is not None:
            path = self.request.path.decode("latin-1")
            self.seen.append(Seen(self.request.method, path, self.body, error=str(event.error)))
        self.response += self.connection.refuse(event)
        assert self.connection.close_after
        self.closed = True


def as_text(fields: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[str, str]]:
    return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)


def limits_of(settings: dict[str, Any]) -> Limits:
    defaults = Limits()
    return Limits(
        request_line=settings.get("limit_request_line", defaults.request_line),
        header_count=settings.get("limit_request_fields", defaults.header_count),
        header_field=settings.get("limit_request_field_size", defaults.header_field),
    )


def play(case: Case, parser: str, pieces: Iterable[bytes], warm: bytes = b"") -> Outcome:
    echo = Echo(case, parser)
    if warm:
        for _ in range(2):
            echo.feed(warm)
        assert [seen.path for seen in echo.seen] == ["/warm", "/warm"], warm
        assert not echo.closed
        echo.seen, echo.response = [], b""
    for piece in pieces:
        if not echo.closed:
            echo.feed(piece)
    if case.half_close and not echo.closed:
        echo.end()
    return Outcome(tuple(echo.seen), echo.response, echo.closed)


def check_case(case: Case, parser: str) -> None:
    data = case.data
    whole = play(case, parser, [data])
    assert judge(case, whole) is None
    single = play(case, parser, (data[i : i + 1] for i in range(len(data))))
    assert judge(case, single) is None
    if len(data) <= SPLIT_BOUND:
        for i in range(1, len(data)):
            assert judge(case, play(case, parser, [data[:i], data[i:]])) is None, f"split at {i}"


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("case", FRAMING, ids=str)
def test_framing(case: Case, parser: str) -> None:
    check_case(case, parser)


@pytest.mark.skipif(not GUNICORN, reason=GUNICORN_ABSENT)
@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("case", GUNICORN, ids=str)
def test_gunicorn(case: Case, parser: str) -> None:
    check_case(case, parser)


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize("case", FRAMING + GUNICORN, ids=str)
def test_a_warm_connection_sees_what_a_new_one_sees(case: Case, parser: str) -> None:
    data = case.data
    warm = warm_ups(case)
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        cold = play(case, parser, pieces)
        for warm_up in warm:
            assert play(case, parser, pieces, warm_up) == cold, (warm_up, pieces)
    for i in range(1, len(data) if len(data) <= SPLIT_BOUND and warm else 0):
        pieces = [data[:i], data[i:]]
        assert play(case, parser, pieces, warm[0]) == play(case, parser, pieces), i


def test_every_case_can_be_played_warm() -> None:
    assert [case.name for case in FRAMING if not warm_ups(case)] == []


@pytest.mark.parametrize("case", FRAMING + GUNICORN, ids=str)
def test_parsers_agree(case: Case) -> None:
    outcomes = [play(case, parser, [case.data]) for parser in PARSERS]
    first, second = ((o.seen, o.closed, first_lines(o.response)) for o in outcomes)
    assert first == second


def first_lines(response: bytes) -> list[bytes]:
    return [line for line in response.split(b"\r\n") if line.startswith(b"HTTP/1.1")]


def test_corpora_are_read_whole() -> None:
    assert len(FRAMING) == 99
    assert not GUNICORN_FILE.exists() or len(GUNICORN) == 132


@pytest.mark.parametrize(
    ("outcome", "fault"),
    [
        (Outcome((), b"", closed=False), "no answer"),
        (Outcome((), b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n", closed=False), "left open"),
        (Outcome((Seen("GET", "/p", b""),), b"", closed=True), "reached the app"),
        (
            Outcome(
                (Seen("GET", "/p", b""), Seen("GET", "/smuggled", b"")),
                b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n",
                closed=True,
            ),
            "smuggled",
        ),
    ],
)
def test_judge_can_find_fault(outcome: Outcome, fault: str) -> None:
    case = Case("x", b"", "must_reject")
    assert fault in (judge(case, outcome) or "")
