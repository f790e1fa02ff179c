"""HTTP/2 in bytes: refusals, limits, and output."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from h2cases import MALFORMED, REFUSED
from h2frames import (
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GET,
    HEADERS,
    NO_ERROR,
    PADDED,
    POST,
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    Reader,
    block,
    data,
    frame,
    goaway,
    head,
    hello,
    ping,
    reset,
    settings,
    window,
)
from h2pair import PLAIN, Pair, shown
from hypothesis import given
from hypothesis import strategies as st

from servo.http.events import Data, Request
from servo.http.h2.connection import CONNECTION_WINDOW, H2Connection
from servo.http.h2.stream import H2Stream
from servo.http.limits import H2Limits, Limits

# --- requests -------------------------------------------------------------------------------------


def test_a_request_as_an_app_sees_it() -> None:
    pair = Pair()
    fields = [
        *(GET[0], GET[1], (":authority", "example.com:8000"), (":path", "/a%20b?c=d")),
        *(("accept", "*/*"), ("cookie", "a=1"), ("te", "trailers"), ("cookie", "b=2")),
    ]
    request = pair.ask(head(1, fields)).request
    assert (request.method, request.version, request.more_body) == ("GET", "2", False)
    assert (request.target, request.path, request.query) == (b"/a%20b?c=d", b"/a%20b", b"c=d")
    assert request.headers == [
        (b"host", b"example.com:8000"),
        (b"accept", b"*/*"),
        (b"te", b"trailers"),
        (b"cookie", b"a=1; b=2"),
    ]


def test_host_stands_in_for_a_missing_authority() -> None:
    fields = [f for f in GET if f[0] != ":authority"]
    request = Pair().ask(head(1, [*fields, ("host", "h")])).request
    assert request.headers == [(b"host", b"h")]


def test_a_body_comes_in_parts() -> None:
    pair = Pair()
    stream = pair.ask(head(1, POST, end=False))
    assert stream.request.more_body
    assert shown(pair.say(data(1, b"ab") + data(1, b"cd", end=True))) == [
        (1, b"ab", True),
        (1, b"cd", False),
    ]
    assert not stream.incoming


def test_trailers_end_a_body() -> None:
    pair = Pair()
    pair.ask(head(1, POST, end=False) + data(1, b"ab"))
    events = pair.say(head(1, [("x-sum", "1"), ("x-forwarded-for", "1.1.1.1")]))
    assert shown(events) == [(1, b"", False)]
    event = events[0][1]
    assert isinstance(event, Data)
    assert list(event.trailers) == [(b"x-sum", b"1")]


def test_a_head_goes_on_in_continuation_frames() -> None:
    pair = Pair()
    encoded = block([*GET, ("x-long", "v" * 3000)])
    parts = [encoded[i : i + 1000] for i in range(0, len(encoded), 1000)]
    received = frame(HEADERS, END_STREAM, 1, parts[0])
    for part in parts[1:-1]:
        received += frame(CONTINUATION, 0, 1, part)
    received += frame(CONTINUATION, END_HEADERS, 1, parts[-1])
    assert pair.ask(received).request.named[b"x-long"] == b"v" * 3000


SESSION = (
    hello({4: 100})
    + head(1, [*POST, ("content-length", "5"), ("cookie", "a=b"), ("cookie", "c=d")], end=False)
    + frame(HEADERS, END_STREAM, 3, block(GET)[:7])
    + frame(CONTINUATION, END_HEADERS, 3, block(GET)[7:])
    + data(1, b"hel")
    + ping()
    + frame(0xBE, 0xFF, 5, b"an extension")
    + head(5, [*GET, ("connection", "close")])
    + window(1, 10)
    + frame(DATA, PADDED | END_STREAM, 1, b"\x03lo\0\0\0")
    + head(7, [(":method", "GET"), (":scheme", "http"), (":authority", "a b"), (":path", "/")])
    + head(9, POST, end=False)
    + reset(9)
    + head(11, POST, end=False)
    + data(11, b"x" * 100)
    + head(11, [("x-trailer", "1")])
    + goaway()
)


def play(parts: list[bytes]) -> tuple[list[object], list[object]]:
    server = H2Connection(Limits(), H2Limits())
    server.start()
    events: list[tuple[H2Stream | None, object]] = []
    client = Reader()
    for part in parts:
        events += server.receive_data(part, 0.0)
        while server.more:
            events += server.receive_more(0.0)
        client.feed(server.output())
    sent = [
        (number, answer.status, answer.body, answer.reset)
        for number, answer in sorted(client.answers.items())
    ]
    return shown(events), [sent, client.goaways]


def test_each_split_gives_the_same() -> None:
    whole = play([SESSION])
    assert len(whole[0]) == 11
    assert whole[1][0] == [(5, 0, b"", PROTOCOL_ERROR), (7, 400, whole[1][0][1][2], None)]
    for at in range(1, len(SESSION)):
        assert play([SESSION[:at], SESSION[at:]]) == whole
    assert play([SESSION[i : i + 1] for i in range(len(SESSION))]) == whole


@given(st.lists(st.integers(0, len(SESSION)), max_size=12))
def test_any_split_gives_the_same(cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(SESSION)]
    assert play([SESSION[a:b] for a, b in zip(marks, marks[1:], strict=False)]) == play([SESSION])


# --- malformed requests: the stream ends, the connection does not (RFC 9113 section 8.1.1) --------


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_malformed_head(fields: list[tuple[str, str]]) -> None:
    pair = Pair()
    other = pair.ask(head(1))
    events = pair.say(head(3, fields))
    assert shown(events) == [(0, 400, False)]
    assert pair.client.answers[3].reset == PROTOCOL_ERROR
    assert pair.client.answers[3].status == 0
    other.send_response(200, PLAIN, b"still here")
    pair.listen()
    assert pair.client.answers[1].body == b"still here"
    pair.still_serves()


@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize(("status", "fields"), REFUSED.values(), ids=REFUSED)
def test_refused_head(status: int, fields: list[tuple[str, str]], end: bool) -> None:
    pair = Pair(Limits(header_total=60_000))
    encoded = block(fields)
    received = b""
    for i, at in enumerate(range(0, len(encoded), 16384)):
        part = encoded[at : at + 16384]
        flags = END_HEADERS if at + 16384 >= len(encoded) else 0
        kind = CONTINUATION if i else HEADERS
        received += frame(kind, flags | (END_STREAM if end and not i else 0), 1, part)
    events = pair.say(received)
    assert shown(events) == [(1, status, False)]
    answer = pair.client.answers[1]
    assert answer.status == status
    assert answer.ended
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    # What is left of the request is of no use.
    assert answer.reset == (None if end else NO_ERROR)
    pair.still_serves()


BODIES = {
    "too long": (PROTOCOL_ERROR, [data(1, b"abcdef")]),
    "too long in parts": (PROTOCOL_ERROR, [data(1, b"abcde"), data(1, b"f")]),
    "too short": (PROTOCOL_ERROR, [data(1, b"abcd", end=True)]),
    "too short, then nothing": (PROTOCOL_ERROR, [data(1, b"abcd"), data(1, b"", end=True)]),
    "too short, with trailers": (PROTOCOL_ERROR, [data(1, b"abcd"), head(1, [("a", "b")])]),
    "trailers that end nothing": (PROTOCOL_ERROR, [head(1, [("a", "b")], end=False)]),
    "pseudo-header in trailers": (PROTOCOL_ERROR, [data(1, b"abcde"), head(1, [(":path", "/")])]),
    "upper case in trailers": (PROTOCOL_ERROR, [data(1, b"abcde"), head(1, [("A", "b")])]),
    "connection in trailers": (PROTOCOL_ERROR, [head(1, [("connection", "close")])]),
}


@pytest.mark.parametrize(("code", "parts"), BODIES.values(), ids=BODIES)
def test_malformed_body(code: int, parts: list[bytes]) -> None:
    pair = Pair()
    stream = pair.ask(head(1, [*POST, ("content-length", "5")], end=False))
    events = pair.say(b"".join(parts))
    assert shown(events)[-1] == (1, 400, True)
    assert pair.client.answers[1].reset == code
    assert stream.closed
    stream.send_response(200, PLAIN, b"nobody gets it")
    pair.listen()
    assert pair.client.answers[1].status == 0
    pair.still_serves()


def test_a_length_that_is_true_passes() -> None:
    pair = Pair()
    pair.ask(head(1, [*POST, ("content-length", "5")], end=False))
    assert shown(pair.say(data(1, b"abc") + data(1, b"de", end=True))) == [
        (1, b"abc", True),
        (1, b"de", False),
    ]


@pytest.mark.parametrize("name", ["content-length", "host", "expect"])
def test_a_trailer_that_frames_or_routes_is_refused(name: str) -> None:
    pair = Pair()
    pair.ask(head(1, POST, end=False))
    assert shown(pair.say(head(1, [(name, "5")]))) == [(1, 400, True)]
    assert pair.client.answers[1].status == 400
    pair.still_serves()


def test_a_body_past_the_limit() -> None:
    pair = Pair(Limits(body=10))
    pair.ask(head(1, POST, end=False))
    assert shown(pair.say(data(1, b"a" * 11)))[-1] == (1, 413, True)
    assert pair.client.answers[1].status == 413
    assert pair.client.answers[1].reset == NO_ERROR
    assert shown(pair.say(head(3, [*POST, ("content-length", "11")], end=False))) == [
        (3, 413, False)
    ]
    pair.still_serves()


# --- errors of the connection ---------------------------------------------------------------------

FATAL = {
    "no preface": (PROTOCOL_ERROR, b"GET / HTTP/1.1\r\n\r\n", True),
    "no SETTINGS first": (PROTOCOL_ERROR, PREFACE + ping(), True),
    "an ACK first": (PROTOCOL_ERROR, PREFACE + frame(SETTINGS, 1, 0), True),
    "frame too large": (FRAME_SIZE_ERROR, frame(DATA, 0, 1, b"x" * 16385)[:9], False),
    "DATA on stream 0": (PROTOCOL_ERROR, data(0, b"x"), False),
    "DATA on an idle stream": (PROTOCOL_ERROR, data(1, b"x"), False),
    "HEADERS on stream 0": (PROTOCOL_ERROR, head(0), False),
    "HEADERS on an even stream": (PROTOCOL_ERROR, head(2), False),
    "HEADERS on a lower stream": (PROTOCOL_ERROR, head(5) + head(3), False),
    "RST_STREAM of an idle stream": (PROTOCOL_ERROR, reset(1), False),
    "RST_STREAM of stream 0": (PROTOCOL_ERROR, reset(0), False),
    "RST_STREAM of a wrong size": (FRAME_SIZE_ERROR, head(1) + frame(3, 0, 1, b"123"), False),
    "WINDOW_UPDATE of an idle stream": (PROTOCOL_ERROR, window(1, 1), False),
    "WINDOW_UPDATE past the most": (FLOW_CONTROL_ERROR, window(0, (1 << 31) - 1), False),
    "PUSH_PROMISE": (PROTOCOL_ERROR, frame(PUSH_PROMISE, 4, 1, b"\0\0\0\2"), False),
    "CONTINUATION of nothing": (PROTOCOL_ERROR, head(1) + frame(CONTINUATION, 4, 1), False),
    "a frame within a head": (PROTOCOL_ERROR, frame(HEADERS, 0, 1) + ping(), False),
    "a head within a head": (PROTOCOL_ERROR, frame(HEADERS, 0, 1) + frame(HEADERS, 4, 3), False),
    "CONTINUATION of another": (PROTOCOL_ERROR, frame(HEADERS, 0, 1) + frame(9, 4, 3), False),
    "SETTINGS on a stream": (PROTOCOL_ERROR, frame(SETTINGS, 0, 1), False),
    "SETTINGS of a wrong size": (FRAME_SIZE_ERROR, frame(SETTINGS, 0, 0, b"12345"), False),
    "ENABLE_PUSH": (PROTOCOL_ERROR, settings({2: 2}), False),
    "INITIAL_WINDOW_SIZE": (FLOW_CONTROL_ERROR, settings({4: 1 << 31}), False),
    "MAX_FRAME_SIZE": (PROTOCOL_ERROR, settings({5: 16383}), False),
    "PING on a stream": (PROTOCOL_ERROR, frame(6, 0, 1, b"12345678"), False),
    "PING of a wrong size": (FRAME_SIZE_ERROR, ping(b"123"), False),
    "GOAWAY on a stream": (PROTOCOL_ERROR, frame(7, 0, 1, b"12345678"), False),
    "GOAWAY of a wrong size": (FRAME_SIZE_ERROR, frame(7, 0, 0, b"123"), False),
    "PRIORITY of no stream": (PROTOCOL_ERROR, frame(PRIORITY, 0, 0, b"\0\0\0\1\1"), False),
    "padding": (PROTOCOL_ERROR, head(1, POST, end=False) + frame(DATA, PADDED, 1, b"\x05a"), False),
    "window overrun": (
        FLOW_CONTROL_ERROR,
        head(1, POST, end=False) + data(1, b"x" * 16384) * 4,
        False,
    ),
}


@pytest.mark.parametrize(("code", "received", "bare"), FATAL.values(), ids=FATAL)
def test_fatal(code: int, received: bytes, bare: bool) -> None:
    if bare:
        server = H2Connection(Limits(), H2Limits())
        server.start()
        client = Reader()
        server.receive_data(received, 0.0)
        client.feed(server.output())
    else:
        pair = Pair()
        server, client = pair.server, pair.client
        pair.say(received)
    assert server.fault is not None
    assert server.over
    [(_, said)] = client.goaways
    assert said == code
    # Nothing is heard any more, and nothing is said.
    assert server.receive_data(head(1), 0.0) == []
    assert server.output() == b""


UNREADABLE = {
    "an index there is not": b"\xc6",
    "an index far out": b"\xff\x80\x80\x01",
    "index 0": b"\x80",
    "the name of an index there is not": b"\x7f\x10\x01x",
    "an index cut short": b"\xff",
    "an index without an end": b"\xff\xff\xff\xff\xff\xff",
    "an index that overflows": b"\xff" + b"\xff" * 12 + b"\x01",
    "a literal without a name": b"\x40",
    "a name cut short": b"\x00\x05abc",
    "a literal without a value": b"\x00\x01a",
    "a value cut short": b"\x00\x01a\x05abc",
    "a length cut short": b"\x00\x7f\xff",
    "Huffman: EOS": b"\x00\x01a\x84\xff\xff\xff\xff",
    "Huffman: padding of zeros": b"\x00\x01a\x81\x00",
    "Huffman: a byte of padding": b"\x00\x01a\x82\x1f\xff",
    "Huffman: a symbol cut short": b"\x00\x01a\x81\xfe",
    "Huffman: a name": b"\x00\x81\xfe\x01a",
    "a table size behind a field": b"\x82\x20",
    "a table size over the limit": b"\x3f\xe2\x1f",
    "a table size cut short": b"\x3f\xe1",
}


@pytest.mark.parametrize("where", ["alone", "behind a head", "in CONTINUATION", "trailers", "late"])
@pytest.mark.parametrize("bad", UNREADABLE.values(), ids=UNREADABLE)
def test_a_head_that_hpack_can_not_read(bad: bytes, where: str) -> None:
    """RFC 9113 section 4.3: a connection error of type COMPRESSION_ERROR, wherever it stands."""
    pair = Pair()
    before = b"" if bad[:1] in (b"\x3f", b"\x20") else block(GET)
    if where == "alone":
        received = frame(HEADERS, END_HEADERS | END_STREAM, 1, bad)
    elif where == "behind a head":
        received = frame(HEADERS, END_HEADERS | END_STREAM, 1, before + bad)
    elif where == "in CONTINUATION":
        received = frame(HEADERS, END_STREAM, 1, before) + frame(CONTINUATION, END_HEADERS, 1, bad)
    elif where == "trailers":
        received = head(1, POST, end=False) + frame(HEADERS, END_HEADERS | END_STREAM, 1, bad)
    else:  # of a stream that was reset
        received = head(1, POST, end=False) + reset(1) + frame(HEADERS, END_HEADERS, 1, bad)
    pair.say(received)
    assert [code for _, code in pair.client.goaways] == [COMPRESSION_ERROR]
    assert pair.server.over


def test_a_head_is_decoded_whatever_else_is_wrong() -> None:
    """Later heads refer to its fields."""
    pair = Pair()
    kept = b"\x40\x01a\x01b"
    pair.say(frame(HEADERS, END_HEADERS | END_STREAM, 1, kept))
    assert pair.client.answers[1].reset == PROTOCOL_ERROR
    request = pair.ask(frame(HEADERS, END_HEADERS | END_STREAM, 3, block(GET) + b"\xbe")).request
    assert request.named[b"a"] == b"b"


# --- priorities -----------------------------------------------------------------------------------


def priority(on: int, *, exclusive: bool = False) -> bytes:
    return struct.pack(">LB", on | exclusive << 31, 7)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("state", ["idle", "open", "half-closed", "closed", "reset"])
def test_priority_of_a_stream_that_depends_on_itself(state: str, exclusive: bool) -> None:
    """RFC 7540 section 5.3.1: a stream error of type PROTOCOL_ERROR."""
    pair = Pair()
    if state == "reset":
        pair.say(head(1, POST, end=False) + reset(1))
    elif state != "idle":
        stream = pair.ask(head(1, end=state != "open") if state != "open" else OPEN_POST)
        if state == "closed":
            stream.send_response(200, PLAIN, b"ok")
            pair.listen()
    events = pair.say(frame(PRIORITY, 0, 1, priority(1, exclusive=exclusive)))
    assert pair.client.answers[1].reset == PROTOCOL_ERROR
    told = [(1, "reset", PROTOCOL_ERROR)] if state in ("open", "half-closed") else []
    assert shown(events) == told
    assert pair.server.streams == {}
    assert pair.client.goaways == []
    pair.still_serves()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_request_that_depends_on_itself(parts: int, exclusive: bool, padded: bool) -> None:
    pair = Pair()
    kept = block(GET) + b"\x40\x01a\x01b"
    cut_at = len(kept) if parts == 1 else 5
    payload = priority(3, exclusive=exclusive) + kept[:cut_at]
    flags = END_STREAM | 0x20 | (END_HEADERS if parts == 1 else 0)
    if padded:
        payload = b"\x02" + payload + b"\0\0"
        flags |= PADDED
    received = frame(HEADERS, flags, 3, payload)
    if parts == 2:
        received += frame(CONTINUATION, END_HEADERS, 3, kept[cut_at:])
    assert shown(pair.say(received)) == [(0, 400, False)]
    assert pair.client.answers[3].reset == PROTOCOL_ERROR
    assert pair.client.goaways == []
    # Its fields are in the table all the same.
    again = frame(HEADERS, END_HEADERS | END_STREAM, 5, block(GET) + b"\xbe")
    assert pair.ask(again).request.named[b"a"] == b"b"
    pair.still_serves()


def test_trailers_that_depend_on_themselves() -> None:
    pair = Pair()
    stream = pair.ask(OPEN_POST)
    payload = priority(1) + block([("x-sum", "1")])
    events = pair.say(frame(HEADERS, END_HEADERS | END_STREAM | 0x20, 1, payload))
    assert shown(events) == [(1, 400, True)]
    assert pair.client.answers[1].reset == PROTOCOL_ERROR
    assert stream.closed
    pair.still_serves()


@pytest.mark.parametrize("padded", [False, True])
def test_a_request_that_depends_on_another_is_served(padded: bool) -> None:
    pair = Pair()
    payload = priority(1, exclusive=True) + block(GET)
    flags = END_HEADERS | END_STREAM | 0x20
    if padded:
        payload, flags = b"\x02" + payload + b"\0\0", flags | PADDED
    pair.ask(frame(HEADERS, flags, 3, payload))
    pair.say(frame(PRIORITY, 0, 3, priority(7)))
    assert pair.server.fault is None


@pytest.mark.parametrize("flags", [0x20, 0x20 | PADDED])
def test_a_head_too_short_for_its_priority(flags: int) -> None:
    pair = Pair()
    pair.say(frame(HEADERS, END_HEADERS | END_STREAM | flags, 1, b"\0\0\0\1"))
    assert pair.server.fault is not None


def test_trailers_are_judged_by_their_own_frame_alone() -> None:
    """A head on a stream that has ended is no flaw of the next stream's trailers."""
    pair = Pair()
    pair.ask(head(1))
    pair.say(head(1, end=False))
    pair.ask(head(3, POST, end=False))
    assert shown(pair.say(head(3, [("x-sum", "1")]))) == [(3, b"", False)]


