"""The options for the C library's allocator."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from servo.workers.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(100):
        blocks = [bytearray(1_000_000) for _ in range(4)]
        blocks.clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
faults()
print(faults())
"""


FREED = """
from pathlib import Path
from servo.workers.allocator import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

# Blocks that are too short for mmap; each second one stays, so that glibc keeps the pages between.
blocks = [bytearray(60_000) for _ in range(400)]
del blocks[::2]
before = resident()
assert return_freed_memory()
print(before - resident())
"""


def test_long_buffers_are_not_given_back_each_time() -> None:
    """In a process of its own: it can't be undone."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 100


def test_free_pages_between_used_blocks_are_returned() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) > 1000  # pages of 4 KiB; 200 blocks have 14 whole ones each
