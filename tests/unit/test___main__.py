"""What a start without TLS and without an event loop must not import: half as long again."""

from __future__ import annotations

import subprocess
import sys

import pytest

COSTLY = ("asyncio", "ssl", "tempfile", "logging.config", "email.mime", "http.client")


@pytest.mark.parametrize("worker", ["sync", "thread"])
def test_nothing_costly_is_imported(worker: str) -> None:
    code = (
        f"import servo.cli.main, servo.arbiter.start, servo.workers.blocking.{worker}, sys;"
        f"print([name for name in {COSTLY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