def test_a_second_head_behind_the_end() -> None:
    pair = Pair()
    pair.ask(head(1))
    events = pair.say(head(1))
    assert shown(events) == [(1, "reset", STREAM_CLOSED)]
    assert pair.client.answers[1].reset == STREAM_CLOSED
    pair.still_serves()


def test_a_window_past_the_most_ends_the_stream() -> None:
    pair = Pair()
    pair.ask(head(1))
    assert shown(pair.say(window(1, (1 << 31) - 1))) == [(1, "reset", FLOW_CONTROL_ERROR)]
    pair.still_serves()


def test_unknown_frames_and_settings_are_ignored() -> None:
    pair = Pair()
    pair.say(settings({0x99: 1, 0xFFFF: 7}) + frame(0x77, 0xFF, 3, b"what") + frame(0x10, 0, 0))
    pair.say(frame(PRIORITY, 0, 7, struct.pack(">LB", 5, 1)))
    assert pair.client.goaways == []
    pair.still_serves()


# --- bounds ---------------------------------------------------------------------------------------

OPEN_POST = head(1, POST, end=False)
FLOODS: dict[str, tuple[bytes, Callable[[int], bytes]]] = {
    "PING": (b"", lambda _: ping()),
    "PING ACK": (b"", lambda _: ping(ack=True)),
    "SETTINGS": (b"", lambda i: settings({4: 1000 + i})),
    "empty SETTINGS": (b"", lambda _: settings()),
    "PRIORITY": (b"", lambda i: frame(PRIORITY, 0, 2 * i + 1, b"\0\0\0\0\1")),
    "PRIORITY on itself": (b"", lambda i: frame(PRIORITY, 0, 2 * i + 1, priority(2 * i + 1))),
    "WINDOW_UPDATE": (b"", lambda _: window(0, 1)),
    "WINDOW_UPDATE of a stream": (OPEN_POST, lambda _: window(1, 1)),
    "empty DATA": (OPEN_POST, lambda _: data(1, b"")),
    "padding": (OPEN_POST, lambda _: frame(DATA, PADDED, 1, b"\x00")),
    "unknown frames": (b"", lambda _: frame(0xAB, 0, 0)),
    "GOAWAY": (b"", lambda _: goaway()),
    "DATA of a closed stream": (OPEN_POST + reset(1), lambda _: data(1, b"x")),
    "RST_STREAM of a closed stream": (OPEN_POST, lambda _: reset(1)),
    "rapid reset": (b"", lambda i: head(2 * i + 1) + reset(2 * i + 1)),
    "rapid reset, by an error": (b"", lambda i: head(2 * i + 1) + window(2 * i + 1, (1 << 31) - 1)),
    "malformed requests": (b"", lambda i: head(2 * i + 1, GET[1:])),
    "too many streams": (b"", lambda i: head(2 * i + 1)),
    "too big heads": (b"", lambda i: head(2 * i + 1, [*GET, ("a", "b" * 8200)])),
}


