"""What sockets tell beyond Python's own methods."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_SIOCINQ = 0x541B
_SIOCOUTQ = 0x5411


class WantsWrite(BlockingIOError):  # noqa: N818  no error, as little as its base
    """`recv` can't go on before the socket takes more: TLS has something to say first."""


def end_output(fd: int) -> None:
    """Tell the peer that no more will come. To be called before the socket is closed.

    Closing alone tells it only once no process holds the socket any more, and a child that an
    application has forked holds it for as long as it lives (RFC 9112 section 9.6).

    fd  -1: it is closed already
    """
    if fd < 0:
        return
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        with contextlib.suppress(OSError):  # the connection is broken: its end is known
            borrowed.shutdown(socket.SHUT_WR)
    finally:
        borrowed.detach()


def end_transport(transport: asyncio.BaseTransport) -> None:
    """`end_output` for a connection that an event loop is about to close."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        end_output(sock.fileno())


def has_unread(fd: int) -> bool:
    """Whether the kernel holds bytes of a TCP or Unix connection that nobody has read."""
    try:
        count = fcntl.ioctl(fd, _SIOCINQ, b"\0\0\0\0")
    except (OSError, ValueError):  # it is closed
        return False
    return count != bytes(4)


def unacknowledged(fd: int) -> int:
    """How many bytes that were sent on a connection its peer has not taken."""
    try:
        count = fcntl.ioctl(fd, _SIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):  # it is closed
        return 0
    return int.from_bytes(count, sys.byteorder)
