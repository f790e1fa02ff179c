"""The rules for request heads (RFC 9110, RFC 9112), the same for all parsers.

The parsers in `h1` split a head into fields and refuse malformed lines. This module interprets
heads, for all parsers and for HTTP/2: the request line, the forms of a target, Host, the length of
the body, whether the connection stays open, and the fields of a trailer section. If a rule is
broken, it raises `ProtocolError` with the status of the response.

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

    # The method, target, path and query, and the authority of an absolute target (None for others).
    _Target = tuple[str, bytes, bytes, bytes, bytes | None]

# The methods that every parser knows: the bytes as sent, and the str for apps.
METHODS = {
    name.encode(): name
    for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT")
}

# RFC 3986 allows fewer characters. But browsers send brackets, "|", "^", "`", "{", "}" and "\" in
# queries without escaping them, so these are allowed everywhere. "#" is refused: clients must not
# send fragments, and a proxy or app that cuts one off would see a different target than we do.
TARGET_CHARS = bytes(c for c in range(0x21, 0x7F) if c not in b'"#<>')
# Scripts send unescaped JSON and markup in queries, and nearly all other servers accept this. In
# paths these characters are refused, because client and proxy may disagree about the end of the
# target.
_QUERY_CHARS = TARGET_CHARS + b'"<>'

_VERSION_LINE = re.compile(rb"HTTP/[0-9]\.[0-9]\r\n")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(/[^?]*)?(?:\?(.*))?")
_HOST = re.compile(rb"(?:[-A-Za-z0-9._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+(?::([0-9]{0,5}))?")
_IP_LITERAL = re.compile(rb"\[([0-9A-Fa-f:.]{2,45})\](?::([0-9]{0,5}))?")
# Optional white space after a value (RFC 9112 section 5). A line of only white space must not
# match: it is a folded line, and would become the empty line that ends the head.
_TRAILING_SPACE = re.compile(rb"(?<=[^\r\n \t])[ \t]+\r\n")
STRAY = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")

# The most digits of a Content-Length; no real body needs as many. llhttp refuses 2**64 and more.
_LENGTH_DIGITS = 19

# Fields that a message may have only once. Of two values, a proxy may use one and an app the other.
_ONCE = frozenset((b"host", b"content-length", b"content-type"))
# The fields used below whose values are lists. If such a field is repeated, its values form one
# list (RFC 9110 section 5.3).
_LISTS = frozenset((b"connection", b"transfer-encoding", b"expect", b"upgrade"))

# Fields that frame or route a message. In a trailer section they would come too late (RFC 9110
# section 6.5.1), so they are refused there.
_TRAILERS_REFUSED = frozenset(
    (b"transfer-encoding", b"content-length", b"host", b"connection", b"upgrade", b"expect")
)
# Fields, such as those about the user, that apps and proxies check only in the head. They are
# dropped from a trailer section.
_TRAILERS_DROPPED = re.compile(
    rb"te|trailer|keep-alive|max-forwards|authorization|cookie2?|set-cookie|content-encoding"
    rb"|content-range|forwarded|x-forwarded-.*|x-real-ip|proxy-.*"
)

# A cache of valid hosts, so that checking a known host needs only a look-up.
VALID_HOSTS: set[bytes] = set()
_HOSTS_BOUND = 1024


def read_request(
    head: bytes,
    parse_fields: Callable[[bytes], tuple[Headers, dict[bytes, bytes]]],
    strict_targets: bool = False,
) -> Request:
    """Turn a complete head into a `Request`, or refuse it.

    head            the head
    parse_fields    takes a head with a method of METHODS, and returns its fields with the names in
                    lower case, in order and by name (for a repeated name, the last value); raises
                    `ProtocolError` for a malformed head
    strict_targets  as in `Limits`

    In the request, `more_body` is true if a body follows. `content_length` is then the length of
    the body, or None if it is chunked. Raises `ProtocolError`.
    """
    line, version = read_request_line(head, strict_targets)
    # Two searches in C are faster than applying a regular expression to every head. A head with a
    # tab anywhere takes the slow way, but tabs are rare.
    if 9 in head or head.find(b" \r\n") >= 0:
        head = _TRAILING_SPACE.sub(b"\r\n", head)
    if line[0] not in _KNOWN_METHODS or not line[1].startswith(b"/"):
        # llhttp has a fixed list of methods, and its own rules for URLs. The request line is
        # already checked, so pass the parser a harmless one instead.
        stand_in = b"POST / HTTP/%b" % version.encode("ascii")
        head = stand_in + head[head.find(b"\r\n") :]
    try:
        headers, named = parse_fields(head)
    except ProtocolError:
        # If a head has several faults, the parsers may report different ones. So if our own rules
        # find a fault, report that.
        headers = split_fields(head)
        judge(line, version, headers, dict(headers))
        raise
    return judge(line, version, headers, named)


def read_request_line(head: bytes, strict_targets: bool = False) -> tuple[_Target, str]:
    """Parse and check a request line. Raises `ProtocolError`.

    head            bytes that start with a complete request line; all bytes after it are ignored
    strict_targets  as in `Limits`

    Returns what `read_target` returns, and the version: "1.1" or "1.0".
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
    return read_target(method, target, strict_targets), version


