"""Errors of the HTTP layer. Each carries the status that it is answered with."""

from __future__ import annotations

from servo.errors import ServoError


class ProtocolError(ServoError):
    """The peer broke a rule of the protocol, or one of our limits.

    status   the response status (RFC 9110 section 15)
    reason   one line for the log; never holds bytes of the client unescaped
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}")
        self.status = status
        self.reason = reason


class LocalProtocolError(ServoError):
    """The application (or a driver) sent something that can't go on the wire as it is."""


class ClientDisconnected(ServoError, OSError):  # noqa: N818  it is no error
    """The client is gone, or has read nothing for `send_timeout`: expected, never a traceback.

    An OSError, because the ASGI HTTP specification (2.4) asks `send` to raise one.
    """
