"""The C library's allocator, told to keep what long messages take.

glibc gives the top of its heap back to the kernel once 128 KiB of it are free (`man 3 mallopt`). A
message of 1 MB passes through several buffers of its size, and each time the kernel has to make
their pages anew: measured, 60 page faults a message and a third of its CPU time.
"""

from __future__ import annotations

import functools
import os

# From malloc.h: give memory back past this, and make mappings of their own from this size on.
_M_TRIM_THRESHOLD, _TRIM_BYTES = -1, 16 << 20
_M_MMAP_THRESHOLD, _MMAP_BYTES = -3, 4 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Have up to 16 MiB of freed memory kept in this process. False where it is not glibc's."""
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return False
    import ctypes  # not needed otherwise

    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES), mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)])
