"""The server's side of one HTTP/2 stream: the received part of a body, and the unsent response.

A stream has the response methods of `H1Connection`, with the same rules, but here they return no
bytes. Instead, a stream passes the bytes that can be sent at once to its connection, and keeps the
rest until the client's windows and the socket have room. So a stream that the client does not read
blocks only itself.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from servo.http.errors import LocalProtocolError, ProtocolError
from servo.http.h2.frames import INTERNAL_ERROR
from servo.http.h2.head import MalformedError
from servo.http.serialise import (
    LINE_LENGTH_BOUND,
    as_bytes,
    collect,
    informational_line,
    length_line,
    status_line,
    trailer_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from servo.http.events import Request
    from servo.http.serialise import Body, Collected, HeaderItem, Status, Tail

    Fields = list[tuple[bytes, bytes]]

# How a response body is delimited. HTTP/2 needs no Content-Length, but if there is one, it must be
# correct.
_UNDECIDED: Final = 0
_NO_BODY: Final = 1
_LENGTH: Final = 2
_OPEN: Final = 3

# A cache: line of an HTTP/1 head -> field of HTTP/2. Most responses have the same lines.
_FIELDS: dict[bytes, tuple[bytes, bytes]] = {}
_FIELDS_BOUND: Final = 1024
# Status code -> its field. There are at most 900.
_STATUS_FIELDS: dict[int, tuple[bytes, bytes]] = {}


class StreamOutput(Protocol):
    """The part of `H2Connection` that its streams use."""

    tail: Tail

    def send_now(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> bool: ...

    def count_unsent(self, n: int) -> None: ...

    def on_queued(self, stream: H2Stream) -> None: ...

    def window(self, stream: H2Stream) -> int: ...

    def put_head(
        self, stream: H2Stream, fields: Sequence[tuple[bytes, bytes]], ended: bool
    ) -> None: ...

    def put_data(self, stream: H2Stream, data: bytes | memoryview, ended: bool) -> None: ...

    def reset(self, stream: H2Stream, code: int) -> None: ...

    def give_window(self, stream: H2Stream, n: int) -> bool: ...


class H2Stream:
    """A request with its response. `H2Connection` makes it.

    id                 the stream's number
    request            the head of the request
    incoming           whether more of the request's body may arrive
    window             the number of body bytes that the client accepts; negative after it has
                       reduced its windows
    incoming_window    the number of body bytes that the client may send
    unread             received bytes for which the client's window was not yet enlarged
    response_started   whether the final response has begun; it may still wait here
    response_complete  whether the application has passed all of the response
    closed             whether no more can be sent: the stream has ended or was reset
    queued             the number of body bytes that wait here
    tunnel             whether an extended CONNECT was accepted. If so, each side ends its own
                       direction
    status             the response's status; 0 before there is one
    body_sent          the number of body bytes that the application has passed
    close_after        ignored; it exists because callers set it on an `H1Connection`
    raw_body           always False: a driver can't send body bytes without framing
    driver             the driver's own object for this stream
    """

    __slots__ = (
        "_connection",
        "_end",
        "_expected",
        "_framing",
        "_queue",
        "_response_left",
        "_waits_for_continue",
        "body_sent",
        "close_after",
        "closed",
        "driver",
        "id",
        "incoming",
        "incoming_window",
        "queued",
        "received",
        "request",
        "response_complete",
        "response_started",
        "status",
        "tunnel",
        "unread",
        "window",
    )

    raw_body = False

    def __init__(
        self,
        connection: StreamOutput,
        stream_id: int,
        request: Request,
        window: int,
        incoming_window: int,
    ) -> None:
        """
        connection       gets the frames
        stream_id        the stream's number
        request          the head of the request
        window           the initial value of `window`
        incoming_window  the initial value of `incoming_window`
        """
        self._connection = connection
        self.id = stream_id
        self.request = request
        self.incoming = request.more_body
        self.window = window
        self.incoming_window = incoming_window
        self._waits_for_continue = request.expect_continue
        self._expected = request.content_length
        self.received = 0
        self._framing = _UNDECIDED
        self._response_left = 0
        self._queue: deque[bytes | memoryview | Fields] = deque()
        # The end of the response: trailers (an empty list for none), or the error code of a reset.
        # None while it is not known.
        self._end: Fields | int | None = None
        self.tunnel = False
        self.unread = 0
        self.queued = 0
        self.response_started = False
        self.response_complete = False
        self.closed = False
        self.close_after = False
        self.status = 0
        self.body_sent = 0
        self.driver: object = None

    # --- the request's body ---------------------------------------------------------------------

    def count_body(self, n: int, ended: bool, limit: int) -> None:
        """Count a part of the request's body. Raises `ProtocolError`.

        n      the part's length in bytes
        ended  whether it is the last part
        limit  the maximum size of the whole body, in bytes; 0: no limit
        """
        self.received += n
        self._waits_for_continue = False
        self.incoming = not ended
        expected = self._expected
        if expected is not None and (
            self.received > expected or (ended and self.received != expected)
        ):
            raise MalformedError("the body is not as long as Content-Length says")
        if limit and self.received > limit:
            raise ProtocolError(413, "request body too large")

    def read(self, left: int) -> None:
        """Let the client send more: the application has read all but `left` received bytes."""
        n = self.unread - left
        if n > 0 and self._connection.give_window(self, n):
            self.unread = left

    # --- the response ---------------------------------------------------------------------------

    def send_response(self, status: Status, headers: Iterable[HeaderItem], body: Body) -> bytes:
        """Send a whole response. The arguments are as in `H1Connection.send_response`.

        Raises `LocalProtocolError`; if so, nothing was sent.
        """
        body = as_bytes(body)
        given = collect(headers)
        code, fields = self._start(status, given, len(body))
        if self._framing == _NO_BODY:
            body = b""
        short = self._framing == _LENGTH and self._response_left > len(body)
        self.status = code
        self.body_sent = len(body)
        self.response_started = self.response_complete = True
        connection = self._connection
        if self._queue or short or not connection.send_now(self, fields, body):
            self._put(fields)
            if body:
                self._put(body)
            self._put_end(INTERNAL_ERROR if short else [])
        return b""

    def start_response(
        self, status: Status, headers: Iterable[HeaderItem], first: int = 0
    ) -> bytes:
        """Send the head of a response. The body follows.

        The arguments are as in `H1Connection.start_response`. Raises `LocalProtocolError`.
        """
        given = collect(headers)
        bodiless = self.request.method == "HEAD"
        if given.length is not None and first > given.length and not bodiless:
            raise LocalProtocolError("more body than Content-Length says")
        self.status, fields = self._start(status, given, None)
        self.body_sent = 0
        self.response_started = True
        self._put(fields)
        return b""

    def send_data(self, data: Body) -> bytes:
        """Send a part of the body. Raises `LocalProtocolError` if it exceeds Content-Length."""
        data = as_bytes(data)
        framing = self._framing
        if framing == _UNDECIDED:
            raise LocalProtocolError("body data, but there is no response that could have a body")
        if framing != _NO_BODY and data:
            if framing == _LENGTH:
                if len(data) > self._response_left:
                    raise LocalProtocolError("more body than Content-Length says")
                self._response_left -= len(data)
            self.body_sent += len(data)
            self._put(data)
        return b""

    def end_response(self, trailers: Iterable[HeaderItem] = ()) -> bytes:
        """End the response, with trailers if there are any.

        If the body is shorter than its Content-Length, the stream is reset instead.
        """
        if self._framing == _UNDECIDED:
            raise LocalProtocolError("no response to end")
        if self._framing == _LENGTH and self._response_left:
            self._put_end(INTERNAL_ERROR)
        else:
            lines = trailer_lines(trailers).splitlines(keepends=True) if trailers else ()
            self._put_end([_field(line) for line in lines])
        return b""

    def send_informational(self, status: int, headers: Iterable[HeaderItem]) -> bytes:
        """Send a 1xx response before the final one (RFC 9110 section 15.2)."""
        if self.response_started:
            raise LocalProtocolError("no response is owed, or it has been started")
        informational_line(status)
        fields = [_field(line) for line in collect(headers).lines]
        self._put([_status(status), *fields])
        return b""

    def send_continue(self) -> bytes:
        """Send 100 Continue if the client waits for it. Call this to request the body."""
        if self._waits_for_continue and not self.response_started:
            self._waits_for_continue = False
            self._put([_status(100)])
        return b""

    def accept_tunnel(self, headers: Iterable[HeaderItem]) -> None:
        """Accept an extended CONNECT (RFC 8441): afterwards both sides may send any bytes."""
        self.start_response(200, headers)
        self.tunnel = True

    def refuse(self, error: ProtocolError) -> None:
        """Answer a refused request, or reset the stream if a response has begun."""
        if self.response_started:
            self.reset(INTERNAL_ERROR)
            return
        _, line = status_line(error.status)
        text = b"%b: %b\n" % (line[9:-2], error.reason.encode("ascii", "backslashreplace"))
        fields = _PLAIN
        if error.retry_after_s:
            fields = [*_PLAIN, (b"retry-after", b"%d" % error.retry_after_s)]
        self.send_response(error.status, fields, text)

    def reset(self, code: int) -> None:
        """End the stream at once, so that the client sees that the response is incomplete.

        code  the error code (RFC 9113 section 7)
        """
        self._drop()
        self._connection.reset(self, code)

    def abandon(self) -> None:
        """Send the waiting bytes and then a reset, because the response can't be completed."""
        self._put_end(INTERNAL_ERROR)

    def send_some(self, most: int) -> int:
        """Send the next waiting frame. The connection calls this in the stream's turn.

        most  how many body bytes to send at most

        Returns the number of body bytes, 1 for any other frame, or 0 if the window is closed.
        """
        queue = self._queue
        connection = self._connection
        if not queue:
            end, self._end = self._end, None
            if isinstance(end, int):
                connection.reset(self, end)
            elif end:
                connection.put_head(self, end, True)
            else:
                connection.put_data(self, b"", True)
            return 1
        item = queue[0]
        n = 1
        if not isinstance(item, list):
            n = min(connection.window(self), most, len(item))
            if n <= 0:
                return 0
            self.queued -= n
            connection.count_unsent(-n)
        if not isinstance(item, list) and n < len(item):
            # Use a view: copying the rest after each frame would take quadratic time.
            queue[0] = memoryview(item)[n:]
            item = item[:n]
        else:
            queue.popleft()
        ended = not queue and self._end == []
        if ended:
            self._end = None
        if isinstance(item, list):
            connection.put_head(self, item, ended)
        else:
            connection.put_data(self, item, ended)
        return n

    @property
    def waiting(self) -> bool:
        """Whether bytes wait here to be sent."""
        return bool(self._queue) or self._end is not None

    def close(self) -> None:
        """Mark the stream as ended, by either side, and drop the waiting bytes."""
        self.closed = True
        self.incoming = False
        self._drop()

    def _drop(self) -> None:
        self._queue.clear()
        self._end = None
        self._connection.count_unsent(-self.queued)
        self.queued = 0

    def _put(self, item: bytes | Fields) -> None:
        if self.closed:
            return
        self._queue.append(item)
        if isinstance(item, bytes):
            self.queued += len(item)
            self._connection.count_unsent(len(item))
        self._connection.on_queued(self)

    def _put_end(self, end: Fields | int) -> None:
        """Set the end of the response: trailers, or the error code of a reset."""
        self.response_complete = True
        if not self.closed:
            self._end = end
            self._connection.on_queued(self)

    def _start(
        self, status: Status, given: Collected, whole: int | None
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Decide how the body is delimited. Returns the status code and the fields of the head.

        whole  the length of the body, if it is complete; None if a body follows
        """
        if self.response_started:
            raise LocalProtocolError("no response is owed, or it has been started")
        code, _ = status_line(status)
        length = given.length
        fields = [_status(code), *[_field(line) for line in given.lines]]
        if code in (204, 304) or self.request.method == "HEAD":
            self._framing = _NO_BODY
            if code == 204:
                length = None
            elif length is None and whole and code != 304:
                length = whole
        elif length is not None or whole is not None:
            if length is None:
                length = whole
            elif whole is not None and whole > length:
                raise LocalProtocolError("more body than Content-Length says")
            self._framing = _LENGTH
            self._response_left = length or 0
        else:
            self._framing = _OPEN
        if length is not None:
            fields.append(_field(length_line(length)))
        tail = self._connection.tail
        if tail.more:
            fields += [_field(line) for line in tail.more.splitlines(keepends=True)]
        if tail.date and not given.has_date:
            fields.append(_field(tail.date))
        if tail.server and not given.has_server:
            fields.append(_field(tail.server))
        return code, fields


_PLAIN = [(b"content-type", b"text/plain; charset=utf-8")]


def _status(code: int) -> tuple[bytes, bytes]:
    field = _STATUS_FIELDS.get(code)
    if field is None:
        field = _STATUS_FIELDS[code] = (b":status", b"%d" % code)
    return field


def _field(line: bytes) -> tuple[bytes, bytes]:
    """Convert a valid line of an HTTP/1 head into a field."""
    field = _FIELDS.get(line)
    if field is None:
        name, _, value = line[:-2].partition(b": ")
        field = name.lower(), value.strip(b" \t")
        if len(line) <= LINE_LENGTH_BOUND:
            if len(_FIELDS) >= _FIELDS_BOUND:
                _FIELDS.clear()
            _FIELDS[line] = field
    return field
