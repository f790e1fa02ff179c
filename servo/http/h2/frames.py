"""Splits received bytes into HTTP/2 frames, and refuses floods (RFC 9113 section 4).

A frame is nine bytes of header (length, type, flags, stream) and a payload. `FrameReader` checks
the length before the payload has arrived, and returns the good frames one at a time. This module
does not know the states of streams.

Flood allowances: a client may send frames that advance no request (PING, SETTINGS, empty DATA, …),
and may cancel requests. But each of these spends from an `Allowance`, which refills with time and
with useful work. If an allowance is used up, the connection ends with ENHANCE_YOUR_CALM.
"""

from __future__ import annotations

from enum import Enum, auto
from struct import Struct
from typing import TYPE_CHECKING, Final

from servo.errors import ServoError
from servo.http.negotiate import PREFACE

if TYPE_CHECKING:
    from servo.http.limits import H2Limits

# Frame types (RFC 9113 section 6).
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

# Error codes (RFC 9113 section 7).
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
INTERNAL_ERROR: Final = 2
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

# Settings (RFC 9113 section 6.5.2, RFC 8441).
HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6
ENABLE_CONNECT_PROTOCOL: Final = 8
MAX_WINDOW: Final = (1 << 31) - 1
# Until a SETTINGS frame changes them: the bytes of each window, and the longest payload of a frame.
DEFAULT_WINDOW: Final = 65535
DEFAULT_FRAME: Final = 16384

_HEAD = Struct(">HBBBL")
_SETTING = Struct(">HL")
# How many settings to accept in one frame. Clients send about half a dozen.
_MOST_SETTINGS: Final = 64
# How many CONTINUATION frames to accept for one head, in addition to one for each 16 KiB of the
# largest head.
_CONTINUATIONS: Final = 8


