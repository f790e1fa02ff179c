"""Tells errors of accept(2) that last from errors that concern only one client.

Some errors remove the connection from the accept queue: its client is gone. Then the next accept
can follow at once.

Others leave it in the queue: the process has no free descriptor, or a security module (LSM) forbids
accept(2). The poller goes on to report the listener as readable, and a server that accepts again at
once would burn a whole CPU. So it pauses its listeners for a while.
"""

from __future__ import annotations

import errno

# There is no descriptor, or no memory, left for a connection.
NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# Errors that are pending on the new connection, or a firewall that refuses it. They concern only
# that client, so accept(2) asks servers to treat them like EAGAIN.
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
# This many in a row don't come from clients: a sandbox that forbids accept(2) always returns EPERM.
MAX_LOST_IN_A_ROW = 100


class AcceptErrors:
    """Judges the errors of accept(2) in one process.

    lost  number of accepts in a row that have lost their client; the caller sets it to 0 after an
          accept that succeeds or finds the queue empty
    """

    def __init__(self) -> None:
        self.lost = 0

    def must_pause(self, error: OSError) -> bool:
        """Whether to pause the listeners for a while. If not, only that client is lost.

        error  that accept(2) raised
        """
        if error.errno in CLIENT_LOST:
            self.lost += 1
            if self.lost < MAX_LOST_IN_A_ROW:
                return False
        self.lost = 0
        return True
