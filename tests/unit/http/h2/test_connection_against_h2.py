"""The same frames for our connection and for that of the `h2` library, which is the judge.

Both must see the same requests, bodies and resets, refuse the same frames, and have the same
windows afterwards. `differs_on_purpose` names the exceptions.
"""

from __future__ import annotations

import struct
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GET,
    HEADERS,
    NO_ERROR,
    PADDED,
    PING,
    POST,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Reader,
    block,
    cut,
    frame,
    hello,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from servo.http.events import Data, Request
from servo.http.h2.connection import H2Connection, Reset
from servo.http.limits import H2Limits, Limits

# Enough of everything that only we limit.
PLENTY = H2Limits(streams=1000, control=(100_000, 0), resets=(100_000, 0))
HAS_PRIORITY = 0x20


class Judge:
    """The `h2` library's connection, with what happened in it, in our terms."""

    def __init__(self) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=False, header_encoding=None, validate_inbound_headers=False
            )
        )
        self.h2.local_settings.max_concurrent_streams = 1 << 30
        self.h2.initiate_connection()
        self.h2.receive_data(hello())
        self.fault: int | None = None

    def say(self, received: bytes) -> list[object]:
        self.h2.data_to_send()
        try:
            events = self.h2.receive_data(received)
        except h2.exceptions.ProtocolError as error:
            self.fault = int(error.error_code)
            return []
        found = [event for each in events for event in seen(each)]
        # The library resets a stream for frames that came too late. Some of that are no events.
        for kind, _, number, payload in cut(self.h2.data_to_send()):
            if kind == RST_STREAM:
                found.append((number, "reset", int.from_bytes(payload, "big")))
        return found

    def window(self, number: int) -> int | None:
        try:
            return int(self.h2.local_flow_control_window(number))
        except h2.exceptions.ProtocolError:
            return None


def seen(event: Any) -> list[object]:
    number = getattr(event, "stream_id", 0)
    if isinstance(event, h2.events.RequestReceived):
        return [(number, "head", event.stream_ended is not None)]
    if isinstance(event, h2.events.TrailersReceived):
        return [(number, b"", True)]
    if isinstance(event, h2.events.DataReceived):
        ended = event.stream_ended is not None
        return [(number, event.data, ended)] if event.data or ended else []
    if isinstance(event, h2.events.StreamReset) and event.remote_reset:
        return [(number, "client", int(event.error_code))]
    return []


class Ours:
    """Our connection, with what happened in it."""

    def __init__(self) -> None:
        self.server = H2Connection(Limits(), PLENTY)
        self.server.start()
        self.server.receive_data(hello(), 0.0)
        self.server.output()
        self.client = Reader()

    def say(self, received: bytes) -> list[object]:
        server = self.server
        events = list(server.receive_data(received, 0.0))
        while server.more:
            events += server.receive_more(0.0)
        resets = [
            (number, "reset", int.from_bytes(payload, "big"))
            for kind, _, number, payload in cut(server.output())
            if kind == RST_STREAM
        ]
        found: list[object] = []
        for stream, event in events:
            number = stream.id if stream is not None else 0
            if isinstance(event, Request):
                found.append((number, "head", not event.more_body))
            elif isinstance(event, Data):
                found.append((number, event.data, not event.more_body))
            elif isinstance(event, Reset) and (number, "reset", event.code) not in resets:
                found.append((number, "client", event.code))
        return found + resets

    @property
    def fault(self) -> int | None:
        return self.server.fault.code if self.server.fault is not None else None

    def window(self, number: int) -> int | None:
        stream = self.server.streams.get(number)
        return None if stream is None else min(stream.window, self.server._outgoing_window)


streams = st.sampled_from([1, 3, 5, 7, 9])
any_stream = st.one_of(streams, st.sampled_from([0, 2, 11]))
flags = st.sampled_from([0, END_STREAM])
number = st.sampled_from([0, 1, 100, 65535, (1 << 31) - 1, (1 << 31) - 65535, 1 << 31])


def padded(kind: int, flags: int, stream: int, payload: bytes, padding: int | None) -> bytes:
    if padding is None:
        return frame(kind, flags, stream, payload)
    body = bytes((padding,)) + payload + b"\0" * min(padding, 20)
    return frame(kind, flags | PADDED, stream, body)