class GoAwayError(ServoError):
    """Raised if the connection must end: the client broke one of its rules, or floods it.

    code    the error code of the GOAWAY (RFC 9113 section 7)
    reason  one line for the log, and for GOAWAY's debug data
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"HTTP/2 error {code}: {reason}")
        self.code = code
        self.reason = reason


class Allowance:
    """A number of units to spend. It refills with time and by `earn`.

    most        the units of a full allowance
    per_second  the units that come back each second
    """

    __slots__ = ("_at", "_left", "_most", "_rate", "_touched_at")

    def __init__(self, most: int, per_second: int) -> None:
        self._most = self._left = float(most)
        self._rate = per_second
        self._at: float | None = None
        self._touched_at: float | None = None

    def spend(self, now: float) -> bool:
        """Take one unit. Returns False if none is left.

        now  seconds of any monotonic clock
        """
        self._refill(now)
        self._left -= 1
        return self._left >= 0

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now

    def earn(self, n: int = 1) -> None:
        """Give `n` units back, because the client did useful work."""
        self._left = min(self._most, self._left + n)

    def is_touched(self, now: float) -> bool:
        """Whether more than a tenth of the units was missing at any time in the last second.

        now  seconds of the same clock

        An ordinary client always keeps more than nine tenths. Checking only the current number
        would not be enough: a client could stay near the limit, and look ordinary half of the time.
        """
        self._refill(now)
        if self._left < self._most * 0.9:
            self._touched_at = now
        return self._touched_at is not None and now - self._touched_at < 1.0


class Frame:
    """One frame.

    type     its type; this may be an unknown one
    flags    its flags, in one byte
    stream   the number of its stream; 0 for the connection
    payload  its bytes, without the nine-byte header
    """

    __slots__ = ("flags", "payload", "stream", "type")

    def __init__(self, type_: int, flags: int, stream: int, payload: bytes) -> None:
        self.type = type_
        self.flags = flags
        self.stream = stream
        self.payload = payload


class FrameReader:
    """Splits received bytes into frames, and refuses floods. Its methods raise `GoAwayError`.

    limits  has the largest frame and head, and the allowance for control frames
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
        self._buffer = b""
        self._pos = 0
        self._want = PREFACE
        self._started = False
        self._stream = 0  # the stream of the last frame
        # An unfinished head, which CONTINUATION frames continue: its bytes, its stream, and the
        # number of its frames so far, which is 0 if there is no unfinished head.
        self._block = 0
        self._block_of = 0
        self._parts = 0

    @property
    def in_part(self) -> bool:
        """Whether only a part of a frame, or of a head, has arrived."""
        return bool(self._buffer) or bool(self._parts)

    @property
    def backlog(self) -> int:
        """The number of received bytes that wait for `next`."""
        return len(self._buffer) - self._pos

    @property
    def goes_on(self) -> bool:
        """Whether the next frame's header has arrived and names the stream of the last frame."""
        if self.backlog < 9:
            return False
        stream: int = _HEAD.unpack_from(self._buffer, self._pos)[4]
        return stream & 0x7FFFFFFF == self._stream

    def feed(self, data: bytes) -> None:
        """Take received bytes. Checks and removes the client's connection preface."""
        if self._want:
            n = min(len(self._want), len(data))
            if data[:n] != self._want[:n]:
                raise GoAwayError(PROTOCOL_ERROR, "no HTTP/2 preface")
            self._want = self._want[n:]
            data = data[n:]
        self._compact()
        self._buffer = self._buffer + data if self._buffer else data

    def next(self, now: float) -> Frame | None:
        """Return the next frame; None if it is incomplete.

        now  seconds of any monotonic clock
        """
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
        self._judge(kind, flags, length, now)
        return Frame(kind, flags, self._stream, buffer[pos + 9 : self._pos])

    def is_strained(self, now: float) -> bool:
        """Whether more control frames have arrived recently than an ordinary client sends."""
        return self._control.is_touched(now)

    def earn(self, n: int) -> None:
        """Allow the client `n` more control frames, such as WINDOW_UPDATE for data from us."""
        self._control.earn(n)

    def charge(self, now: float, what: str) -> None:
        """Count a frame that advances no request. `what` names the frame for the log."""
        if not self._control.spend(now):
            raise GoAwayError(ENHANCE_YOUR_CALM, f"too many useless frames ({what})")

    def _compact(self) -> None:
        if self._pos:
            self._buffer = self._buffer[self._pos :]
            self._pos = 0

    def _judge(self, kind: int, flags: int, length: int, now: float) -> None:
        number = self._stream
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
        """Refuse an endless head (CVE-2024-27316 and others).

        The limit is that of the decoded head, because the compressed head is never larger.
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
    return frame_head(len(payload), kind, flags, stream) + payload


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine-byte header of a frame with this payload length, type (`kind`), flags and stream."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def content(frame: Frame) -> bytes:
    """The payload of a DATA or HEADERS frame without padding and priority.

    Raises `GoAwayError` if the payload is too short for them (RFC 9113 sections 6.1 and 6.2).
    """
    payload = frame.payload
    flags = frame.flags
    if not flags & (PADDED | HAS_PRIORITY):
        return payload
    start = 0
    end = len(payload)
    if flags & PADDED:
        if not end:
            raise GoAwayError(FRAME_SIZE_ERROR, "a padded frame without a length of the padding")
        start = 1
        end -= payload[0]
    if flags & HAS_PRIORITY and frame.type == HEADERS:
        start += 5
        if len(payload) < start:
            raise GoAwayError(FRAME_SIZE_ERROR, "HEADERS too short for its priority")
    if end < start:
        raise GoAwayError(PROTOCOL_ERROR, "more padding than payload")
    return payload[start:end]


def depends_on_itself(frame: Frame) -> bool:
    """Whether a PRIORITY frame, or the priority in a HEADERS frame, names the frame's own stream.

    Returns False for a frame that is too short to have a priority: other checks refuse it.
    """
    at = 0
    if frame.type == HEADERS:
        if not frame.flags & HAS_PRIORITY:
            return False
        at = 1 if frame.flags & PADDED else 0
    if len(frame.payload) < at + 5:
        return False
    # The highest bit is "exclusive" (RFC 7540 section 6.3).
    return int.from_bytes(frame.payload[at : at + 4], "big") & 0x7FFFFFFF == frame.stream


class ClientKind(Enum):
    """The kind of client, by its reaction to a GOAWAY (see `drain`)."""

    H2_LIBRARY = auto()
    CHROMIUM = auto()
    ORDINARY = auto()


def kind_of_client(payload: bytes) -> ClientKind:
    """Recognise a client by the payload of its first SETTINGS frame.

    Python's h2 library sends every setting that it knows, even with the protocol's default value.
    Other clients leave out default values. (Firefox sends the default MAX_FRAME_SIZE, but another
    HEADER_TABLE_SIZE.) Only Chromium has a stream window of 6 MiB and accepts header lists of 256
    KiB.
    """
    values = dict(_SETTING.iter_unpack(payload)) if len(payload) % 6 == 0 else {}
    if values.get(1) == 4096 and values.get(5) == 16384 and {2, 4} <= values.keys():
        return ClientKind.H2_LIBRARY
    if values.get(4) == 6 << 20 and values.get(6) == 256 << 10:
        return ClientKind.CHROMIUM
    return ClientKind.ORDINARY


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The settings in the payload of a SETTINGS frame, in order, including unknown ones.

    Raises `GoAwayError` for a wrong length, too many settings, or a wrong value (RFC 9113 section
    6.5.2, RFC 8441 section 3).
    """
    if len(payload) % 6:
        raise GoAwayError(FRAME_SIZE_ERROR, "malformed SETTINGS")
    if len(payload) > 6 * _MOST_SETTINGS:
        raise GoAwayError(ENHANCE_YOUR_CALM, "too many settings at once")
    pairs = list(_SETTING.iter_unpack(payload))
    for key, value in pairs:
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise GoAwayError(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large")
        if key in (ENABLE_PUSH, ENABLE_CONNECT_PROTOCOL) and value > 1:
            raise GoAwayError(PROTOCOL_ERROR, "a setting that is neither 0 nor 1")
        if key == MAX_FRAME_SIZE and not DEFAULT_FRAME <= value < 1 << 24:
            raise GoAwayError(PROTOCOL_ERROR, "invalid MAX_FRAME_SIZE")
    return pairs


def settings_payload(settings: dict[int, int]) -> bytes:
    """The payload of a SETTINGS frame. `settings` has the values by their numbers."""
    return b"".join([_SETTING.pack(key, value) for key, value in settings.items()])
