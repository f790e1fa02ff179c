"""The server's side of an HTTP/1.1 connection, without I/O (RFC 9112).

`receive_data` turns received bytes into events. `send_response`, or `start_response`, `send_data`
and `end_response`, turn a response into bytes.

The connection returns one request at a time. Further requests, which a pipelining client sends
without waiting, stay unparsed until the response is complete. So pipelining needs no queue, and no
memory except for the received bytes.

A head ends at its empty line. The connection finds that line, and passes only whole heads to the
parser. It reads bodies itself, so the end of a message does not depend on the parser.

`receive_data` and `send_response` have a fast path for the common request (one read with one whole
head) and for the common response (a whole body, a head like earlier ones). Other methods handle all
other cases.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from servo.http.errors import LocalProtocolError, ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.h1.chunked import ChunkedReader
from servo.http.h1.known_fields import KnownFields
from servo.http.h1.parser_httptools import HttptoolsFields
from servo.http.headers import check_lines, glimpse, read_request
from servo.http.serialise import (
    LENGTH_LINES,
    LENGTHS,
    LINES,
    STATUSES,
    collect,
    flat,
    informational_line,
    length_line,
    not_a_body,
    status_line,
    tail_for,
    trailer_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.http.events import Event
    from servo.http.h1.parser_h11 import H11Fields
    from servo.http.limits import Limits
    from servo.http.serialise import Body, Collected, HeaderItem, Status

PARSERS = ("httptools", "h11")

# How many bytes may wait after the current request: the most that one read returns. Above this,
# reading pauses.
_WAITING_BYTES = 65536
# Field sections longer than this are not remembered.
_REMEMBERED_BYTES = 4096
# How many empty lines may precede a request line. RFC 9112 section 2.2 asks servers to ignore at
# least one. Some old clients send two.
_EMPTY_LINES = 8

# The state of the incoming side. The common request begins in _IDLE. As _IDLE is 0, which is false,
# `receive_data` can test for it without a comparison. `Final` lets mypyc compile the names as
# numbers.
_IDLE: Final = 0  # no byte has arrived since the last message
_HEAD: Final = 1  # unparsed bytes wait: a part of a head, or requests for `next_event`
_BODY: Final = 2  # a request was returned, but its body is incomplete
_DONE: Final = 3  # a request is complete, but its response is not
_CLOSED: Final = 4  # nothing more is parsed

# How a response body is delimited.
_UNDECIDED: Final = 0
_NO_BODY: Final = 1
_LENGTH: Final = 2
_CHUNKED: Final = 3
_UNTIL_CLOSE: Final = 4

_WEBSOCKET_VERSION = b"Sec-WebSocket-Version: 13\r\n"

# Looked up only once, because `map` calls it for each field of a common response.
_line_of = LINES.__getitem__


class H1Connection:
    """One connection. It may move between threads, but is not thread-safe.

    limits   the limits on a client's data
    parser   "httptools" (llhttp) or "h11"
    server   the value of the Server field, or None for no such field
    date     whether to send a Date field
    more     the lines of further fields that each response has

    want_read          False: stop reading, because enough bytes wait or the connection is over
    response_started   whether a response head, or a whole response, was produced
    response_complete  whether the client has got all of its responses
    close_after        whether to close the connection after the response
    raw_body           whether the body is sent without framing. If so, the driver may send a part
                       itself, such as a file; it must then call `account`
    status             the status code of the current or last response
    body_sent          bytes of the response's body so far, without framing
    """

    __slots__ = (
        "_blank",
        "_body_left",
        "_buffer",
        "_chunks",
        "_eof",
        "_fields",
        "_framing",
        "_known",
        "_last",
        "_limits",
        "_pos",
        "_previous",
        "_request",
        "_response_left",
        "_scanned",
        "_small_head",
        "_state",
        "_tail",
        "_waits_for_continue",
        "body_sent",
        "close_after",
        "raw_body",
        "response_complete",
        "response_started",
        "status",
        "want_read",
    )

    def __init__(
        self,
        limits: Limits,
        *,
        parser: str = "httptools",
        server: bytes | None = b"servo",
        date: bool = True,
        more: bytes = b"",
    ) -> None:
        self._limits = limits
        self._fields = _backend(parser)
        # A head that is no longer than the smallest of these limits exceeds none of them. Only the
        # number of its fields must be checked.
        self._small_head = min(limits.request_line, limits.header_field, limits.header_total) - 4
        # The field section of the last head; and its parsed fields, if the head before it had the
        # same section.
        self._previous = b""
        self._known: KnownFields | None = None
        # How far the buffer was searched for the end of a head, and how many empty lines came
        # before the head.
        self._scanned = 0
        self._blank = 0
        # The missing bytes of a body with a Content-Length, or the reader of a chunked body.
        self._body_left = 0
        self._chunks: ChunkedReader | None = None
        self._eof = False
        self._tail = tail_for(server, date, more)
        self._state = _IDLE
        # The unparsed bytes begin in _buffer at _pos.
        self._buffer = b""
        self._pos = 0
        self._request: Request | None = None
        # Whether to close after the response to the last received request.
        self._last = False
        self._waits_for_continue = False
        self._framing = _UNDECIDED
        self._response_left = 0
        self.want_read = True
        self.response_started = False
        self.response_complete = True
        self.close_after = False
        self.raw_body = False
        self.status = 0
        self.body_sent = 0

    # --- receiving ------------------------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> Event | None:
        """Take received bytes. Returns the next event; None if more bytes are needed.

        data  the bytes that were read

        One call returns at most one event. Call `next_event` when the response is complete.
        """
        if data.__class__ is not bytes:
            data = bytes(data)
        if not self._state:
            end = data.find(b"\r\n\r\n")
            # The common case: the read begins with a whole head. One `find` replaces a state
            # machine. If there are no bytes after the head, it is not copied.
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
                self._state = _DONE
                self.response_started = self.response_complete = False
                return request
        return self._receive_more(data)

    def _get_to_know(self, head: bytes, request: Request) -> None:
        """Remember the parsed fields if two requests in a row have had the same fields."""
        fields = head.partition(b"\r\n")[2]
        if fields == self._previous and KnownFields.fit(request):
            self._known = KnownFields(fields, request)
        else:
            self._known = None
            self._previous = fields if len(fields) <= _REMEMBERED_BYTES else b""

    def forget(self) -> None:
        """Release the memory of earlier requests. Drivers call this on idle connections."""
        self._fields.forget()
        self._known = None
        self._previous = b""

    def receive_eof(self) -> Event | None:
        """Note that the client sends no more. An incomplete request is refused.

        Returns the next event, if the end of the input causes one.
        """
        self._eof = self._last = True
        if self._state == _BODY:
            return self._refuse(ProtocolError(400, "the connection ended within a body"))
        if self._state == _HEAD and self.response_complete:
            return self._take_next()
        if self._state == _IDLE:
            self.close_after = True
        return None

    def next_event(self) -> Event | None:
        """The next pipelined request, if one has arrived and no response is outstanding."""
        if self._state != _HEAD or not self.response_complete:
            return None
        return self._take_next()

    @property
    def in_head(self) -> bool:
        """Whether a part of a head has arrived."""
        return self._state == _HEAD and self.response_complete

    @property
    def idle(self) -> bool:
        """Whether no received bytes wait, and no response is outstanding."""
        return self._state == _IDLE

    @property
    def next_head_waits(self) -> bool:
        """Whether the whole head of a pipelined request waits.

        Its response may come at once, so drivers send it together with the current one.
        """
        return bool(self._buffer) and self._buffer.find(b"\r\n\r\n", self._pos) >= 0

    def take_over(self) -> bytes:
        """Leave the connection to another protocol. Returns the unparsed bytes."""
        rest = self._buffer[self._pos :]
        self.close()
        self.response_started = self.response_complete = True
        return rest

    def close(self) -> None:
        """Stop parsing, and free the buffer."""
        self._state = _CLOSED
        self._buffer = b""
        self._pos = 0
        self.close_after = True
        self.want_read = False

    def close_next(self) -> None:
        """Close the connection after the responses to all received requests."""
        self._last = True

    def _receive_more(self, data: bytes) -> Event | None:
        """Take received bytes in any state: all cases but the common one."""
        state = self._state
        if state == _CLOSED:
            return None
        if state == _BODY and not self._buffer:
            self._buffer = data
            return self._continue_body()
        self._buffer = self._buffer[self._pos :] + data if self._buffer else data
        self._scanned -= self._pos
        self._pos = 0
        if state == _BODY:
            return self._continue_body()
        if state == _DONE:
            self._pause_if_full()
            return None
        return self.next_event() if state == _HEAD else self._take_next()

    def _settle_buffer(self) -> None:
        """Drop or keep the buffer, after a message or a part of one was taken from it."""
        if self._pos == len(self._buffer):
            self._drop_buffer()
        elif self._state == _BODY:
            self.want_read = True
        else:
            self._pause_if_full()

    def _pause_if_full(self) -> None:
        """Pause reading if enough requests wait.

        Reading resumes only when the whole buffer is used up. So no byte is examined twice.
        """
        if self.want_read:
            waiting = self._buffer
            heads = waiting.count(b"\r\n\r\n", self._pos)
            if len(waiting) >= _WAITING_BYTES or heads >= self._limits.pipeline_depth:
                self.want_read = False

    def _take_next(self) -> Event | None:
        """Parse the next head in the buffer, if it is complete."""
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
        is_small = len(head) <= self._small_head
        request = self._known.recall(head) if is_small and self._known is not None else None
        if request is None:
            try:
                if not is_small:
                    check_lines(head, 0, self._limits)
                request = read_request(head, self._fields, self._limits.strict_targets)
            except ProtocolError as error:
                return self._refuse_head(error, head)
            self._get_to_know(head, request)
        self._pos = end
        return self._admit(request, head)

    def _wait_idle(self) -> None:
        """Wait for the next request, or close if the client has ended its side."""
        self._state = _IDLE
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
        self._state = _HEAD
        self.want_read = True
        return None

    def _admit(self, request: Request, head: bytes) -> Event:
        """Return a request, with the part of its body that has arrived."""
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
        self._state = _BODY if request.more_body else _DONE
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
            self._state = _DONE
            if self._chunks is not None:
                trailers = self._chunks.trailers
        self._settle_buffer()
        if data or complete:
            self._waits_for_continue = False
            return Data(data, not complete, tuple(trailers))
        return None

    def _read_body(self) -> tuple[bytes, bool]:
        """Take body bytes from the buffer. Returns them, and whether they complete the body."""
        if self._chunks is not None:
            data, self._pos, complete = self._chunks.read(self._buffer, self._pos)
            return data, complete
        data = self._buffer[self._pos : self._pos + self._body_left]
        self._pos += len(data)
        self._body_left -= len(data)
        return data, not self._body_left

    def _refuse_head(self, error: ProtocolError, head: bytes) -> Refused:
        """Refuse a complete head.

        The error is that of the first faulty line, as if the head had arrived line by line. So the
        error does not depend on how the bytes were cut into packets.
        """
        try:
            check_lines(head, 0, self._limits)
        except ProtocolError as first:
            error = first
        return self._refuse(error, head)

    def _refuse(self, error: ProtocolError, head: bytes = b"") -> Refused:
        """Return the event for a broken rule, and stop parsing."""
        request = self._request
        in_body = self._state == _BODY
        if in_body and request is not None:
            method, target = request.method, request.target
        else:
            method, target = glimpse(head)
            self._request = None
            self.response_started = self.response_complete = False
        self.close()
        return Refused(error, in_body, method, target)

    def _drop_buffer(self) -> None:
        self._buffer = b""
        self._pos = self._scanned = 0
        self.want_read = True

    # --- responding ------------------------------------------------------------------------------

    def send_response(self, status: Status, headers: Iterable[HeaderItem], body: Body) -> bytes:
        """Frame a whole response. Returns its bytes.

        status   an int, or a string as in WSGI ("200 OK")
        headers  pairs of name and value, both bytes or both str (latin-1); a missing
                 Content-Length is added
        body     the whole body

        Raises `LocalProtocolError`. The state is unchanged then, so another response can be sent.
        """
        request = self._request
        if headers.__class__ is not list:
            headers = list(headers)
        if (
            request is not None
            and self._state == _DONE
            and not self.response_started
            and request.method != "HEAD"
            and request.version == "1.1"
            and type(body) is bytes
        ):
            # The common response: the caches have the lines for this status, each of these fields
            # and this length, so one `map` and one `join` make the head. Check the types first: an
            # object of another type (such as a subclass of str) may equal a cached key, although
            # its text differs. The checks are written out here, because a function call for each
            # field would cost more than the check.
            size = len(body)
            lengths = 0
            try:
                kind = type(status)
                if kind is not int and kind is not str and kind is not HTTPStatus:
                    raise KeyError
                for item in headers:
                    name, value = item
                    kind = type(name)
                    if type(value) is not kind or type(item) is not tuple:
                        raise KeyError
                    if kind is not bytes and kind is not str:
                        raise KeyError
                    if len(name) == 14:  # almost always Content-Length
                        lengths += 1
                code, line = STATUSES[status]
                parts = [line, *map(_line_of, headers)]
                length = LENGTHS[size]
            except (KeyError, TypeError, ValueError):
                return self._send_new(status, collect(headers), body)
            if not lengths:
                parts.append(length)
            elif lengths != 1 or parts.count(length) != 1:
                declared = LENGTH_LINES.intersection(parts)
                if not declared:
                    parts.append(length)
                elif len(declared) != 1 or parts.count(length) != 1:
                    return self._send_unusual(status, collect(headers), body)
            if self._last or not request.keep_alive:
                return self._sent_last(code, parts, body, request)
            return self._sent(code, parts, body)
        return self._send_unusual(status, collect(headers), body)

    def start_response(
        self, status: Status, headers: Iterable[HeaderItem], first: int = 0
    ) -> bytes:
        """Frame the head of a response. The body follows. Returns the bytes of the head.

        status, headers  as in `send_response`
        first            the number of body bytes that are known to follow

        Raises `LocalProtocolError`, also if `first` exceeds the Content-Length. The state is
        unchanged then, so another response can be sent.
        """
        return self._start(status, collect(headers), None, first)

    def send_data(self, data: Body) -> Body:
        """Frame a part of the body. Raises `LocalProtocolError` if it exceeds Content-Length."""
        framing = self._framing
        if framing == _CHUNKED:
            self.body_sent += len(data)
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if framing == _NO_BODY:
            return b""
        self.account(len(data))
        return data

    def account(self, n: int) -> None:
        """Count `n` body bytes that the driver sends itself, while `raw_body` is true.

        Raises `LocalProtocolError` if the body exceeds its Content-Length.
        """
        if self._framing == _LENGTH:
            if n > self._response_left:
                self.close_after = True
                raise LocalProtocolError("more body than Content-Length says")
            self._response_left -= n
        elif self._framing != _UNTIL_CLOSE:
            raise LocalProtocolError("body data, but there is no response that could have a body")
        self.body_sent += n

    def end_response(self, trailers: Iterable[HeaderItem] = ()) -> bytes:
        """End the response. Returns its last bytes.

        trailers  pairs as in `send_response`; sent only if the body is chunked

        If the body is shorter than its Content-Length, the connection closes. Only this shows the
        client that the response is incomplete.
        """
        framing = self._framing
        if framing == _UNDECIDED:
            raise LocalProtocolError("no response to end")
        end = b""
        if framing == _CHUNKED:
            end = b"0\r\n%b\r\n" % trailer_lines(trailers)
        elif framing == _LENGTH and self._response_left:
            self.close_after = True
        self._finish()
        return end

    def send_informational(self, status: int, headers: Iterable[HeaderItem]) -> bytes:
        """Frame a 1xx response before the final one (RFC 9110 section 15.2).

        status   100 to 199, except 101
        headers  pairs as in `send_response`

        Returns no bytes for an HTTP/1.0 client, as HTTP/1.0 has no such responses.
        """
        request = self._owed()
        parts = [informational_line(status), *collect(headers).lines, b"\r\n"]
        return b"" if request.version == "1.0" else b"".join(parts)

    def upgrade(self, protocol: bytes, headers: Iterable[HeaderItem]) -> bytes:
        """Frame a 101 response: afterwards both sides use another protocol.

        protocol  the protocol, as in the Upgrade field
        headers   pairs as in `send_response`

        `take_over` returns the bytes that the client has already sent in that protocol.
        """
        request = self._owed()
        given = collect(headers)
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: %b\r\nConnection: Upgrade\r\n"
        self.status = 101
        self.body_sent = 0
        self.response_started = True
        return b"".join((switch % protocol, *given.lines, self._tail_of(given, False, request)))

    def send_continue(self) -> bytes:
        """Frame a 100 Continue if the client waits for one. Call this to request the body."""
        if not self._waits_for_continue or self.response_started or self._state != _BODY:
            return b""
        self._waits_for_continue = False
        return b"HTTP/1.1 100 Continue\r\n\r\n"

    def refuse(self, event: Refused, headers: Iterable[HeaderItem] = ()) -> bytes:
        """Frame the response to a refused request, and close the connection after it.

        event    the refusal; a driver may make one itself (408, 503, 504)
        headers  further fields of the response, as in `send_response`

        Returns no bytes if another response to the request has begun.
        """
        method = event.method if self._request is None else self._request.method
        begun = self.response_started and (event.in_body or not self.response_complete)
        self.close()
        self._request = None
        self._framing = _UNDECIDED
        self.raw_body = False
        self.response_started = self.response_complete = True
        if begun:
            return b""
        self.status, line = status_line(event.error.status)
        text = b"%b: %b\n" % (line[9:-2], event.error.reason.encode("ascii", "backslashreplace"))
        fields = collect(headers).lines
        if self.status == 426:
            # Name the supported version (RFC 9110 section 15.5.22, RFC 6455 section 4.4).
            fields += (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", _WEBSOCKET_VERSION)
        if event.error.retry_after_s:
            fields += (b"Retry-After: %d\r\n" % event.error.retry_after_s,)
        fields += (b"Content-Type: text/plain; charset=utf-8\r\n", length_line(len(text)))
        return b"".join((line, *fields, self._tail.close, b"" if method == "HEAD" else text))

    def _send_new(self, status: Status, given: Collected, body: Body) -> bytes:
        """Frame a common response of which some head lines are not cached yet."""
        size = len(body)
        code, line = status_line(status)
        if given.unusual or given.length not in (None, size) or code in (204, 304):
            return self._send_unusual(status, given, body)
        request = self._owed()
        parts = [line, *given.lines, length_line(size)]
        if self._last or not request.keep_alive:
            return self._sent_last(code, parts, body, request)
        return self._sent(code, parts, body)

    def _sent(self, code: int, parts: list[bytes], body: Body) -> bytes:
        parts.append(self._tail.keep)
        parts.append(body)
        # Join before changing any state: this raises TypeError if the body is not bytes.
        data = b"".join(parts)
        self.status = code
        self.body_sent = len(body)
        self.response_started = self.response_complete = True
        self._request = None
        self._state = _HEAD if self._buffer else _IDLE
        return data

    def _sent_last(self, code: int, parts: list[bytes], body: Body, request: Request) -> bytes:
        """Like `_sent`, for a response after which the connection may have to close."""
        if request.keep_alive and self._next_is_whole():
            return self._sent(code, parts, body)
        parts.append(self._tail.close)
        parts.append(body)
        data = b"".join(parts)
        self.status = code
        self.body_sent = len(body)
        self.response_started = self.close_after = True
        self._finish()
        return data

    def _send_unusual(self, status: Status, given: Collected, body: Body) -> bytes:
        if not isinstance(body, (bytes, bytearray, memoryview)):
            raise not_a_body(body)
        if type(body) is memoryview:
            body = flat(body)
        head = self._start(status, given, len(body))
        if self._framing == _NO_BODY:
            body = b""
        else:
            self._response_left -= len(body)
            self.body_sent = len(body)
        return b"".join((head, body, self.end_response()))

    def _start(self, status: Status, given: Collected, whole: int | None, first: int = 0) -> bytes:
        """Decide how the body is delimited, and frame the head.

        whole  the length of the body, if it is complete; None if a body follows
        first  as in `start_response`
        """
        request = self._owed()
        code, line = status_line(status)
        length = given.length
        left = 0
        close = given.close or self._ends_with(whole is not None)
        parts = [line, *given.lines]
        if code in (204, 304) or request.method == "HEAD":
            framing = _NO_BODY
            if code == 204:
                length = None
            elif length is None and whole and code != 304:
                length = whole
        elif length is not None or whole is not None:
            framing = _LENGTH
            if whole is not None:
                length = whole if length is None else length
                if whole > length:
                    raise LocalProtocolError("more body than Content-Length says")
                close = close or whole < length
            left = length or 0
            if first > left:
                raise LocalProtocolError("more body than Content-Length says")
        elif request.version == "1.1":
            framing = _CHUNKED
            parts.append(b"Transfer-Encoding: chunked\r\n")
        else:
            framing = _UNTIL_CLOSE
            close = True
        if length is not None:
            parts.append(length_line(length))
        parts.append(self._tail_of(given, close, request))
        self.status = code
        self.body_sent = 0
        self.close_after = close
        self.response_started = True
        self.raw_body = framing in (_LENGTH, _UNTIL_CLOSE)
        self._framing = framing
        self._response_left = left
        return b"".join(parts)

    def _tail_of(self, given: Collected, close: bool, request: Request) -> bytes:
        """The end of a head: Date and Server (unless the app set them), Connection, empty line."""
        tail = self._tail
        if not given.unusual:
            return tail.close if close else tail.keep if request.version == "1.1" else tail.keep_1_0
        lines = [tail.more, b"" if given.has_date else tail.date]
        if not given.has_server:
            lines.append(tail.server)
        if close:
            lines.append(b"Connection: close\r\n")
        elif request.version == "1.0":
            lines.append(b"Connection: keep-alive\r\n")
        return b"%b\r\n" % b"".join(lines)

    def _ends_with(self, complete: bool) -> bool:
        """Whether the connection must close after the current response.

        complete  whether the response has no further parts. If so, and the request's body is
                  incomplete, the connection closes: the rest of the body might never arrive, and
                  reading it would be wasted work
        """
        request = self._request
        if request is None or not request.keep_alive or self._state == _CLOSED:
            return True
        if self._state == _BODY:
            return complete or self._waits_for_continue
        return self._last and not self._next_is_whole()

    def _owed(self) -> Request:
        request = self._request
        if request is None or self.response_started:
            raise LocalProtocolError("no response is owed, or it has been started")
        return request

    def _finish(self) -> None:
        self.response_complete = True
        self.raw_body = False
        self._framing = _UNDECIDED
        self._request = None
        if self._state == _DONE and not self.close_after:
            self._state = _HEAD if self._buffer else _IDLE
        else:
            # Stop parsing, or the unread rest of the body would be parsed as the next request.
            self.close()

    def _next_is_whole(self) -> bool:
        """Whether the buffer has a complete request, or one to refuse.

        If so, the current response must not announce the end of the connection.
        """
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
