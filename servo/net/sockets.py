"""What sockets tell beyond Python's own methods."""

from __future__ import annotations

import fcntl
import sys

_SIOCINQ = 0x541B
_SIOCOUTQ = 0x5411


class WantsWrite(BlockingIOError):  # noqa: N818  no error, as little as its base
    """`recv` can't go on before the socket takes more: TLS has something to say first."""


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
