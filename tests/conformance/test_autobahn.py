"""The Autobahn cases that take seconds; `make conformance` plays all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_the_quick_cases(tmp_path: Path) -> None:
    pytest.importorskip("kosoku", reason="kosoku, which plays the cases, is not installed")
    from conformance.autobahn import QUICK, play

    results = play(tmp_path, (), QUICK)
    assert len(results) > 200
    failed = [f"{r!r}: {r.result} {r.result_close}" for r in results if not r.passed]
    assert failed == []
