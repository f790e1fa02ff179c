"""Turns the heads of responses into bytes, mostly from caches.

Most responses have nearly the same lines. So each line is made and validated once, and then cached.
The keys of the caches are the objects that the application passes: a status, or a (name, value)
pair.

Every name must be a token, and no value may contain a control character: a CR or LF in a value
would begin a new line (response splitting).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from wsgiref.handlers import format_date_time

from servo.http.errors import LocalProtocolError
from servo.http.h1.field_lines import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    # Values from applications. A status should be an int or a str; a field should be a pair of
    # bytes or of str; a body should be bytes, bytearray or memoryview. The functions that use a
    # value raise a clear error for other types. The annotation is Any, because mypyc checks every
    # other annotation at run time: functions that only pass a value on would raise a bare
    # TypeError.
    Status = Any
    HeaderItem = Any
    Body = Any

_FORBIDDEN_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS = re.compile(rb"([2-9][0-9][0-9])(?: ([\t -~\x80-\xff]*))?")

# Fields about the connection (RFC 9110 section 7.6.1), some with older names. Only the server may
# send them, because it frames the messages.
_HOP_BY_HOP = frozenset(
    (
        b"keep-alive",
        b"transfer-encoding",
        b"upgrade",
        b"te",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
    )
)
_SPECIAL = _HOP_BY_HOP | {b"connection", b"content-length", b"date", b"server"}

# Fields that are not cached: their values change with each response, or are secrets.
_NEVER_CACHED = frozenset(
    (b"set-cookie", b"etag", b"last-modified", b"expires", b"location", b"x-request-id", b"age")
)
_LINES_BOUND = 1024
_VALUES_BOUND = 32
# Longer lines, in bytes, are not cached.
LINE_LENGTH_BOUND: Final = 512
_LENGTHS_BOUND = 4096
_STATUSES_BOUND = 256

# (name, value), as the app passed it -> the line; for Content-Length, the object in LENGTHS. Other
# special names are never cached here, so they take the slow way through `collect`.
LINES: dict[object, bytes] = {}
# The number of cached values of each name. A name with more values than the bound probably has
# changing ones, so no more are cached.
_VALUES: dict[bytes, int] = {}
# Status, as the app passed it (int, or WSGI's "200 OK") -> the code and the status line. Statuses
# without a body (RFC 9110 section 6.4.1) are in another cache, where the fast path of
# `H1Connection.send_response` does not look.
STATUSES: dict[int | str, tuple[int, bytes]] = {}
_BODILESS: dict[int | str, tuple[int, bytes]] = {}
# Length of a body -> the Content-Length line; and the set of these lines.
LENGTHS: dict[int, bytes] = {}
LENGTH_LINES: set[bytes] = set()


class Collected(NamedTuple):
    """The validated headers of a response; a few special ones are attributes.

    lines       the lines to send, without Content-Length
    length      the app's Content-Length, or None
    close       whether the app wants the connection to close
    has_date    whether the app sent its own Date field
    has_server  whether the app sent its own Server field
    unusual     whether `close`, `has_date` or `has_server` is true
    """

    lines: list[bytes]
    length: int | None
    close: bool
    has_date: bool
    has_server: bool
    unusual: bool


class Tail:
    """The end of a head: the server's own fields, Date, Server, Connection and the empty line.

    All connections with the same settings share one object, so one update per second is enough.

    server  the value of the Server field, or None
    date    whether to send a Date field
    more    the lines of further fields that each response has (`response_headers`)

    keep      the end of a head if the connection stays open
    close     the same if the connection closes
    keep_1_0  the same if it stays open for an HTTP/1.0 client, with "Connection: keep-alive"
    """

    __slots__ = ("close", "date", "has_date", "keep", "keep_1_0", "more", "server")

    def __init__(self, server: bytes | None, date: bool, more: bytes = b"") -> None:
        self.more = more
        self.server = field_line(b"Server", server) if server else b""
        self.has_date = date
        self.set_date(_clock_line if date else b"")

    def set_date(self, line: bytes) -> None:
        """Set the Date field. `line` is the whole line, or b"" for none."""
        self.date = line if self.has_date else b""
        fields = self.more + self.date + self.server
        self.keep = fields + b"\r\n"
        self.close = fields + b"Connection: close\r\n\r\n"
        self.keep_1_0 = fields + b"Connection: keep-alive\r\n\r\n"


_clock_second = -1
_clock_line = b""
_tails: dict[tuple[bytes | None, bool, bytes], Tail] = {}


def tail_for(server: bytes | None, date: bool, more: bytes = b"") -> Tail:
    """The shared tail for these settings, which `set_clock` keeps up to date. See `Tail`."""
    tail = _tails.get((server, date, more))
    if tail is None:
        tail = _tails[server, date, more] = Tail(server, date, more)
    return tail


def set_clock(now: float) -> None:
    """Set the time of Date fields. Workers call this at least once a second.

    now  seconds since the epoch

    Before the first call no Date is sent: a server without a clock must not send one (RFC 9110
    section 6.6.1).
    """
    global _clock_second, _clock_line
    second = int(now)
    if second != _clock_second:
        _clock_line = date_line(now)
        _clock_second = second
        for tail in _tails.values():
            tail.set_date(_clock_line)


def date_line(now: float) -> bytes:
    """The Date line (RFC 9110 section 5.6.7) for `now`, in seconds since the epoch."""
    return b"Date: %b\r\n" % format_date_time(now).encode("ascii")


def status_line(status: Status) -> tuple[int, bytes]:
    """The code and the status line of a final response. Raises `LocalProtocolError`.

    status  an int of 200 or more, or a string as in WSGI ("200 OK")
    """
    if type(status) is not int and isinstance(status, int):
        status = int(status)  # HTTPStatus
    kind = type(status)
    # Only look up and cache these exact types: 200.0 equals 200 but is not a status, and a subclass
    # of str may compare equal to any string.
    exact = kind is int or kind is str
    if exact:
        known = STATUSES.get(status) or _BODILESS.get(status)
        if known is not None:
            return known
    if isinstance(status, str):
        match = _STATUS.fullmatch(_encode(status))
        if match is None:
            raise LocalProtocolError(f"invalid status: {status!r:.80}")
        code = int(match[1])
        reason = match[2] or b""
    elif isinstance(status, int) and 200 <= status <= 999:
        code = status
        reason = _reason(code)
    else:
        raise LocalProtocolError(f"invalid status: {status!r:.80}")
    entry = code, b"HTTP/1.1 %d %b\r\n" % (code, reason)
    cache = _BODILESS if code in (204, 304) else STATUSES
    if exact and len(cache) < _STATUSES_BOUND:
        cache[status] = entry
    return entry


def informational_line(status: int) -> bytes:
    """The status line of a 1xx response. 101 is refused: `H1Connection.upgrade` sends it."""
    if not 100 <= status <= 199 or status == 101:
        raise LocalProtocolError(f"not an informational status: {status!r:.80}")
    return b"HTTP/1.1 %d %b\r\n" % (status, _reason(status))


def length_line(length: int) -> bytes:
    """The Content-Length line for a length in bytes."""
    line = LENGTHS.get(length)
    if line is None:
        line = b"Content-Length: %d\r\n" % length
        if len(LENGTHS) < _LENGTHS_BOUND:
            LENGTHS[length] = line
            LENGTH_LINES.add(line)
    return line


def collect(headers: Iterable[HeaderItem]) -> Collected:
    """Validate an app's headers, and remove those that only the server may send.

    headers  pairs of name and value, both bytes or both str (latin-1)

    Raises `LocalProtocolError`.
    """
    lines = []
    length: int | None = None
    close = has_date = has_server = False
    for item in headers:
        line = _known_line(item)
        if line is not None and line not in LENGTH_LINES:
            lines.append(line)
            continue
        name, value = _pair(item)
        lower = name.lower()
        if lower not in _SPECIAL:
            lines.append(line := field_line(name, value))
            if lower not in _NEVER_CACHED:
                _remember(item, lower, line)
        elif lower == b"content-length":
            length = _declared_length(value, length)
            _remember_length(item, length)
        elif lower == b"connection":
            close = close or b"close" in [v.strip() for v in value.lower().split(b",")]
        elif lower not in _HOP_BY_HOP:
            lines.append(field_line(name, value))
            has_date = has_date or lower == b"date"
            has_server = has_server or lower == b"server"
    return Collected(lines, length, close, has_date, has_server, close or has_date or has_server)


def field_line(name: bytes, value: bytes) -> bytes:
    """The line for a field. Raises `LocalProtocolError` for an invalid name or value."""
    if not TOKEN.fullmatch(name):
        raise LocalProtocolError(f"invalid header name: {name!r:.80}")
    if _FORBIDDEN_IN_VALUE.search(value):
        raise LocalProtocolError(f"control character in the value of header {name!r:.80}")
    return b"%b: %b\r\n" % (name, value)


def flat(body: memoryview) -> Body:
    """Return a view whose `len` is in bytes: a view of wider items counts items."""
    return body if body.itemsize == 1 and body.ndim == 1 and body.contiguous else body.tobytes()


def as_bytes(body: Body) -> bytes:
    """Return the body, or a part of it, as bytes. Raises `LocalProtocolError` for other types."""
    if type(body) is bytes:
        return body
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise not_a_body(body)


def not_a_body(body: object) -> LocalProtocolError:
    """The error for a body of a type that can't be sent."""
    return LocalProtocolError(f"a response body is made of bytes, not {type(body).__name__}")


