"""Which errors of accept(2) last, and which concern one client only.

A level-triggered poller reports a listener for as long as a connection is queued.

An error may have taken its connection out of the queue: then the next one can be accepted at once.
Or it lasts, with the connection still queued, and accepting again at once would spin: a process
without a free descriptor, or a security module (LSM) that forbids accept(2).
"""

from __future__ import annotations

import errno

# There is no descriptor, or no memory, left for a connection.
NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# accept(2): errors that are already pending on the new connection, or a firewall's refusal of it.
# They concern that one client, so Linux asks servers to treat them as EAGAIN.
CLIENT_LOST = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)
# So many in a row are no clients' errors: a sandbox that forbids accept(2) returns EPERM each time.
MOST_LOST = 100


class AcceptErrors:
    """Judges the errors of one server's accepts.

    lost  clients in a row that were lost while they were accepted; set it to 0 after an accept that
          succeeds or finds nothing
    """

    def __init__(self) -> None:
        self.lost = 0

    def must_pause(self, error: OSError) -> bool:
        """Whether to leave the listeners alone for a while. False: only that client is lost."""
        if error.errno in CLIENT_LOST:
            self.lost += 1
            if self.lost < MOST_LOST:
                return False
        self.lost = 0
        return True
