"""The text of a migrated app."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.cli.migration.migrated import Migrated
from servo.settings.schema import SETTINGS
from servo.settings.sources import load_settings
from servo.settings.toml import parse_toml


def test_the_file_says_what_was_found(tmp_path: Path) -> None:
    found = Migrated("shop", "an old file")
    found.put("workers", "2:8", "processes")
    found.put("timeout", "30", "timeout")
    found.put("reload", "true", "reload")
    found.put("max_worker_memory", "512M", "memory")
    found.add("raw_env", "A=1", "env")
    found.add("raw_env", 'B="2" \\ \x7f', "env")
    found.put("secure_scheme_headers", {"X-SCHEME": "https"}, "scheme")
    found.lost("mule", "use\na queue")
    text = found.to_toml()
    assert text.startswith("# From an old file, by `servo migrate`.\n")
    assert "# * mule: use\\na queue\n" in text
    (tmp_path / "servo.toml").write_text(text)
    settings = load_settings({}, {}, tmp_path)
    assert settings.workers == SETTINGS["workers"].read("2:8", "")
    assert settings.timeout == 30.0
    assert settings.reload is True
    assert settings.max_worker_memory == 512 * 1024 * 1024
    assert settings.raw_env == ["A=1", 'B="2" \\ \x7f']
    assert settings.secure_scheme_headers == {"X-SCHEME": "https"}
    assert 'max_worker_memory = "512M"' in text


WRITTEN = [
    name
    for name, each in SETTINGS.items()
    if each.in_files and not each.secret and each.default is not None
]


@pytest.mark.parametrize("name", WRITTEN)
def test_each_default_comes_back(name: str) -> None:
    default = SETTINGS[name].default
    text = Migrated("", "defaults", {name: default}).to_toml()
    assert SETTINGS[name].read(parse_toml(text)[name], "") == default


def test_an_invalid_value_is_noted() -> None:
    found = Migrated("", "")
    found.put("workers", "many", "processes")
    assert "workers" not in found.values
    assert found.notes[0].startswith("processes: ")


def test_a_password_is_not_written() -> None:
    found = Migrated("", "")
    found.put("keyfile_password", "hunter2", "ssl-keyfile-password")
    assert "hunter2" not in found.to_toml()
    assert "SERVO_KEYFILE_PASSWORD" in found.notes[0]
