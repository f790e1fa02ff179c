"""Raw HTTP/2 frames for tests, and the reading half of a client. It checks no rules."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator

from hpack import Decoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9
END_STREAM = ACK = 1
END_HEADERS = 4
PADDED = 8

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

GET = [(":method", "GET"), (":scheme", "http"), (":authority", "h"), (":path", "/")]
POST = [(":method", "POST"), *GET[1:]]

Fields = Iterable[tuple[str | bytes, str | bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    length = len(payload)
    return struct.pack(">HBBBL", length >> 8, length & 255, kind, flags, stream) + payload


def block(fields: Fields) -> bytes:
    """A header block of literals, whatever they hold: no table, no Huffman code."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def _text(text: str | bytes) -> bytes:
    data = text.encode("latin-1") if isinstance(text, str) else text
    length = len(data)
    if length < 127:
        return bytes((length,)) + data
    length -= 127
    out = bytearray(b"\x7f")
    while length >= 128:
        out.append(length & 127 | 128)
        length >>= 7
    out.append(length)
    return bytes(out) + data


def head(stream: int, fields: Fields = GET, *, end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block(fields))


def data(stream: int, payload: bytes, *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def settings(values: dict[int, int] | None = None) -> bytes:
    pairs = (values or {}).items()
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", key, value) for key, value in pairs))


def reset(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">L", code))


def window(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">L", increment))


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


def goaway(last: int = 0, code: int = NO_ERROR) -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last, code))


def hello(values: dict[int, int] | None = None) -> bytes:
    return PREFACE + settings(values)


def cut(received: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The whole frames in these bytes: type, flags, stream, payload."""
    while len(received) >= 9:
        high, low, kind, flags, stream = struct.unpack(">HBBBL", received[:9])
        length = high << 8 | low
        if len(received) < 9 + length:
            return
        yield kind, flags, stream, received[9 : 9 + length]
        received = received[9 + length :]


class Answer:
    """What a stream has brought."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.body = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def status(self) -> int:
        """Of the final head, 0 without one."""
        found = [int(head[":status"]) for head in self.heads if ":status" in head]
        return found[-1] if found else 0

    @property
    def headers(self) -> dict[str, str]:
        return next((head for head in self.heads if int(head.get(":status", 0)) >= 200), {})

    @property
    def trailers(self) -> dict[str, str]:
        last = self.heads[-1] if self.heads else {}
        return {} if ":status" in last else last


class Reader:
    """What a client makes of the server's bytes.

    goaways  (last stream, code), in order
    pings    payloads that want an answer
    """

    def __init__(self) -> None:
        self._buffer = b""
        self._decoder = Decoder()
        self._block: tuple[int, int, bytes] | None = None
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        self.goaways: list[tuple[int, int]] = []
        self.pings: list[bytes] = []
        self.windows: list[tuple[int, int]] = []
        self.settings: dict[int, int] = {}
        self.frames: list[int] = []

    def feed(self, received: bytes) -> Reader:
        self._buffer += received
        for kind, flags, stream, payload in cut(self._buffer):
            self._buffer = self._buffer[9 + len(payload) :]
            self._take(kind, flags, stream, payload)
        return self

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self.frames.append(kind)
        if kind == HEADERS:
            self._block = (stream, flags, payload)
            if flags & END_HEADERS:
                self._end_block()
        elif kind == CONTINUATION:
            assert self._block is not None
            self._block = (*self._block[:2], self._block[2] + payload)
            if flags & END_HEADERS:
                self._end_block()
        elif kind == DATA:
            answer = self.answers[stream]
            assert not answer.ended
            answer.body += payload
            answer.ended = bool(flags & END_STREAM)
        elif kind == RST_STREAM:
            self.answers[stream].reset = struct.unpack(">L", payload)[0]
        elif kind == SETTINGS and not flags & ACK:
            self.settings |= dict(struct.iter_unpack(">HL", payload))
        elif kind == PING and not flags & ACK:
            self.pings.append(payload)
        elif kind == GOAWAY:
            self.goaways.append(struct.unpack(">LL", payload[:8]))
        elif kind == WINDOW_UPDATE:
            self.windows.append((stream, struct.unpack(">L", payload)[0]))

    def _end_block(self) -> None:
        assert self._block is not None
        stream, flags, encoded = self._block
        self._block = None
        fields = [(bytes(n), bytes(v)) for n, v in self._decoder.decode(encoded, raw=True)]
        answer = self.answers[stream]
        assert not answer.ended
        answer.heads.append({n.decode(): v.decode("latin-1") for n, v in fields})
        answer.ended = bool(flags & END_STREAM)