@pytest.mark.parametrize(("before", "make"), FLOODS.values(), ids=FLOODS)
def test_flood(before: bytes, make: Callable[[int], bytes]) -> None:
    pair = Pair()
    pair.say(before)
    sent = 0
    while pair.server.fault is None:
        assert sent < 3000, "no end of it"
        pair.say(make(sent + 1))
        sent += 1
    assert pair.client.goaways[-1][1] == ENHANCE_YOUR_CALM
    assert sent > 50, "an honest client may do that"
    assert all(stream.closed for stream in pair.server.streams.values())


@pytest.mark.parametrize("make", [lambda: ping(), lambda: window(0, 1), lambda: settings()])
def test_what_comes_at_a_moderate_rate_passes(make: Callable[[], bytes]) -> None:
    pair = Pair()
    for i in range(5000):
        pair.now = i / 50
        pair.say(make())
    pair.still_serves()


def test_resets_beside_real_requests_pass() -> None:
    """A browser takes back what it does not want to see any more."""
    pair = Pair()
    for number in range(1, 8001, 4):
        stream = pair.ask(head(number))
        stream.send_response(200, PLAIN, b"ok")
        pair.say(head(number + 2) + reset(number + 2))
    assert pair.server.fault is None


def test_window_updates_for_what_we_send_pass() -> None:
    pair = Pair()
    stream = pair.ask(head(1))
    stream.send_response(200, PLAIN, b"x" * 5_000_000)
    pair.listen()
    while not pair.client.answers[1].ended:
        # As many as are of any use: two for each frame.
        pair.say(window(0, 2000) + window(1, 2000))
    pair.still_serves()


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_head_that_never_ends(size: int) -> None:
    pair = Pair()
    pair.say(frame(HEADERS, END_STREAM, 1, block(GET)))
    for _ in range(100):
        if pair.server.fault is None:
            pair.say(frame(CONTINUATION, 0, 1, block([("a", "b" * size)]) if size else b""))
    assert pair.client.goaways == [(0, ENHANCE_YOUR_CALM)]


