"""All declarations together: names, flags, and gunicorn's settings."""

from __future__ import annotations

import inspect
import re

import pytest

from servo.settings.config_hooks import HOOKS
from servo.settings.flags import all_flags
from servo.settings.gunicorn_compat import FOREIGN, SHARED
from servo.settings.schema import SETTINGS, canonical
from servo.settings.setting import Setting


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_declaration_is_complete(setting: Setting) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", setting.name)
    assert setting.section
    assert setting.help.endswith(".")
    assert setting.variable == "SERVO_" + setting.name.upper()
    assert all(flag.startswith("-") for flag in setting.flags)


def test_no_flag_means_two_things() -> None:
    flags = [flag for setting in SETTINGS.values() for flag in all_flags(setting)]
    flags += [flag for foreign in FOREIGN.values() for flag in foreign.flags]
    assert sorted(flags) == sorted(set(flags))


def test_a_name_is_a_setting_a_hook_or_gunicorns() -> None:
    assert not set(SETTINGS) & set(FOREIGN)
    assert not set(SETTINGS) & set(HOOKS)
    assert not set(FOREIGN) & set(HOOKS)


def test_canonical_names() -> None:
    assert canonical("workers") == "workers"
    assert canonical("wsgi_app") == "app"
    assert canonical("wrokers") is None


def test_every_setting_of_gunicorn_is_accounted_for() -> None:
    from gunicorn.config import KNOWN_SETTINGS

    for theirs in KNOWN_SETTINGS:
        if theirs.name in HOOKS:
            default = inspect.signature(theirs.default)
            assert len(default.parameters) == len(HOOKS[theirs.name][0])
            continue
        flags = set(theirs.cli or ())
        if theirs.name in FOREIGN:
            foreign = FOREIGN[theirs.name]
            assert set(foreign.flags) == flags
            expected = None if theirs.nargs else theirs.action not in ("store_true", "store_const")
            assert foreign.argument == expected
            continue
        name = canonical(theirs.name)
        assert name is not None, theirs.name
        assert theirs.name in SHARED
        assert flags <= set(all_flags(SETTINGS[name])), theirs.name
        repeated = theirs.action == "append"
        assert not repeated or SETTINGS[name].type.many
