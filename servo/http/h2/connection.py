"""The server's side of an HTTP/2 connection, without I/O (RFC 9113).

`receive_data` turns received bytes into events, each with its stream. The driver responds through
the streams (`stream`), and takes the bytes to send from `output`. `hpack` compresses heads. `head`
and `headers` check requests by the same rules as for HTTP/1.1. `frames` limits the frames that
advance no request.

A response becomes frames at once if the windows and the socket have room for it. Otherwise it waits
in its stream, and `output` takes one frame from each waiting stream in turn. So a slowly read
stream does not block the others.

A stream that both sides may use, or that one side has ended, is in `streams`. All others are idle,
if their number is above the highest so far, or closed. For the streams that were closed last, the
connection remembers whether it has reset them: the client may have sent frames on them before it
read the RST_STREAM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from servo.http.errors import ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    ENABLE_CONNECT_PROTOCOL,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_WINDOW,
    NO_ERROR,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Allowance,
    ClientKind,
    Frame,
    FrameReader,
    GoAwayError,
    content,
    depends_on_itself,
    frame_bytes,
    frame_head,
    kind_of_client,
    read_settings,
    settings_payload,
)
from servo.http.h2.head import MalformedError, glimpse, read_head, read_trailers
from servo.http.h2.hpack import FieldDecoder, FieldEncoder
from servo.http.h2.stream import H2Stream
from servo.http.serialise import tail_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servo.http.limits import H2Limits, Limits

    Fields = list[tuple[bytes, bytes]]
    Event = tuple[H2Stream | None, Request | Data | Refused | "Reset"]

# The window of the connection: how many body bytes may be on their way to us in all streams
# together. It is enlarged again when bytes arrive, not when the application reads them. So a stream
# that the application does not read is limited by its own window, and does not block the others.
CONNECTION_WINDOW: Final = 1 << 20
# How many frames to handle in one turn of the loop. A frame takes up to 20 us (5 us compiled), and
# may start further work. With longer turns, a flood from one client would delay the others. With
# shorter ones, fewer responses would share a call of send(2). A client that has begun to spend its
# allowances gets even shorter turns.
FRAMES_A_TURN: Final = 8
_STRAINED_FRAMES: Final = 1
# A turn is extended by up to this many frames if they belong to the stream of its last frame. If a
# turn ended between a request and the RST_STREAM that cancels it, the application would start in
# vain.
_MORE_OF_ONE: Final = 2
# How many body bytes to send in one frame, even if the client accepts more: streams take turns.
_FRAME: Final = 16384
_LAST_ID: Final = (1 << 31) - 1
# How many closed streams to remember.
_MOST_CLOSED: Final = 1024


class Reset:
    """The early end of a stream: the client has reset it, or broken a rule.

    code  the error code (RFC 9113 section 7)
    """

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


class ByteCount(Protocol):
    """A sum of bytes over several connections."""

    bytes: int


class H2Connection:
    """One connection.

    limits, h2_limits  the limits on a client's data
    server, date, more  as for `H1Connection`
    tunnels            whether to offer extended CONNECT (RFC 8441)
    wake               called whenever there are new bytes to send
    all_unsent         counts the unsent body bytes of several connections; None: not counted

    streams    the open streams by number
    gone       closed streams for the driver to clean up; it empties this list
    client     the kind of client, for `drain`; None until its SETTINGS have arrived
    heard      whether the client has answered the last `probe`
    opened_at  when the last stream was opened, in seconds of the clock of `receive_data`
    last_id    the highest number of an accepted stream
    more       whether received frames wait for `receive_more`
    blocked    whether the socket takes no bytes, set by the driver: then bodies wait in their
               streams
    announced  whether the first GOAWAY was sent; requests are still accepted
    closing    whether the last GOAWAY was sent: open streams are answered, further ones refused
    leaving    whether the client has sent GOAWAY
    unsent     the number of body bytes that wait in the streams
    sent       the number of body bytes that have become frames since the connection began
    fault      the error that ended the connection; None without one
    tail       the server's own fields of responses, such as Date
    """

    def __init__(
        self,
        limits: Limits,
        h2_limits: H2Limits,
        *,
        server: bytes | None = b"servo",
        date: bool = True,
        more: bytes = b"",
        tunnels: bool = False,
        wake: Callable[[], None] = lambda: None,
        all_unsent: ByteCount | None = None,
    ) -> None:
        self._limits = limits
        self._h2_limits = h2_limits
        self._tunnels = tunnels
        self._decoder = FieldDecoder(h2_limits.header_list)
        self._encoder = FieldEncoder()
        # The two allowances: for a client's useless frames (in the reader) and for its resets.
        self._reader = FrameReader(h2_limits)
        self._resets = Allowance(*h2_limits.resets)
        # How many body bytes the client may still send, in all streams together.
        self._incoming_window = CONNECTION_WINDOW
        # The same for one new stream: the default, unless our setting is larger, because the client
        # uses the default until it has read our SETTINGS.
        self._first_window = max(h2_limits.window, DEFAULT_WINDOW)
        # How many body bytes we may still send in all streams together, and at first in a new
        # stream.
        self._outgoing_window = DEFAULT_WINDOW
        self._initial_window = DEFAULT_WINDOW
        # The largest payload that the client accepts in a frame, in bytes.
        self._largest_frame = DEFAULT_FRAME
        # A head of which only the first frames have arrived: its bytes, and its first frame.
        self._block: list[bytes] = []
        self._block_start: Frame | None = None
        # The highest stream number that the client has used. Then the closed streams, oldest first:
        # number -> whether we have reset the stream.
        self._highest = 0
        self._closed: dict[int, bool] = {}
        # Bytes to send.
        self._out: list[bytes] = []
        # Streams with bytes to send, in the order of their turns. A dict serves as an ordered set.
        self._queued: dict[H2Stream, None] = {}
        self._all_unsent = all_unsent
        self._now = self.opened_at = 0.0
        self._probes = 0
        self.tail = tail_for(server, date, more)
        self.wake = wake
        self.streams: dict[int, H2Stream] = {}
        self.gone: list[H2Stream] = []
        self.client: ClientKind | None = None
        self.heard = False
        self.last_id = 0
        self.more = False
        self.blocked = False
        self.announced = False
        self.closing = False
        self.leaving = False
        self.unsent = 0
        self.sent = 0
        self.fault: GoAwayError | None = None

    def start(self) -> None:
        """Prepare the server's first bytes, its SETTINGS."""
        limits = self._h2_limits
        settings = {
            MAX_CONCURRENT_STREAMS: limits.streams,
            INITIAL_WINDOW_SIZE: limits.window,
            MAX_FRAME_SIZE: limits.frame,
            MAX_HEADER_LIST_SIZE: limits.header_list,
        }
        if self._tunnels:
            settings[ENABLE_CONNECT_PROTOCOL] = 1
        self._emit(SETTINGS, 0, 0, settings_payload(settings))
        self._enlarge(0, CONNECTION_WINDOW - DEFAULT_WINDOW)

    def start_upgraded(self, request: Request, settings: bytes, now: float = 0.0) -> H2Stream:
        """Begin after `Upgrade: h2c` (RFC 7540 section 3.2). The request becomes stream 1.

        request   the HTTP/1.1 request for the upgrade; this changes it into one of HTTP/2
        settings  the client's SETTINGS payload
        now       seconds, by the clock of `receive_data`
        """
        self._now = now
        self.start()
        request.version = "2"
        request.upgrade = None
        request.headers = [field for field in request.headers if field[0] not in _UPGRADING]
        self._highest = 1
        stream = self._open(1, request)
        try:
            self._apply(read_settings(settings))
        except GoAwayError as fault:
            self._fail(fault)
        return stream

    # --- receiving ------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take received bytes. Returns the events of the first frames.

        data  the bytes
        now   seconds of any monotonic clock

        While `more` is true, further frames wait for `receive_more`. If `fault` is set, the
        connection is over: send the rest of `output`, then close.
        """
        if self.fault is not None or (self.closing and not (self.streams or self.more)):
            return []
        try:
            self._reader.feed(data)
        except GoAwayError as fault:
            self._fail(fault)
            return []
        # Frames that already wait come first: `receive_more` handles them in turns.
        return [] if self.more else self.receive_more(now)

    def receive_more(self, now: float) -> list[Event]:
        """Return the events of the next few waiting frames. `now` is as in `receive_data`."""
        events: list[Event] = []
        self._now = now
        reader = self._reader
        self.more = self.fault is None
        try:
            work = 0
            most = _STRAINED_FRAMES if self.is_strained else FRAMES_A_TURN
            while self.more and (work < most or (work < most + _MORE_OF_ONE and reader.goes_on)):
                frame = reader.next(now)
                if frame is None:
                    self.more = False
                else:
                    work += 1 + self._receive(frame, events) // 8
        except GoAwayError as fault:
            self._fail(fault)
        return events

    @property
    def is_strained(self) -> bool:
        """Whether the client has spent much of its allowances. If so, pause between its turns."""
        return self._resets.is_touched(self._now) or self._reader.is_strained(self._now)

    @property
    def backlog(self) -> int:
        """The number of received bytes that wait for `receive_more`."""
        return self._reader.backlog

    @property
    def in_part(self) -> bool:
        """Whether only a part of a frame, or of a head, has arrived."""
        return self._reader.in_part

    def _receive(self, frame: Frame, events: list[Event]) -> int:
        """Handle a frame. Returns the number of header fields that it has completed."""
        kind = frame.type
        if kind == HEADERS:
            return self._on_headers(frame, events)
        if kind == DATA:
            self._on_data(frame, events)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(frame, events)
        elif kind == CONTINUATION:
            return self._on_continuation(frame, events)
        elif kind == SETTINGS:
            self._on_settings(frame)
        elif kind == PING:
            self._on_ping(frame)
        elif kind == RST_STREAM:
            self._on_reset(frame, events)
        elif kind == GOAWAY:
            self._on_goaway(frame)
        elif kind == PRIORITY:
            self._on_priority(frame, events)
        elif kind == PUSH_PROMISE:
            raise GoAwayError(PROTOCOL_ERROR, "PUSH_PROMISE from a client")
        return 0

    def _on_goaway(self, frame: Frame) -> None:
        if frame.stream:
            raise GoAwayError(PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(frame.payload) < 8:
            raise GoAwayError(FRAME_SIZE_ERROR, "malformed GOAWAY")
        # Open streams are still answered.
        self.leaving = True
        self.wake()

    def _on_priority(self, frame: Frame, events: list[Event]) -> None:
        # Priorities are deprecated (RFC 9113 section 5.3.2), and we ignore them. But a stream that
        # depends on itself must be reset in any state (RFC 7540 section 5.3.1).
        if not frame.stream:
            raise GoAwayError(PROTOCOL_ERROR, "PRIORITY of no stream")
        if len(frame.payload) != 5:
            raise GoAwayError(FRAME_SIZE_ERROR, "malformed PRIORITY")
        if depends_on_itself(frame):
            self._reset_for(frame.stream, PROTOCOL_ERROR, events)

    def _on_settings(self, frame: Frame) -> None:
        if frame.stream:
            raise GoAwayError(PROTOCOL_ERROR, "SETTINGS of a stream")
        if frame.flags & ACK:
            if frame.payload:
                raise GoAwayError(FRAME_SIZE_ERROR, "an answer to SETTINGS that has a payload")
            return
        if self.client is None:
            self.client = kind_of_client(frame.payload)
        self._apply(read_settings(frame.payload))
        self._emit(SETTINGS, ACK, 0)

    def _apply(self, settings: list[tuple[int, int]]) -> None:
        """Apply the client's SETTINGS."""
        for key, value in settings:
            if key == INITIAL_WINDOW_SIZE:
                change = value - self._initial_window
                self._initial_window = value
                for stream in self.streams.values():
                    stream.window += change
                    if stream.window > MAX_WINDOW:
                        raise GoAwayError(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE too large")
            elif key == MAX_FRAME_SIZE:
                self._largest_frame = value
            elif key == HEADER_TABLE_SIZE:
                self._encoder.header_table_size = value

    def _on_ping(self, frame: Frame) -> None:
        if frame.stream:
            raise GoAwayError(PROTOCOL_ERROR, "PING of a stream")
        if len(frame.payload) != 8:
            raise GoAwayError(FRAME_SIZE_ERROR, "malformed PING")
        if not frame.flags & ACK:
            self._emit(PING, ACK, 0, frame.payload)
        elif frame.payload == _probe(self._probes) and not self.heard:
            self.heard = True
            self._reader.earn(1)  # this frame does not count as a flood: we asked for it
            if self.announced:
                # The client has read the first GOAWAY, and its earlier frames have arrived.
                self.finish()

    def _on_window_update(self, frame: Frame, events: list[Event]) -> None:
        if len(frame.payload) != 4:
            raise GoAwayError(FRAME_SIZE_ERROR, "malformed WINDOW_UPDATE")
        number = frame.stream
        n = int.from_bytes(frame.payload, "big") & MAX_WINDOW
        if not number:
            self._outgoing_window += n
            if not n or self._outgoing_window > MAX_WINDOW:
                code = FLOW_CONTROL_ERROR if n else PROTOCOL_ERROR
                raise GoAwayError(code, "a window enlarged by 0, or by too much")
        elif self._is_idle(number):
            raise GoAwayError(PROTOCOL_ERROR, "WINDOW_UPDATE of an idle stream")
        else:
            stream = self.streams.get(number)
            if stream is None:
                return
            stream.window += n
            if not n or stream.window > MAX_WINDOW:
                self._reset_for(number, FLOW_CONTROL_ERROR if n else PROTOCOL_ERROR, events)
        self.wake()

    def _is_idle(self, number: int) -> bool:
        """Whether no stream of this number was ever opened. Only a server opens even ones."""
        return number > self._highest or not number & 1

    def _reset_for(self, number: int, code: int, events: list[Event]) -> None:
        """Reset a stream, which may have any state, because the client broke a rule."""
        stream = self.streams.get(number)
        if stream is None:
            self._reset_number(number, code)
        else:
            stream.reset(code)
            events.append((stream, Reset(code)))
        self._count_reset()

    # --- receiving: heads and bodies -------------------------------------------------------------

    def _on_headers(self, frame: Frame, events: list[Event]) -> int:
        if not frame.stream & 1:
            raise GoAwayError(PROTOCOL_ERROR, "HEADERS of a stream that no client can open")
        block = content(frame)
        if not frame.flags & END_HEADERS:
            self._block = [block]
            self._block_start = frame
            return 0
        return self._on_block(frame, block, events)

    def _on_continuation(self, frame: Frame, events: list[Event]) -> int:
        start = self._block_start
        if start is None:
            raise GoAwayError(PROTOCOL_ERROR, "CONTINUATION of no head")
        self._block.append(frame.payload)
        if not frame.flags & END_HEADERS:
            return 0
        block = b"".join(self._block)
        self._block = []
        self._block_start = None
        return self._on_block(start, block, events)

    def _on_block(self, frame: Frame, block: bytes, events: list[Event]) -> int:
        """Handle a whole head, or trailers.

        frame  the HEADERS frame that began it
        block  the compressed fields. They must be decoded even if they are not used, because later
               heads may refer to them
        """
        number = frame.stream
        stream = self.streams.get(number)
        fields = self._decoder.decode(block)
        if stream is None and number <= self._highest:
            was_reset = self._closed.get(number)
            if was_reset is None:
                raise GoAwayError(PROTOCOL_ERROR, "a stream number that goes back")
            if not was_reset:
                raise GoAwayError(STREAM_CLOSED, "HEADERS of a closed stream")
            self._reader.charge(self._now, "for streams that are closed")
            return len(fields)
        flaw = ""
        ended = bool(frame.flags & END_STREAM)
        if depends_on_itself(frame):
            flaw = "a stream that depends on itself"
        if stream is None:
            self._highest = number
            self._on_request(number, fields, ended, flaw, events)
        elif not stream.incoming:
            self._reset_for(number, STREAM_CLOSED, events)
        else:
            if not ended:
                flaw = "trailers that do not end the stream"
            self._on_trailers(stream, fields, flaw, events)
        return len(fields)

    def _on_request(
        self, number: int, fields: Fields, ended: bool, flaw: str, events: list[Event]
    ) -> None:
        """Handle the head of a request. `flaw` is a fault of its frame, or ""."""
        if self.closing and not self.streams:
            return  # the last GOAWAY has already refused this stream, and no frame may follow it
        if self.closing or len(self.streams) >= self._h2_limits.streams:
            # The client may send the request again, elsewhere or later (RFC 9113 section 8.7).
            self._reset_number(number, REFUSED_STREAM)
            self._count_reset()
            return
        try:
            if flaw:
                raise MalformedError(flaw)
            request = read_head(fields, ended, self._limits, self._tunnels)
        except ProtocolError as error:
            refused = Refused(error, False, *glimpse(fields))
            if isinstance(error, MalformedError):
                self._reset_number(number, PROTOCOL_ERROR)
                self._count_reset()
                events.append((None, refused))
                return
            stand_in = Request(refused.method, refused.target, b"", b"", "2", [], True)
            stand_in.more_body = not ended
            if error.status == 431:
                self._count_reset()
            stream = self._open(number, stand_in)
            stream.refuse(error)
            events.append((stream, refused))
            return
        events.append((self._open(number, request), request))

    def _open(self, number: int, request: Request) -> H2Stream:
        self.last_id = number
        self.opened_at = self._now
        self._reader.earn(1)
        stream = self.streams[number] = H2Stream(
            self, number, request, self._initial_window, self._first_window
        )
        return stream

    def _on_data(self, frame: Frame, events: list[Event]) -> None:
        number = frame.stream
        size = len(frame.payload)  # padding counts, too
        if not number:
            raise GoAwayError(PROTOCOL_ERROR, "DATA of no stream")
        if self._is_idle(number):
            raise GoAwayError(PROTOCOL_ERROR, "DATA of an idle stream")
        data = content(frame)
        self._incoming_window -= size
        if self._incoming_window < 0:
            raise GoAwayError(FLOW_CONTROL_ERROR, "more DATA than the window of the connection")
        if self._incoming_window <= CONNECTION_WINDOW // 2:
            n = CONNECTION_WINDOW - self._incoming_window
            self._incoming_window = CONNECTION_WINDOW
            self._enlarge(0, n)
        stream = self.streams.get(number)
        if stream is None:
            self._reader.charge(self._now, "for streams that are closed")
            if not self._closed.get(number):
                self._reset_number(number, STREAM_CLOSED)
            return
        if not stream.incoming:
            self._reset_for(number, STREAM_CLOSED, events)
            return
        ended = bool(frame.flags & END_STREAM)
        if not data and not ended:
            self._reader.charge(self._now, "DATA of nothing but padding")
        stream.incoming_window -= size
        if stream.incoming_window < 0:
            raise GoAwayError(FLOW_CONTROL_ERROR, "more DATA than the window of a stream")
        stream.unread += size
        self._on_body(stream, Data(data, not ended), events)

    def _on_trailers(
        self, stream: H2Stream, fields: Fields, flaw: str, events: list[Event]
    ) -> None:
        data = Data(b"", False)
        try:
            if flaw:
                raise MalformedError(flaw)
            data.trailers = read_trailers(fields, self._limits)
        except ProtocolError as error:
            self._refuse_body(stream, error, events)
            return
        self._on_body(stream, data, events)

    def _on_body(self, stream: H2Stream, data: Data, events: list[Event]) -> None:
        try:
            stream.count_body(len(data.data), not data.more_body, self._limits.body)
        except ProtocolError as error:
            self._refuse_body(stream, error, events)
            return
        if data.data or not data.more_body:
            events.append((stream, data))
        is_answered = stream.response_complete and not stream.waiting
        if is_answered and stream.tunnel and not stream.incoming:
            self._forget(stream)

    def _refuse_body(self, stream: H2Stream, error: ProtocolError, events: list[Event]) -> None:
        request = stream.request
        events.append((stream, Refused(error, True, request.method, request.target)))
        if isinstance(error, MalformedError):
            stream.reset(PROTOCOL_ERROR)
            self._count_reset()
        else:
            stream.refuse(error)

    def _on_reset(self, frame: Frame, events: list[Event]) -> None:
        if self._is_idle(frame.stream):
            raise GoAwayError(PROTOCOL_ERROR, "RST_STREAM of an idle stream")
        if len(frame.payload) != 4:
            raise GoAwayError(FRAME_SIZE_ERROR, "malformed RST_STREAM")
        stream = self.streams.get(frame.stream)
        if stream is not None:
            self._forget(stream)
            events.append((stream, Reset(int.from_bytes(frame.payload, "big"))))
            self._count_reset()

    def _count_reset(self) -> None:
        """Spend one of the client's allowed resets.

        A cancelled request costs us work, but does not count as a concurrent stream
        (CVE-2023-44487, "rapid reset"). The same holds if the client makes us reset the stream
        (CVE-2025-8671).
        """
        if not self._resets.spend(self._now):
            raise GoAwayError(ENHANCE_YOUR_CALM, "too many requests taken back")

    # --- sending: called by the streams ----------------------------------------------------------

    def send_now(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> bool:
        """Send a whole response at once. Returns False if a window or the socket has no room.

        stream  the response's stream
        fields  the head, names in lower case
        body    the whole body
        """
        if stream.closed:
            return True
        n = len(body)
        if self.blocked or n > _FRAME or n > self.window(stream):
            return False
        self.put_head(stream, fields, not n)
        if n:
            self.put_data(stream, body, True)
        self.wake()
        return True

    def count_unsent(self, n: int) -> None:
        """Add `n` to the number of unsent body bytes. `n` may be negative."""
        self.unsent += n
        if self._all_unsent is not None:
            self._all_unsent.bytes += n

    def on_queued(self, stream: H2Stream) -> None:
        """Give the stream a turn, because it has bytes to send."""
        self._queued[stream] = None
        self.wake()

    def window(self, stream: H2Stream) -> int:
        """The number of body bytes that the stream may send now, at most one frame."""
        return min(self._outgoing_window, stream.window, _FRAME)

    def put_head(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], ended: bool
    ) -> None:
        """Send a head or trailers. `ended` tells whether they end the stream."""
        block = self._encoder.encode(fields)
        flags = END_STREAM if ended else 0
        kind = HEADERS
        most = self._largest_frame
        while len(block) > most:
            self._out.append(frame_bytes(kind, flags, stream.id, block[:most]))
            block = block[most:]
            kind = CONTINUATION
            flags = 0
        self._out.append(frame_bytes(kind, flags | END_HEADERS, stream.id, block))
        if ended:
            self._sent_all(stream)

    def put_data(self, stream: H2Stream, data: bytes | memoryview, ended: bool) -> None:
        """Send a part of a body, within the windows. `ended` tells whether it is the last one."""
        n = len(data)
        self._out.append(frame_head(n, DATA, END_STREAM if ended else 0, stream.id))
        self._out.append(bytes(data))
        self._outgoing_window -= n
        stream.window -= n
        self.sent += n
        self._reader.earn(2)
        if ended:
            self._sent_all(stream)

    def reset(self, stream: H2Stream, code: int) -> None:
        """End the stream at once, with this error code (RFC 9113 section 7)."""
        if not stream.closed:
            self._reset_number(stream.id, code)
            self._forget(stream)

    def give_window(self, stream: H2Stream, n: int) -> bool:
        """Let the client send `n` more body bytes, because the application has read `n` bytes.

        Returns False if `n` is too small for a frame of its own. Call it again with a larger one.
        """
        if stream.incoming:
            if n < self._h2_limits.window // 2:
                return False
            stream.incoming_window += n
            self._enlarge(stream.id, n)
        return True

    # --- sending: called by the driver -----------------------------------------------------------

    def output(self, most: int = 65536) -> bytes:
        """The bytes to send now: all frames, with about `most` bytes of waiting bodies."""
        if self._queued and not self.blocked and self.fault is None:
            self._take_turns(most)
        data = b"".join(self._out)
        self._out.clear()
        return data

    @property
    def is_shut(self) -> bool:
        """Whether the client accepts no body bytes at all, or none on a new stream."""
        return self.blocked or self._outgoing_window <= 0 or self._initial_window <= 0

    def _take_turns(self, left: int) -> None:
        """Send one frame of each waiting stream in turn, until `left` bytes are sent."""
        queued = self._queued
        progress = True
        while progress and queued and left > 0:
            progress = False
            for stream in list(queued):
                if stream.waiting:
                    sent = stream.send_some(min(left, _FRAME))
                    left -= sent
                    progress = progress or sent > 0
                queued.pop(stream, None)
                if stream.waiting:
                    queued[stream] = None  # moves the stream to the end
                if left <= 0:
                    break

    def _sent_all(self, stream: H2Stream) -> None:
        """End a stream after its response. The rest of the request is not needed (RFC 9113 8.1)."""
        if stream.status < 400:
            self._resets.earn()
        if stream.incoming:
            if stream.tunnel:
                return
            self._reset_number(stream.id, NO_ERROR)
        self._forget(stream)

    def _forget(self, stream: H2Stream) -> None:
        stream.close()
        self.streams.pop(stream.id, None)
        self._queued.pop(stream, None)
        self._remember(stream.id, False)
        self.gone.append(stream)

    def _remember(self, number: int, was_reset: bool) -> None:
        """Remember that a stream is closed, and whether we have reset it."""
        closed = self._closed
        if number not in closed and len(closed) >= _MOST_CLOSED:
            del closed[next(iter(closed))]
        closed[number] = was_reset or closed.get(number, False)

    def _reset_number(self, number: int, code: int) -> None:
        self._remember(number, True)
        self._emit(RST_STREAM, 0, number, code.to_bytes(4, "big"))

    def _enlarge(self, number: int, n: int) -> None:
        """Let the client send `n` more body bytes in a stream; 0 means all streams together."""
        self._emit(WINDOW_UPDATE, 0, number, n.to_bytes(4, "big"))

    def _emit(self, kind: int, flags: int, number: int, payload: bytes = b"") -> None:
        self._out.append(frame_bytes(kind, flags, number, payload))
        self.wake()

    # --- the end --------------------------------------------------------------------------------

    def announce(self) -> None:
        """Announce the end of the connection by a first GOAWAY and a PING.

        Requests that the client sends before it reads the GOAWAY are still accepted (RFC 9113
        section 6.8). The answer to the PING calls `finish`. If it takes too long, the driver calls
        `finish`.
        """
        if not self.announced and self.fault is None:
            self.announced = True
            self._say_goodbye(_LAST_ID, NO_ERROR)
            self.probe()

    def probe(self) -> None:
        """Send a PING. Its answer sets `heard`: the client has read all bytes before it."""
        self.heard = False
        self._probes += 1
        self._emit(PING, 0, 0, _probe(self._probes))

    def finish(self) -> None:
        """Accept no more requests. The client may send refused ones again on a new connection."""
        if not self.closing and self.fault is None:
            self.announced = self.closing = True
            self._say_goodbye(self.last_id, NO_ERROR)

    def finish_after(self, last_id: int) -> None:
        """Like `finish`, but also drop the streams above `last_id`, which have not started."""
        for number in [number for number in self.streams if number > last_id]:
            self._forget(self.streams[number])
        self.last_id = last_id
        self.finish()

    def fail(self, code: int, reason: str) -> None:
        """End the connection for a fault that the driver has found, such as a timeout.

        code    the error code of the GOAWAY (RFC 9113 section 7)
        reason  one line for the log and for GOAWAY's debug data
        """
        if self.fault is None:
            self._fail(GoAwayError(code, reason))

    @property
    def over(self) -> bool:
        """Whether the connection ends after the rest of `output`."""
        return self.fault is not None or (
            (self.closing or self.leaving) and not self.streams and not self.more
        )

    def _fail(self, fault: GoAwayError) -> None:
        self._say_goodbye(self.last_id, fault.code, fault.reason.encode("ascii", "replace"))
        # Drop the traceback: its frames refer to this connection and to received bytes, which is a
        # reference cycle.
        fault.__traceback__ = fault.__cause__ = fault.__context__ = None
        self.fault = fault
        self.more = False
        self._queued.clear()
        for stream in self.streams.values():
            stream.close()

    def _say_goodbye(self, last: int, code: int, text: bytes = b"") -> None:
        """Send GOAWAY. `last` is the last stream that was or will be processed."""
        payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + text
        self._emit(GOAWAY, 0, 0, payload)


_UPGRADING = frozenset((b"connection", b"upgrade", b"http2-settings"))


def _probe(number: int) -> bytes:
    """The payload of a PING. Each PING has another one, so that its answer can be recognised."""
    return b"servo" + (number & 0xFFFFFF).to_bytes(3, "big")
