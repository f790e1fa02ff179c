"""Received HTTP/2 frames: cut apart, counted and bounded (RFC 9113 section 4).

A frame is nine bytes of header (length, type, flags, stream) and a payload. The `h2` library reads
frames, too, but it buffers a whole frame before it checks its length, and it answers every PING and
SETTINGS, however many there are. So `FrameReader` inspects each frame first and passes the good
ones on, one at a time. Nothing here knows the state of a stream.

Flood allowances: a client may send frames that advance no request (PING, SETTINGS, empty DATA, …),
and take requests back, but each spends from an `Allowance`. It refills with time, and useful work
earns more. A client that overdraws one has its connection ended with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from servo.errors import ServoError
from servo.http.negotiate import PREFACE

if TYPE_CHECKING:
    from servo.http.limits import H2Limits

# Frame types (RFC 9113 section 6).
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

# Error codes (RFC 9113 section 7).
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = range(4)
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 8, 9, 11

_HEAD = Struct(">HBBBL")
_SETTING = Struct(">HL")
# The settings that we use (RFC 9113 section 6.5.2, RFC 8441). Others are removed, because `h2`
# stores every setting that it sees.
_KNOWN_SETTINGS = frozenset((1, 2, 3, 4, 5, 6, 8))
# Settings in one frame. Clients send about half a dozen.
_MOST_SETTINGS = 64
# CONTINUATION frames of one head, beyond one for each 16 KiB that the head may have.
_CONTINUATIONS = 8


class GoAwayError(ServoError):
    """The connection must end: the client broke a rule of the connection, or floods it.

    code    the error code for GOAWAY (RFC 9113 section 7)
    reason  one line for the log, and for GOAWAY's debug data
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"HTTP/2 error {code}: {reason}")
        self.code = code
        self.reason = reason


class Allowance:
    """A number that may be spent at once, and that refills with time and through `earn`.

    most        how much it holds when it is full
    per_second  how much comes back each second
    """

    __slots__ = ("_at", "_left", "_most", "_rate", "_touched_at")

    def __init__(self, most: int, per_second: int) -> None:
        self._most = self._left = float(most)
        self._rate = per_second
        self._at: float | None = None
        self._touched_at: float | None = None

    def spend(self, now: float) -> bool:
        """Take one; False if nothing is left. `now`: seconds of any clock."""
        self._refill(now)
        self._left -= 1
        return self._left >= 0

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now

    def earn(self, n: int = 1) -> None:
        """Give `n` back, because the client did something useful."""
        self._left = min(self._most, self._left + n)

    def is_touched(self, now: float) -> bool:
        """Whether more than a tenth was missing within the last second (`now`: seconds).

        Ordinary clients stay above that. The second keeps a client from crossing the border to and
        fro, earning its trust back each time.
        """
        self._refill(now)
        if self._left < self._most * 0.9:
            self._touched_at = now
        return self._touched_at is not None and now - self._touched_at < 1.0


class Frame(NamedTuple):
    """One frame: its type, flags and stream, and all its bytes with the nine of its header."""

    type: int
    flags: int
    stream: int
    data: bytes

    @property
    def length(self) -> int:
        """Bytes of the payload."""
        return len(self.data) - 9


