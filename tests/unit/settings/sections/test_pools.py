"""The declarations of pools."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.settings.schema import SETTINGS
from servo.settings.sections.pools import PoolSettings
from servo.settings.sources import load_settings

SETTING = SETTINGS["pools"]


def test_a_table_of_tables():
    given = {
        "ml": {
            "workers": 2,
            "initializer": "ml.models:load",
            "timeout": "1m",
            "max_tasks": 500,
            "max_memory": "512M",
            "queue": 20,
            "queue_timeout": 0.5,
        },
        "thumbs": {},
    }
    found = SETTING.read(given, "a file")
    assert found["ml"] == PoolSettings(2, "ml.models:load", 60.0, 500, 512 << 20, 20, 0.5)
    assert found["thumbs"] == PoolSettings()


def test_it_is_written_as_json_and_read_again():
    found = SETTING.read('{"ml": {"workers": 3, "max_memory": "25%"}, "a": {}}', "x", is_text=True)
    text = SETTING.show(found)
    assert text == '{"ml": {"workers": 3, "max_memory": "25%"}, "a": {}}'
    assert SETTING.read(text, "x", is_text=True) == found
    assert SETTING.read(found, "x") == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ml": {"worker": 2}}, "pools.ml has no option worker; did you mean workers?"),
        ({"ml": {"zzz": 2}}, "pools.ml has no option zzz; the options are workers, initializer"),
        ({"ml": {"workers": 0}}, "pools.ml.workers must be a whole number from 1 to 200"),
        ({"ml": {"workers": "two"}}, "pools.ml.workers must be a whole number from 1 to 200"),
        ({"ml": {"queue": 0}}, "pools.ml.queue must be a whole number from 1 to 4096"),
        ({"ml": {"timeout": -1}}, "pools.ml.timeout must be seconds, 0 or more"),
        ({"ml": {"initializer": "ml.load"}}, "pools.ml.initializer must be module:function"),
        ({"ml": {"initializer": 3}}, "pools.ml.initializer must be module:function"),
        ({"ml": 2}, "pools.ml must be a table of options, such as workers = 2"),
        ({"m l": {}}, "begins with a letter, unlike 'm l'"),
        ({"x" * 33: {}}, "at most 32 letters"),
        ({"../ml": {}}, "unlike '../ml'"),
        (3, "expected a table (in text: a JSON object) from the names of pools"),
    ],
)
def test_what_is_wrong_is_said(given, message):
    with pytest.raises(ConfigError) as caught:
        SETTING.read(given, "servo.toml:3")
    assert message in str(caught.value)
    assert "servo.toml:3" in str(caught.value)


def test_only_on_linux(monkeypatch):
    monkeypatch.setattr("servo.settings.sections.pools.sys.platform", "darwin")
    SETTING.check({}, "x", Path("/"))
    with pytest.raises(ConfigError, match="pools work on Linux only, and this is darwin"):
        SETTING.check({"ml": PoolSettings()}, "x", Path("/"))


def test_in_files(tmp_path):
    (tmp_path / "servo.toml").write_text('app = "x:app"\n\n[pools.ml]\nworkers = 2\n')
    settings = load_settings({}, {}, tmp_path)
    assert settings.pools == {"ml": PoolSettings(workers=2)}
    assert settings.source("pools") == "servo.toml:3"
    (tmp_path / "servo.toml").unlink()
    (tmp_path / "servo.conf.py").write_text('pools = {"ml": {"workers": 4}}\n')
    assert load_settings({}, {}, tmp_path).pools["ml"].workers == 4
