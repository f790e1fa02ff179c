"""Versions of HTTP."""

from __future__ import annotations

import pytest

from servo.errors import ConfigError
from servo.settings.schema import SETTINGS

PROTOCOLS, CLEARTEXT = SETTINGS["http_protocols"], SETTINGS["http2_cleartext"]


@pytest.mark.parametrize(
    ("value", "versions"),
    [("h2,h1", ["h2", "h1"]), (" H1 ", ["h1"]), (["h1", "h2"], ["h1", "h2"]), ("", None)],
)
def test_versions(value: object, versions: list[str] | None) -> None:
    assert PROTOCOLS.read(value, "a test") == versions


def test_an_unknown_version() -> None:
    with pytest.raises(ConfigError, match=r"http_protocols: 'h3' is not valid"):
        PROTOCOLS.read("h3", "a test")


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        (True, "both"),
        (False, "off"),
        ("upgrade", "upgrade"),
        ("Prior-Knowledge", "prior-knowledge"),
    ],
)
def test_cleartext(value: object, mode: str) -> None:
    assert CLEARTEXT.read(value, "a test") == mode