padding = st.sampled_from([None, None, None, 0, 20, 255])
priority = st.sampled_from([None, None, struct.pack(">LB", 0, 5), struct.pack(">LB", 13, 5)])


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """A head, which may come in two frames."""
    ended = draw(flags)
    stream = draw(any_stream)
    fields = block(POST if not ended else GET)
    first = draw(priority)
    kind = ended
    payload = fields
    if first is not None:
        kind |= HAS_PRIORITY
        payload = first + fields
    if draw(st.integers(0, 4)):
        return padded(HEADERS, kind | END_HEADERS, stream, payload, draw(padding))
    at = draw(st.integers(5, len(payload)))
    follow = frame(CONTINUATION, END_HEADERS, stream, payload[at:])
    return frame(HEADERS, kind, stream, payload[:at]) + follow


plain_frames = st.one_of(
    heads(),
    st.builds(padded, st.just(DATA), flags, any_stream, st.binary(max_size=9), padding),
    st.builds(lambda s: frame(RST_STREAM, 0, s, b"\0\0\0\x08"), any_stream),
    st.builds(lambda s, n: frame(WINDOW_UPDATE, 0, s, struct.pack(">L", n)), any_stream, number),
    st.builds(
        lambda key, value: frame(SETTINGS, 0, 0, struct.pack(">HL", key, value)),
        st.sampled_from([1, 2, 3, 4, 5, 6, 8]),
        st.sampled_from([0, 1, 2, 10, 4096, 16384, 65535, 1 << 20, (1 << 31) - 1, 1 << 31]),
    ),
    st.builds(lambda f: frame(PING, f, 0, b"12345678"), flags),
    st.builds(lambda s: frame(PRIORITY, 0, s, b"\0\0\0\x0d\0"), any_stream),
)
# A frame of any type, with a payload of the wrong length.
odd_frames = st.builds(
    frame,
    st.sampled_from([CONTINUATION, PRIORITY, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, 0x50]),
    flags,
    any_stream,
    st.binary(max_size=10).map(lambda payload: payload.replace(b"\0", b"\1")),
)
# Trailers: their stream, which must be open. (`head` refuses them as the head of a request.)
trailers = streams
# An answer: a stream, and the bytes of a body.
answers = st.tuples(streams, st.sampled_from([b"", b"abc", b"x" * 20_000]))
steps = st.lists(st.one_of(plain_frames, plain_frames, odd_frames, trailers, answers), max_size=25)


@settings(max_examples=400, deadline=None)
@given(steps)
def test_both_see_the_same(session: list[bytes | int | tuple[int, bytes]]) -> None:
    judge, ours = Judge(), Ours()
    for step in session:
        if isinstance(step, tuple):
            answer(judge, ours, *step)
            continue
        if isinstance(step, int):
            if step not in ours.server.streams:
                continue
            step = frame(HEADERS, 5, step, block([("x-trailer", "a")]))
        elif differs_on_purpose(ours, step):
            continue
        # For a stream that was reset, the library sends a reset once more; we ignore the frame.
        known = [number for number, was_reset in ours.server._closed.items() if was_reset]
        repeated = [(number, "reset", STREAM_CLOSED) for number in known]
        expected = [event for event in judge.say(step) if event not in repeated]
        found = ours.say(step)
        assert (ours.fault is None) == (judge.fault is None), (step, judge.fault, ours.server.fault)
        if ours.fault is not None:
            return
        assert found == expected, step
        for number in ours.server.streams:
            assert ours.window(number) == judge.window(number), (step, number)


def differs_on_purpose(ours: Ours, step: bytes) -> bool:
    """Whether the library and we treat these bytes differently, as we want to."""
    kind, _, number, _ = next(cut(step))
    if kind == HEADERS:
        # Another head before the end of the body: for us this is a malformed request, whose stream
        # is reset (RFC 9113 section 8.1.1). The library ends the connection, or takes it for
        # trailers.
        stream = ours.server.streams.get(number)
        return stream is not None and stream.incoming
    # For us this ends the connection (section 6.4); the library ignores it.
    return kind == RST_STREAM and ours.server._is_idle(number)


def answer(judge: Judge, ours: Ours, number: int, body: bytes) -> None:
    """Answer an open request in both, if the window has room for the whole body."""
    stream = ours.server.streams.get(number)
    room = ours.window(number)
    if stream is None or stream.response_started or room is None or room < len(body):
        return
    stream.send_response(200, [], body)
    judge.h2.send_headers(number, [(":status", "200")], end_stream=not body)
    for start in range(0, len(body), 16384):
        last = start + 16384 >= len(body)
        judge.h2.send_data(number, body[start : start + 16384], end_stream=last)
    if stream.closed and judge.h2.streams.get(number) and not judge.h2.streams[number].closed:
        judge.h2.reset_stream(number, NO_ERROR)
    while ours.server.output():
        pass
