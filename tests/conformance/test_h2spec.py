"""Run the cases of h2spec, if it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance import h2spec

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tls", [True, False], ids=["TLS", "cleartext"])
def test_all_cases(tmp_path: Path, tls: bool) -> None:
    program = h2spec.find()
    if program is None:
        pytest.skip("no h2spec on PATH, and none in $H2SPEC")
    outcome = h2spec.play(program, tmp_path, tls=tls)
    assert (outcome.skipped, outcome.failed) == (0, 0), outcome.failures
    assert outcome.passed == outcome.tests == 146
