"""The lingering close: how long to keep a connection open after the end of our output.

After a response is written, some of its bytes may still wait in the event loop or in the kernel. If
the socket were closed fully while the client still sends, the kernel would drop these bytes. So the
driver closes only its own side (FIN), and discards input. `Linger` decides when the driver then
aborts the connection: when the client has acknowledged all bytes and `LINGER_S` have passed, or
when the client stops taking bytes.
"""

from __future__ import annotations

from servo.net.sockets import unacknowledged


class Linger:
    """Watches how the client takes the last bytes of one connection.

    fd              the socket's descriptor
    send_timeout_s  how long the client may take no bytes, in seconds; 0: no limit
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
