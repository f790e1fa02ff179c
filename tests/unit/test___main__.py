"""The start of the command: the garbage collector, and what must not be imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Without TLS and without an event loop, these would make the start half as long again.
COSTLY = ("asyncio", "ssl", "tempfile", "logging.config", "email.mime", "http.client")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("worker", ["sync", "thread"])
def test_nothing_costly_is_imported(worker: str) -> None:
    code = (
        f"import servo.cli.main, servo.arbiter.start, servo.workers.blocking.{worker}, sys;"
        f"print([name for name in {COSTLY!r} if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_the_collector_is_tuned_and_the_commands_exit_code_returned() -> None:
    code = """
import gc, sys, types
import servo.__main__ as entry
from servo import collector
sys.modules["servo.cli.main"] = fake = types.ModuleType("servo.cli.main")
fake.main = lambda: 7
print(entry.main(), gc.get_threshold()[:2] == collector.IMPORTING[:2])
"""
    assert run(code) == "7 True"
