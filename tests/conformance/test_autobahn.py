"""The fast Autobahn cases, which take seconds; `make conformance` runs all of them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_quick_cases() -> None:
    if importlib.util.find_spec("kosoku") is None:
        pytest.skip("kosoku, which plays the cases, is not installed")
    # In a separate process, because kosoku brings a stand-in for pkg_resources.
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("autobahn.py")), "--quick"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    played = re.search(r"^quick: (\d+) cases", done.stdout, re.MULTILINE)
    assert played is not None
    assert int(played[1]) > 200
