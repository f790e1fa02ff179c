"""The lingering close of an event loop's connection, from our end to the client's.

A response that was written is not yet with the client: some of it may wait in the event loop, some
in the kernel. Closing the socket fully while the client still sends would make the kernel drop all
of that. So the driver closes only its own side (FIN), and drops what still arrives. `Linger` then
says for how long the connection is kept: while the client goes on taking bytes. Once it has
acknowledged all of them, and `LINGER_S` have passed, the driver aborts the connection.
"""

from __future__ import annotations

from servo.net.sockets import unacknowledged


class Linger:
    """Follows what the client takes of the last bytes of one connection.

    fd              the socket's descriptor
    send_timeout_s  seconds for which the client may take nothing; 0: no limit
    now_ns          monotonic nanoseconds
    """

    __slots__ = ("_fd", "_left", "_send_timeout_s", "_since_ns")

    def __init__(self, fd: int, send_timeout_s: float, now_ns: int) -> None:
        self._fd = fd
        self._send_timeout_s = send_timeout_s
        self._left = 0
        self._since_ns = now_ns

    def is_over(self, buffered: int, now_ns: int) -> bool:
        """Whether to abort the connection.

        buffered  bytes that wait in the event loop for the kernel
        now_ns    monotonic nanoseconds
        """
        left = buffered + unacknowledged(self._fd)
        if not left:
            return True
        if left != self._left:
            self._left = left
            self._since_ns = now_ns
        return bool(self._send_timeout_s) and now_ns - self._since_ns > self._send_timeout_s * 1e9