class FrameReader:
    """Cuts received bytes into frames, and refuses floods. Its methods raise `GoAwayError`.

    limits  the largest frame and head, and the allowance for control frames
    """

    __slots__ = (
        "_block",
        "_block_of",
        "_buffer",
        "_control",
        "_limits",
        "_parts",
        "_pos",
        "_started",
        "_stream",
        "_want",
    )

    def __init__(self, limits: H2Limits) -> None:
        self._limits = limits
        self._control = Allowance(*limits.control)
        self._buffer = bytearray()
        self._pos = 0
        self._want = PREFACE
        self._started = False
        self._stream = 0  # of the last frame
        # The head that CONTINUATION frames go on with: its bytes, its stream and its frames so far.
        # No frames: no head is unfinished.
        self._block = 0
        self._block_of = 0
        self._parts = 0

    @property
    def in_part(self) -> bool:
        """Only a part of a frame, or of a head, has arrived."""
        return bool(self._buffer) or bool(self._parts)

    @property
    def backlog(self) -> int:
        """Received bytes that wait for `next`."""
        return len(self._buffer) - self._pos

    @property
    def in_head(self) -> bool:
        """The next frame continues a head."""
        return bool(self._parts)

    @property
    def goes_on(self) -> bool:
        """The header of the next frame has arrived, and names the stream of the last frame."""
        if self.backlog < 9:
            return False
        stream: int = _HEAD.unpack_from(self._buffer, self._pos)[4]
        return stream & 0x7FFFFFFF == self._stream

    def feed(self, data: bytes) -> None:
        """Take received bytes. The client's connection preface is checked and removed."""
        if self._want:
            n = min(len(self._want), len(data))
            if data[:n] != self._want[:n]:
                raise GoAwayError(PROTOCOL_ERROR, "no HTTP/2 preface")
            self._want = self._want[n:]
            data = data[n:]
        if self._pos:
            del self._buffer[: self._pos]
            self._pos = 0
        self._buffer += data

    def next(self, now: float) -> Frame | None:
        """The next frame, once all of it has arrived; None before. `now`: seconds of any clock."""
        buffer = self._buffer
        pos = self._pos
        if len(buffer) - pos < 9:
            self._compact()
            return None
        high, low, kind, flags, stream = _HEAD.unpack_from(buffer, pos)
        length = high << 8 | low
        if length > self._limits.frame:
            raise GoAwayError(FRAME_SIZE_ERROR, "frame too large")
        if not self._started and (kind != SETTINGS or flags & ACK):
            raise GoAwayError(PROTOCOL_ERROR, "the first frame is no SETTINGS")
        if len(buffer) - pos < 9 + length:
            self._compact()
            return None
        self._started = True
        self._stream = stream & 0x7FFFFFFF
        self._pos = pos + 9 + length
        frame = Frame(kind, flags, self._stream, bytes(buffer[pos : self._pos]))
        self._judge(frame, length, now)
        return _known_settings(frame) if kind == SETTINGS and length else frame

    def is_strained(self, now: float) -> bool:
        """Whether more control frames came lately than an ordinary client sends."""
        return self._control.is_touched(now)

    def earn(self, n: int) -> None:
        """Allow the client `n` more control frames, such as WINDOW_UPDATE for data we sent."""
        self._control.earn(n)

    def charge(self, now: float, what: str) -> None:
        """Count a frame that advances no request; `what` names it for the log."""
        if not self._control.spend(now):
            raise GoAwayError(ENHANCE_YOUR_CALM, f"too many frames of no use ({what})")

    def _compact(self) -> None:
        if self._pos:
            del self._buffer[: self._pos]
            self._pos = 0

    def _judge(self, frame: Frame, length: int, now: float) -> None:
        kind, flags, number, _ = frame
        if self._parts and (kind != CONTINUATION or number != self._block_of):
            raise GoAwayError(PROTOCOL_ERROR, "a frame within a head")
        if kind == DATA:
            if not length and not flags & END_STREAM:
                self.charge(now, "empty DATA")
        elif kind == HEADERS:
            self._block = length
            self._block_of = number
            self._parts = 0 if flags & END_HEADERS else 1
            self._check_block()
        elif kind == CONTINUATION:
            self.charge(now, "CONTINUATION")
            self._block += length
            self._parts += 1
            self._check_block()
            if flags & END_HEADERS:
                self._parts = 0
        else:
            self.charge(now, _NAMES.get(kind, "of an unknown type"))

    def _check_block(self) -> None:
        """Refuse a head that never ends (CVE-2024-27316 and others).

        The limit is for the decoded head, but a compressed one is never larger.
        """
        most = self._limits.header_list
        if self._block > most or self._parts > _CONTINUATIONS + most // 16384:
            raise GoAwayError(ENHANCE_YOUR_CALM, "header block too large")


_NAMES = {
    PRIORITY: "PRIORITY",
    RST_STREAM: "RST_STREAM",
    SETTINGS: "SETTINGS",
    PING: "PING",
    GOAWAY: "GOAWAY",
    WINDOW_UPDATE: "WINDOW_UPDATE",
}


def frame_bytes(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """The bytes of a frame of this type (`kind`), with these flags, stream and payload."""
    n = len(payload)
    return _HEAD.pack(n >> 8, n & 0xFF, kind, flags, stream) + payload


def depends_on_itself(frame: Frame) -> bool:
    """Whether a PRIORITY frame, or the priority in a HEADERS frame, names the frame's own stream.

    False for a frame that is too short to have a priority: other checks refuse it.
    """
    at = 9
    if frame.type == HEADERS:
        if not frame.flags & HAS_PRIORITY:
            return False
        at += 1 if frame.flags & PADDED else 0
    if len(frame.data) < at + 5:
        return False
    # The highest bit is "exclusive" (RFC 7540 section 6.3).
    return int.from_bytes(frame.data[at : at + 4], "big") & 0x7FFFFFFF == frame.stream


def without_priority(frame: Frame) -> bytes:
    """The bytes of a HEADERS frame with its priority removed."""
    at = 1 if frame.flags & PADDED else 0
    payload = frame.data[9 : 9 + at] + frame.data[9 + at + 5 :]
    return frame_bytes(HEADERS, frame.flags & ~HAS_PRIORITY, frame.stream, payload)


def spells_out_defaults(payload: bytes) -> bool:
    """Whether a client's first SETTINGS look like those of Python's h2 library (see `drain`).

    It sends every setting that it knows, even one that has the protocol's default value. Other
    clients leave defaults out. Firefox sends the default MAX_FRAME_SIZE, but a HEADER_TABLE_SIZE of
    its own.
    """
    values = dict(_SETTING.iter_unpack(payload)) if len(payload) % 6 == 0 else {}
    return values.get(1) == 4096 and values.get(5) == 16384 and {2, 4} <= values.keys()


def known_settings(payload: bytes) -> bytes | None:
    """A SETTINGS payload without the settings that we ignore; None if malformed or too long."""
    if len(payload) % 6 or len(payload) > 6 * _MOST_SETTINGS:
        return None
    pairs = [(key, value) for key, value in _SETTING.iter_unpack(payload) if key in _KNOWN_SETTINGS]
    return b"".join([_SETTING.pack(key, value) for key, value in pairs])


def _known_settings(frame: Frame) -> Frame:
    if frame.length > 6 * _MOST_SETTINGS:
        raise GoAwayError(ENHANCE_YOUR_CALM, "too many settings at once")
    payload = known_settings(frame.data[9:])
    if payload is None or len(payload) == frame.length:
        return frame  # `h2` says what is wrong with it, if anything is
    return frame._replace(data=frame_bytes(SETTINGS, frame.flags, frame.stream, payload))
