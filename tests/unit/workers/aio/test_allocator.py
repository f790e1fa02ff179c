"""What the allocator is told."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource
from servo.workers.aio.allocator import keep_freed_memory

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


def test_long_buffers_are_not_given_back_each_time() -> None:
    """In a process of its own: it can't be undone."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 100
