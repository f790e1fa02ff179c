"""Versions of HTTP, with and without the h2 library."""

from __future__ import annotations

from pathlib import Path

import pytest

from servo.errors import ConfigError
from servo.settings.schema import SETTINGS
from servo.settings.sections import http2

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


def test_http2_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "has_http2", lambda: False)
    for setting, value in ((PROTOCOLS, ["h2", "h1"]), (CLEARTEXT, "upgrade")):
        with pytest.raises(ConfigError, match=r"\(a test\); HTTP/2 needs the h2 library: pip"):
            setting.check(value, "a test", Path("/"))
    PROTOCOLS.check(["h1"], "a test", Path("/"))
    CLEARTEXT.check("off", "a test", Path("/"))


def test_http2_with_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "has_http2", lambda: True)
    PROTOCOLS.check(["h2"], "a test", Path("/"))
    CLEARTEXT.check("both", "a test", Path("/"))
