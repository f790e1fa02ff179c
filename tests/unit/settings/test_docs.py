"""The settings reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.settings import docs
from servo.settings.config_hooks import HOOKS
from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.schema import SETTINGS

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "settings.md"


def test_the_committed_page_is_current() -> None:
    """If this fails, run `python -m servo.settings.docs docs/reference/settings.md`."""
    assert PAGE.read_text(encoding="utf-8") == docs.reference()


def test_everything_is_on_it() -> None:
    page = docs.reference()
    for name, setting in SETTINGS.items():
        assert f"\n### {name}\n" in page
        assert f"`{setting.variable}`" in page
    assert all(f"| `{name}` |" in page for name in FOREIGN)
    assert all(f"| `{name}(" in page for name in HOOKS)


def test_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs.main([str(tmp_path / "page.md")])
    docs.main([])
    assert capsys.readouterr().out == (tmp_path / "page.md").read_text(encoding="utf-8")