def trailer_lines(trailers: Iterable[HeaderItem]) -> bytes:
    """The lines of a trailer section. Drops fields that frame or route a message.

    trailers  pairs of name and value, both bytes or both str (latin-1)
    """
    lines = []
    for item in trailers:
        name, value = _pair(item)
        lower = name.lower()
        if lower not in _SPECIAL and lower not in (b"trailer", b"host", b"set-cookie"):
            lines.append(field_line(name, value))
    return b"".join(lines)


def _known_line(item: HeaderItem) -> bytes | None:
    return LINES.get(item) if _is_key(item) else None


def _remember(item: HeaderItem, name: bytes, line: bytes) -> None:
    count = _VALUES.get(name, 0)
    if count >= _VALUES_BOUND or len(line) > LINE_LENGTH_BOUND or not _is_key(item):
        return
    if len(LINES) >= _LINES_BOUND or len(_VALUES) >= _LINES_BOUND:
        LINES.clear()
        _VALUES.clear()
        count = 0
    _VALUES[name] = count + 1
    LINES[item] = line


def _remember_length(item: HeaderItem, length: int) -> None:
    """Cache a Content-Length from the app, since apps often send bodies of the same size."""
    line = length_line(length)
    if line in LENGTH_LINES:
        _remember(item, b"content-length", line)


