"""Functions on sockets that Python's own methods don't offer."""

from __future__ import annotations

import fcntl
import logging
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("servo.error")

# ioctl requests (tcp(7)): the number of unread bytes, and of sent bytes that the peer has not
# acknowledged.
_SIOCINQ = 0x541B
_SIOCOUTQ = 0x5411
# The offset of tcpi_last_ack_recv in Linux's struct tcp_info: milliseconds, in 4 bytes.
_LAST_ACK = 56


class WantsWrite(BlockingIOError):  # noqa: N818  not an error, like its base class
    """Raised by `recv` on a TLS connection if it has to send first, but the socket is full."""


def end_output(fd: int) -> None:
    """Send the end of the stream. Call this before you close a connection.

    fd  the socket's descriptor; -1 if it is already closed

    `close` alone sends the end of the stream only when the last process closes the socket. If the
    application has forked a child, the child keeps the socket open, and the client would wait until
    the child ends (RFC 9112 section 9.6).
    """
    if fd < 0:
        return
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        borrowed.shutdown(socket.SHUT_WR)
    except OSError as error:
        # This is called for each connection, so no `with suppress`, which costs more.
        log.debug("The connection has already ended: %s", error)
    finally:
        borrowed.detach()


def end_transport(transport: asyncio.BaseTransport) -> None:
    """Send the end of the stream of an asyncio transport. Call this before you close it."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        end_output(sock.fileno())


def has_unread(fd: int) -> bool:
    """Whether the kernel holds unread bytes of a TCP or Unix connection."""
    try:
        count = fcntl.ioctl(fd, _SIOCINQ, b"\0\0\0\0")
    except (OSError, ValueError):  # the socket is closed
        return False
    return count != bytes(4)


def unacknowledged(fd: int) -> int:
    """The number of sent bytes that the peer has not acknowledged."""
    try:
        count = fcntl.ioctl(fd, _SIOCOUTQ, b"\0\0\0\0")
    except (OSError, ValueError):  # the socket is closed
        return 0
    return int.from_bytes(count, sys.byteorder)


def since_last_ack_s(fd: int) -> float | None:
    """Seconds since the peer's last acknowledgement (tcp(7), TCP_INFO); None if it is unknown.

    A peer sends one when it has received data, and also when its application has read some.

    fd  the socket's descriptor
    """
    if fd < 0 or not hasattr(socket, "TCP_INFO"):
        return None
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK + 4)
    except OSError:  # a Unix socket
        return None
    finally:
        borrowed.detach()
    return int.from_bytes(info[_LAST_ACK:], sys.byteorder) / 1000
