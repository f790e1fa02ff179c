"""The rules for request heads (RFC 9110, RFC 9112), whichever parser has read them.

The parsers in `h1` split a head into fields and refuse malformed lines. Everything that decides
what a message means is here, once for all parsers and for HTTP/2: the request line, the forms of a
target, Host, the length of the body, the persistence of the connection, and the fields that a
trailer section may have. A broken rule raises `ProtocolError` with the status of the response.

A head is the bytes up to and including its empty line. It never starts with an empty line.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError
from servo.http.events import Request
from servo.http.h1.field_lines import TOKEN, check_field_lines, check_line, split_fields

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.http.events import Headers
    from servo.http.limits import Limits

    _RequestLine = tuple[str, bytes, bytes, bytes, str, bytes | None]

# The methods that every parser knows, as sent, with the str that apps see.
METHODS = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")
}

# RFC 3986 allows fewer characters. Browsers send brackets, "|", "^", "`", "{", "}" and "\" in
# queries without escaping them, so these are allowed everywhere. "#" is not: fragments stay with
# the client, and a reader that cuts one off would see another target.
TARGET_CHARS = bytes(c for c in range(0x21, 0x7F) if c not in b'"#<>')
# Scripts put unescaped JSON and markup into queries, and all peers but one serve that. In paths
# these characters are refused, because client and proxy may disagree about where the target ends.
_QUERY_CHARS = TARGET_CHARS + b'"<>'

_VERSION_LINE = re.compile(rb"HTTP/[0-9]\.[0-9]\r\n")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(/[^?]*)?(?:\?(.*))?")
_HOST = re.compile(rb"(?:[-A-Za-z0-9._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+(?::([0-9]{0,5}))?")
_IP_LITERAL = re.compile(rb"\[([0-9A-Fa-f:.]{2,45})\](?::([0-9]{0,5}))?")
# Optional white space after a value (RFC 9112 section 5). It counts only behind something else: a
# line of white space alone is a fold, and must not become the empty line that ends the head.
_TRAILING_SPACE = re.compile(rb"(?<=[^\r\n \t])[ \t]+\r\n")
STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")

# More digits than any real length has. llhttp stops at 2**64.
_LENGTH_DIGITS = 19

# Fields that a message may have only once: with two, different readers may believe different ones.
_ONCE = frozenset((b"host", b"content-length", b"content-type"))
# Fields read below whose values are lists: repeated ones form one list (RFC 9110 section 5.3).
_LISTS = frozenset((b"connection", b"transfer-encoding", b"expect", b"upgrade"))

# Fields that frame or route a message, which a trailer comes too late for (RFC 9110 section 6.5.1).
_TRAILERS_REFUSED = frozenset(
    (b"transfer-encoding", b"content-length", b"host", b"connection", b"upgrade", b"expect")
)
# Fields that an app or a proxy in front has judged already, in the head: identity and the like.
_TRAILERS_DROPPED = re.compile(
    rb"te|trailer|keep-alive|max-forwards|authorization|cookie2?|set-cookie|content-encoding"
    rb"|content-range|forwarded|x-forwarded-.*|x-real-ip|proxy-.*"
)

# Hosts that were found valid, so that checking one again costs a single look-up.
_VALID_HOSTS: set[bytes] = set()
_VALID_HOSTS_BOUND = 1024


def read_request(
    head: bytes, parse_fields: Callable[[bytes], Headers], strict_targets: bool = False
) -> Request:
    """Turn a complete head into a `Request`, or refuse it.

    head            the head
    parse_fields    takes a head whose method every parser knows, and returns its fields with the
                    names in lower case; raises `ProtocolError` for a malformed head
    strict_targets  as in `Limits`

    In the request, `more_body` is true if a body follows. `content_length` is then the length of
    the body, or None if it is chunked. Raises `ProtocolError`.
    """
    line = read_request_line(head, strict_targets)
    # Two searches in C take the place of a regular expression over every head. Tabs are so rare
    # that a head with one anywhere may take the long way.
    if 9 in head or head.find(b" \r\n") >= 0:
        head = _TRAILING_SPACE.sub(b"\r\n", head)
    if line[0] not in _KNOWN_METHODS or not line[1].startswith(b"/"):
        # llhttp knows a fixed list of methods, and has rules of its own for URLs. The request line
        # has been judged already, so the parser gets another one in its place.
        stand_in = b"POST / HTTP/%b" % line[4].encode("ascii")
        head = stand_in + head[head.find(b"\r\n") :]
    try:
        headers = parse_fields(head)
    except ProtocolError:
        # Parsers differ in the fault that they notice first. If our rules find one, report theirs.
        judge(line, split_fields(head))
        raise
    return judge(line, headers)


def read_request_line(head: bytes, strict_targets: bool = False) -> _RequestLine:
    """Judge a request line. Raises `ProtocolError`.

    head            bytes that start with a complete request line; the rest does not matter
    strict_targets  as in `Limits`

    Returns the method, target, path, query, version ("1.1" or "1.0"), and the authority of an
    absolute target (None for any other).
    """
    try:
        method, target, rest = head.split(b" ", 2)
    except ValueError:
        raise ProtocolError(400, "malformed request line") from None
    if rest.startswith(b"HTTP/1.1\r\n"):
        version = "1.1"
    elif rest.startswith(b"HTTP/1.0\r\n"):
        version = "1.0"
    elif _VERSION_LINE.match(rest):
        raise ProtocolError(505, "unsupported HTTP version")
    else:
        raise ProtocolError(400, "malformed request line")
    name = METHODS.get(method) or _unusual_method(method)
    if target.translate(None, TARGET_CHARS) and (strict_targets or not _is_lenient(target)):
        raise ProtocolError(400, "invalid character in the request target")
    if target.startswith(b"/") and name != "CONNECT":
        path, _, query = target.partition(b"?")
        return name, target, path, query, version, None
    path, query, authority = _unusual_target(name, target)
    return name, target, path, query, version, authority


def _is_lenient(target: bytes) -> bool:
    """Whether the path has only `TARGET_CHARS`, and the query only what is allowed in queries."""
    path, _, query = target.partition(b"?")
    return not path.translate(None, TARGET_CHARS) and not query.translate(None, _QUERY_CHARS)


def judge(line: _RequestLine, headers: Headers) -> Request:
    """Judge the parts of a head and make the `Request`. Raises `ProtocolError`.

    line     the parts of the request line, as `read_request_line` returns them; a head of HTTP/2
             is judged as one of HTTP/1.1
    headers  the fields, names in lower case
    """
    # A dict, made once, answers nearly every question below; walking the list for each would be
    # dearer.
    method, target, path, query, version, authority = line
    named = dict(headers)
    if len(named) != len(headers):
        _check_repeats(headers, named)
    host = named.get(b"host")
    if host is None:
        if version == "1.1":
            raise ProtocolError(400, "missing Host")
    elif host not in _VALID_HOSTS:
        check_host(host)
    if authority is not None and authority != host:
        _override_host(headers, named, authority)

    length = None
    has_body = expects = False
    if b"content-length" in named or b"transfer-encoding" in named:
        length = _body_length(named, version)
        has_body = length != 0
    if b"expect" in named and version == "1.1":
        if named[b"expect"].lower() != b"100-continue":
            raise ProtocolError(417, "unknown expectation")
        expects = has_body
    upgrade = None
    connection = named.get(b"connection")
    if connection is None:
        keep_alive = version == "1.1"
    elif connection == b"keep-alive":
        keep_alive = True
    else:
        options = tokens(connection)
        keep_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
        if b"upgrade" in options and method == "GET" and version == "1.1" and not has_body:
            upgrade = _upgrade(named)
    return Request(
        method,
        target,
        path,
        query,
        version,
        headers,
        keep_alive,
        expects,
        upgrade,
        length,
        b"",
        has_body,
        (),
        named,
    )


def tokens(value: bytes) -> list[bytes]:
    """The members of a comma-separated list, in lower case and without white space.

    value  the value of a field
    """
    return [member.strip(b" \t") for member in value.lower().split(b",")]


def check_host(host: bytes) -> None:
    """Refuse a Host that is not `uri-host [":" port]` (RFC 9110 section 7.2). It may be empty.

    host  the value of the field

    A comma is refused, although RFC 3986 allows it in names, because intermediaries join two Host
    fields with one. Raises `ProtocolError`.
    """
    if host:
        match = _HOST.fullmatch(host)
        if match is None:
            match = _IP_LITERAL.fullmatch(host)
            if match is None or not _is_ipv6(match[1]):
                raise ProtocolError(400, "invalid Host")
            port = match[2]
        else:
            port = match[1]
        if port and int(port) > 65535:
            raise ProtocolError(400, "invalid port in Host")
    if len(_VALID_HOSTS) >= _VALID_HOSTS_BOUND:
        _VALID_HOSTS.clear()
    if len(host) <= 255:
        _VALID_HOSTS.add(host)


def read_trailers(section: bytes, limits: Limits) -> Headers:
    """Read the trailer section of a chunked body (RFC 9110 section 6.5). Raises `ProtocolError`.

    section  the lines behind the last chunk, up to and including the empty one
    limits   bounds on the lines
    """
    check_field_lines(section, 0, 0, limits.trailer_count, limits)
    fields = split_fields(b"\r\n" + section)
    return keep_trailers(fields)


def keep_trailers(fields: Headers) -> Headers:
    """Refuse or drop trailer fields that only make sense in a head; return the others.

    fields  the trailer fields, names in lower case
    """
    for name, _ in fields:
        if name in _TRAILERS_REFUSED:
            raise ProtocolError(400, "forbidden field in the trailer section")
    return [field for field in fields if not _TRAILERS_DROPPED.fullmatch(field[0])]


def map_names(headers: Headers, policy: str) -> Headers:
    """Apply the setting `header_map` to names with "_", which CGI variables don't tell from "-".

    headers  the request's headers
    policy   "drop" such fields, "refuse" the request, or "dangerous": keep them (gunicorn's names)
    """
    if policy == "dangerous" or not any(b"_" in name for name, _ in headers):
        return headers
    if policy == "refuse":
        raise ProtocolError(400, "underscore in a header name")
    return [field for field in headers if b"_" not in field[0]]


def check_lines(part: bytes, new: int, limits: Limits) -> None:
    """Refuse a head, or the beginning of one, at the first line that breaks a rule or a limit.

    part    the beginning of a head, or all of it
    new     offset of the bytes that the last call did not see
    limits  the limits

    Without this, a client that ends its lines wrongly would wait for `header_timeout`, and one that
    never ends them would fill the memory. Complete heads that are refused are checked here, too, so
    that the error does not depend on how the head was cut into packets. Raises `ProtocolError`.
    """
    end = part.find(b"\r\n")
    if new <= end + 1 or end < 0:
        if check_line(part, 0, end, new, limits.request_line) > limits.request_line:
            raise request_line_fault(part[: limits.request_line])
        if end < 0:
            return
        read_request_line(part[: end + 2], limits.strict_targets)
        new = end + 2
    check_field_lines(part, end + 2, new, limits.header_count, limits)


def request_line_fault(beginning: bytes) -> ProtocolError:
    """The error for a request line that is too long (RFC 9112 section 3).

    beginning  as much of the line as its limit allows, so that the error does not depend on how the
               line was cut into packets

    The status is 501 if the method is too long to be an implemented one, and 414 if the target is
    too long.
    """
    method, space, _ = beginning.partition(b" ")
    try:
        if method not in METHODS:
            _unusual_method(method)
    except ProtocolError as error:
        return error
    if not space:
        return ProtocolError(501, "unconventional method")
    return ProtocolError(414, "request line too long")


def glimpse(head: bytes) -> tuple[str, bytes]:
    """The method and target of a refused head for the access log; empty if unreadable.

    head  the head, or its beginning
    """
    line = head[:2048].split(b"\r\n", 1)[0].split(b" ")
    if len(line) > 1 and TOKEN.fullmatch(line[0]):
        return line[0].decode("ascii")[:32], line[1]
    return "", b""


_KNOWN_METHODS = frozenset(METHODS.values())


def _unusual_method(method: bytes) -> str:
    """Accept a method outside the table if it is a token that looks like the name of a method.

    Like gunicorn, this refuses lower case, "#", and names outside 3 to 20 characters: they more
    likely come from broken clients.
    """
    if not TOKEN.fullmatch(method):
        raise ProtocolError(400, "invalid method")
    if not 3 <= len(method) <= 20 or method != method.upper() or b"#" in method:
        raise ProtocolError(501, "unconventional method")
    return method.decode("ascii")


def _unusual_target(method: str, target: bytes) -> tuple[bytes, bytes, bytes | None]:
    """The path, query and authority of a target that is not in origin form (RFC 9112 3.2)."""
    if method == "CONNECT":
        if target.startswith(b"/") or b":" not in target:
            raise ProtocolError(400, "CONNECT without an authority")
        check_host(target)
        raise ProtocolError(501, "CONNECT is for proxies")
    if target == b"*" and method == "OPTIONS":
        return b"*", b"", None
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise ProtocolError(400, "invalid request target")
    # Drop user information: an origin server has no use for it, but phishers do (RFC 9110 4.2.4).
    userinfo, at, host = match[1].partition(b"@")
    authority: bytes = host if at else userinfo
    if not authority:
        raise ProtocolError(400, "absolute target without a host")
    check_host(authority)
    return match[2] or b"/", match[3] or b"", authority


def _override_host(headers: Headers, named: dict[bytes, bytes], authority: bytes) -> None:
    """Replace the Host field by the authority of an absolute target (RFC 9112 section 3.2.2)."""
    headers[:] = [(name, value) for name, value in headers if name != b"host"]
    headers.insert(0, (b"host", authority))
    named[b"host"] = authority


def _check_repeats(headers: Headers, named: dict[bytes, bytes]) -> None:
    """Refuse repeated fields that may come only once; join the repeated lists in `named`."""
    seen = set()
    for name, _ in headers:
        if name in seen:
            if name in _ONCE:
                raise ProtocolError(400, f"repeated {name.decode('ascii').title()}")
            if name in _LISTS:
                named[name] = b", ".join([v for n, v in headers if n == name])
        seen.add(name)


def _content_length(value: bytes) -> int:
    if not value.isdigit():
        raise ProtocolError(400, "malformed Content-Length")
    if len(value) > _LENGTH_DIGITS:
        raise ProtocolError(413, "Content-Length beyond reason")
    return int(value)


def _body_length(named: dict[bytes, bytes], version: str) -> int | None:
    """The length of the body in bytes; None if it is chunked (RFC 9112 section 6.3)."""
    if b"transfer-encoding" not in named:
        return _content_length(named[b"content-length"])
    if b"content-length" in named:
        raise ProtocolError(400, "both Content-Length and Transfer-Encoding")
    _check_transfer_encoding(named[b"transfer-encoding"], version)
    return None


def _upgrade(named: dict[bytes, bytes]) -> bytes | None:
    """The protocol to upgrade to, if it is supported. Others are ignored (RFC 9110 section 7.8)."""
    protocols = tokens(named.get(b"upgrade", b""))
    if b"websocket" in protocols:
        return b"websocket"
    return b"h2c" if b"h2c" in protocols and b"http2-settings" in named else None


def _check_transfer_encoding(value: bytes, version: str) -> None:
    """Refuse all codings but "chunked" (RFC 9112 section 6.1), and any in an HTTP/1.0 request."""
    if version != "1.1":
        raise ProtocolError(400, "Transfer-Encoding in an HTTP/1.0 request")
    codings = tokens(value)
    if codings == [b"chunked"]:
        return
    if not all(TOKEN.fullmatch(coding.partition(b";")[0]) for coding in codings):
        raise ProtocolError(400, "malformed Transfer-Encoding")
    if b"chunked" in codings[:-1]:
        raise ProtocolError(400, "chunked is not the last transfer coding, or comes twice")
    raise ProtocolError(501, "unknown transfer coding")


def _is_ipv6(text: bytes) -> bool:
    try:
        IPv6Address(text.decode("ascii"))
    except ValueError:
        return False
    return True
