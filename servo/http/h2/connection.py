"""An HTTP/2 connection as a server sees it, without I/O (RFC 9113), on the `h2` library.

Bytes go in through `receive_data` and come out as events, each with its stream. The driver answers
through the streams (`stream`) and takes the bytes to send from `output`. The `h2` library keeps the
states, the windows and the compression; `head` and `headers` judge requests by the same rules as
for HTTP/1.1; `frames` bounds what a client may send to no purpose.

A response that the windows and the socket allow goes to `h2` at once. Anything else waits in its
stream, and `output` takes from the waiting streams in turns, a frame at a time. So a client that
reads one stream slowly does not hold up the others.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any, Protocol

import h2.events
import h2.exceptions

from servo.http.errors import ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.h2.frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PRIORITY,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    Allowance,
    Frame,
    FrameReader,
    GoAwayError,
    depends_on_itself,
    frame_bytes,
    spells_out_defaults,
    without_priority,
)
from servo.http.h2.head import MalformedError, glimpse, read_head, read_trailers
from servo.http.h2.hpack import FieldDecoder
from servo.http.h2.state_machine import StateMachine
from servo.http.h2.stream import H2Stream
from servo.http.negotiate import PREFACE
from servo.http.serialise import tail_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from servo.http.limits import H2Limits, Limits

    Event = tuple[H2Stream | None, Request | Data | Refused | "Reset"]

# The bodies of all streams together may be this far ahead of the application. The connection's
# window is opened again as bytes arrive, not as the application reads them: each stream has a
# window of its own, and a stream that nobody reads must not hold up the others.
CONNECTION_WINDOW = 1 << 20
# A frame costs up to 100 us, and more for what it starts, so a turn ends after a few frames and
# other connections are served. Longer turns would show in the latency of other clients while this
# one floods us. A client that has begun to spend its allowances gets still shorter turns.
FRAMES_A_TURN = 4
_STRAINED_FRAMES = 1
# A turn may go on for a few more frames of the same stream. If it ended between a request and the
# RST_STREAM that takes it back, there would be time to answer the request in between.
_MORE_OF_ONE = 2
# The largest frame of a response, whatever the client would accept: so streams take turns.
_FRAME = 16384
_LAST_ID = (1 << 31) - 1
_DEFAULT_WINDOW = 65535


class Reset:
    """The stream has ended early: the client reset it, or broke a rule. Tell its application.

    code  the error code (RFC 9113 section 7)
    """

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


class ByteCount(Protocol):
    """A number of bytes that several connections add up together."""

    bytes: int


class H2Connection:
    """One connection.

    limits, h2_limits  what a client may do
    server, date       as for `H1Connection`
    tunnels            whether to offer extended CONNECT (RFC 8441)
    wake               called whenever there is something new to send
    all_unsent         the body bytes that wait in the streams of several connections, if the caller
                       wants to know their sum

    streams    the open streams by number
    gone       closed streams that the driver has not yet cleaned up; it empties this list
    strict     the client accepts no frame after a GOAWAY (see `drain`); None until its SETTINGS
               have come
    heard      the client has answered the last `probe`
    opened_at  when the last stream was opened, by the clock of `receive_data`
    last_id    the highest number of an accepted stream
    more       received frames wait for `receive_more`
    blocked    set by the driver while the socket takes nothing: every body waits in its stream
    announced  GOAWAY was sent, but requests are still accepted
    closing    the last GOAWAY was sent: open streams are answered, further ones refused
    leaving    the client has sent GOAWAY
    unsent     body bytes that wait in the streams
    sent       body bytes that were handed to `h2` since the connection began
    fault      the error that ended the connection; None while there is none
    tail       the Date and Server fields of responses
    """

    def __init__(
        self,
        limits: Limits,
        h2_limits: H2Limits,
        *,
        server: bytes | None = b"servo",
        date: bool = True,
        tunnels: bool = False,
        wake: Callable[[], None] = lambda: None,
        all_unsent: ByteCount | None = None,
    ) -> None:
        self._limits = limits
        self._h2_limits = h2_limits
        self._tunnels = tunnels
        self._decoder = FieldDecoder(h2_limits.header_list)
        self._h2 = StateMachine(h2_limits, tunnels, self._decoder)
        # The reader and this count what a client does to no purpose. Responses earn it some more.
        self._reader = FrameReader(h2_limits)
        self._resets = Allowance(*h2_limits.resets)
        # Body bytes that came since the connection's window was last opened.
        self._credit = 0
        # The fault in the head that is coming in, if the HEADERS frame alone shows one.
        self._flaw = ""
        # Bytes to send before anything that `h2` has ready.
        self._out: list[bytes] = []
        # Streams with something to send, in the order of their turns. A dict is an ordered set.
        self._queued: dict[H2Stream, None] = {}
        self._all_unsent = all_unsent
        self._now = self.opened_at = 0.0
        self._probes = 0
        self.tail = tail_for(server, date)
        self.wake = wake
        self.streams: dict[int, H2Stream] = {}
        self.gone: list[H2Stream] = []
        self.strict: bool | None = None
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
        """Prepare the server's SETTINGS, the first bytes that it sends."""
        self._h2.initiate_connection()
        self._started()

    def start_upgraded(self, request: Request, settings: bytes, now: float = 0.0) -> H2Stream:
        """Begin after `Upgrade: h2c` (RFC 7540 section 3.2); the request becomes stream 1.

        request   the HTTP/1.1 request that asked for the upgrade; it is changed into one of HTTP/2
        settings  the payload of its SETTINGS frame, filtered by `known_settings`
        now       seconds, by the clock of `receive_data`
        """
        self._now = now
        self._h2.initiate_upgrade_connection(urlsafe_b64encode(settings))
        self._started()
        request.version = "2"
        request.upgrade = None
        request.headers = [field for field in request.headers if field[0] not in _UPGRADING]
        return self._open(1, request)

    def _started(self) -> None:
        h2 = self._h2
        settings = h2.local_settings
        # We enforce these two ourselves, because `h2` would end the connection. A client that has
        # not seen our SETTINGS yet may open more streams, or send more, than they allow.
        settings.max_concurrent_streams = _LAST_ID
        settings.initial_window_size = max(self._h2_limits.window, _DEFAULT_WINDOW)
        settings.acknowledge()
        h2.receive_data(PREFACE)  # the frame reader has checked and removed the client's
        h2.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)

    # --- receiving ------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take received bytes; return the events of the first frames among them.

        data  the bytes
        now   seconds of any clock that never goes back

        While `more` is true, further frames wait for `receive_more`. Once `fault` is set the
        connection is over: send the rest of `output`, then close.
        """
        if self.fault is not None or (self.closing and not (self.streams or self.more)):
            return []
        try:
            self._reader.feed(data)
        except GoAwayError as fault:
            self._fail(fault)
            return []
        # Frames that already wait come first, each in its turn.
        return [] if self.more else self.receive_more(now)

    def receive_more(self, now: float) -> list[Event]:
        """The events of the next few waiting frames; `now` is as in `receive_data`."""
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
                    self._decoder.fields = []
                    self._receive(frame, events)
                    work += 1 + len(self._decoder.fields) // 8
        except GoAwayError as fault:
            self._fail(fault)
        return events

    @property
    def is_strained(self) -> bool:
        """The client has begun to spend its allowances. Make it wait between its turns."""
        return self._resets.is_touched(self._now) or self._reader.is_strained(self._now)

    @property
    def backlog(self) -> int:
        """Received bytes that wait for `receive_more`."""
        return self._reader.backlog

    @property
    def in_part(self) -> bool:
        """Only a part of a frame, or of a head, has arrived."""
        return self._reader.in_part

    def _receive(self, frame: Frame, events: list[Event]) -> None:
        kind, _, number, data = frame
        if kind > _LAST_KIND or kind in (PRIORITY, GOAWAY):
            self._receive_ours(frame, events)
            return
        if kind == RST_STREAM and number > self._h2.highest_inbound_stream_id:
            raise GoAwayError(PROTOCOL_ERROR, "RST_STREAM of an idle stream")
        if kind == HEADERS:
            data = self._inspect_head(frame)
        elif kind == SETTINGS and self.strict is None:
            self.strict = spells_out_defaults(data[9:])
        try:
            found = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            # `h2` has its GOAWAY ready.
            self._end(GoAwayError(int(error.error_code), ascii(str(error))[1:-1]))
            return
        if not found and kind in _OF_STREAMS and not self._reader.in_head:
            self._reader.charge(self._now, "for streams that are closed")
        for event in found:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event, events)
        # `h2` may have an answer of its own, or the frame may have opened a window.
        self.wake()

    def _inspect_head(self, frame: Frame) -> bytes:
        """The bytes of a HEADERS frame for `h2`, without two faults that end the connection there.

        They are faults of one stream only, and the head must be decoded all the same: later heads
        may refer to its fields. `_flaw` remembers the fault for the event that `h2` makes.
        """
        self._flaw = ""
        data = frame.data
        if depends_on_itself(frame):
            self._flaw = "a stream that depends on itself"
            data = without_priority(frame)
        if frame.stream in self.streams and not frame.flags & END_STREAM:
            self._flaw = "trailers that do not end the stream"
            data = data[:4] + bytes((data[4] | END_STREAM,)) + data[5:]
        return data

    def _receive_ours(self, frame: Frame, events: list[Event]) -> None:
        """Handle a frame that `h2` does not see."""
        kind, _, number, _ = frame
        if kind == GOAWAY:
            # After a GOAWAY `h2` would send nothing more, but open streams must be answered.
            if number:
                raise GoAwayError(PROTOCOL_ERROR, "GOAWAY on a stream")
            if frame.length < 8:
                raise GoAwayError(FRAME_SIZE_ERROR, "malformed GOAWAY")
            self.leaving = True
            self.wake()
        elif kind == PRIORITY:
            # Priorities are deprecated (RFC 9113 section 5.3.2), and we ignore them. But a stream
            # that depends on itself must be reset in any state (RFC 7540 section 5.3.1).
            if not number:
                raise GoAwayError(PROTOCOL_ERROR, "PRIORITY of no stream")
            if frame.length != 5:
                raise GoAwayError(FRAME_SIZE_ERROR, "malformed PRIORITY")
            if depends_on_itself(frame):
                self._on_self_dependency(number, events)

    def _on_self_dependency(self, number: int, events: list[Event]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            # `h2` does not reset streams that it considers unknown or closed.
            self._emit(frame_bytes(RST_STREAM, 0, number, PROTOCOL_ERROR.to_bytes(4, "big")))
            self.wake()
        else:
            stream.reset(PROTOCOL_ERROR)
            events.append((stream, Reset(PROTOCOL_ERROR)))
        self._count_reset()

    def _on_request(self, event: h2.events.RequestReceived, events: list[Event]) -> None:
        number: int = event.stream_id
        ended = event.stream_ended is not None
        fields = self._decoder.fields
        if self.closing and not self.streams:
            return  # nothing may follow the last GOAWAY, which told the client enough
        if self.closing or len(self.streams) >= self._h2_limits.streams:
            # The client may send the request again, elsewhere or later (RFC 9113 section 8.7).
            self._reset_number(number, REFUSED_STREAM)
            self._count_reset()
            return
        try:
            if self._flaw:
                raise MalformedError(self._flaw)
            request = read_head(fields, ended, self._limits, self._tunnels)
        except MalformedError as error:
            self._reset_number(number, PROTOCOL_ERROR)
            self._count_reset()
            events.append((None, Refused(error, False, *glimpse(fields))))
            return
        except ProtocolError as error:
            refused = Refused(error, False, *glimpse(fields))
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
        stream = self.streams[number] = H2Stream(self, number, request)
        return stream

    def _on_data(self, event: h2.events.DataReceived, events: list[Event]) -> None:
        size: int = event.flow_controlled_length or 0
        self._credit += size
        if self._credit >= CONNECTION_WINDOW // 2:
            self._h2.increment_flow_control_window(self._credit)
            self._credit = 0
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        data = event.data or b""
        ended = event.stream_ended is not None
        if not data and not ended:
            self._reader.charge(self._now, "DATA of nothing but padding")
        stream.unread += size
        self._on_body(stream, Data(data, not ended), events)

    def _on_trailers(self, event: h2.events.TrailersReceived, events: list[Event]) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        data = Data(b"", False)
        try:
            if self._flaw:
                raise MalformedError(self._flaw)
            data.trailers = read_trailers(self._decoder.fields, self._limits)
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

    def _on_reset(self, event: h2.events.StreamReset, events: list[Event]) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            self._forget(stream)
            events.append((stream, Reset(int(event.error_code or 0))))
            self._count_reset()

    def _on_ping_ack(self, event: h2.events.PingAckReceived, events: list[Event]) -> None:
        if event.ping_data == _probe(self._probes) and not self.heard:
            self.heard = True
            self._reader.earn(1)  # we asked for this frame
            if self.announced:
                # The client has read the first GOAWAY, and all that it sent before has arrived.
                self.finish()

    def _count_reset(self) -> None:
        """Spend one of the client's allowed resets.

        A request that the client takes back costs us work, but not one of its concurrent streams
        (CVE-2023-44487, "rapid reset"). The same holds if it makes us reset the stream
        (CVE-2025-8671).
        """
        if not self._resets.spend(self._now):
            raise GoAwayError(ENHANCE_YOUR_CALM, "too many requests taken back")

    # --- sending: called by the streams ----------------------------------------------------------

    def send_now(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> bool:
        """Send a whole response at once; False if a window or the socket does not allow it.

        stream  the stream that it answers
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
        """Count `n` more body bytes that wait in a stream; fewer if `n` is negative."""
        self.unsent += n
        if self._all_unsent is not None:
            self._all_unsent.bytes += n

    def on_queued(self, stream: H2Stream) -> None:
        """The stream has something to send; give it a turn."""
        self._queued[stream] = None
        self.wake()

    def window(self, stream: H2Stream) -> int:
        """The body bytes that the stream may send now, at most those of one frame."""
        return min(self._h2.local_flow_control_window(stream.id), _FRAME)

    def put_head(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], ended: bool
    ) -> None:
        """Hand fields to `h2`: a head, or trailers. `ended`: they end the stream."""
        self._h2.send_headers(stream.id, fields, ended)
        if ended:
            self._sent_all(stream)

    def put_data(self, stream: H2Stream, data: bytes | memoryview, ended: bool) -> None:
        """Hand a part of a body to `h2`, within the window. `ended`: it ends the stream."""
        self._h2.send_data(stream.id, data, ended)
        self.sent += len(data)
        self._reader.earn(2)
        if ended:
            self._sent_all(stream)

    def reset(self, stream: H2Stream, code: int) -> None:
        """End the stream at once, with this error code (RFC 9113 section 7)."""
        if not stream.closed:
            self._reset_number(stream.id, code)
            self._forget(stream)

    def give_window(self, stream: H2Stream, n: int) -> bool:
        """Let the client send `n` more body bytes, since the application has read as many.

        False: too few to be worth a frame; ask again when there are more.
        """
        if stream.incoming:
            if n < self._h2_limits.window // 2:
                return False
            self._h2.increment_flow_control_window(n, stream.id)
            self.wake()
        return True

    # --- sending: called by the driver -----------------------------------------------------------

    def output(self, most: int = 65536) -> bytes:
        """The bytes to send now: everything ready, and about `most` bytes of waiting bodies."""
        if self._queued and not self.blocked and self.fault is None:
            self._take_turns(most)
        self._out.append(self._h2.data_to_send())
        data = b"".join(self._out)
        self._out.clear()
        return data

    @property
    def is_shut(self) -> bool:
        """The client accepts no body bytes at all, or none on a new stream."""
        h2 = self._h2
        windows = (h2.outbound_flow_control_window, h2.remote_settings.initial_window_size)
        return self.blocked or min(windows) <= 0

    def _take_turns(self, left: int) -> None:
        """Send a frame of each waiting stream in turn, until `left` bytes are sent."""
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
                    queued[stream] = None  # behind the others
                if left <= 0:
                    break

    def _sent_all(self, stream: H2Stream) -> None:
        """The response is out: nobody needs the rest of the request's body (RFC 9113 8.1)."""
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
        self.gone.append(stream)

    def _reset_number(self, number: int, code: int) -> None:
        try:
            self._h2.reset_stream(number, code)
        except h2.exceptions.StreamClosedError:
            return  # both sides have ended it already
        self.wake()

    def _emit(self, frame: bytes) -> None:
        """Send a frame that `h2` did not make, behind those that it has ready."""
        self._out += (self._h2.data_to_send(), frame)

    # --- the end --------------------------------------------------------------------------------

    def announce(self) -> None:
        """Announce the end of the connection, and ask for a sign that the client has read it.

        Requests that the client sends before it knows are still accepted (RFC 9113 section 6.8).
        The client's answer calls `finish`; the driver calls it if the answer takes too long.
        """
        if not self.announced and self.fault is None:
            self.announced = True
            self._emit(_goaway(_LAST_ID, NO_ERROR))
            self.probe()

    def probe(self) -> None:
        """Send a PING; its answer, which sets `heard`, shows that the client read all up to it."""
        self.heard = False
        self._probes += 1
        self._h2.ping(_probe(self._probes))
        self.wake()

    def finish(self) -> None:
        """Accept no more requests. The client may send later ones again on a new connection."""
        if not self.closing and self.fault is None:
            self.announced = self.closing = True
            self._emit(_goaway(self.last_id, NO_ERROR))
            self.wake()

    def finish_after(self, last_id: int) -> None:
        """`finish`, and drop the streams above `last_id`, which no application has seen."""
        for number in [number for number in self.streams if number > last_id]:
            self._forget(self.streams[number])
        self.last_id = last_id
        self.finish()

    def fail(self, code: int, reason: str) -> None:
        """End the connection for a fault that the driver has found, such as a timeout.

        code    for GOAWAY (RFC 9113 section 7)
        reason  one line for the log and for GOAWAY's debug data
        """
        if self.fault is None:
            self._fail(GoAwayError(code, reason))

    @property
    def over(self) -> bool:
        """Nothing is left to do but to send the rest of `output`."""
        return self.fault is not None or (
            (self.closing or self.leaving) and not self.streams and not self.more
        )

    def _fail(self, fault: GoAwayError) -> None:
        self._emit(_goaway(self.last_id, fault.code, fault.reason.encode("ascii", "replace")))
        self._end(fault)

    def _end(self, fault: GoAwayError) -> None:
        # The traceback's frames refer to this connection and to received bytes: a reference cycle.
        fault.__traceback__ = fault.__cause__ = fault.__context__ = None
        self.fault = fault
        self.more = False
        self._queued.clear()
        for stream in self.streams.values():
            stream.close()
        self.wake()


_UPGRADING = frozenset((b"connection", b"upgrade", b"http2-settings"))
_OF_STREAMS = (DATA, HEADERS)
_LAST_KIND = CONTINUATION
_HANDLERS: dict[type, Callable[[H2Connection, Any, list[Any]], None]] = {
    h2.events.RequestReceived: H2Connection._on_request,
    h2.events.DataReceived: H2Connection._on_data,
    h2.events.TrailersReceived: H2Connection._on_trailers,
    h2.events.StreamReset: H2Connection._on_reset,
    h2.events.PingAckReceived: H2Connection._on_ping_ack,
}


def _probe(number: int) -> bytes:
    """The payload of a PING. Each differs, so that its answer is not taken for another one's."""
    return b"servo" + (number & 0xFFFFFF).to_bytes(3, "big")


def _goaway(last: int, code: int, text: bytes = b"") -> bytes:
    payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + text
    return frame_bytes(GOAWAY, 0, 0, payload)