def test_a_head_of_too_many_bytes_is_not_even_decoded() -> None:
    pair = Pair(h2_limits=H2Limits(header_list=20_000))
    pair.say(frame(HEADERS, END_STREAM, 1, b"x" * 16384))
    assert pair.server.fault is None
    pair.say(frame(CONTINUATION, 0, 1, b"x" * 5000))
    assert pair.client.goaways == [(0, ENHANCE_YOUR_CALM)]


def test_a_head_that_grows_when_it_is_decompressed() -> None:
    """An HPACK bomb: 4 KB in the table, then one byte for each use of it."""
    pair = Pair()
    entry = b"\x40" + block([("a", "b" * 3900)])[1:]
    pair.say(frame(HEADERS, 5, 1, block(GET) + entry + b"\xbe" * 10_000))
    assert pair.client.goaways == [(0, ENHANCE_YOUR_CALM)]


def test_settings_by_the_thousand() -> None:
    pair = Pair()
    pair.say(settings({1000 + i: i for i in range(2700)}))
    assert pair.client.goaways == [(0, ENHANCE_YOUR_CALM)]


def test_a_client_that_offers_a_huge_table_gets_a_small_one() -> None:
    pair = Pair(values={1: (1 << 32) - 1})
    for number in range(1, 2001, 2):
        stream = pair.ask(head(number))
        stream.send_response(200, [(b"x-new", b"%d" % number * 20)], b"")
    assert pair.server._encoder._size <= 4096
    pair.listen()
    assert pair.client.answers[1999].headers["x-new"] == "1999" * 20


