"""The documentation names tests: each of them must exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize(
    ("page", "least"), [("threat-model", 40), ("memory", 20), ("arbiter-calls", 50)]
)
def test_each_test_that_is_named_exists(page: str, least: int) -> None:
    text = (REFERENCE / f"{page}.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > least
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
