"""An HTTP/1.1 connection as a server sees it, without I/O (RFC 9112).

Bytes go in through `receive_data` and come out as events; answers go in through `send_response` or
`start_response`, `send_data` and `end_response`, and come out as bytes. One request is handed out
at a time. What a client sends behind it waits as bytes, unparsed, until the answer is complete: so
pipelining needs no queue, its memory is what was read, and a message ends where the rules say,
whichever parser reads the heads.

Each head is found by its empty line and parsed whole. The parser sees nothing but heads; the
connection cuts the bodies itself, since it alone knows how a head was judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.h1.chunked import ChunkedReader
from servo.http.h1.known_fields import KnownFields
from servo.http.h1.parser_httptools import HttptoolsFields
from servo.http.h1.response_side import BODY, CLOSED, DONE, HEAD, IDLE, ResponseSide
from servo.http.headers import check_lines, glimpse, read_request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.http.events import Event
    from servo.http.h1.parser_h11 import H11Fields
    from servo.http.limits import Limits

PARSERS = ("httptools", "h11")

# Bytes that may wait behind the request being answered before reading pauses: one ordinary read.
_WAITING_BYTES = 65536
# Longer field sections than this are not remembered.
_REMEMBERED_BYTES = 4096
# Empty lines before a request line: RFC 9112 section 2.2 wants one ignored, old clients send two.
_EMPTY_LINES = 8


class H1Connection(ResponseSide):
    """One connection. Not thread-safe; may be passed between threads.

    limits   what a client may send
    parser   "httptools" (llhttp) or "h11"
    server   the value of the Server field, or None for no such field
    date     whether to send a Date field

    want_read          False: the driver should pause reading, enough is waiting, or all is over
    response_started   a response head, or a whole response, has been produced
    response_complete  nothing is owed to the client
    close_after        close the connection once the response is complete
    raw_body           body bytes go on the wire as they are: a driver may send them from a file
                       itself, and `account` for them
    status             of the current response, or of the last
    body_sent          bytes of its body so far, without framing
    """

    __slots__ = (
        "_blank",
        "_body_left",
        "_chunks",
        "_eof",
        "_fields",
        "_known",
        "_limits",
        "_previous",
        "_scanned",
        "_small_head",
    )

    def __init__(
        self,
        limits: Limits,
        *,
        parser: str = "httptools",
        server: bytes | None = b"servo",
        date: bool = True,
    ) -> None:
        super().__init__(server, date)
        self._limits = limits
        self._fields = _backend(parser)
        # A head no longer than each limit keeps all of them but the count of its fields.
        self._small_head = min(limits.request_line, limits.header_field, limits.header_total) - 4
        # All behind the last request line; what two requests in a row had in common.
        self._previous = b""
        self._known: KnownFields | None = None
        # How far the buffer was searched for the end of a head; empty lines before that head.
        self._scanned = 0
        self._blank = 0
        # What is missing of a body of known length; or the reader of a chunked one.
        self._body_left = 0
        self._chunks: ChunkedReader | None = None
        self._eof = False

    def receive_data(self, data: bytes | bytearray | memoryview) -> Event | None:
        """Take what was read; return the next event, if there is one by now."""
        if data.__class__ is not bytes:
            data = bytes(data)
        if not self._state:
            end = data.find(b"\r\n\r\n")
            # The ordinary read: a head that starts with no empty line, and what follows it.
            if 0 < end < self._small_head and data[0] > 32:
                end += 4
                rest = len(data) - end
                head = data[:end] if rest else data
                request = None if self._known is None else self._known.recall(head)
                if request is None:
                    try:
                        request = read_request(head, self._fields, self._limits.strict_targets)
                    except ProtocolError as error:
                        return self._refuse_head(error, head)
                    self._get_to_know(head, request)
                if rest or request.more_body or len(request.headers) > self._limits.header_count:
                    if rest:
                        self._buffer = data
                        self._pos = end
                    return self._admit(request, head)
                self._blank = 0
                self._request = request
                self._state = DONE
                self.response_started = self.response_complete = False
                return request
        return self._receive_more(data)

    def _get_to_know(self, head: bytes, request: Request) -> None:
        """Remember the fields once two requests have had the same."""
        fields = head.partition(b"\r\n")[2]
        if fields == self._previous and KnownFields.fit(request):
            self._known = KnownFields(fields, request)
        else:
            self._known = None
            self._previous = fields if len(fields) <= _REMEMBERED_BYTES else b""

    def forget(self) -> None:
        """Let go what is remembered of earlier requests, as the connection has become idle."""
        self._known = None
        self._previous = b""

    def receive_eof(self) -> Event | None:
        """The client has shut its side. What it sent whole is still answered, the rest refused."""
        self._eof = self._last = True
        if self._state == BODY:
            return self._refuse(ProtocolError(400, "the connection ended within a body"))
        if self._state == HEAD and self.response_complete:
            return self._take_next()
        if self._state == IDLE:
            self.close_after = True
        return None

    def next_event(self) -> Event | None:
        """The next request, if it was received while the one before it was answered."""
        if self._state != HEAD or not self.response_complete:
            return None
        return self._take_next()

    @property
    def in_head(self) -> bool:
        """Some bytes of a head have arrived, but not all."""
        return self._state == HEAD and self.response_complete

    @property
    def idle(self) -> bool:
        """Nothing was received that waits for anything, nothing is owed."""
        return self._state == IDLE

    def take_over(self) -> bytes:
        """Leave the connection to another protocol: the bytes that were received and not parsed."""
        rest = self._buffer[self._pos :]
        self._close()
        self.response_started = self.response_complete = True
        return rest

    def close_next(self) -> None:
        """Close after the answer to the last request already received; there will be no more."""
        self._last = True

    def _receive_more(self, data: bytes) -> Event | None:
        """Everything but the ordinary read."""
        state = self._state
        if state == CLOSED:
            return None
        if state == BODY and not self._buffer:
            self._buffer = data
            return self._continue_body()
        self._buffer = self._buffer[self._pos :] + data if self._buffer else data
        self._scanned -= self._pos
        self._pos = 0
        if state == BODY:
            return self._continue_body()
        if state == DONE:
            self._pause_if_full()
            return None
        return self.next_event() if state == HEAD else self._take_next()

    def _settle_buffer(self) -> None:
        """After a message or a part of one was taken from the buffer."""
        if self._pos == len(self._buffer):
            self._drop_buffer()
        elif self._state == BODY:
            self.want_read = True
        else:
            self._pause_if_full()

    def _pause_if_full(self) -> None:
        """Once paused, reading goes on when all that waits was taken: so each byte counts once."""
        if self.want_read:
            waiting = self._buffer
            heads = waiting.count(b"\r\n\r\n", self._pos)
            if len(waiting) >= _WAITING_BYTES or heads >= self._limits.pipeline_depth:
                self.want_read = False

    def _take_next(self) -> Event | None:
        """Parse the next head out of the buffer, once all of it is there."""
        buffer = self._buffer
        pos = self._skip_empty_lines()
        try:
            if self._blank > _EMPTY_LINES:
                raise ProtocolError(400, "too many empty lines before a request")
            if pos == len(buffer):
                self._wait_idle()
                return None
            end = buffer.find(b"\r\n\r\n", max(pos, self._scanned - 3)) + 4
            if end < 4:
                return self._wait_for_head(pos)
        except ProtocolError as error:
            return self._refuse(error, buffer[pos : pos + 2048])
        head = buffer[pos:end]
        try:
            if len(head) > self._small_head:
                check_lines(head, 0, self._limits)
            request = read_request(head, self._fields, self._limits.strict_targets)
        except ProtocolError as error:
            return self._refuse_head(error, head)
        self._pos = end
        return self._admit(request, head)

    def _wait_idle(self) -> None:
        """Nothing waits for anything. After the end of what the client sends, that is the end."""
        self._state = IDLE
        self._drop_buffer()
        self.close_after = self._eof

    def _skip_empty_lines(self) -> int:
        buffer = self._buffer
        pos = self._pos
        while buffer.startswith(b"\r\n", pos):
            pos += 2
            self._blank += 1
        self._pos = pos
        return pos

    def _wait_for_head(self, pos: int) -> Event | None:
        part = self._buffer[pos:]
        if part != b"\r":
            check_lines(part, max(self._scanned - pos, 0), self._limits)
        if self._eof:
            raise ProtocolError(400, "the connection ended within a head")
        self._scanned = len(self._buffer)
        self._state = HEAD
        self.want_read = True
        return None

    def _admit(self, request: Request, head: bytes) -> Event:
        """Hand out a request, with as much of its body as there is."""
        limits = self._limits
        self._scanned = self._blank = 0
        if len(request.headers) > limits.header_count:
            return self._refuse(ProtocolError(431, "too many header fields"), head)
        if request.more_body:
            self._fields.renew()
            length = request.content_length
            if length is None:
                self._chunks = ChunkedReader(limits)
            elif limits.body and length > limits.body:
                return self._refuse(ProtocolError(413, "request body too large"), head)
            else:
                self._chunks = None
                self._body_left = length
            try:
                request.body, complete = self._read_body()
            except ProtocolError as error:
                return self._refuse(error, head)
            if not complete and self._eof:
                return self._refuse(ProtocolError(400, "the connection ended within a body"), head)
            request.more_body = not complete
            if complete and self._chunks is not None:
                request.trailers = self._chunks.trailers
            if request.expect_continue and (complete or request.body):
                request.expect_continue = False
            self._waits_for_continue = request.expect_continue
        self._request = request
        self._state = BODY if request.more_body else DONE
        self._settle_buffer()
        self.response_started = self.response_complete = False
        return request

    def _continue_body(self) -> Event | None:
        try:
            data, complete = self._read_body()
        except ProtocolError as error:
            return self._refuse(error)
        trailers: Iterable[tuple[bytes, bytes]] = ()
        if complete:
            self._state = DONE
            if self._chunks is not None:
                trailers = self._chunks.trailers
        self._settle_buffer()
        if data or complete:
            self._waits_for_continue = False
            return Data(data, not complete, tuple(trailers))
        return None

    def _read_body(self) -> tuple[bytes, bool]:
        """Body bytes from the buffer, and whether they complete it."""
        if self._chunks is not None:
            data, self._pos, complete = self._chunks.read(self._buffer, self._pos)
            return data, complete
        data = self._buffer[self._pos : self._pos + self._body_left]
        self._pos += len(data)
        self._body_left -= len(data)
        return data, not self._body_left

    def _refuse_head(self, error: ProtocolError, head: bytes) -> Refused:
        """Refuse a whole head: for its first line at fault, as if it had come line by line."""
        try:
            check_lines(head, 0, self._limits)
        except ProtocolError as first:
            error = first
        return self._refuse(error, head)

    def _refuse(self, error: ProtocolError, head: bytes = b"") -> Refused:
        """The event for a broken rule. Nothing is parsed after it."""
        request = self._request
        in_body = self._state == BODY
        if in_body and request is not None:
            method, target = request.method, request.target
        else:
            method, target = glimpse(head)
            self._request = None
            self.response_started = self.response_complete = False
        self._close()
        return Refused(error, in_body, method, target)

    def _drop_buffer(self) -> None:
        self._buffer = b""
        self._pos = self._scanned = 0
        self.want_read = True

    def _next_is_whole(self) -> bool:
        """Whether what waits in the buffer begins with a message that can be answered."""
        waiting = self._buffer[self._pos :]
        if not waiting:
            return False
        probe = H1Connection(self._limits)
        probe._fields = type(self._fields)()
        event = probe.receive_data(waiting)
        return isinstance(event, Refused) or (isinstance(event, Request) and not event.more_body)


def _backend(parser: str) -> HttptoolsFields | H11Fields:
    if parser == "httptools":
        return HttptoolsFields()
    if parser == "h11":
        from servo.http.h1.parser_h11 import H11Fields

        return H11Fields()
    raise ValueError(f"no such parser: {parser!r}")
