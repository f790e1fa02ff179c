"""Locks between processes, each on one byte of a shared file.

The locks are Linux' open-file-description locks (F_OFD_SETLK, see fcntl(2)). Such a lock belongs to
one opening of the file, and the kernel releases it when that opening is closed. So a lock never
outlives its process, however the process ends. The byte need not exist: locks may lie behind the
end of the file.

All processes inherit one opening of the file, and a lock of that opening would belong to all of
them. So each process opens the file once more, by /proc/self/fd, when it needs its first lock. A
forked child shares the opening of its parent. It closes its copy at once, so it does not hold the
parent's locks, and does not keep them after the parent's end.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import weakref
from typing import TYPE_CHECKING

from servo.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

# struct flock: type, whence, start, length, pid. The empty last field pads it to its alignment.
_FLOCK = struct.Struct("hhqqi0q")


class LockFile:
    """The locks on the bytes of a file.

    fd  a descriptor of the file, which every process inherits; the caller closes it

    on_fork  called in a forked child, whose parent keeps all locks; None: nothing to do
    """

    on_fork: Callable[[], None] | None = None

    def __init__(self, fd: int) -> None:
        self._fd = fd
        found = os.fstat(fd)
        self._file = (found.st_dev, found.st_ino)
        self._own = -1
        self._opening = threading.Lock()
        _lock_files.add(self)

    def try_lock(self, place: int) -> bool:
        """Lock a byte, unless another process holds it. Returns whether this process holds it now.

        place  the byte's position

        A byte that this process holds already is locked once more: all threads of a process count
        as one owner. Raises ClusterError if the file can't be opened, OSError if the kernel is out
        of locks.
        """
        try:
            self._call(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, place)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def wait_lock(self, place: int) -> None:
        """Lock a byte, and wait as long as another process holds it. Raises as `try_lock`."""
        self._call(fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, place)

    def unlock(self, place: int) -> None:
        """Release a byte. Does nothing if this process does not hold it."""
        if self._own >= 0:
            self._call(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, place)

    def is_locked(self, place: int) -> bool:
        """Whether another process holds a byte."""
        found = self._call(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, place)
        kind: int = _FLOCK.unpack(found)[0]
        return kind != fcntl.F_UNLCK

    def close(self) -> None:
        """Release all locks of this process."""
        own, self._own = self._own, -1
        if own >= 0:
            os.close(own)

    def _call(self, command: int, kind: int, place: int) -> bytes:
        own = self._own
        if own < 0:
            with self._opening:
                own = self._own = self._own if self._own >= 0 else self._open()
        return fcntl.fcntl(own, command, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))

    def _open(self) -> int:
        try:
            own = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise ClusterError(
                f"the server's counters and locks can't be opened by /proc/self/fd: {error}"
            ) from error
        found = os.fstat(own)
        if (found.st_dev, found.st_ino) != self._file:
            os.close(own)
            raise ClusterError(
                "this process has closed the server's descriptors, so it has no counters and locks"
            )
        return own

    def after_fork(self) -> None:
        """In a forked child: give up the parent's opening of the file."""
        self.close()
        self._opening = threading.Lock()  # another thread may have held it
        if self.on_fork is not None:
            self.on_fork()


_lock_files: weakref.WeakSet[LockFile] = weakref.WeakSet()


def _after_fork() -> None:
    for lock_file in list(_lock_files):
        lock_file.after_fork()


os.register_at_fork(after_in_child=_after_fork)
