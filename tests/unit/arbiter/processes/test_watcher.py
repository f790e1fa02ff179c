"""The files that --reload watches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servo.arbiter.processes.watcher import Files, _stamps


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
    assert chosen.counts(Path("/srv/src/a.py"))
    assert not chosen.counts(Path("/srv/src/old/a.html"))


@pytest.mark.parametrize(
    ("include", "exclude", "path", "counts"),
    [
        # Included besides *.py, by name.
        (["*.html"], [], "a.py", True),
        (["*.html"], [], "deep/down/a.html", True),
        (["*.html"], [], "a.css", False),
        (["a?.txt", "[xy].txt"], [], "ab.txt", True),
        (["a?.txt", "[xy].txt"], [], "x.txt", True),
        # A pattern that is a name, or names hidden files, against the defaults.
        ([".env"], [], ".env", True),
        ([".env"], [], "sub/.env", True),
        ([".env"], [], ".hidden/.env", True),
        ([".env"], [], ".env.local", False),
        ([".env"], [], ".app.py", False),
        ([".env*"], [], ".env.local", True),
        ([".github/*.yml"], [], ".github/ci.yml", True),
        ([".github/*.yml"], [], ".github/x.py", False),
        (["*.pyc"], [], "a.pyc", True),
        (["*.html"], [], ".hidden.html", False),
        (["*.html"], [], ".hidden/a.html", False),
        ([".*"], [], ".hidden/app.py", True),
        (["*~"], [], "a~", True),
        ([".env"], [], "node_modules/.env", False),
        # By a path.
        (["templates/*.html"], [], "templates/a.html", True),
        (["templates/*.html"], [], "templates/sub/a.html", False),
        (["templates/*.html"], [], "shop/templates/a.html", True),
        (["templates/*.html"], [], "a.html", False),
        (["./templates/*.html"], [], "templates/a.html", True),
        (["templates/**/*.html"], [], "templates/a.html", True),
        (["templates/**/*.html"], [], "templates/b/c/a.html", True),
        (["templates/**"], [], "templates/b/c/a.txt", True),
        (["**/*.html"], [], "a.html", True),
        (["conf/app.yml"], [], "conf/app.yml", True),
        (["/srv/conf/*.yml"], [], "conf/app.yml", True),
        (["/srv/conf/*.yml"], [], "srv/conf/app.yml", False),
        # Excluded.
        ([], ["sub/*"], "sub/a.py", False),
        ([], ["sub/*"], "sub/deep/a.py", False),
        ([], ["sub/*"], "pkg/sub/a.py", False),
        ([], ["sub/*"], "subway/a.py", True),
        ([], ["sub/*"], "a.py", True),
        ([], ["sub"], "sub/deep/a.py", False),
        ([], ["sub/"], "sub/a.py", False),
        ([], ["./sub"], "sub/a.py", False),
        ([], ["pkg/sub"], "pkg/sub/deep/a.py", False),
        ([], ["pkg/sub"], "sub/a.py", True),
        ([], ["/srv/sub"], "sub/a.py", False),
        ([], ["../srv/sub/*.py"], "sub/a.py", False),
        ([], ["tests/**/test_*.py"], "tests/test_a.py", False),
        ([], ["tests/**/test_*.py"], "tests/unit/test_a.py", False),
        ([], ["tests/**/test_*.py"], "tests/unit/conftest.py", True),
        ([], ["x.py"], ".hidden/app.py", False),  # the defaults go on
        ([], ["."], "a.py", True),
        (["*.html"], ["*.py"], "a.py", False),
        (["*.html"], ["*.py"], "a.html", True),
        (["*.html"], ["sub/*"], "sub/a.html", False),
        (["a.html"], ["*.html"], "a.html", True),
        (["a.html"], ["a.html"], "a.html", False),
        (["sub/keep.py"], ["sub/*"], "sub/keep.py", True),
    ],
)
def test_patterns(include: list[str], exclude: list[str], path: str, counts: bool) -> None:
    chosen = files(Path("/srv"), reload_include=include, reload_exclude=exclude)
    assert chosen.counts(Path("/srv", path)) is counts


def test_a_pattern_may_be_relative_to_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    chosen = files(
        tmp_path,
        reload_dirs=["src"],
        reload_include=["src/*.css", "templates/**/*.html", ".env", "../shared/*.txt"],
        reload_exclude=["src/old/*"],
    )
    assert chosen.counts(tmp_path / "src" / "a.css")
    assert chosen.counts(tmp_path / "templates" / "a.html")
    assert chosen.counts(tmp_path / ".env")
    assert chosen.counts(tmp_path.parent / "shared" / "a.txt")
    assert not chosen.counts(tmp_path / "src" / "old" / "a.py")
    assert not chosen.counts(tmp_path / "templates" / "a.py")
    assert not chosen.counts(tmp_path / "a.py")
    assert tmp_path / "templates" in chosen.roots


def test_a_directory_is_no_pattern_of_its_own_name(tmp_path: Path) -> None:
    """Nor is what lies above the watched directories any of the patterns' business."""
    here = tmp_path / "sub" / "app"
    assert files(here, reload_exclude=["sub/*", "app", "sub"]).counts(here / "a.py")
    below = files(here, reload_dirs=["src"], reload_exclude=["src"])
    assert below.counts(here / "src" / "a.py")


def test_an_included_directory_is_watched(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    chosen = files(tmp_path, reload_dirs=["src"], reload_include=["oth*"])
    assert chosen.counts(tmp_path / "other" / "a.py")
    assert not chosen.counts(tmp_path / "other" / "a.txt")
    assert not chosen.counts(tmp_path / "a.py")


def test_a_link_that_is_switched_is_a_change(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    (tmp_path / "current").symlink_to("1")
    watched = files(tmp_path / "current")
    before = watched.targets()
    assert watched.targets() == before
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(tmp_path / "current")
    assert watched.targets().keys() == before.keys()
    assert watched.targets() != before
    (tmp_path / "current").unlink()
    assert watched.targets() == {}
    assert watched.roots == []


def test_polling_sees_changes(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("1")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "x.py").write_text("1")
    (tmp_path / "conf.toml").write_text("1")
    watched = files(tmp_path, reload_extra_files=["*.toml", "none.toml"])
    assert {path.name for path, _ in _stamps(watched)} == {"app.py", "conf.toml"}