def _is_key(item: HeaderItem) -> bool:
    """Whether a field can be a key of the cache: a plain tuple of two bytes or two str.

    A subclass may define `__eq__`, and so get the lines of other fields. In
    `H1Connection.send_response` the same check is written out, which saves a call for each field.
    """
    if type(item) is not tuple or len(item) != 2:
        return False
    kind = type(item[0])
    return kind is type(item[1]) and (kind is bytes or kind is str)


def _declared_length(value: bytes, before: int | None) -> int:
    text = value.strip(b" \t")
    if not text.isdigit() or len(text) > 19:
        raise LocalProtocolError(f"invalid Content-Length: {value!r:.80}")
    length = int(text)
    if before is not None and before != length:
        raise LocalProtocolError("two different Content-Length headers")
    return length


def _pair(item: HeaderItem) -> tuple[bytes, bytes]:
    try:
        name, value = item
    except (TypeError, ValueError):
        raise LocalProtocolError(f"a header must be a (name, value) pair: {item!r:.80}") from None
    if name.__class__ is value.__class__ is bytes:
        return name, value
    return _encode(name), _encode(value)


def _encode(text: object) -> bytes:
    if isinstance(text, str):
        try:
            return text.encode("latin-1")
        except UnicodeEncodeError:
            raise LocalProtocolError(f"not latin-1: {text!r:.80}") from None
    if isinstance(text, bytes):
        return text
    if isinstance(text, bytearray | memoryview):
        return bytes(text)
    raise LocalProtocolError(f"neither bytes nor str: {text!r:.80}")


def _reason(code: int) -> bytes:
    try:
        return HTTPStatus(code).phrase.encode("ascii")
    except ValueError:
        return b""
