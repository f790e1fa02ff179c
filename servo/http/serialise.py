"""Response heads to bytes, from caches: a response repeats almost all of the one before it.

Everything that an app hands over is validated here: a name must be a token, a value must hold no
control character, or it could end its line and begin one of its own (response splitting).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from wsgiref.handlers import format_date_time

from servo.http.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    # What applications give. A status should be an int or a str, a field a pair, both bytes or both
    # str, a body bytes, bytearray or memoryview. What else comes is refused where it is used, not
    # where it is passed on: compiled code checks what other annotations promise.
    Status = Any
    HeaderItem = Any
    Body = Any

_TOKEN = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+")
_FORBIDDEN_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS = re.compile(rb"([2-9][0-9][0-9])(?: ([\t -~\x80-\xff]*))?")

# RFC 9110 section 7.6.1, with the older names of the same. A server frames its own messages.
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

# Values that change with each response, or that are secrets: not worth a place in the cache.
_NEVER_CACHED = frozenset(
    (b"set-cookie", b"etag", b"last-modified", b"expires", b"location", b"x-request-id", b"age")
)
_LINES_BOUND = 1024
_VALUES_BOUND = 32
_LINE_LENGTH_BOUND = 512
_LENGTHS_BOUND = 4096
_STATUSES_BOUND = 256

# (name, value), as the app gave it, to its line. A Content-Length gives the very line of LENGTHS;
# other special names are never in here, and so take the long way.
LINES: dict[object, bytes] = {}
# How many values of a name are cached: past the bound the name is one whose values change.
_VALUES: dict[bytes, int] = {}
# Status as the app gave it (int, or WSGI's "200 OK") to the code and the status line; and apart,
# those of responses that never have a body (RFC 9110 section 6.4.1).
STATUSES: dict[int | str, tuple[int, bytes]] = {}
_BODILESS: dict[int | str, tuple[int, bytes]] = {}
# Body length to Content-Length line, and the lines alone.
LENGTHS: dict[int, bytes] = {}
LENGTH_LINES: set[bytes] = set()


class Collected(NamedTuple):
    """What a response's headers come to.

    lines     the lines to send, without Content-Length
    length    the Content-Length that the app gave, or None
    close     whether the app asked for the connection to be closed
    has_date, has_server  whether the app sent its own
    unusual   whether any of these three is true
    """

    lines: list[bytes]
    length: int | None
    close: bool
    has_date: bool
    has_server: bool
    unusual: bool


class Tail:
    """The end of a head: Date, Server, Connection, the empty line; one object per configuration.

    keep    for a connection that goes on
    close   for one that ends
    keep_1_0  for an HTTP/1.0 client that asked for it to go on
    """

    __slots__ = ("close", "date", "has_date", "keep", "keep_1_0", "server")

    def __init__(self, server: bytes | None, date: bool) -> None:
        self.server = field_line(b"Server", server) if server else b""
        self.has_date = date
        self.set_date(_clock_line if date else b"")

    def set_date(self, line: bytes) -> None:
        self.date = line if self.has_date else b""
        self.keep = self.date + self.server + b"\r\n"
        self.close = self.date + self.server + b"Connection: close\r\n\r\n"
        self.keep_1_0 = self.date + self.server + b"Connection: keep-alive\r\n\r\n"


_clock_second = -1
_clock_line = b""
_tails: dict[tuple[bytes | None, bool], Tail] = {}


def tail_for(server: bytes | None, date: bool) -> Tail:
    """The shared tail of this configuration. `set_clock` keeps it up to date."""
    tail = _tails.get((server, date))
    if tail is None:
        tail = _tails[server, date] = Tail(server, date)
    return tail


def set_clock(now: float) -> None:
    """Tell the time, in seconds since the epoch. Workers call this at least once a second.

    Before the first call no Date is sent: a server without a clock must not (RFC 9110 6.6.1).
    """
    global _clock_second, _clock_line
    second = int(now)
    if second != _clock_second:
        _clock_line = date_line(now)
        _clock_second = second
        for tail in _tails.values():
            tail.set_date(_clock_line)


def date_line(now: float) -> bytes:
    """The Date field of a moment (seconds since the epoch), as RFC 9110 section 5.6.7 wants it."""
    return b"Date: %b\r\n" % format_date_time(now).encode("ascii")


def status_line(status: Status) -> tuple[int, bytes]:
    """Code and status line of a final response. Raises `LocalProtocolError`."""
    if type(status) is not int and isinstance(status, int):
        status = int(status)  # HTTPStatus
    kind = type(status)
    # No other type is looked up or kept: 200.0 equals 200 and is no status, and a subclass of str
    # may call itself equal to anything.
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
    """The status line of a 1xx response. 101 is not sent by this layer."""
    if not 100 <= status <= 199 or status == 101:
        raise LocalProtocolError(f"not an informational status: {status!r:.80}")
    return b"HTTP/1.1 %d %b\r\n" % (status, _reason(status))


def length_line(length: int) -> bytes:
    """The Content-Length line of a length."""
    line = LENGTHS.get(length)
    if line is None:
        line = b"Content-Length: %d\r\n" % length
        if len(LENGTHS) < _LENGTHS_BOUND:
            LENGTHS[length] = line
            LENGTH_LINES.add(line)
    return line


def collect(headers: Iterable[HeaderItem]) -> Collected:
    """Validate an app's headers, take out what is not its to say. Raises `LocalProtocolError`."""
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
    """A validated header line."""
    if not _TOKEN.fullmatch(name):
        raise LocalProtocolError(f"invalid header name: {name!r:.80}")
    if _FORBIDDEN_IN_VALUE.search(value):
        raise LocalProtocolError(f"control character in the value of header {name!r:.80}")
    return b"%b: %b\r\n" % (name, value)


def flat(body: memoryview) -> Body:
    """A body whose `len` is its length in bytes: a view of wider items counts those."""
    return body if body.itemsize == 1 and body.ndim == 1 and body.contiguous else body.tobytes()


def trailer_lines(trailers: Iterable[HeaderItem]) -> bytes:
    """The lines of a trailer section. What would frame or route a message is dropped."""
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
    if count >= _VALUES_BOUND or len(line) > _LINE_LENGTH_BOUND or not _is_key(item):
        return
    if len(LINES) >= _LINES_BOUND or len(_VALUES) >= _LINES_BOUND:
        LINES.clear()
        _VALUES.clear()
        count = 0
    _VALUES[name] = count + 1
    LINES[item] = line


def _remember_length(item: HeaderItem, length: int) -> None:
    """Small bodies of fixed sizes are common, so their Content-Length may go the short way."""
    line = length_line(length)
    if line in LENGTH_LINES:
        _remember(item, b"content-length", line)


def _is_key(item: HeaderItem) -> bool:
    """Whether a field equals only the same bytes or str: subclasses may have an `__eq__` of their
    own. `H1Connection.send_response` asks the same, without a call."""
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
