"""The client of a request behind proxies: its address, scheme and host.

`X-Forwarded-For` and its relatives, and `Forwarded` (RFC 7239), are claims that anybody can send.
They count only if the peer is a trusted proxy. A list of hops is read from the right, where the
nearest proxy wrote, and skips every hop that is trusted, too. A request whose headers contradict
each other is refused: an app must not act on "https" if a second header says otherwise.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from servo.http.errors import ProtocolError
from servo.http.h1.field_lines import TOKEN
from servo.http.headers import check_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Address

    from servo.http.events import Headers

_Claim = TypeVar("_Claim", bool | None, bytes | None, "tuple[str, int] | None")

DEFAULT_TRUSTED = "127.0.0.1,::1"

# The value of each header that means https; gunicorn's `secure_scheme_headers`.
DEFAULT_SCHEME_HEADERS: Mapping[bytes, bytes] = {
    b"x-forwarded-protocol": b"ssl",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-ssl": b"on",
}
# The fields that a trusted peer may set. The default leaves out host and prefix: proxies set up for
# gunicorn, uvicorn or Django pass the client's own fields on, and an app builds its links (in a
# password-reset mail, say) from the host.
FIELDS = ("for", "proto", "host", "prefix")
DEFAULT_FIELDS = ("for", "proto")

# More than any chain of proxies has. Each hop costs parsing an address.
_MAX_HOPS = 64
_KNOWN_BOUND = 4096

_PREFIX = re.compile(rb"(?:/[-A-Za-z0-9._~!$&'()*+,;=:@]+)*/?")
_NODE = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9_A-Za-z.-]+)?|([0-9A-Fa-f:.]+)")
_PORT = re.compile(rb".*(?:\]|^[0-9.]+):([0-9]{1,5})")
# A colon is not allowed outside quotes, but "for=192.0.2.1:80" is seen too often to refuse.
_PAIR = re.compile(
    rb'(%b)=(?:([-!#$%%&\'*+.^_`|~0-9A-Za-z:]+)|"((?:[\t !#-\[\]-~]|\\[\t -~])*)")' % TOKEN.pattern
)
_SPACE = re.compile(rb"[ \t]*")
_ESCAPE = re.compile(rb"\\(.)")


class ClientInfo(NamedTuple):
    """The origin of a request, as far as we trust the claims about it.

    address  host and port of the client, with port 0 if unknown; None for a Unix peer
    scheme   "http" or "https"
    host     the host that the client asked for, according to a proxy; None: see the Host header
    prefix   the path at which a proxy has mounted the app, without a slash at its end
    """

    address: tuple[str, int] | None
    scheme: str
    host: bytes | None
    prefix: str


class TrustedPeers:
    """The peers whose forwarding headers count, and the claims that are accepted from them.

    cidrs           addresses and networks, as a list or separated by commas; "*" for everyone,
                    "unix" for peers on Unix sockets (the default includes them, as in gunicorn)
    scheme_headers  header name (lower case) to the value that means https
    fields          the accepted claims, of FIELDS: "for" (client address), "proto" (scheme),
                    "host", "prefix". Headers with other claims only are ignored.

    names  the headers that can hold an accepted claim

    `host in trusted` tells whether to trust an address, given as text; None or "" is a Unix peer.
    Raises `ValueError` for an invalid network.
    """

    __slots__ = ("_everyone", "_known", "_networks", "_unix", "fields", "names", "scheme_headers")

    def __init__(
        self,
        cidrs: str | Sequence[str] = DEFAULT_TRUSTED,
        scheme_headers: Mapping[bytes, bytes] = DEFAULT_SCHEME_HEADERS,
        fields: Iterable[str] = DEFAULT_FIELDS,
    ) -> None:
        parts = cidrs.split(",") if isinstance(cidrs, str) else list(cidrs)
        members = [part.strip() for part in parts if part.strip()]
        self._everyone = "*" in members
        self._unix = self._everyone or "unix" in members or ",".join(members) == DEFAULT_TRUSTED
        self._networks: list[IPv4Network | IPv6Network] = [
            ip_network(member, strict=False) for member in members if member not in ("*", "unix")
        ]
        self._known: dict[str, bool] = {}
        self.fields = frozenset(fields)
        self.scheme_headers = scheme_headers if "proto" in self.fields else {}
        self.names = _names(self.fields, self.scheme_headers)

    def __contains__(self, host: str | None) -> bool:
        if not host:
            return self._unix
        if self._everyone:
            return True
        known = self._known.get(host)
        if known is None:
            known = self._look_up(host)
            if len(self._known) >= _KNOWN_BOUND:
                self._known.clear()
            self._known[host] = known
        return known

    def _look_up(self, host: str) -> bool:
        try:
            address = _plain(ip_address(host))
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def resolve_client(
    headers: Headers,
    peer: tuple[str, int] | None,
    trusted: TrustedPeers,
    scheme: str = "http",
    named: Mapping[bytes, bytes] | None = None,
) -> ClientInfo:
    """Find the client of a request: by its headers if the peer is trusted, else the peer itself.

    headers  the request's headers
    peer     address of the other end of the connection; None for a Unix socket
    trusted  whom to trust
    scheme   the scheme of the connection itself, "http" or "https"
    named    the headers by name (`Request.named`), if the caller has them

    Raises `ProtocolError` for malformed or contradicting headers.
    """
    if trusted.names.isdisjoint(dict(headers) if named is None else named):
        return ClientInfo(peer, scheme, None, "")
    if (None if peer is None else peer[0]) not in trusted:
        return ClientInfo(peer, scheme, None, "")
    given: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in trusted.names:
            given.setdefault(name, []).append(value)

    address, hops = _nearest_untrusted(_members(given.get(b"x-forwarded-for", ())), trusted)
    secure = _secure(given, trusted.scheme_headers)
    host = _pick(given.get(b"x-forwarded-host", ()), hops)
    if host is not None:
        check_host(host)
    prefix = _prefix(_pick(given.get(b"x-forwarded-prefix", ()), hops))
    if "for" not in trusted.fields:
        address = None  # only the number of hops was needed, for the host and the prefix
    if b"forwarded" in given:
        other = _read_forwarded(b",".join(given[b"forwarded"]), trusted)
        address = _agreed(address, other.address, "client address")
        secure = _agreed(secure, other.secure, "scheme")
        host = _agreed(host, other.host, "host")
    if secure is not None:
        scheme = "https" if secure else "http"
    return ClientInfo(address or peer, scheme, host or None, prefix)


def _names(fields: frozenset[str], scheme_headers: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """The headers that can hold these claims."""
    names = set(scheme_headers)
    if not fields.isdisjoint(("for", "host", "prefix")):
        names.add(b"x-forwarded-for")  # its hops say which member of the other lists counts
    if not fields.isdisjoint(("for", "proto", "host")):
        names.add(b"forwarded")
    names.update(b"x-forwarded-" + each.encode() for each in fields & {"host", "prefix"})
    return frozenset(names)


class _Element(NamedTuple):
    address: tuple[str, int] | None
    secure: bool | None
    host: bytes | None


def _nearest_untrusted(
    nodes: list[bytes], trusted: TrustedPeers
) -> tuple[tuple[str, int] | None, int]:
    """The rightmost untrusted node of a chain, and its position counted from the right.

    The search stops at a node that is not an address ("unknown", an obfuscated name).
    """
    address = None
    hops = 0
    for node in reversed(nodes):
        found = _parse_node(node)
        if found is None:
            break
        address = found
        hops += 1
        if found[0] not in trusted:
            break
    return address, max(hops, 1)


def _parse_node(node: bytes) -> tuple[str, int] | None:
    """Parse an address with or without a port: 192.0.2.1:80, 2001:db8::1, [2001:db8::1]:80."""
    match = _NODE.fullmatch(node)
    if match is None:
        return None
    try:
        address = _plain(ip_address((match[1] or match[2] or match[3]).decode("ascii")))
    except ValueError:
        return None
    port = _PORT.fullmatch(node) if match[3] is None else None
    return str(address), int(port[1]) if port and int(port[1]) <= 65535 else 0


def _plain(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Undo the mapping of IPv4 addresses into IPv6, in which dual-stack sockets report them."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _members(values: Iterable[bytes]) -> list[bytes]:
    members = [m for value in values for m in (part.strip(b" \t") for part in value.split(b","))]
    members = [member for member in members if member]
    if len(members) > _MAX_HOPS:
        raise ProtocolError(400, "too many hops in a forwarding header")
    return members


def _pick(values: Iterable[bytes], hops: int) -> bytes | None:
    """The member of a list that the proxy next to the client wrote: `hops` from the right."""
    members = _members(values)
    return members[-min(hops, len(members))] if members else None


def _secure(
    given: Mapping[bytes, list[bytes]], scheme_headers: Mapping[bytes, bytes]
) -> bool | None:
    """Whether the scheme headers say https; None if there are none. All of them must agree."""
    claims = set()
    for name, expected in scheme_headers.items():
        for value in _members(given.get(name, ())):
            lower = value.lower()
            claims.add(lower == expected.lower() or (expected == b"https" and lower == b"wss"))
    if len(claims) > 1:
        raise ProtocolError(400, "forwarding headers contradict each other about the scheme")
    return claims.pop() if claims else None


def _prefix(value: bytes | None) -> str:
    if value is None:
        return ""
    if not _PREFIX.fullmatch(value) or {b".", b".."} & set(value.split(b"/")):
        raise ProtocolError(400, "invalid X-Forwarded-Prefix")
    return value.rstrip(b"/").decode("ascii")


def _read_forwarded(value: bytes, trusted: TrustedPeers) -> _Element:
    """The claims of the element about the client, which is found as in X-Forwarded-For."""
    elements = _split_forwarded(value)
    _, hops = _nearest_untrusted([element.get(b"for", b"") for element in elements], trusted)
    if not elements:
        return _Element(None, None, None)
    element = elements[-min(hops, len(elements))]
    fields = trusted.fields
    proto = element.get(b"proto") if "proto" in fields else None
    if proto is not None and proto.lower() not in (b"http", b"https"):
        raise ProtocolError(400, "unknown proto in Forwarded")
    host = element.get(b"host") if "host" in fields else None
    if host is not None:
        check_host(host)
    return _Element(
        _parse_node(element.get(b"for", b"")) if "for" in fields else None,
        None if proto is None else proto.lower() == b"https",
        host,
    )


def _split_forwarded(value: bytes) -> list[dict[bytes, bytes]]:
    """Split a Forwarded field into elements and their pairs (RFC 7239 section 4), strictly.

    The client's part of the field comes before the proxy's. An unclosed quote in it would swallow
    the proxy's part, so a malformed field is refused as a whole.
    """
    elements: list[dict[bytes, bytes]] = [{}]
    pos = 0
    while pos < len(value):
        pos = _skip_space(value, pos)
        match = _PAIR.match(value, pos)
        if match is not None:
            name = match[1].lower()
            if name in elements[-1]:
                raise ProtocolError(400, "repeated parameter in Forwarded")
            quoted = match[3]
            elements[-1][name] = match[2] if quoted is None else _ESCAPE.sub(rb"\1", quoted)
            pos = _skip_space(value, match.end())
        separator = value[pos : pos + 1]
        if separator == b",":
            elements.append({})
        elif separator not in (b";", b""):
            raise ProtocolError(400, "malformed Forwarded")
        pos += 1
        if len(elements) > _MAX_HOPS:
            raise ProtocolError(400, "too many hops in a forwarding header")
    return [element for element in elements if element]


def _skip_space(value: bytes, pos: int) -> int:
    match = _SPACE.match(value, pos)
    return pos if match is None else match.end()


def _agreed(one: _Claim, other: _Claim, what: str) -> _Claim:
    if one is None or other is None:
        return other if one is None else one
    first, second = (v[0] if isinstance(v, tuple) else v for v in (one, other))
    if first != second:
        raise ProtocolError(400, f"forwarding headers contradict each other about the {what}")
    return one
