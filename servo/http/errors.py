"""Errors of the HTTP layer."""

from __future__ import annotations

from servo.errors import ServoError


class ProtocolError(ServoError):
    """The peer broke a rule of the protocol, or exceeded one of our limits.

    status         the status of the response (RFC 9110 section 15)
    reason         one line for the log, without unescaped bytes of the client
    retry_after_s  when the client may try again, in whole seconds (RFC 9110 section 10.2.3); 0: the
                   response doesn't say
    """

    def __init__(self, status: int, reason: str, retry_after_s: int = 0) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class LocalProtocolError(ServoError):
    """The application, or a driver, sent something that the protocol does not allow."""


class ClientDisconnected(ServoError, OSError):  # noqa: N818  it is not an error
    """The client is gone, or has read nothing for `send_timeout`.

    This is an expected outcome, so it is never logged with a traceback. It is an OSError because
    the ASGI HTTP specification (2.4) asks `send` to raise one.
    """
