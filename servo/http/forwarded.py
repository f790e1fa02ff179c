"""The client of a request behind proxies: its address, scheme and host.

Anybody can send `X-Forwarded-For`, `X-Forwarded-Proto`, `Forwarded` (RFC 7239) and the like. So
these headers count only if the peer (the other end of the connection) is a trusted proxy. Each
proxy appends the address of its own client to a list, so the last address comes from the nearest
proxy. The client is the first address from the right that is not trusted. A request with
contradicting headers is refused: an app must not act on "https" if another header says otherwise.
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

# header -> the value that means https. The same as gunicorn's default of `secure_scheme_headers`.
DEFAULT_SCHEME_HEADERS: Mapping[bytes, bytes] = {
    b"x-forwarded-protocol": b"ssl",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-ssl": b"on",
}
# A trusted proxy can make these claims about a request. By default, host and prefix are not
# accepted: many proxies pass these two fields on as the client sent them, because gunicorn, uvicorn
# and Django ignore them by default. An app builds links from the host, for example
# in a password-reset mail.
FIELDS = ("for", "proto", "host", "prefix")
DEFAULT_FIELDS = ("for", "proto")

# How many addresses of a list to read, because parsing takes time. No real chain is that long.
_MAX_HOPS = 64
_KNOWN_BOUND = 4096
# The longest X-Forwarded-For that is remembered, in bytes: the addresses of about three hops.
_VALUE_BOUND = 128
# Values of the scheme headers that mean http: those of X-Forwarded-Proto and X-Forwarded-Ssl.
_NOT_SECURE = (b"http", b"off")

_PREFIX = re.compile(rb"(?:/[-A-Za-z0-9._~!$&'()*+,;=:@]+)*/?")
_NODE = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9_A-Za-z.-]+)?|([0-9A-Fa-f:.]+)")
_PORT = re.compile(rb".*(?:\]|^[0-9.]+):([0-9]{1,5})")
# A colon is not allowed outside quotes, but "for=192.0.2.1:80" is too common to refuse.
_PAIR = re.compile(
    rb'(%b)=(?:([-!#$%%&\'*+.^_`|~0-9A-Za-z:]+)|"((?:[\t !#-\[\]-~]|\\[\t -~])*)")' % TOKEN.pattern
)
_SPACE = re.compile(rb"[ \t]*")
_ESCAPE = re.compile(rb"\\(.)")


class ClientInfo(NamedTuple):
    """The origin of a request, from the trusted claims.

    address  host and port of the client, with port 0 if unknown; None for a Unix peer
    scheme   "http" or "https"
    host     the requested host, according to a proxy; None: use the Host header
    prefix   the path at which a proxy has mounted the app, without a slash at its end
    """

    address: tuple[str, int] | None
    scheme: str
    host: bytes | None
    prefix: str


class TrustedPeers:
    """The trusted proxies, and the claims that are accepted from them.

    cidrs           addresses and networks, as a list or separated by commas; "*" for everyone,
                    "unix" for peers on Unix sockets (the default includes them, as in gunicorn)
    scheme_headers  header name (lower case) -> the value that means https
    fields          the accepted claims, from FIELDS: "for" (client address), "proto" (scheme),
                    "host", "prefix". Headers that make only other claims are ignored

    names  the headers that can have an accepted claim

    `host in trusted` tells whether to trust an address, given as text; None or "" stands for a peer
    on a Unix socket. Raises `ValueError` for an invalid network.
    """

    __slots__ = (
        "_clients",
        "_everyone",
        "_known",
        "_networks",
        "_unix_sockets",  # not `_unix`: mypyc would make it `__unix`, which GCC defines as 1
        "_unusual",
        "fields",
        "names",
        "scheme_headers",
    )

    def __init__(
        self,
        cidrs: str | Sequence[str] = DEFAULT_TRUSTED,
        scheme_headers: Mapping[bytes, bytes] = DEFAULT_SCHEME_HEADERS,
        fields: Iterable[str] = DEFAULT_FIELDS,
    ) -> None:
        parts = cidrs.split(",") if isinstance(cidrs, str) else list(cidrs)
        members = [part.strip() for part in parts if part.strip()]
        self._everyone = "*" in members
        self._unix_sockets = (
            self._everyone or "unix" in members or ",".join(members) == DEFAULT_TRUSTED
        )
        self._networks: list[IPv4Network | IPv6Network] = [
            ip_network(member, strict=False) for member in members if member not in ("*", "unix")
        ]
        self._known: dict[str, bool] = {}
        self.fields = frozenset(fields)
        self.scheme_headers = scheme_headers if "proto" in self.fields else {}
        self.names = tuple(_names(self.fields, self.scheme_headers))
        self._unusual = tuple(set(self.names) - {*self.scheme_headers, b"x-forwarded-for"})
        # Scheme -> value of X-Forwarded-For -> the client.
        self._clients: dict[str, dict[bytes, ClientInfo]] = {"http": {}, "https": {}}

    def __contains__(self, host: str | None) -> bool:
        if not host:
            return self._unix_sockets
        if self._everyone:
            return True
        known = self._known.get(host)
        if known is None:
            known = self._look_up(host)
            if len(self._known) >= _KNOWN_BOUND:
                self._known.clear()
            self._known[host] = known
        return known

    def names_client(self, named: dict[bytes, bytes]) -> bool:
        """Whether a request has a field that can have an accepted claim.

        named  the request's headers by name
        """
        return any(name in named for name in self.names)

    def remembered(
        self, headers: Headers, named: dict[bytes, bytes], scheme: str
    ) -> dict[bytes, ClientInfo] | None:
        """The clients of earlier requests, by X-Forwarded-For; None for unusual fields.

        headers  the request's headers
        named    the headers by name
        scheme   the scheme of the connection itself

        Fields are usual if no name is repeated, the only other claims are those about the scheme,
        and each of these is exactly one of the usual values. Then X-Forwarded-For alone decides
        which client it is.
        """
        if len(named) != len(headers):
            return None
        for name in self._unusual:
            if name in named:
                return None
        claimed = ""
        for name, expected in self.scheme_headers.items():
            value = named.get(name)
            if value is None:
                continue
            if value != expected and value not in _NOT_SECURE:
                return None
            claim = "https" if value == expected else "http"
            if claimed and claimed != claim:
                return None
            claimed = claim
        return self._clients[claimed or scheme]

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
    named: dict[bytes, bytes] | None = None,
) -> ClientInfo:
    """Find the client of a request: in its headers if the peer is trusted, else the peer itself.

    headers  the request's headers
    peer     address of the other end of the connection; None for a Unix socket
    trusted  the trusted proxies
    scheme   the scheme of the connection itself, "http" or "https"
    named    the headers by name (`Request.named`), if the caller has them

    Raises `ProtocolError` for malformed or contradicting headers.
    """
    if named is None:
        named = dict(headers)
    if (None if peer is None else peer[0]) not in trusted:
        return ClientInfo(peer, scheme, None, "")
    forwarded_for = named.get(b"x-forwarded-for", b"")
    clients = trusted.remembered(headers, named, scheme)
    if clients is not None:
        known = clients.get(forwarded_for)
        if known is not None:
            return known
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
        address = None  # this claim is not accepted; only `hops` is needed, for other claims
    if b"forwarded" in given:
        other = _read_forwarded(b",".join(given[b"forwarded"]), trusted)
        address = _agreed(address, other.address, "client address")
        secure = _agreed(secure, other.secure, "scheme")
        host = _agreed(host, other.host, "host")
    if secure is not None:
        scheme = "https" if secure else "http"
    client = ClientInfo(address or peer, scheme, host or None, prefix)
    if clients is not None and address is not None and len(forwarded_for) <= _VALUE_BOUND:
        if len(clients) >= _KNOWN_BOUND:
            clients.clear()
        clients[forwarded_for] = client
    return client


def _names(fields: frozenset[str], scheme_headers: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """The headers that can have these claims."""
    names = set(scheme_headers)
    if not fields.isdisjoint(("for", "host", "prefix")):
        names.add(b"x-forwarded-for")  # tells which member of the other lists to use
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
    """Convert ::ffff:192.0.2.1 into 192.0.2.1: dual-stack sockets report IPv4 peers like this."""
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
    """The member of a list that the proxy next to the client has sent: `hops` from the right."""
    members = _members(values)
    return members[-min(hops, len(members))] if members else None


def _secure(
    given: Mapping[bytes, list[bytes]], scheme_headers: Mapping[bytes, bytes]
) -> bool | None:
    """Whether the scheme headers mean https; None if there are none. All of them must agree."""
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
    """The claims in the client's element of the list, which is found as in X-Forwarded-For."""
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

    The proxy appends its element to those from the client. If a client's quote is not closed, it
    would swallow the proxy's element. So a malformed field is refused as a whole.
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


# A separate function, because mypyc can't narrow a variable whose type is a TypeVar.
def _without_port(claim: object) -> object:
    return claim[0] if isinstance(claim, tuple) else claim


def _agreed(one: _Claim, other: _Claim, what: str) -> _Claim:
    if one is None or other is None:
        return other if one is None else one
    if _without_port(one) != _without_port(other):
        raise ProtocolError(400, f"forwarding headers contradict each other about the {what}")
    return one
