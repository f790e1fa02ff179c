"""Makes the C library keep the memory that long WebSocket messages use.

glibc returns the top of its heap to the kernel once 128 KiB of it are free (`man 3 mallopt`). A
message of 1 MB passes through several buffers of that size, and each time the kernel has to provide
fresh pages: measured, 60 page faults per message and a third of its CPU time.
"""

from __future__ import annotations

import functools
import os

# From malloc.h: return free memory past this size, and use mmap for blocks of at least that size.
_M_TRIM_THRESHOLD, _TRIM_BYTES = -1, 16 << 20
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 4 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Keep up to 16 MiB of freed memory in this process. False if the C library is not glibc."""
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return False
    import ctypes  # only here: most workers have no WebSockets

    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES), mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)])
