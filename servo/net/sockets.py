"""Functions on sockets that Python's own methods don't offer."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

# tcp(7): the number of bytes that wait to be read, and of sent bytes that the peer has not taken.
_SIOCINQ = 0x541B
_SIOCOUTQ = 0x5411


class WantsWrite(BlockingIOError):  # noqa: N818  not an error, like its base class
    """`recv` on a TLS connection has to send something first, and the socket is full."""


def end_output(fd: int) -> None:
    """Send the end of the stream. Call this before you close a connection.

    fd  the socket's descriptor; -1 if it is closed already

    `close` alone sends the end only when the last process closes the socket. A child that the
    application has forked keeps it open as long as the child lives, and the client would wait for
    that long (RFC 9112 section 9.6).
    """
    if fd < 0:
        return
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        with contextlib.suppress(OSError):  # the connection has already ended
            borrowed.shutdown(socket.SHUT_WR)
    finally:
        borrowed.detach()


def end_transport(transport: asyncio.BaseTransport) -> None:
    """Do the same for a transport of asyncio that is about to be closed."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        end_output(sock.fileno())


def has_unread(fd: int) -> bool:
    """Whether received bytes of a TCP or Unix connection wait in the kernel to be read."""
    try:
        count = fcntl.ioctl(fd, _SIOCINQ, b"\0\0\0\0")
    except (OSError, ValueError):  # the socket is closed
        return False
    return count != bytes(4)


def unacknowledged(fd: int) -> int:
    """How many sent bytes of a connection the peer has not taken yet."""
    try:
        count = fcntl.ioctl(fd, _SIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):  # the socket is closed
        return 0
    return int.from_bytes(count, sys.byteorder)
