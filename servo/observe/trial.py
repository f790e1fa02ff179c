"""Whether a file could be written to, found out without leaving one behind or changing one."""

from __future__ import annotations

import os
import stat


def try_to_write(path: str) -> None:
    """Raise the OSError that opening the file to append to it, made if need be, would raise."""
    target = os.path.realpath(path)  # O_EXCL goes through no dangling link
    # Without O_NONBLOCK a pipe waits for its reader.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    try:
        fd = os.open(target, flags)
    except FileNotFoundError:
        fd = os.open(target, flags | os.O_CREAT | os.O_EXCL, 0o600)
        os.unlink(target)
    except OSError:
        if stat.S_ISFIFO(os.stat(target).st_mode) and os.access(target, os.W_OK):
            return  # its reader may come later
        raise
    os.close(fd)
