"""How long a connection that we have closed is kept, for the client's sake."""

from __future__ import annotations

from servo.net.sockets import unacknowledged


class Linger:
    """Asked from time to time once our side has ended: as long as the client takes what we sent it
    is waited for, but for its own end only `LINGER_S`.

    fd              the socket's descriptor
    send_timeout_s  how long it may take nothing; 0: for ever
    """

    __slots__ = ("_fd", "_left", "_send_timeout_s", "_since_ns")

    def __init__(self, fd: int, send_timeout_s: float, now_ns: int) -> None:
        self._fd = fd
        self._send_timeout_s = send_timeout_s
        self._left = 0
        self._since_ns = now_ns

    def is_over(self, buffered: int, now_ns: int) -> bool:
        """Whether to cut the connection. `buffered`: bytes that the kernel has not taken yet."""
        left = buffered + unacknowledged(self._fd)
        if not left:
            return True
        if left != self._left:
            self._left = left
            self._since_ns = now_ns
        return bool(self._send_timeout_s) and now_ns - self._since_ns > self._send_timeout_s * 1e9
