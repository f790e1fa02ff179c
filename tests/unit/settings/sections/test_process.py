"""The forms of a logging configuration's path, and the settings of the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.settings.schema import SETTINGS
from servo.settings.sections.process import split_form


@pytest.mark.parametrize(
    ("given", "form", "path"),
    [
        ("log.ini", "", "log.ini"),
        ("json:log", "json", "log"),
        ("toml:/etc/log.conf", "toml", "/etc/log.conf"),
        ("yaml:json:log", "yaml", "json:log"),
        ("ini:log", "ini", "log"),
        ("xml:log", "", "xml:log"),
        ("json:", "", "json:"),  # a file of that name
    ],
)
def test_a_form_before_a_path(given: str, form: str, path: str) -> None:
    assert split_form(given) == (form, path)


def test_a_logging_configuration_must_exist(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    setting = SETTINGS["logconfig"]
    for given in ("log", "json:log"):
        setting.check(given, "a test", tmp_path)
    for given in ("nowhere", "json:nowhere"):
        with pytest.raises(ConfigError, match=rf"logconfig: '{given}' is not valid \(a test\)"):
            setting.check(given, "a test", tmp_path)


@pytest.mark.parametrize(
    ("value", "level"), [("WARN", "warning"), ("fatal", "critical"), ("trace", "debug")]
)
def test_levels_of_other_servers(value: str, level: str) -> None:
    assert SETTINGS["loglevel"].read(value, "a test") == level


def test_a_user_is_a_number_or_a_name() -> None:
    assert SETTINGS["user"].read("root", "a test") == 0
    assert SETTINGS["group"].read(7, "a test") == 7
    with pytest.raises(ConfigError, match=r"user: 'no such user' is not valid"):
        SETTINGS["user"].read("no such user", "a test")
