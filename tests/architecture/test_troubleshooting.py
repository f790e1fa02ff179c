"""The messages on the page about troubleshooting are those that Servo prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "how-to" / "troubleshooting.md"


def messages() -> list[str]:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row.split("|")[1])]


def source() -> str:
    """All string literals, with those that follow one another joined."""
    texts = (path.read_text() for path in sorted((REPOSITORY / "servo").rglob("*.py")))
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


@pytest.mark.parametrize("message", messages())
def test_the_message_exists(message: str) -> None:
    assert message in source()
