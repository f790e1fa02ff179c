"""The chaos run of `make soak`, for two minutes."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos import BY_ITSELF, chaos
from chaos_operator import ACTS, ANSWERS_500, BROKEN, MOLD_ACTS, REFORK_ACTS, TLS_ACTS

# Seconds. SERVO_CHAOS=30 makes a short run.
SECONDS = float(os.environ.get("SERVO_CHAOS", "120"))


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_nothing_is_lost_in_chaos(tmp_path: Path) -> None:
    # pytest would take this long run for a test that hangs.
    faulthandler.cancel_dump_traceback_later()
    seed = random.randrange(1 << 30)
    problems: list[str] = []
    rows = chaos(tmp_path, SECONDS, seed, problems)
    print(json.dumps(rows, indent=1), *problems, sep="\n")
    assert not problems, f"seed {seed}"
    for name, row in rows.items():
        assert row["lost"] == row["wrong answers"] == row["leaked or unlisted"] == 0, name
        assert row["answers"] > 100, name
    if SECONDS >= 100:
        happened = {what for row in rows.values() for what, count in row.items() if count}
        assert everything() - happened == set()


def everything() -> set[str]:
    """The acts of the operator, the faults, and what the servers do by themselves."""
    acts = {**ACTS, **MOLD_ACTS, **REFORK_ACTS, **TLS_ACTS}
    operator = {f"operator: {act.replace('_', ' ')}" for act in acts}
    broken = {f"operator: broken: {fault}" for fault in (*BROKEN, ANSWERS_500)}
    return operator | broken | {f"server: {what}" for what in BY_ITSELF}
