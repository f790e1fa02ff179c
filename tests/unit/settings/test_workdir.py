"""The directory that the server works in, and the path that names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.settings.sources import load_settings
from servo.settings.workdir import started_in, without_dots, working_in


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    link = tmp_path / "current"
    link.symlink_to("one")
    monkeypatch.chdir(link)
    return link


def switch(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def test_the_shells_name_for_the_directory(current: Path) -> None:
    assert started_in({"PWD": str(current)}) == current
    assert started_in({}) == current.parent / "one"


@pytest.mark.parametrize(
    "pwd",
    [
        *("", ".", "/", "/nowhere", "current", "{}/two", "{}/current/../current", "{}/./current"),
        *("{}/loop", "{}/file", "{}/current\0", "\udcff", "/" + "x" * 5000),
    ],
)
def test_a_variable_that_says_something_else(current: Path, pwd: str) -> None:
    root = current.parent
    (root / "loop").symlink_to("loop")
    (root / "file").touch()
    assert started_in({"PWD": pwd.format(root)}) == root / "one"


def test_a_directory_that_is_gone(current: Path) -> None:
    (current.parent / "one").rmdir()
    with pytest.raises(FileNotFoundError):
        started_in({"PWD": str(current)})


def test_dots_are_taken_out_where_they_mean_the_same(current: Path) -> None:
    root = current.parent
    (root / "one" / "deep").mkdir()
    (root / "way").symlink_to("one/deep")
    assert without_dots(root / "two" / ".." / "current") == current
    assert without_dots(root / "way" / ".." / "deep") == root / "one" / "deep"


def test_settings_keep_chdir_and_its_directory(current: Path) -> None:
    settings = load_settings({}, {}, current)
    one = str(current.parent / "one")
    assert (settings.chdir, settings.directory) == (str(current), one)
    switch(current, "two")
    assert settings.directory == one
    (current.parent / "one").rmdir()
    assert settings.directory == str(current.parent / "two")
    switch(current, "gone")
    with pytest.raises(ConfigError, match=rf"the directory {current} no longer exists"):
        load_settings({}, {}, current)


def test_a_chdir_behind_a_link(current: Path) -> None:
    root = current.parent
    for given in ("current", str(current), "two/../current", "./current/"):
        settings = load_settings({"chdir": given}, {}, root)
        assert (settings.chdir, settings.directory) == (str(current), str(root / "one"))


def test_working_in_a_directory_for_a_moment(current: Path) -> None:
    root = current.parent
    with working_in(str(root / "two")):
        assert os.getcwd() == str(root / "two")
        (root / "one").rmdir()
    assert os.stat(".").st_nlink == 0  # back in the old directory, which has been removed
    with pytest.raises(FileNotFoundError), working_in(str(root / "gone")):
        pass
