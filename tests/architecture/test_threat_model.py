"""The threat model names tests: each must exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "threat-model.md"


def test_each_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(
            rf"^\s*(?:async )?def {name}\(|^{name} = |^class {name}\b",
            (ROOT / path).read_text(encoding="utf-8") if (ROOT / path).exists() else "",
            re.MULTILINE,
        )
    ]
    assert missing == []
