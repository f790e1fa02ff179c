"""Answers clients that speak plain HTTP to a TLS port.

A common mistake, `http://host:443/`, fails in the TLS handshake: OpenSSL finds a request line in
place of a ClientHello. Such a client can't read a TLS alert. So it gets a plain HTTP response that
explains the mistake, as from nginx (its status 497).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

log = logging.getLogger("servo.error")

# Scanners try the ports of the internet all day. One line for each attempt would let a client fill
# the log, so there is at most one line a minute.
LOG_INTERVAL_S = 60.0
_TEXT = b"The plain HTTP request was sent to an HTTPS port\n"
ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\n"
    b"Connection: close\r\n"
    b"\r\n%b" % (len(_TEXT), _TEXT)
)


def is_plain_http(error: ssl.SSLError) -> bool:
    """Whether a handshake failed because the client sent an HTTP request.

    error  the error from OpenSSL, which recognises only some HTTP methods
    """
    return getattr(error, "reason", None) in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST")


class PlainHTTPRefusal:
    """Answers clients that speak plain HTTP on a TLS port. Logs at most one of them per minute.

    clock  returns monotonic seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_log_at = float("-inf")
        self._not_logged = 0

    def send(self, sock: socket.socket, client: str) -> None:
        """Send the response, or as much of it as the socket takes without blocking.

        sock    the client's TCP socket, without TLS
        client  its address, for the log
        """
        try:
            sock.send(ANSWER)
        except OSError as error:
            log.debug("%s closed the connection before it was told to use HTTPS: %s", client, error)
        now = self._clock()
        if now < self._next_log_at:
            self._not_logged += 1
            return
        more = f" (and {self._not_logged} before, not logged)" if self._not_logged else ""
        log.info("%s sent a plain HTTP request to an HTTPS port: 400%s", client, more)
        self._next_log_at, self._not_logged = now + LOG_INTERVAL_S, 0


plain_http_refusal = PlainHTTPRefusal()
