"""Who the client is, when a proxy that is trusted says so.

`X-Forwarded-For` and its relatives, and `Forwarded` (RFC 7239), are claims: anybody can send them.
They count only from a trusted peer, and are read from the right, where the nearest proxy wrote,
past every hop that is trusted too. What contradicts itself is refused: an app must never act on
"https" where a second header says otherwise.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from servo.http.errors import ProtocolError
from servo.http.headers import check_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Address

    from servo.http.events import Headers

_Said = TypeVar("_Said", bool | None, bytes | None, "tuple[str, int] | None")

DEFAULT_TRUSTED = "127.0.0.1,::1"

# gunicorn's `secure_scheme_headers`: the value of each that means https.
DEFAULT_SCHEME_HEADERS: Mapping[bytes, bytes] = {
    b"x-forwarded-protocol": b"ssl",
    b"x-forwarded-proto": b"https",
    b"x-forwarded-ssl": b"on",
}
# What a trusted peer may say. Host and prefix are left out of the default: proxies set up for
# gunicorn, uvicorn or Django pass these fields on as the client sent them, and an app builds its
# links (in a password-reset mail, say) from the host.
FIELDS = ("for", "proto", "host", "prefix")
DEFAULT_FIELDS = ("for", "proto")

# More hops than any chain of proxies has; each costs an address to parse.
_MAX_HOPS = 64
_KNOWN_BOUND = 4096

_PREFIX = re.compile(rb"(?:/[-A-Za-z0-9._~!$&'()*+,;=:@]+)*/?")
_NODE = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9_A-Za-z.-]+)?|([0-9A-Fa-f:.]+)")
_PORT = re.compile(rb".*(?:\]|^[0-9.]+):([0-9]{1,5})")
_TOKEN = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"
# A colon is not allowed outside quotes, but "for=192.0.2.1:80" is seen too often to refuse.
_PAIR = re.compile(
    rb'(%b)=(?:([-!#$%%&\'*+.^_`|~0-9A-Za-z:]+)|"((?:[\t !#-\[\]-~]|\\[\t -~])*)")' % _TOKEN
)
_SPACE = re.compile(rb"[ \t]*")
_ESCAPE = re.compile(rb"\\(.)")


class ClientInfo(NamedTuple):
    """What is believed about a request's origin.

    address  host and port of the client; the port is 0 where it is not known; None: a Unix peer
    scheme   "http" or "https"
    host     what the client asked for, where a proxy says it (else the Host header holds)
    prefix   the path under which a proxy has mounted the app, without a slash at its end
    """

    address: tuple[str, int] | None
    scheme: str
    host: bytes | None
    prefix: str


class TrustedPeers:
    """Whose word counts, about what, and which headers say it.

    cidrs           addresses and networks, as a list or separated by commas. "*": everyone;
                    "unix": peers of Unix sockets (which the default includes, as in gunicorn)
    scheme_headers  header name (lower case) to the value that means https
    fields          what is believed, of FIELDS: "for" (client address), "proto" (scheme), "host",
                    "prefix". Headers that say only other things are as if they were not there.

    `host in trusted` answers for an address as text; None or "" is a Unix peer. Raises `ValueError`
    for a network that is none.
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
    """The client of a request, by its headers where `peer` is trusted. Raises `ProtocolError`.

    peer    the other end of the connection; None for a Unix socket
    scheme  what the connection itself is
    named   the headers by name, if the caller has them so: `Request.named`
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
        address = None  # the hops were counted for the host's sake
    if b"forwarded" in given:
        other = _read_forwarded(b",".join(given[b"forwarded"]), trusted)
        address = _agreed(address, other.address, "client address")
        secure = _agreed(secure, other.secure, "scheme")
        host = _agreed(host, other.host, "host")
    if secure is not None:
        scheme = "https" if secure else "http"
    return ClientInfo(address or peer, scheme, host or None, prefix)


def _names(fields: frozenset[str], scheme_headers: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """The headers that say something about these fields."""
    names = set(scheme_headers)
    if not fields.isdisjoint(("for", "host", "prefix")):
        names.add(b"x-forwarded-for")  # its length says which member of the others counts
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
    """The client that a chain of nodes names, and how many entries from the right it stands.

    A node that is no address ("unknown", an obfuscated name) ends the walk at the hop before it.
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
    """An address with or without port: 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1]:80."""
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
    """An IPv4 address as itself where it comes mapped into IPv6, as a dual-stack socket has it."""
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
    """The member that the proxy next to the client wrote, counting from the right as for it."""
    members = _members(values)
    return members[-min(hops, len(members))] if members else None


def _secure(
    given: Mapping[bytes, list[bytes]], scheme_headers: Mapping[bytes, bytes]
) -> bool | None:
    """Whether the scheme headers say https. They must all say the same, repeats included."""
    said = set()
    for name, expected in scheme_headers.items():
        for value in _members(given.get(name, ())):
            lower = value.lower()
            said.add(lower == expected.lower() or (expected == b"https" and lower == b"wss"))
    if len(said) > 1:
        raise ProtocolError(400, "forwarding headers contradict each other about the scheme")
    return said.pop() if said else None


def _prefix(value: bytes | None) -> str:
    if value is None:
        return ""
    if not _PREFIX.fullmatch(value) or {b".", b".."} & set(value.split(b"/")):
        raise ProtocolError(400, "invalid X-Forwarded-Prefix")
    return value.rstrip(b"/").decode("ascii")


def _read_forwarded(value: bytes, trusted: TrustedPeers) -> _Element:
    """What the element that describes the client says: the right one by the same walk as above."""
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
    """Elements and their pairs (RFC 7239 section 4), strictly.

    A client's half of the field comes before the proxy's: an unclosed quote in it would swallow
    what the proxy says, so a malformed field is refused as a whole.
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


def _agreed(one: _Said, other: _Said, what: str) -> _Said:
    if one is None or other is None:
        return other if one is None else one
    first, second = (v[0] if isinstance(v, tuple) else v for v in (one, other))
    if first != second:
        raise ProtocolError(400, f"forwarding headers contradict each other about the {what}")
    return one
