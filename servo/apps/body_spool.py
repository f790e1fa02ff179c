"""Request bodies that wait until they are whole: in memory, and past a size in a file."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from servo.http.errors import ProtocolError

if TYPE_CHECKING:
    from typing import Any

log = logging.getLogger("servo.error")

# RFC 4918 section 11.5: 507 says that the server has no room for it.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def refusal(error: OSError) -> ProtocolError:
    """How the request is answered whose body can't be stored; says why in the log."""
    log.error("Can't store a request body: %s", error)
    return ProtocolError(507 if error.errno in _FULL else 500, "the body can't be stored")


def discard(body: Any) -> None:
    """Close a stored body, whatever has become of its file."""
    try:
        body.close()
    except OSError as error:
        # It had bytes in its buffer, and they don't fit on the disk. Nobody wants them any more.
        log.debug("Closing a request body: %s", error)
