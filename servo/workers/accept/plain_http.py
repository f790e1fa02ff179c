"""A client that speaks plain HTTP to a port for TLS: what it is told, and what the log says."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

log = logging.getLogger("servo.error")

# Ports of the internet are tried all day: a line for each would be a client's to fill the log with.
QUIET_S = 60.0
_TEXT = b"The plain HTTP request was sent to an HTTPS port\n"
ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n"
    b"\r\n%b" % (len(_TEXT), _TEXT)
)


def is_plain_http(error: ssl.SSLError) -> bool:
    """Whether OpenSSL has found a request in the place of a handshake (it knows some methods)."""
    return getattr(error, "reason", None) in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")


class Teller:
    """Says it to clients, and seldom to the log.

    clock   monotonic seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = float("-inf")
        self._unsaid = 0

    def answer(self, sock: socket.socket, client: str) -> None:
        """Send the answer, as far as the socket takes it at once. `client` is for the log."""
        try:
            sock.send(ANSWER)
        except OSError as error:
            log.debug("%s was gone before it was told to use HTTPS: %s", client, error)
        now = self._clock()
        if now < self._quiet_until:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} before, not logged)" if self._unsaid else ""
        log.info("%s has sent a plain HTTP request to an HTTPS port: 400%s", client, more)
        self._quiet_until, self._unsaid = now + QUIET_S, 0


teller = Teller()
