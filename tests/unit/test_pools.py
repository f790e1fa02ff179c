"""The public names of `servo.pools`, which are imported at their first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

from servo import pools


@pytest.mark.parametrize("name", pools.__all__)
def test_every_public_name_exists(name):
    assert getattr(pools, name).__name__ == name


def test_other_names_do_not():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pools.nothing  # noqa: B018


@pytest.mark.slow
def test_importing_it_costs_no_threads_and_no_executors():
    code = (
        "import sys, servo.pools, servo.pools.places, servo.pools.board\n"
        "print(sorted({'threading', 'concurrent.futures', 'asyncio', 'pickle'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
