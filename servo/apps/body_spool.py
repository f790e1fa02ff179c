"""Errors of stored request bodies, which wait in memory or in a file until they are complete."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger("servo.error")

# Errors that mean a full disk, which status 507 is for (RFC 4918 section 11.5).
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: OSError) -> ProtocolError:
    """Log why a body can't be stored; return the error to answer its request with."""
    log.error("Can't store a request body: %s", error)
    return ProtocolError(507 if error.errno in _FULL else 500, "the body can't be stored")


def discard(body: Any) -> None:
    """Close a stored body. A failure is only logged.

    body  a file object
    """
    try:
        body.close()
    except OSError as error:
        # The file had bytes in its buffer that don't fit on the disk. Nobody needs them any more.
        log.debug("Closing a request body: %s", error)