def test_more_streams_than_allowed_are_refused_and_may_come_again() -> None:
    pair = Pair(h2_limits=H2Limits(streams=3))
    assert pair.client.settings[3] == 3
    streams = [pair.ask(head(number)) for number in (1, 3, 5)]
    assert pair.say(head(7)) == []
    assert pair.client.answers[7].reset == REFUSED_STREAM
    streams[0].send_response(200, PLAIN, b"")
    pair.listen()
    pair.ask(head(9))


def test_a_turn_is_bounded() -> None:
    pair = Pair()
    server = pair.server
    events = server.receive_data(b"".join(head(n) for n in range(1, 181, 2)), 0.0)
    assert server.more
    assert len(events) < 60
    while server.more:
        events += server.receive_more(0.0)
    assert len(events) == 90


def test_a_client_that_spends_its_allowances_gets_smaller_turns() -> None:
    """And its old ones again, once it has behaved for a while."""
    pair = Pair()
    server = pair.server
    pair.say(b"".join(head(n) + reset(n) for n in range(1, 11, 2)))
    assert not server.is_strained  # who changes its mind now and then
    pair.say(b"".join(head(n) + reset(n) for n in range(11, 41, 2)))
    assert server.is_strained
    turn = server.receive_data(b"".join(head(n) for n in range(41, 81, 2)), pair.now)
    assert len(turn) == 1
    turns = [turn]
    while server.more:
        turns.append(server.receive_more(pair.now))
    assert max(map(len, turns)) == 1
    assert sum(map(len, turns)) == 20
    pair.now += 0.9
    pair.say(ping())
    assert server.is_strained  # what the good requests have earned buys nothing
    pair.now += 0.1
    pair.say(ping())
    assert not server.is_strained