def read_target(method: bytes, target: bytes, strict_targets: bool = False) -> _Target:
    """Check a method and a target. Raises `ProtocolError`.

    method, target  as sent
    strict_targets  as in `Limits`

    Returns the method, target, path and query, and the authority of an absolute target (None for
    any other).
    """
    name = METHODS.get(method) or _unusual_method(method)
    if target.translate(None, TARGET_CHARS) and (strict_targets or not _is_lenient(target)):
        raise ProtocolError(400, "invalid character in the request target")
    if target[:1] == b"/" and name != "CONNECT":
        path, _, query = target.partition(b"?")
        return name, target, path, query, None
    path, query, authority = _unusual_target(name, target)
    return name, target, path, query, authority


def _is_lenient(target: bytes) -> bool:
    """Whether the path has only `TARGET_CHARS`, and the query only `_QUERY_CHARS`."""
    path, _, query = target.partition(b"?")
    return not path.translate(None, TARGET_CHARS) and not query.translate(None, _QUERY_CHARS)


def judge(line: _Target, version: str, headers: Headers, named: dict[bytes, bytes]) -> Request:
    """Check the parts of a head, and make the `Request`. Raises `ProtocolError`.

    line     the method and the parts of the target, from `read_target`
    version  "1.1" or "1.0". HTTP/2 passes "1.1", because the same rules apply
    headers  the fields, names in lower case
    named    the fields by name, for a repeated name the last value; the request gets this dict
    """
    method, target, path, query, authority = line
    if len(named) != len(headers):
        _check_repeats(headers, named)
    host = named.get(b"host")
    if host is None:
        if version == "1.1":
            raise ProtocolError(400, "missing Host")
    elif host not in VALID_HOSTS:
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

    A comma is refused, although RFC 3986 allows it in names, because proxies join two Host fields
    with a comma. Raises `ProtocolError`.
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
    if len(VALID_HOSTS) >= _HOSTS_BOUND:
        VALID_HOSTS.clear()
    if len(host) <= 255:
        VALID_HOSTS.add(host)


def read_trailers(section: bytes, limits: Limits) -> Headers:
    """Read the trailer section of a chunked body (RFC 9110 section 6.5). Raises `ProtocolError`.

    section  the lines after the last chunk, up to and including the empty one
    limits   the limits on the lines
    """
    check_field_lines(section, 0, 0, limits.trailer_count, limits)
    fields = split_fields(b"\r\n" + section)
    return keep_trailers(fields)


def keep_trailers(fields: Headers) -> Headers:
    """Refuse or drop trailer fields that only make sense in a head. Returns the others.

    fields  the trailer fields, names in lower case
    """
    for name, _ in fields:
        if name in _TRAILERS_REFUSED:
            raise ProtocolError(400, "forbidden field in the trailer section")
    return [field for field in fields if not _TRAILERS_DROPPED.fullmatch(field[0])]


def map_names(headers: Headers, policy: str) -> Headers:
    """Apply the setting `header_map` to names with "_". As CGI variables, "_" and "-" are the same.

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
    new     offset of the bytes that are new since the last call
    limits  the limits

    Without this check, a client that sends wrong line ends would wait for `header_timeout`, and a
    client that sends none would fill the memory. A complete head that was refused is also checked
    here, so that the error does not depend on how the head was cut into packets. Raises
    `ProtocolError`.
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

    beginning  the line up to its limit, and no more: so the error does not depend on how the line
               was cut into packets

    The status is 501 if the method is longer than any implemented one, and 414 if the target is too
    long.
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
    """Accept a method that is not in METHODS if it is a token and looks like a method.

    Like gunicorn, this refuses lower case, "#", and names with less than 3 or more than 20
    characters: these probably come from broken clients.
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
    # Drop "user:password@": a server doesn't need it, and it is used for phishing (RFC 9110 4.2.4).
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
    """Refuse repeated fields that may occur only once, and join the repeated lists in `named`."""
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
