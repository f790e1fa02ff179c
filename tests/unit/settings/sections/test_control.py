"""The users that may use the control socket."""

from __future__ import annotations

import os
import pwd

import pytest

from servo.errors import ConfigError
from servo.settings.schema import SETTINGS
from servo.settings.sections.control import allowed_user

OWN_NAME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("root", (0, "full")),
        ("root:full", (0, "full")),
        (" root:read ", (0, "read")),
        ("1234", (1234, "full")),
        ("1234:read", (1234, "read")),
        (OWN_NAME, (os.geteuid(), "full")),
    ],
)
def test_an_entry(text: str, allowed: tuple[int, str]) -> None:
    assert allowed_user(text) == allowed


@pytest.mark.parametrize("text", ["", ":read", "no such user", "root:write", "root:read:full"])
def test_an_invalid_entry(text: str) -> None:
    with pytest.raises(ValueError, match=r"no such user|neither full nor read"):
        allowed_user(text)


def test_the_setting_keeps_the_texts() -> None:
    setting = SETTINGS["control_allow"]
    assert setting.read(" root , 7:read", "a flag") == ["root", "7:read"]
    assert setting.read(["root:full"], "servo.toml:1") == ["root:full"]
    with pytest.raises(ConfigError, match=r"control_allow: 'root:all' is not valid \(a flag\)"):
        setting.read("root:all", "a flag")