@pytest.mark.parametrize("undo", [reset, lambda n: window(n, (1 << 31) - 1)])
@pytest.mark.parametrize("shift", [0, 1])
def test_who_is_answered_between_turns_comes_to_an_end_too(
    undo: Callable[[int], bytes], shift: int
) -> None:
    """A turn that ends between a request and what takes it back leaves time to answer it, so that
    nothing was taken back. It must not be every turn."""
    pair = Pair()
    server = pair.server
    flood = b"".join([ping()] * shift + [head(n) + undo(n) for n in range(1, 4001, 2)])
    events = server.receive_data(flood, pair.now)
    while server.more:
        for stream, event in events:
            if isinstance(event, Request) and stream is not None and not stream.closed:
                stream.send_response(200, PLAIN, b"ok")
        pair.listen()
        pair.now += 0.003
        events = server.receive_more(pair.now)
    assert server.fault is not None


# --- flow control ---------------------------------------------------------------------------------


def test_a_slow_stream_holds_up_only_itself() -> None:
    pair = Pair(values={4: 1000})
    slow, fast = pair.ask(head(1)), pair.ask(head(3))
    slow.send_response(200, PLAIN, b"s" * 5000)
    fast.send_response(200, PLAIN, b"f" * 900)
    pair.listen()
    assert len(pair.client.answers[1].body) == 1000
    assert not pair.client.answers[1].ended
    assert pair.client.answers[3].ended
    assert slow.queued == 4000
    pair.say(window(1, 3000))
    assert len(pair.client.answers[1].body) == 4000
    pair.say(window(1, 3000))
    assert pair.client.answers[1].ended
    assert pair.server.streams == {}


