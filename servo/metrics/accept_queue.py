"""Reads the accept queues of listening sockets from the kernel. Linux only.

The kernel completes the handshake of a new connection and then keeps the connection in the
listener's accept queue until a worker accepts it. A growing queue means that the workers can't keep
up. When it is full, the kernel drops new connections.

The kernel reports the queues of all sockets over a netlink socket: one dump request for each family
of addresses, and one binary answer for each listening socket (sock_diag(7)). `getsockopt(TCP_INFO)`
on a copy of the listener would be simpler, but a process with such a copy keeps the port open:
during a stop, clients would still get into the queue, and no worker would accept them.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Numbers from linux/netlink.h, sock_diag.h, inet_diag.h, unix_diag.h and net/tcp_states.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_DUMP_REQUEST = 0x301
_TCP_LISTEN = 10
_INET_DIAG_SKMEMINFO = 7
_UDIAG_SHOW_NAME, _UDIAG_SHOW_RQLEN = 1, 16
_UNIX_DIAG_NAME, _UNIX_DIAG_RQLEN = 0, 4

_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_INET_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2
_UNIX_REQUEST = struct.Struct("=BBHIII8x")  # unix_diag_req
_INET_ANSWER = struct.Struct("=BBBB2s2s16s16sI8sIIIII")  # inet_diag_msg
_UNIX_ANSWER = struct.Struct("=BBBxI8s")  # unix_diag_msg
_ATTRIBUTE = struct.Struct("=HH")  # nlattr
_DROPS = 8  # SK_MEMINFO_DROPS, an index into 32-bit words

# How many times to read for one answer, in case the final NLMSG_DONE never comes.
_MAX_READS = 1000


class Queue(NamedTuple):
    """The accept queue of one listener.

    waiting  connections that wait to be accepted
    limit    the most connections that may wait
    drops    connections dropped since the socket was made; None for Unix sockets, which don't
             count them
    """

    waiting: int
    limit: int
    drops: int | None


def queues(addresses: Sequence[tuple[str, int] | str | bytes]) -> list[Queue | None]:
    """The accept queues of the listeners at these addresses, in the same order.

    addresses  as `getsockname` returns them

    Sockets that share a port are added up. A queue is None if nothing listens at the address, or
    if the kernel doesn't report it.
    """
    found: dict[object, Queue] = {}
    with contextlib.suppress(OSError):
        wants_tcp = any(isinstance(each, tuple) for each in addresses)
        wants_unix = any(not isinstance(each, tuple) for each in addresses)
        for key, queue in [
            *(_inet(socket.AF_INET) if wants_tcp else ()),
            *(_inet(socket.AF_INET6) if wants_tcp else ()),
            *(_unix() if wants_unix else ()),
        ]:
            other = found.get(key)
            if other is not None:
                drops = (other.drops or 0) + (queue.drops or 0)
                queue = Queue(other.waiting + queue.waiting, other.limit + queue.limit, drops)
            found[key] = queue
    return [found.get(_key(address)) for address in addresses]


def overflows() -> int | None:
    """The number of times that a TCP accept queue of this network namespace was full.

    The kernel counts from the creation of the namespace (ListenOverflows). None if it doesn't
    report it.
    """
    try:
        lines = Path("/proc/net/netstat").read_text().splitlines()
    except OSError:
        return None
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            table = dict(zip(names.split()[1:], values.split()[1:], strict=False))
            count = table.get("ListenOverflows")
            return int(count) if count is not None else None
    return None


def _key(address: tuple[str, int] | str | bytes) -> object:
    if isinstance(address, tuple):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        return socket.inet_pton(family, address[0].partition("%")[0]), address[1]
    return address.encode() if isinstance(address, str) else address


def _inet(family: int) -> Iterator[tuple[object, Queue]]:
    request = _INET_REQUEST.pack(
        family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_SKMEMINFO - 1), 1 << _TCP_LISTEN
    )
    size = 4 if family == socket.AF_INET else 16
    for payload in _dump(request):
        answer = _INET_ANSWER.unpack_from(payload)
        port, source, waiting, limit = answer[4], answer[6], answer[11], answer[12]
        drops = None
        for kind, data in _attributes(payload[_INET_ANSWER.size :]):
            if kind == _INET_DIAG_SKMEMINFO and len(data) >= 4 * (_DROPS + 1):
                (drops,) = struct.unpack_from("=I", data, 4 * _DROPS)
        yield (source[:size], int.from_bytes(port, "big")), Queue(waiting, limit, drops)


def _unix() -> Iterator[tuple[object, Queue]]:
    request = _UNIX_REQUEST.pack(
        socket.AF_UNIX, 0, 0, 1 << _TCP_LISTEN, 0, _UDIAG_SHOW_NAME | _UDIAG_SHOW_RQLEN
    )
    for payload in _dump(request):
        attributes = dict(_attributes(payload[_UNIX_ANSWER.size :]))
        name = attributes.get(_UNIX_DIAG_NAME, b"")
        # A path ends with a NUL; an abstract name starts with one.
        key = name if name.startswith(b"\0") else name.rstrip(b"\0")
        waiting, limit = struct.unpack_from("=II", attributes.get(_UNIX_DIAG_RQLEN, bytes(8)))
        yield key, Queue(waiting, limit, None)


def _dump(request: bytes) -> Iterator[bytes]:
    """Send a dump request, and yield the payload of each answer. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1.0)
        size = _HEADER.size + len(request)
        netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP_REQUEST, 1, 0) + request)
        for _ in range(_MAX_READS):
            data = netlink.recv(65536)
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _HEADER.size:
                    return
                yield data[_HEADER.size : length]
                data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
