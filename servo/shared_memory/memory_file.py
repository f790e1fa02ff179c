"""Files without a name whose memory several processes share."""

from __future__ import annotations

import errno
import fcntl
import os


def open_file(name: str, directory: str | None) -> int:
    """Create an empty file without a path. Returns its descriptor. Raises OSError.

    name       a name to show in /proc/PID/fd
    directory  the directory of a file on disk; None for a file in memory
    """
    if directory is None and hasattr(os, "memfd_create"):
        try:
            return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            # Some sandboxes and old kernels have no memfd. Use an unlinked file instead.
            directory = None
    import tempfile  # imported here because it is rarely needed

    fd, path = tempfile.mkstemp(prefix=f"{name}-", dir=directory)
    try:
        os.unlink(path)
    except OSError:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """Forbid changes of the file's size. Raises OSError.

    An attacker who controls a worker could truncate an unsealed file. Then SIGBUS would kill every
    process that uses the table, including the arbiter.
    """
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError as error:
        # An ordinary file has no seals (EINVAL), and one on a tmpfs takes none (EPERM).
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise


def fill(fd: int, start: int, size: int) -> None:
    """Allocate the space of a part of the file that was never written. Raises OSError.

    fd     the file
    start  the first byte of the part
    size   the number of bytes

    Without this, a lack of space would kill a process by SIGBUS when it first uses a page.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, start, size)
        return
    view = memoryview(bytes(size))
    while view:
        written = os.pwrite(fd, view, start)
        start, view = start + written, view[written:]