def test_streams_share_the_connection_in_turns() -> None:
    pair = Pair(values={4: 1 << 20})
    streams = [pair.ask(head(number)) for number in (1, 3, 5, 7)]
    for stream in streams:
        stream.send_response(200, PLAIN, b"x" * 60_000)
    pair.listen()
    parts = [len(pair.client.answers[stream.id].body) for stream in streams]
    assert sum(parts) == 65_535
    assert min(parts) > 10_000
    pair.say(window(0, 1 << 20))
    assert all(pair.client.answers[stream.id].ended for stream in streams)


def test_a_window_that_became_negative() -> None:
    pair = Pair(values={4: 1000})
    stream = pair.ask(head(1))
    stream.send_response(200, PLAIN, b"x" * 1500)
    pair.listen()
    pair.say(settings({4: 100}))
    pair.say(window(1, 900))
    assert len(pair.client.answers[1].body) == 1000
    pair.say(window(1, 600))
    assert pair.client.answers[1].ended
    assert len(pair.client.answers[1].body) == 1500


def test_a_body_is_let_in_as_it_is_read() -> None:
    pair = Pair()
    stream = pair.ask(head(1, POST, end=False))
    pair.client.windows.clear()
    pair.say(data(1, b"x" * 16_000) * 4)
    assert [w for w in pair.client.windows if w[0] == 1] == []
    stream.read(32_000)
    assert [w for w in pair.client.windows if w[0] == 1] == []  # too little to be worth a frame
    stream.read(16_000)
    pair.listen()
    assert [w for w in pair.client.windows if w[0] == 1] == [(1, 48_000)]
    stream.read(0)
    pair.say(data(1, b"x" * 16_000) * 2)
    stream.read(0)
    pair.listen()
    assert [w for w in pair.client.windows if w[0] == 1] == [(1, 48_000), (1, 48_000)]


def test_a_body_that_nobody_reads_holds_up_no_other() -> None:
    """The connection's window is given back as bytes come, so it is never used up."""
    pair = Pair()
    for number in range(1, 81, 2):
        pair.ask(head(number, POST, end=False))
        pair.say(data(number, b"x" * 16_000) * 4)
    assert CONNECTION_WINDOW < 40 * 64_000
    assert pair.server.fault is None
    assert {number for number, _ in pair.client.windows} == {0}


def test_a_client_may_send_what_it_could_before_it_knew_of_a_smaller_window() -> None:
    pair = Pair(h2_limits=H2Limits(window=1000))
    assert pair.client.settings[4] == 1000
    pair.ask(head(1, POST, end=False))
    pair.say(data(1, b"x" * 16_000) * 4)
    assert pair.server.fault is None


# --- sending --------------------------------------------------------------------------------------


def test_what_waits_is_counted() -> None:
    everything = SimpleNamespace(bytes=0)
    pairs = [Pair(values={4: 1000}, all_unsent=everything) for _ in range(2)]
    for pair in pairs:
        whole, parts, one = (pair.ask(head(number)) for number in (1, 3, 5))
        whole.send_response(200, PLAIN, b"w" * 3000)
        parts.start_response(200, PLAIN)
        parts.send_data(b"p" * 1500)
        parts.send_data(b"p" * 1500)
        one.send_response(200, PLAIN, b"o" * 900)
        pair.listen()
        assert (pair.server.unsent, pair.server.sent) == (4000, 2900)
    assert everything.bytes == 8000
    first, second = pairs
    first.say(window(1, 500))
    assert (first.server.unsent, everything.bytes) == (3500, 7500)
    first.say(reset(3))
    assert (first.server.unsent, everything.bytes) == (1500, 5500)
    first.say(window(1, 5000))
    assert (first.server.unsent, everything.bytes) == (0, 4000)
    second.server.fail(NO_ERROR, "the connection is lost")
    assert (second.server.unsent, everything.bytes) == (0, 0)


def test_a_client_that_takes_nothing_is_seen() -> None:
    assert not Pair().server.is_shut
    pair = Pair(values={4: 0})
    assert pair.server.is_shut
    pair.say(settings({4: 1}))
    assert not pair.server.is_shut
    pair = Pair(values={4: 1 << 20})
    pair.ask(head(1)).send_response(200, PLAIN, b"x" * 70_000)
    pair.listen()
    assert pair.server.is_shut  # of the connection's window nothing is left
    pair.say(window(0, 1 << 20))
    assert not pair.server.is_shut
    pair.server.blocked = True
    assert pair.server.is_shut


