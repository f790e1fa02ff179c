"""Which files --reload watches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servo.arbiter.watch import Files, _stamps


def files(here: Path, **values: list[str]) -> Files:
    settings: dict[str, Any] = {
        "reload_dirs": [],
        "reload_include": ["*.py"],
        "reload_exclude": [".*", "*.py[cod]", "*.sw?", "*~"],
        "reload_extra_files": [],
        **values,
    }
    return Files(SimpleNamespace(**settings), here)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("/srv/app.py", True),
        ("/srv/package/views.py", True),
        ("/srv/app.pyc", False),
        ("/srv/app.py~", False),
        ("/srv/.app.py.swp", False),
        ("/srv/.hidden/app.py", False),
        ("/srv/data.json", False),
        ("/srv/.venv/lib/x.py", False),
        ("/srv/venv/lib/x.py", False),
        ("/srv/__pycache__/app.py", False),
        ("/elsewhere/app.py", False),
    ],
)
def test_defaults(path: str, counts: bool) -> None:
    assert files(Path("/srv")).counts(Path(path)) is counts


def test_a_hidden_directory_above_the_app_does_not_matter() -> None:
    assert files(Path("/home/me/.work/srv")).counts(Path("/home/me/.work/srv/app.py"))


def test_given_ones() -> None:
    chosen = files(
        Path("/srv"),
        reload_dirs=["src", "/lib"],
        reload_include=["*.html", "templates/*"],
        reload_exclude=["old"],
        reload_extra_files=["conf/*.toml"],
    )
    assert chosen.counts(Path("/srv/src/a.html"))
    assert chosen.counts(Path("/lib/templates/b.txt"))
    assert chosen.counts(Path("/srv/conf/x.toml"))
    assert not chosen.counts(Path("/srv/a.html"))
    assert not chosen.counts(Path("/srv/src/a.py"))
    assert not chosen.counts(Path("/srv/src/old/a.html"))


def test_polling_sees_changes(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("1")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "x.py").write_text("1")
    (tmp_path / "conf.toml").write_text("1")
    watched = files(tmp_path, reload_extra_files=["*.toml", "none.toml"])
    assert {path.name for path, _ in _stamps(watched)} == {"app.py", "conf.toml"}
