"""Controls when the C library returns freed memory to the kernel. Only for glibc.

glibc returns the top of its heap to the kernel once 128 KiB of it are free (`man 3 mallopt`), and
keeps free memory between used blocks. Each of these is wrong in one place:

* A WebSocket message of 1 MB passes through several buffers of that size, and each time the kernel
  has to provide fresh pages. Measured: 60 page faults per message, which take a third of its CPU
  time. `keep_freed_memory` prevents this.
* The free memory of a mold is of no use to the mold, which only forks. If a worker uses such a
  page, the kernel copies it, and the mold keeps the original. `return_freed_memory` prevents this.
"""

from __future__ import annotations

import functools
import os
from typing import Any

# Parameters of mallopt, from malloc.h: how much free memory to keep, and the size of a block from
# which on mmap is used.
_M_TRIM_THRESHOLD, _TRIM_BYTES = -1, 16 << 20
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 4 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Keep up to 16 MiB of freed memory. Returns False if the C library is not glibc."""
    libc = _glibc()
    if libc is None:
        return False
    return all(
        [
            libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES),
            libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES),
        ]
    )


def return_freed_memory() -> bool:
    """Return all free pages to the kernel. Returns False if the C library is not glibc."""
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


def _glibc() -> Any:
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None
    import ctypes  # imported here, because most workers have no WebSockets

    return ctypes.CDLL(None)
