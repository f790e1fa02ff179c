"""Errors of the HTTP layer."""

from __future__ import annotations

from servo.errors import ServoError


class ProtocolError(ServoError):
    """Raised if the peer broke a rule of the protocol, or exceeded one of our limits.

    status         the status of the response (RFC 9110 section 15)
    reason         one line for the log, without unescaped bytes of the client
    retry_after_s  whole seconds until the client may try again (RFC 9110 section 10.2.3); 0: not
                   stated in the response
    """

    def __init__(self, status: int, reason: str, retry_after_s: int = 0) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class LocalProtocolError(ServoError):
    """Raised if the application or a driver breaks the protocol."""


class ClientDisconnected(ServoError, OSError):  # noqa: N818  it is not an error
    """Raised if the client is gone, or has read nothing for `send_timeout`.

    It is expected, so it is never logged with a traceback. It is an OSError because the ASGI HTTP
    specification (2.4) requires `send` to raise one.
    """
