"""The listening socket of a pool. The arbiter opens it, so this module imports little."""

from __future__ import annotations

import socket


def listen(path: str, queue: int) -> socket.socket:
    """Open the listening socket of a pool. Raises OSError.

    path    of the socket's file
    queue   how many tasks may wait
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        listener.setblocking(False)
        listener.bind(path)
        set_queue(listener, queue)
    except OSError:
        listener.close()
        raise
    return listener


def set_queue(listener: socket.socket, queue: int) -> None:
    """Set how many tasks may wait at a listening socket, 1 or more. Raises OSError."""
    # The kernel lets one more connection wait than `listen` says.
    listener.listen(queue - 1)
