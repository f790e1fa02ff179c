"""How long to keep a connection open while its client still receives what we have sent.

**The lingering close.** After a response is written, some of its bytes may still wait in the event
loop or in the kernel. If the socket were closed fully while the client still sends, the kernel
would drop these bytes. So the driver closes only its own side (FIN), and discards input. `Linger`
decides when the driver then aborts the connection: when the client has acknowledged all bytes and
`LINGER_S` have passed, or when the client stops taking bytes.

**The idle time.** A connection is idle once the kernel has taken its response. But a client may
read for minutes what the kernel has taken in an instant. If its connection were closed meanwhile,
its next request would be lost. So for `IdleTime` the idle time begins with the client's last
acknowledgement.
"""

from __future__ import annotations

from typing import Final

from servo.net.sockets import since_last_ack_s, unacknowledged


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


# Seconds after which to look again at a client that still receives.
_LOOK_AGAIN_S: Final = 1.0


class IdleTime:
    """Decides what happens when the idle time of a connection has passed.

    fd  the socket's descriptor
    """

    __slots__ = ("_fd", "_linger")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._linger: Linger | None = None

    def left_s(self, idle_s: float, now_ns: int) -> float:
        """Seconds after which to ask again; 0 to close the connection now.

        idle_s  how long the client may neither send a request nor take bytes, in seconds
        now_ns  monotonic nanoseconds
        """
        if not idle_s:
            return 0.0
        linger, is_first_look = self._linger, self._linger is None
        if linger is None:
            linger = self._linger = Linger(self._fd, idle_s, now_ns)
        if not linger.is_over(0, now_ns):
            return _LOOK_AGAIN_S
        self._linger = None
        if unacknowledged(self._fd):
            return 0.0
        since_s = since_last_ack_s(self._fd)
        if since_s is None:  # a Unix socket
            return 0.0 if is_first_look else idle_s
        return max(idle_s - since_s, 0.0)
