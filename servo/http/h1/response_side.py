"""The outgoing half of an HTTP/1.1 connection: answers to bytes (RFC 9112 sections 6 and 7).

Split from `h1` for the reader's sake only; the two halves are one object and share its state.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from servo.http.errors import LocalProtocolError
from servo.http.serialise import (
    LENGTH_LINES,
    LENGTHS,
    LINES,
    STATUSES,
    collect,
    flat,
    informational_line,
    length_line,
    status_line,
    tail_for,
    trailer_lines,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from servo.http.events import Refused, Request
    from servo.http.serialise import Body, Collected, HeaderItem, Status

# Where the incoming side is. IDLE, and only IDLE, is false: the ordinary request begins there.
IDLE: Final = 0  # nothing received since the last message
HEAD: Final = 1  # unparsed bytes wait; of a head, or of whole messages until `next_event` is called
BODY: Final = 2  # a request was handed out, its body is not complete
DONE: Final = 3  # a request is complete, its answer is not
CLOSED: Final = 4  # nothing is parsed any more

# How a response body is delimited.
_UNDECIDED: Final = 0
_NO_BODY: Final = 1
_LENGTH: Final = 2
_CHUNKED: Final = 3
_UNTIL_CLOSE: Final = 4

_WEBSOCKET_VERSION = b"Sec-WebSocket-Version: 13\r\n"

_line_of = LINES.__getitem__


class ResponseSide:
    """What `H1Connection` sends. Its public attributes are described there."""

    __slots__ = (
        "_buffer",
        "_framing",
        "_last",
        "_pos",
        "_request",
        "_response_left",
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

    def __init__(self, server: bytes | None, date: bool) -> None:
        self._tail = tail_for(server, date)
        self._state = IDLE
        # What was received and not parsed: the bytes of _buffer from _pos on.
        self._buffer = b""
        self._pos = 0
        self._request: Request | None = None
        # Set once the answer to the last request received is to close the connection.
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

    def send_response(self, status: Status, headers: Iterable[HeaderItem], body: Body) -> bytes:
        """A whole response as one bytes object. Raises `LocalProtocolError`, having sent nothing.

        status   an int, or as WSGI has it ("200 OK")
        headers  pairs, both bytes or both str (latin-1); a missing Content-Length is added
        """
        request = self._request
        if headers.__class__ is not list:
            headers = list(headers)
        if (
            request is not None
            and self._state == DONE
            and not self.response_started
            and request.method != "HEAD"
            and request.version == "1.1"
            and type(body) is bytes
        ):
            # The ordinary response: status, each header and the length are known from before.
            # Known means the same bytes or str. A subclass, or another type, may call itself equal
            # to what it is not, so all types are looked at first.
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
                    if len(name) == 14:  # Content-Length, or hardly anything else
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
        """The head of a response whose body follows. Raises `LocalProtocolError`.

        first   bytes of the body that are known to follow: where they already are too many, nothing
                has begun, and another response can be sent
        """
        return self._start(status, collect(headers), None, first)

    def send_data(self, data: Body) -> Body:
        """A part of the body, framed. Raises `LocalProtocolError` past the Content-Length."""
        framing = self._framing
        if framing == _CHUNKED:
            self.body_sent += len(data)
            return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        if framing == _NO_BODY:
            return b""
        self.account(len(data))
        return data

    def account(self, n: int) -> None:
        """Count n body bytes that a driver sends itself, while `raw_body` is true."""
        if self._framing == _LENGTH:
            if n > self._response_left:
                self.close_after = True
                raise LocalProtocolError("more body than Content-Length says")
            self._response_left -= n
        elif self._framing != _UNTIL_CLOSE:
            raise LocalProtocolError("body data without a response that could have it")
        self.body_sent += n

    def end_response(self, trailers: Iterable[HeaderItem] = ()) -> bytes:
        """What ends the response. A body shorter than declared can only be told by closing."""
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
        """A 1xx response before the real one; nothing for an HTTP/1.0 client (RFC 9110 15.2)."""
        request = self._owed()
        parts = [informational_line(status), *collect(headers).lines, b"\r\n"]
        return b"" if request.version == "1.0" else b"".join(parts)

    def upgrade(self, protocol: bytes, headers: Iterable[HeaderItem]) -> bytes:
        """101: what follows is of another protocol, and `take_over` has what it sent already."""
        request = self._owed()
        given = collect(headers)
        switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: %b\r\nConnection: Upgrade\r\n"
        self.status = 101
        self.body_sent = 0
        self.response_started = True
        return b"".join((switch % protocol, *given.lines, self._tail_of(given, False, request)))

    def send_continue(self) -> bytes:
        """100 Continue, if the client waits for it. To be called when the body is wanted."""
        if not self._waits_for_continue or self.response_started or self._state != BODY:
            return b""
        self._waits_for_continue = False
        return b"HTTP/1.1 100 Continue\r\n\r\n"

    def refuse(self, event: Refused, headers: Iterable[HeaderItem] = ()) -> bytes:
        """The answer to a request that is refused; nothing if another answer has begun.

        The connection is over then. A driver may make the event itself (408, 503, 504).
        """
        method = event.method if self._request is None else self._request.method
        begun = self.response_started and (event.in_body or not self.response_complete)
        self._close()
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
            # RFC 9110 section 15.5.22 and RFC 6455 section 4.4: it has to say what would be taken.
            fields += (b"Upgrade: websocket\r\nConnection: Upgrade\r\n", _WEBSOCKET_VERSION)
        if event.error.retry_after_s:
            fields += (b"Retry-After: %d\r\n" % event.error.retry_after_s,)
        fields += (b"Content-Type: text/plain; charset=utf-8\r\n", length_line(len(text)))
        return b"".join((line, *fields, self._tail.close, b"" if method == "HEAD" else text))

    def _send_new(self, status: Status, given: Collected, body: Body) -> bytes:
        """An ordinary response with something in its head that was not seen before."""
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
        data = b"".join(parts)  # raises TypeError for what is no bytes: before anything has changed
        self.status = code
        self.body_sent = len(body)
        self.response_started = self.response_complete = True
        self._request = None
        self._state = HEAD if self._buffer else IDLE
        return data

    def _sent_last(self, code: int, parts: list[bytes], body: Body, request: Request) -> bytes:
        """As `_sent`, where the connection may end with the response."""
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
            raise LocalProtocolError(f"a response body is made of bytes, not {type(body).__name__}")
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
        """Decide on the framing, produce the head.

        whole  the length of the body where it is known (and the response complete with it)
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
        """Date and Server unless the app gave them; Connection; the empty line."""
        tail = self._tail
        if not given.unusual:
            return tail.close if close else tail.keep if request.version == "1.1" else tail.keep_1_0
        lines = [b"" if given.has_date else tail.date, b"" if given.has_server else tail.server]
        if close:
            lines.append(b"Connection: close\r\n")
        elif request.version == "1.0":
            lines.append(b"Connection: keep-alive\r\n")
        return b"%b\r\n" % b"".join(lines)

    def _ends_with(self, complete: bool) -> bool:
        """Whether the connection can't go on after the response that is being made.

        complete  the response is complete with this: then what is missing of the request's body
                  would have to be read for nothing, and its end is not certain to come
        """
        request = self._request
        if request is None or not request.keep_alive or self._state == CLOSED:
            return True
        if self._state == BODY:
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
        if self._state == DONE and not self.close_after:
            self._state = HEAD if self._buffer else IDLE
        else:
            # A body that was not read to its end can't be told from a next request.
            self._close()

    def _close(self) -> None:
        """Nothing is parsed any more, and no memory is kept for it."""
        self._state = CLOSED
        self._buffer = b""
        self._pos = 0
        self.close_after = True
        self.want_read = False

    def _next_is_whole(self) -> bool:
        """Whether what waits in the buffer begins with a message that can be answered."""
        raise NotImplementedError
