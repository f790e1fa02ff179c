"""The rules for the fields of an HTTP/2 head (RFC 9113 section 8), beyond those of `headers`.

HTTP/2 replaces the request line by a few pseudo-header fields (`:method`, `:path`, …). This module
checks them, turns the head into the parts of an HTTP/1.1 head, and passes these to the functions of
`headers`. So both protocols have the same rules. HTTP/2 delimits names and values by their length,
so they could contain any bytes: this module also checks their characters. And it refuses fields
about the connection.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from servo.http.errors import ProtocolError
from servo.http.headers import (
    METHODS,
    VALID_HOSTS,
    judge,
    keep_trailers,
    read_target,
    request_line_fault,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.http.events import Headers, Request
    from servo.http.limits import Limits

    Fields = Sequence[tuple[bytes, bytes]]

_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
# Fields that a request must not have (RFC 9113 section 8.2.2).
_CONNECTION_FIELDS = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
# Match all names, or all values, joined by LF: one pass in C instead of a match for each field. The
# number of LFs shows whether a name or value contains one.
_NAMES = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9a-z]+\n)*")
# Fields that have passed the checks of their characters. Most requests repeat most of their fields,
# and one look-up costs less than the checks. Long fields are rarely repeated.
_CHECKED: set[tuple[bytes, bytes]] = set()
_CHECKED_BOUND: Final = 1024
_CHECKED_BYTES: Final = 256
_SECRETS = frozenset((b"cookie", b"authorization", b"proxy-authorization"))
_SCHEMES = (b"https", b"http")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|^[ \t]|[ \t]$", re.MULTILINE)


class MalformedError(ProtocolError):
    """Raised for a malformed request (RFC 9113 8.1.1). Its stream is reset with PROTOCOL_ERROR."""

    def __init__(self, reason: str) -> None:
        super().__init__(400, reason)


def read_head(fields: Fields, ended: bool, limits: Limits, tunnels: bool) -> Request:
    """Turn the fields of a request's head into a `Request`, or refuse it.

    fields   the decoded fields, in order
    ended    whether the request ends with its head
    limits   the limits on the head, and on a declared body
    tunnels  whether CONNECT may ask for a protocol (RFC 8441)

    The request's `more_body` is true if a body follows. Raises `MalformedError` if the stream must
    be reset, and `ProtocolError` if the response has the error's status.
    """
    pseudo, headers = _split(fields)
    method = pseudo.get(b":method")
    if method is None:
        raise MalformedError("no :method")
    protocol = pseudo.get(b":protocol")
    if protocol is not None and not (tunnels and method == b"CONNECT"):
        raise MalformedError(":protocol where none can be")
    authority = pseudo.get(b":authority")
    path = pseudo.get(b":path")
    if method == b"CONNECT" and protocol is None:
        if path is not None or b":scheme" in pseudo or authority is None:
            raise MalformedError("CONNECT needs :authority, and neither :scheme nor :path")
        read_target(b"CONNECT", authority)
        raise ProtocolError(501, "CONNECT is for proxies")
    if not path or b":scheme" not in pseudo:
        raise MalformedError("no :path or no :scheme")
    if pseudo[b":scheme"].lower() not in _SCHEMES:
        raise ProtocolError(400, "unknown :scheme")
    if not path.startswith(b"/") and not (path == b"*" and method == b"OPTIONS"):
        raise ProtocolError(400, "invalid :path")
    _check_sizes(method, path, headers, limits)
    headers = _join_cookies(_with_host(headers, authority))
    # A tunnel's :path follows the same rules as that of a GET.
    line = read_target(b"GET" if protocol is not None else method, path, limits.strict_targets)
    request = judge(line, "1.1", headers, dict(headers))
    if not request.named[b"host"]:
        raise MalformedError("empty :authority")
    request.version = "2"
    if protocol is not None:
        request.method = "CONNECT"
        request.upgrade = protocol
    _set_body(request, ended, limits)
    return request


def read_trailers(fields: Fields, limits: Limits) -> Headers:
    """Check the trailer fields of a request. Returns the fields to keep.

    fields  the decoded fields, in order
    limits  the limits on their number

    Raises `MalformedError` or `ProtocolError`, as `read_head` does.
    """
    if any(name.startswith(b":") for name, _ in fields):
        raise MalformedError("pseudo-header field in a trailer section")
    headers = list(fields)
    _check_fields(headers)
    if len(headers) > limits.trailer_count:
        raise ProtocolError(431, "too many field lines")
    return keep_trailers(headers)


def glimpse(fields: Fields) -> tuple[str, bytes]:
    """The method and target of a refused head for the access log; empty if unreadable."""
    named = dict(reversed(fields))
    method = named.get(b":method", b"").decode("latin-1")[:32]
    return (method if method.isalpha() else ""), named.get(b":path", b"")[:2048]


def _split(fields: Fields) -> tuple[dict[bytes, bytes], Headers]:
    """Separate the pseudo-header fields from the others."""
    pseudo: dict[bytes, bytes] = {}
    for name, value in fields:
        if not name.startswith(b":"):
            break
        if name in pseudo or name not in _PSEUDO:
            raise MalformedError("repeated or unknown pseudo-header field")
        pseudo[name] = value
        if value in METHODS or value in _SCHEMES or value in VALID_HOSTS:
            continue  # one look-up shows that its characters are valid
        if _BAD_VALUE.search(value) or b"\n" in value:
            raise MalformedError("invalid character in a pseudo-header field")
    # `_check_fields` refuses a pseudo-header field after others, because of its colon.
    headers = list(fields[len(pseudo) :])
    unchecked = [field for field in headers if field not in _CHECKED]
    if unchecked:
        _check_fields(unchecked)
        for field in unchecked:
            if field[0] not in _SECRETS and len(field[0]) + len(field[1]) <= _CHECKED_BYTES:
                if len(_CHECKED) >= _CHECKED_BOUND:
                    _CHECKED.clear()
                _CHECKED.add(field)
    return pseudo, headers


def _check_fields(headers: Headers) -> None:
    n = len(headers)
    names = b"".join([name + b"\n" for name, _ in headers])
    if not _NAMES.fullmatch(names) or names.count(b"\n") != n:
        raise MalformedError("invalid field name, or pseudo-header field behind others")
    values = b"\n".join([value for _, value in headers])
    if _BAD_VALUE.search(values) or values.count(b"\n") > max(n - 1, 0):
        raise MalformedError("invalid character in a field value")
    for name, value in headers:
        if name in _CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
            raise MalformedError("a connection-specific field, which HTTP/2 does not allow")


def _check_sizes(method: bytes, path: bytes, headers: Headers, limits: Limits) -> None:
    """Apply the limits of HTTP/1.1, as if this were an HTTP/1.1 head."""
    if len(method) + len(path) + 10 > limits.request_line:
        raise request_line_fault(b"%b %b" % (method, path))
    if len(headers) > limits.header_count:
        raise ProtocolError(431, "too many header fields")
    total = 0
    for name, value in headers:
        size = len(name) + len(value) + 4
        if size > limits.header_field:
            raise ProtocolError(431, "field line too long")
        total += size
    if total > limits.header_total:
        raise ProtocolError(431, "field lines too long in total")


def _with_host(headers: Headers, authority: bytes | None) -> Headers:
    """Put :authority in front as the Host field (RFC 9113 section 8.3.1), as ASGI requires."""
    if authority is None:
        return headers
    others = []
    for field in headers:
        if field[0] != b"host":
            others.append(field)
        elif field[1].lower() != authority.lower():
            raise MalformedError("Host differs from :authority")
    return [(b"host", authority), *others]


def _join_cookies(headers: Headers) -> Headers:
    """Join cookies that the client has split for compression (RFC 9113 section 8.2.3)."""
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) < 2:
        return headers
    rest = [field for field in headers if field[0] != b"cookie"]
    return [*rest, (b"cookie", b"; ".join(cookies))]


def _set_body(request: Request, ended: bool, limits: Limits) -> None:
    request.more_body = not ended
    request.expect_continue = not ended and b"expect" in request.named
    length = request.content_length
    if length is not None:
        if ended and length:
            raise MalformedError("a body that was announced is missing")
        if limits.body and length > limits.body:
            raise ProtocolError(413, "request body too large")
