"""The thresholds of the garbage collector, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc
from servo.collector import tune_for_imports, tune_for_requests

tune_for_imports()
before = gc.get_freeze_count()
{own}
tune_for_requests()
print(gc.get_threshold()[:2], gc.get_freeze_count() > before)
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ("", "(2000, 20) True"),
        ("gc.set_threshold(900, 5, 5)", "(900, 5) True"),
        ("gc.set_threshold(10_000, 50, 5)", "(10000, 50) True"),
    ],
)
def test_requests_have_a_lower_threshold_unless_the_application_sets_one(
    own: str, expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(own=own)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == expected


def test_a_program_that_keeps_pythons_thresholds_keeps_them() -> None:
    """`servo.run()` in a program: it has not tuned the collector for imports."""
    code = (
        "import gc; from servo.collector import tune_for_requests; old = gc.get_threshold();"
        "tune_for_requests(); print(gc.get_threshold() == old)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "True"
