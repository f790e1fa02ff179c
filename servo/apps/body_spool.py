"""Handles errors of the files that store request bodies until they are complete."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger("servo.error")

# These errors mean that the disk is full. The response has status 507 (RFC 4918 section 11.5).
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: OSError) -> ProtocolError:
    """Log that a body can't be stored. Returns the error for the response."""
    log.error("Can't store a request body: %s", error)
    return ProtocolError(507 if error.errno in _FULL else 500, "the body can't be stored")


def discard(body: Any) -> None:
    """Close a stored body. A failure is only logged.

    body  a file object
    """
    try:
        body.close()
    except OSError as error:
        # `close` writes buffered bytes, and the disk may be full. The body is no longer needed.
        log.debug("Closing a request body: %s", error)
