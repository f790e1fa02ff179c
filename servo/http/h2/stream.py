"""One HTTP/2 stream as a server sees it: how much of a body came in, and what is to go out.

The answering half has the methods of `H1Connection`, with the same rules, from the same
functions; but they return no bytes. What may go now goes to the connection, the rest waits here for
the client's windows, or for the socket: so a stream that nobody reads holds up only itself.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from servo.http.errors import LocalProtocolError, ProtocolError
from servo.http.h2.frames import INTERNAL_ERROR
from servo.http.h2.head import MalformedError
from servo.http.serialise import collect, flat, informational_line, status_line, trailer_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.http.events import Request
    from servo.http.h2.sending import SendingSide
    from servo.http.serialise import Body, Collected, HeaderItem, Status

    Fields = list[tuple[bytes, bytes]]

# How a response body is delimited. HTTP/2 needs no length, but one that is told must be true.
_UNDECIDED, _NO_BODY, _LENGTH, _OPEN = range(4)

# Lines of HTTP/1 heads to fields: responses repeat them.
_FIELDS: dict[bytes, tuple[bytes, bytes]] = {}
_FIELDS_BOUND = 1024
_LINE_LENGTH_BOUND = 512


class H2Stream:
    """A request, its answer, and the state between them. Made by `H2Connection`.

    id                 the stream's number
    request            its head
    incoming           more of the request's body may come
    unread             flow-controlled bytes that came and were not given back as window
    response_started   a final response has been begun (it may still wait here)
    response_complete  all of it was handed over
    closed             nothing can be sent any more: it is over, or was reset
    queued             body bytes that wait here
    tunnel             an extended CONNECT was accepted: either side may end alone
    status, body_sent  of the response, as it was handed over
    close_after        ignored: a stream is no connection
    """

    __slots__ = (
        "_connection",
        "_end",
        "_expected",
        "_framing",
        "_queue",
        "_received",
        "_response_left",
        "_waits_for_continue",
        "body_sent",
        "close_after",
        "closed",
        "driver",
        "id",
        "incoming",
        "queued",
        "request",
        "response_complete",
        "response_started",
        "status",
        "tunnel",
        "unread",
    )

    raw_body = False

    def __init__(self, connection: SendingSide, stream_id: int, request: Request) -> None:
        self._connection = connection
        self.id = stream_id
        self.request = request
        self.incoming = request.more_body
        self._waits_for_continue = request.expect_continue
        self._expected = request.content_length
        self._received = 0
        self._framing = _UNDECIDED
        self._response_left = 0
        self._queue: deque[bytes | memoryview | Fields] = deque()
        # How the response ends, once it is handed over: with trailers (or none), or with a reset.
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
        self.driver: object = None  # whatever the connection's driver keeps for it

    # --- the request's body ---------------------------------------------------------------------

    def count_body(self, n: int, ended: bool, limit: int) -> None:
        """`n` more bytes of the body came. Raises ProtocolError; `limit` 0: none."""
        self._received += n
        self._waits_for_continue = False
        self.incoming = not ended
        expected = self._expected
        if expected is not None and (
            self._received > expected or (ended and self._received != expected)
        ):
            raise MalformedError("the body is not as long as Content-Length says")
        if limit and self._received > limit:
            raise ProtocolError(413, "request body too large")

    def read(self, left: int) -> None:
        """The application has taken all of the body that came but `left` bytes: more may come."""
        n = self.unread - left
        if n > 0 and self._connection.give_window(self, n):
            self.unread = left

    # --- the response ---------------------------------------------------------------------------

    def send_response(self, status: Status, headers: Iterable[HeaderItem], body: Body) -> bytes:
        """A whole response. Raises `LocalProtocolError`, having sent nothing."""
        if type(body) is memoryview:
            body = flat(body)
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
        """The head of a response whose body follows; `first` as `H1Connection` has it.

        Raises `LocalProtocolError`.
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

    def send_data(self, data: bytes) -> bytes:
        """A part of the body. Raises `LocalProtocolError` past the Content-Length."""
        framing = self._framing
        if framing == _UNDECIDED:
            raise LocalProtocolError("body data without a response that could have it")
        if framing != _NO_BODY and data:
            if framing == _LENGTH:
                if len(data) > self._response_left:
                    raise LocalProtocolError("more body than Content-Length says")
                self._response_left -= len(data)
            self.body_sent += len(data)
            self._put(bytes(data))
        return b""

    def end_response(self, trailers: Iterable[HeaderItem] = ()) -> bytes:
        """What ends the response. A body shorter than declared ends in a reset instead."""
        if self._framing == _UNDECIDED:
            raise LocalProtocolError("no response to end")
        if self._framing == _LENGTH and self._response_left:
            self._put_end(INTERNAL_ERROR)
        else:
            lines = trailer_lines(trailers).splitlines(keepends=True) if trailers else ()
            self._put_end([_field(line) for line in lines])
        return b""

    def send_informational(self, status: int, headers: Iterable[HeaderItem]) -> bytes:
        """A 1xx response before the real one (RFC 9110 section 15.2)."""
        if self.response_started:
            raise LocalProtocolError("no response is owed, or it has been started")
        informational_line(status)
        fields = [_field(line) for line in collect(headers).lines]
        self._put([(b":status", b"%d" % status), *fields])
        return b""

    def send_continue(self) -> bytes:
        """100 Continue, if the client waits for it. To be called when the body is wanted."""
        if self._waits_for_continue and not self.response_started:
            self._waits_for_continue = False
            self._put([(b":status", b"100")])
        return b""

    def accept_tunnel(self, headers: Iterable[HeaderItem]) -> None:
        """Answer an extended CONNECT (RFC 8441): from here on both sides send what they like."""
        self.start_response(200, headers)
        self.tunnel = True

    def refuse(self, error: ProtocolError) -> None:
        """The answer to a request that is refused; a reset where another answer has begun."""
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
        """End the stream at once: the client sees that what it has was cut."""
        self._drop()
        self._connection.reset(self, code)

    def abandon(self) -> None:
        """The response will not be completed: what waits of it goes out, and a reset after it."""
        self._put_end(INTERNAL_ERROR)

    def send_some(self, most: int) -> int:
        """Send the next part of what waits, a frame at a time. Used by the connection.

        Returns how many bytes of a body it was (1 for anything else), or 0 when no window allows.
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
            # A view: a copy of what is left, for each frame, would be quadratic.
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
        """Something waits here to be sent."""
        return bool(self._queue) or self._end is not None

    def close(self) -> None:
        """It is over, whoever ended it."""
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
        """Nothing follows what waits but this: trailers, or the code of a reset."""
        self.response_complete = True
        if not self.closed:
            self._end = end
            self._connection.on_queued(self)

    def _start(
        self, status: Status, given: Collected, whole: int | None
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Decide on the framing; the code and the fields of the head.

        whole  the length of the body where it is known (and the response complete with it)
        """
        if self.response_started:
            raise LocalProtocolError("no response is owed, or it has been started")
        code, _ = status_line(status)
        length = given.length
        fields = [(b":status", b"%d" % code), *[_field(line) for line in given.lines]]
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
            fields.append((b"content-length", b"%d" % length))
        tail = self._connection.tail
        if tail.date and not given.has_date:
            fields.append(_field(tail.date))
        if tail.server and not given.has_server:
            fields.append(_field(tail.server))
        return code, fields


_PLAIN = [(b"content-type", b"text/plain; charset=utf-8")]


def _field(line: bytes) -> tuple[bytes, bytes]:
    """A line of an HTTP/1 head, which was validated as such, as HTTP/2 has it."""
    field = _FIELDS.get(line)
    if field is None:
        name, _, value = line[:-2].partition(b": ")
        field = name.lower(), value.strip(b" \t")
        if len(line) <= _LINE_LENGTH_BOUND:
            if len(_FIELDS) >= _FIELDS_BOUND:
                _FIELDS.clear()
            _FIELDS[line] = field
    return field
