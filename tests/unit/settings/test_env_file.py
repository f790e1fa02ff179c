"""Variables for the app from files, with python-dotenv."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from servo.errors import ConfigError, UsageError
from servo.settings.env_file import read_env_files
from servo.settings.flags import parse_flags
from servo.settings.sources import load_settings


def test_no_file_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dotenv", None)
    assert read_env_files([], tmp_path, {}, "default") == {}


def test_the_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dotenv", None)
    with pytest.raises(ConfigError, match=r"python-dotenv \(flag --env-file\); run pip install "):
        read_env_files([".env"], tmp_path, {}, "flag --env-file")


def test_the_environment_takes_precedence(tmp_path: Path) -> None:
    pytest.importorskip("dotenv")
    (tmp_path / ".env").write_text(
        'A=1\nexport B="two words" # a remark\nC=${A}${HOME_OF_C}-${NONE:-3}\nUNSET\n', "utf-8"
    )
    (tmp_path / "local.env").write_text("A=9\nD=${C}")
    environ = {"A": "from the environment", "HOME_OF_C": "x"}
    read = read_env_files([".env", "local.env"], tmp_path, environ, "")
    assert read == {
        "B": "two words",
        "C": "from the environmentx-3",
        "D": "from the environmentx-3",
    }


def test_a_later_file_overrides_an_earlier_one(tmp_path: Path) -> None:
    pytest.importorskip("dotenv")
    (tmp_path / "a").write_text("A=1\nB=1\n")
    (tmp_path / "b").write_text("A=2\n")
    assert read_env_files(["a", "b"], tmp_path, {}, "") == {"A": "2", "B": "1"}


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    pytest.importorskip("dotenv")
    (tmp_path / ".env").write_bytes(b"A=\xff\n")
    with pytest.raises(ConfigError, match=r"env_file: can't read .env: .*\(servo.toml:1\)"):
        read_env_files([".env"], tmp_path, {}, "servo.toml:1")


def test_as_a_setting(tmp_path: Path) -> None:
    pytest.importorskip("dotenv")
    (tmp_path / ".env").write_text("A=file\nB=file\nSERVO_WORKERS=9\n")
    flags = parse_flags(["--env-file", ".env", "--env", "B=flag"])
    settings = load_settings(flags, {}, tmp_path)
    assert settings.env == {"A": "file", "B": "flag", "SERVO_WORKERS": "9"}
    assert settings.workers == 1  # it sets variables of the app, not settings
    assert "file" not in settings.show("env_file")
    # A reload reads the file again.
    (tmp_path / ".env").write_text("A=changed\n")
    assert load_settings(flags, {}, tmp_path).env == {"A": "changed", "B": "flag"}


def test_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"env_file: .*\(flag --env-files\); expected existing f"):
        load_settings(parse_flags(["--env-files", "none"]), {}, tmp_path)
