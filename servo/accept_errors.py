"""Distinguishes lasting errors of accept(2) from errors that concern only one client.

After some errors the connection is no longer in the accept queue, because the client is gone. Then
the worker can accept again at once.

After other errors the connection is still in the queue: the process has no free descriptor, or a
security module (LSM) forbids accept(2). A worker that tried again at once would use a whole CPU,
because epoll would report the listener again and again. So the worker pauses its listeners for a
while.
"""

from __future__ import annotations

import errno

# The process or the system has no file descriptor or no memory left for a connection.
NO_ROOM = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
# Errors of the new connection, or of a firewall that refuses it. They concern only this client:
# according to accept(2), servers should treat them like EAGAIN.
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
# If there are more of these errors in a row, clients are not the cause. For example, a sandbox that
# forbids accept(2) always returns EPERM.
MAX_LOST_IN_A_ROW = 100


class AcceptErrors:
    """Decides about the errors of accept(2) in one process.

    lost  the number of accepts in a row with a lost client. The caller sets it to 0 after an accept
          that succeeds or finds the queue empty
    """

    def __init__(self) -> None:
        self.lost = 0

    def must_pause(self, error: OSError) -> bool:
        """Whether to pause the listeners for a while. If not, only one client is lost.

        error  the error of accept(2)
        """
        if error.errno in CLIENT_LOST:
            self.lost += 1
            if self.lost < MAX_LOST_IN_A_ROW:
                return False
        self.lost = 0
        return True
