"""An HTTP/2 connection as a server sees it, without I/O (RFC 9113), on the `h2` library.

Bytes go in through `receive_data` and come out as events, each with its stream; answers go in
through the streams (`h2_stream`) and come out of `output` (`h2_sending`). `h2` keeps the states,
the windows and the compression. What a request must be is decided by the same rules as for HTTP/1.1
(`h2_head`, `headers`), and what a client may do in vain is bounded here and in `h2_frames`.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

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
    PREFACE,
    PRIORITY,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    Frame,
    GoAwayError,
    depends_on_itself,
    frame_bytes,
    spells_out_defaults,
    without_priority,
)
from servo.http.h2.head import MalformedError, glimpse, read_head, read_trailers
from servo.http.h2.hpack import FieldKeeper
from servo.http.h2.library import Library
from servo.http.h2.sending import SendingSide
from servo.http.h2.stream import H2Stream
from servo.http.h2.unsent import Unsent
from servo.http.serialise import tail_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.http.limits import H2Limits, Limits

    Event = tuple[H2Stream | None, Request | Data | Refused | "Reset"]

# All streams' bodies together may be this far ahead. It is given back as bytes come, not as they
# are read: a stream that nobody reads holds up no other, and each has a window of its own.
CONNECTION_WINDOW = 1 << 20
# A frame costs up to 100 us, and more for what it starts: after so many, other connections get
# their turn. More in one go would be seen in their latency while a client floods this one; and of
# a client that has begun to spend its allowances, still less. A few more may follow on the same
# stream: a turn that ended between a request and what takes it back would leave time to answer it.
FRAMES_A_TURN = 4
_STRAINED_FRAMES = 1
_MORE_OF_ONE = 2
_LAST_ID = (1 << 31) - 1
_DEFAULT_WINDOW = 65535
_DRAIN_PING = b"\x00servo\x00\x01"


class Reset:
    """The client, or a fault of its own, has ended a stream: its application is to be told."""

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


class H2Connection(SendingSide):
    """One connection.

    limits, h2_limits  what a client may do
    server, date       as `H1Connection` has them
    tunnels            whether to offer extended CONNECT (RFC 8441)
    wake               called whenever there is something new to send
    all_unsent         counts what waits in the streams of several connections

    streams    by number: those that are not over
    gone       those that have left `streams`, until the driver has taken its leave of them
    strict     the client takes no frame after a GOAWAY: see `h2_drain`. None: its SETTINGS have not
               come yet
    heard      the client has answered the last `probe`
    opened_at  when the last stream was opened
    last_id    the highest number of a stream that was accepted
    more       received frames wait for `receive_more`
    blocked    set by the driver: the socket takes nothing, so let everything wait
    announced  GOAWAY was sent, but requests are still taken
    closing    the last GOAWAY was sent: what is open will be answered, and no more
    leaving    the client has sent GOAWAY
    fault      why the connection is over; None: it is not
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
        all_unsent: Unsent | None = None,
    ) -> None:
        self._limits = limits
        self._tunnels = tunnels
        self._decoder = FieldKeeper(h2_limits.header_list)
        library = Library(h2_limits, tunnels, self._decoder)
        super().__init__(h2_limits, library, tail_for(server, date), wake, all_unsent or Unsent())
        # Bytes of bodies that came since the connection's window was last opened.
        self._credit = 0
        # What is wrong with the head that is coming in, where the frame alone shows it.
        self._flaw = ""
        self._now = self.opened_at = 0.0
        self.strict: bool | None = None
        self.heard = False
        self.last_id = 0
        self.more = False
        self.announced = False
        self.closing = False
        self.leaving = False

    def start(self) -> None:
        """Say what is on offer. The first bytes of a server."""
        self._h2.initiate_connection()
        self._started()

    def start_upgraded(self, request: Request, settings: bytes, now: float = 0.0) -> H2Stream:
        """The same after `Upgrade: h2c` (RFC 7540 section 3.2): the request is stream 1.

        settings  the payload of a SETTINGS frame that came along, as `known_settings` let it pass
        now       as `receive_data` has it
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
        # Ours to enforce: `h2` would end the connection. A client that has not seen our SETTINGS
        # yet may open more streams, or send more, than they say.
        settings.max_concurrent_streams = _LAST_ID
        settings.initial_window_size = max(self._h2_limits.window, _DEFAULT_WINDOW)
        settings.acknowledge()
        h2.receive_data(PREFACE)  # the reader has taken it off
        h2.increment_flow_control_window(CONNECTION_WINDOW - _DEFAULT_WINDOW)

    # --- receiving ------------------------------------------------------------------------------

    def receive_data(self, data: bytes, now: float) -> list[Event]:
        """Take what was read at `now` (seconds of any clock); the events of its first frames.

        While `more` is true there are further ones: `receive_more` has them. Once `fault` is set
        the connection is over: send what `output` has, then close.
        """
        if self.fault is not None or (self.closing and not (self.streams or self.more)):
            return []
        try:
            self._reader.feed(data)
        except GoAwayError as fault:
            self._fail(fault)
            return []
        # What waits already comes first, in its turns.
        return [] if self.more else self.receive_more(now)

    def receive_more(self, now: float) -> list[Event]:
        """The events of the frames that wait."""
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
        """The client has begun to spend its allowances: it is to wait between its turns."""
        return self._resets.is_touched(self._now) or self._reader.is_strained(self._now)

    @property
    def backlog(self) -> int:
        """Bytes that were received, and wait for `receive_more`."""
        return self._reader.backlog

    @property
    def in_part(self) -> bool:
        """A frame or a head has begun to come, and is not whole."""
        return self._reader.in_part

    def _receive(self, frame: Frame, events: list[Event]) -> None:
        kind, _, number, data = frame
        if kind > _LAST_KIND or kind in (PRIORITY, GOAWAY):
            self._receive_ours(frame, events)
            return
        if kind == RST_STREAM and number > self._h2.highest_inbound_stream_id:
            raise GoAwayError(PROTOCOL_ERROR, "RST_STREAM of an idle stream")
        if kind == HEADERS:
            data = self._see_head(frame)
        elif kind == SETTINGS and self.strict is None:
            self.strict = spells_out_defaults(data[9:])
        try:
            found = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            # It has its GOAWAY ready.
            self._end(GoAwayError(int(error.error_code), ascii(str(error))[1:-1]))
            return
        if not found and kind in _OF_STREAMS and not self._reader.in_head:
            self._reader.charge(self._now, "for streams that are closed")
        for event in found:
            handler = _HANDLERS.get(type(event))
            if handler is not None:
                handler(self, event, events)
        # An answer of `h2` itself, or a window that lets go what waits.
        self.wake()

    def _see_head(self, frame: Frame) -> bytes:
        """The bytes of a HEADERS frame for `h2`, without faults that it ends the connection for.

        They are faults of the stream alone, and the head has to be decoded all the same: the next
        one may refer to its fields.
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
        """Frames that `h2` need not see."""
        kind, _, number, _ = frame
        if kind == GOAWAY:
            # `h2` would send no more then, though what is open is to be answered.
            if number:
                raise GoAwayError(PROTOCOL_ERROR, "GOAWAY on a stream")
            if frame.length < 8:
                raise GoAwayError(FRAME_SIZE_ERROR, "malformed GOAWAY")
            self.leaving = True
            self.wake()
        elif kind == PRIORITY:
            # Deprecated (RFC 9113 section 5.3.2), and never followed here; but RFC 7540 section
            # 5.3.1 has a stream that depends on itself reset, whatever its state.
            if not number:
                raise GoAwayError(PROTOCOL_ERROR, "PRIORITY of no stream")
            if frame.length != 5:
                raise GoAwayError(FRAME_SIZE_ERROR, "malformed PRIORITY")
            if depends_on_itself(frame):
                self._on_self_dependency(number, events)

    def _on_self_dependency(self, number: int, events: list[Event]) -> None:
        stream = self.streams.get(number)
        if stream is None:
            # `h2` resets no stream that it doesn't know, or knows to be closed.
            self._emit(frame_bytes(RST_STREAM, 0, number, PROTOCOL_ERROR.to_bytes(4, "big")))
            self.wake()
        else:
            stream.reset(PROTOCOL_ERROR)
            events.append((stream, Reset(PROTOCOL_ERROR)))
        self._spend_reset()

    def _on_request(self, event: h2.events.RequestReceived, events: list[Event]) -> None:
        number: int = event.stream_id
        ended = event.stream_ended is not None
        fields = self._decoder.fields
        if self.closing and not self.streams:
            return  # nothing is to follow the last GOAWAY; the client knows from it
        if self.closing or len(self.streams) >= self._h2_limits.streams:
            # It may be tried again, elsewhere or later (RFC 9113 section 8.7).
            self._reset_number(number, REFUSED_STREAM)
            self._spend_reset()
            return
        try:
            if self._flaw:
                raise MalformedError(self._flaw)
            request = read_head(fields, ended, self._limits, self._tunnels)
        except MalformedError as error:
            self._reset_number(number, PROTOCOL_ERROR)
            self._spend_reset()
            events.append((None, Refused(error, False, *glimpse(fields))))
            return
        except ProtocolError as error:
            refused = Refused(error, False, *glimpse(fields))
            stand_in = Request(refused.method, refused.target, b"", b"", "2", [], True)
            stand_in.more_body = not ended
            if error.status == 431:
                self._spend_reset()
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
        out = stream.response_complete and not stream.waiting
        if out and stream.tunnel and not stream.incoming:
            self._forget(stream)

    def _refuse_body(self, stream: H2Stream, error: ProtocolError, events: list[Event]) -> None:
        request = stream.request
        events.append((stream, Refused(error, True, request.method, request.target)))
        if isinstance(error, MalformedError):
            stream.reset(PROTOCOL_ERROR)
            self._spend_reset()
        else:
            stream.refuse(error)

    def _on_reset(self, event: h2.events.StreamReset, events: list[Event]) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if stream is not None:
            stream.close()
            self._queued.pop(stream, None)
            self.gone.append(stream)
            events.append((stream, Reset(int(event.error_code or 0))))
            self._spend_reset()

    def _on_ping_ack(self, event: h2.events.PingAckReceived, events: list[Event]) -> None:
        if event.ping_data == _DRAIN_PING and not self.heard:
            self.heard = True
            self._reader.earn(1)  # it was asked for
            if self.announced:
                # The client has seen the first GOAWAY: what it sent before is here.
                self.finish()

    def _spend_reset(self) -> None:
        """CVE-2023-44487: a request that was taken back has cost us, but not the client's limit on
        streams. Made to be taken back by us it is the same (CVE-2025-8671)."""
        if not self._resets.spend(self._now):
            raise GoAwayError(ENHANCE_YOUR_CALM, "too many requests taken back")

    # --- the end --------------------------------------------------------------------------------

    def announce(self) -> None:
        """Say that the connection will end, and ask whether that was heard (RFC 9113 6.8).

        Requests that the client sent before it knew are still taken; `finish` comes by itself with
        the client's answer, or is called when that takes too long.
        """
        if not self.announced and self.fault is None:
            self.announced = True
            self._emit(_goaway(_LAST_ID, NO_ERROR))
            self.probe()

    def probe(self) -> None:
        """Ask the client for a sign: `heard` is true once it has read all that goes out now."""
        self.heard = False
        self._h2.ping(_DRAIN_PING)
        self.wake()

    def finish(self) -> None:
        """Take no more requests. Those that come all the same may be sent again elsewhere."""
        if not self.closing and self.fault is None:
            self.announced = self.closing = True
            self._emit(_goaway(self.last_id, NO_ERROR))
            self.wake()

    def finish_after(self, last_id: int) -> None:
        """The same, with streams above `last_id` that no application has seen: they end, too."""
        for number in [number for number in self.streams if number > last_id]:
            self._forget(self.streams[number])
        self.last_id = last_id
        self.finish()

    def fail(self, code: int, reason: str) -> None:
        """End the connection for what the driver has seen: a time limit that passed."""
        if self.fault is None:
            self._fail(GoAwayError(code, reason))

    @property
    def over(self) -> bool:
        """Nothing is left to do but to send what `output` has."""
        return self.fault is not None or (
            (self.closing or self.leaving) and not self.streams and not self.more
        )

    def _fail(self, fault: GoAwayError) -> None:
        self._emit(_goaway(self.last_id, fault.code, fault.reason.encode("ascii", "replace")))
        self._end(fault)

    def _end(self, fault: GoAwayError) -> None:
        # Its frames hold this connection, and what was read: a cycle.
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


def _goaway(last: int, code: int, text: bytes = b"") -> bytes:
    payload = last.to_bytes(4, "big") + code.to_bytes(4, "big") + text
    return frame_bytes(GOAWAY, 0, 0, payload)
