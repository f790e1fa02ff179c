"""One setting: its names, its flags, and how its values are read and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from servo.errors import ConfigError
from servo.settings.setting import DefaultFrom, Setting
from servo.settings.types import Directory, Switch, Text, TextList, ValueType, Whole


def make(kind: ValueType | None = None, **attributes: Any) -> Setting:
    values = {"name": "max_things", "default": 0, "help": "The most things.", **attributes}
    return Setting(type=kind or Whole(), **values)


def test_names_follow_from_the_name() -> None:
    setting = make()
    assert setting.variable == "SERVO_MAX_THINGS"
    assert setting.plain_flag == "--max-things"
    assert setting.shown_flags == ("--max-things",)
    assert setting.main_flag == "--max-things"


def test_declared_flags_are_shown_instead_of_the_plain_one() -> None:
    setting = make(flags=("-m", "--most"))
    assert setting.shown_flags == ("-m", "--most")
    assert setting.main_flag == "--most"
    assert make(flags=("-m",)).main_flag == "--max-things"


def test_only_a_switch_is_a_switch() -> None:
    assert make(Switch()).is_switch
    assert not make().is_switch


@pytest.mark.parametrize("value", [3, "3", " 3 "])
def test_a_value_is_read(value: object) -> None:
    assert make().read(value, "servo.toml:1") == 3


def test_a_list_of_the_environment_is_one_text() -> None:
    setting = make(TextList(), default=[])
    assert setting.read("a,b", "environment SERVO_MAX_THINGS", is_text=True) == ["a", "b"]
    assert setting.read("a,b", "servo.toml:1") == ["a,b"]


@pytest.mark.parametrize("value", [None, "", "  "])
def test_nothing_is_none_if_that_is_a_value(value: object) -> None:
    assert make(Text(), default=None, nullable=True).read(value, "a test") is None


def test_nothing_is_an_error_otherwise() -> None:
    with pytest.raises(ConfigError):
        make().read("", "a test")
    with pytest.raises(ConfigError):
        make(Text(), default="").read(None, "a test")


def test_an_error_names_everything() -> None:
    with pytest.raises(ConfigError) as caught:
        make().read("many", "servo.toml:7")
    assert str(caught.value) == (
        "max_things: 'many' is not valid (servo.toml:7); expected a whole number, 0 or more"
    )


@pytest.mark.parametrize("attribute", ["secret", "names_only"])
def test_an_error_does_not_show_a_secret(attribute: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**{attribute: True}).read("pa55word", "servo.toml:7")
    assert "pa55word" not in str(caught.value)
    assert "max_things: the value is not valid (servo.toml:7)" in str(caught.value)


def test_advice_replaces_the_valid_values() -> None:
    class NotInstalledError(ValueError):
        advice = "install it"

    refusal = make().refusal(3, "a test", NotInstalledError())
    assert str(refusal) == "max_things: 3 is not valid (a test); install it"


def test_a_value_is_checked_against_the_system(tmp_path: Path) -> None:
    setting = make(Directory(), default=None, nullable=True)
    setting.check(None, "a test", tmp_path)
    setting.check(".", "a test", tmp_path)
    with pytest.raises(ConfigError, match=r"'nowhere' is not valid \(a test\)"):
        setting.check("nowhere", "a test", tmp_path)


def test_a_value_is_shown_without_secrets() -> None:
    assert make().show(3) == "3"
    assert make().show(None) == "none"
    assert make(Text(), secret=True).show("pa55word") == "(secret)"
    assert make(Text(), secret=True).show(None) == "none"
    setting = make(TextList(), names_only=True)
    assert setting.show(["USER=shop", "KEY=pa55=word"]) == "USER=…,KEY=…"


def test_a_variable_of_a_platform() -> None:
    assert DefaultFrom("SENDFILE", "$SENDFILE").text(" 1 ") == "1"
    port = DefaultFrom("PORT", "0.0.0.0:$PORT", lambda text: f"0.0.0.0:{text}")
    assert port.text("80") == "0.0.0.0:80"