def test_a_socket_that_takes_nothing_leaves_all_in_the_streams() -> None:
    """So at most `streams` answers wait, whatever a client asks for."""
    pair = Pair(h2_limits=H2Limits(streams=5))
    pair.server.blocked = True
    for number in range(1, 2001, 2):
        for stream, event in pair.server.receive_data(head(number), number / 10):
            if isinstance(event, Request):
                assert stream is not None
                stream.send_response(200, PLAIN, b"x" * 1000)
    assert len(pair.server.streams) == 5
    assert sum(stream.queued for stream in pair.server.streams.values()) == 5000
    pair.listen()
    assert HEADERS not in pair.client.frames
    pair.server.blocked = False
    pair.listen()
    assert sum(answer.ended for answer in pair.client.answers.values()) == 5


# --- the end --------------------------------------------------------------------------------------


def test_a_graceful_end() -> None:
    """RFC 9113 section 6.8: first the greatest number, then the last one that was accepted."""
    pair = Pair()
    first = pair.ask(head(1))
    pair.server.announce()
    pair.listen()
    assert pair.client.goaways == [((1 << 31) - 1, NO_ERROR)]
    # It was on its way when the client learnt of it.
    second = pair.ask(head(3))
    pair.say(ping(pair.client.pings[-1], ack=True))
    assert pair.client.goaways[1:] == [(3, NO_ERROR)]
    assert not pair.server.over
    assert pair.say(head(5)) == []
    assert pair.client.answers[5].reset == REFUSED_STREAM
    first.send_response(200, PLAIN, b"1")
    second.send_response(200, PLAIN, b"2")
    pair.listen()
    assert pair.client.answers[1].ended
    assert pair.client.answers[3].ended
    assert pair.server.over


def test_an_end_that_the_client_does_not_answer() -> None:
    pair = Pair()
    pair.server.announce()
    pair.server.finish()
    pair.listen()
    assert pair.client.goaways == [((1 << 31) - 1, NO_ERROR), (0, NO_ERROR)]
    assert pair.server.over


def test_a_client_that_leaves_gets_its_answers() -> None:
    pair = Pair()
    stream = pair.ask(head(1) + goaway())
    assert not pair.server.over
    stream.send_response(200, PLAIN, b"bye")
    pair.listen()
    assert pair.client.answers[1].body == b"bye"
    assert pair.server.over


def test_after_an_upgrade_the_request_is_stream_1() -> None:
    server = H2Connection(Limits(), H2Limits())
    headers = [(b"host", b"h"), (b"connection", b"upgrade"), (b"upgrade", b"h2c")]
    request = Request("GET", b"/", b"/", b"", "1.1", headers, True)
    stream = server.start_upgraded(request, settings({4: 10, 99: 1})[9:])
    assert (request.version, request.headers) == ("2", [(b"host", b"h")])
    stream.send_response(200, PLAIN, b"x" * 30)
    client = Reader().feed(server.output())
    assert client.answers[1].body == b"x" * 10
    server.receive_data(hello() + window(1, 100) + head(3), 0.0)
    client.feed(server.output())
    assert client.answers[1].ended
    assert list(server.streams) == [3]


def test_a_tunnel_only_where_it_is_offered() -> None:
    fields = [
        *((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https")),
        *((":authority", "h"), (":path", "/chat?x=1")),
    ]
    assert shown(Pair().say(head(1, fields, end=False))) == [(0, 400, False)]
    pair = Pair(tunnels=True)
    assert pair.client.settings[8] == 1
    stream = pair.ask(head(1, fields, end=False))
    request = stream.request
    assert (request.method, request.upgrade, request.path) == ("CONNECT", b"websocket", b"/chat")
    stream.accept_tunnel([(b"sec-websocket-protocol", b"a")])
    stream.send_data(b"ping")
    assert shown(pair.say(data(1, b"pong"))) == [(1, b"pong", True)]
    stream.end_response()
    pair.listen()
    answer = pair.client.answers[1]
    assert (answer.status, answer.body, answer.ended) == (200, b"ping", True)
    assert answer.reset is None  # the client's half is open still
    assert "content-length" not in answer.headers
    assert shown(pair.say(data(1, b"last", end=True))) == [(1, b"last", False)]
    assert pair.server.streams == {}


# --- whatever comes -------------------------------------------------------------------------------

numbers = st.sampled_from([0, 1, 2, 3, 5, 7])
payloads = st.binary(max_size=40) | st.sampled_from(
    [block(GET), block(POST), block([("a", "b")]), b"\0\0\0\1", b"12345678", b""]
)
frames = st.builds(frame, st.integers(0, 11), st.integers(0, 255), numbers, payloads)


@given(st.lists(frames, max_size=30), st.booleans())
def test_whatever_frames_come_the_rules_hold(received: list[bytes], answers: bool) -> None:
    """No other exception than our own; the client can read all; a fault is told once."""
    pair = Pair()
    for part in received:
        for stream, event in pair.say(part):
            if answers and isinstance(event, Request):
                assert stream is not None
                stream.send_response(200, PLAIN, b"x" * 70_000)
        pair.listen()
    assert len(pair.server.streams) <= 100
    assert [code for _, code in pair.client.goaways if code] == (
        [pair.server.fault.code] if pair.server.fault else []
    )


@given(st.binary(max_size=200))
def test_whatever_bytes_come_the_rules_hold(received: bytes) -> None:
    pair = Pair()
    pair.say(received)
    assert (pair.server.fault is None) == (pair.client.goaways == [])
