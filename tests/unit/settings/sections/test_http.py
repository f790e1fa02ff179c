"""The settings of HTTP with checks beyond their types."""

from __future__ import annotations

import pytest

from servo.errors import ConfigError
from servo.settings.schema import SETTINGS


@pytest.mark.parametrize(
    ("value", "fields"),
    [("for,proto", ["for", "proto"]), (" Host ", ["host"]), (["PREFIX"], ["prefix"]), ("", [])],
)
def test_forwarded_fields(value: object, fields: list[str]) -> None:
    assert SETTINGS["forwarded_fields"].read(value, "a test") == fields


def test_an_unknown_forwarded_field() -> None:
    with pytest.raises(ConfigError, match=r"forwarded_fields: 'for,by' is not valid .* proto"):
        SETTINGS["forwarded_fields"].read("for,by", "a test")


@pytest.mark.parametrize(
    ("value", "mode"),
    [(True, "auto"), (False, "off"), ("1", "auto"), ("0", "off"), ("v2", "v2"), ("none", "off")],
)
def test_proxy_protocol_as_a_switch_and_as_a_version(value: object, mode: str) -> None:
    assert SETTINGS["proxy_protocol"].read(value, "a test") == mode


@pytest.mark.parametrize(
    ("value", "parser"), [("auto", "httptools"), ("fast", "httptools"), ("python", "h11")]
)
def test_parsers_by_gunicorns_names(value: str, parser: str) -> None:
    assert SETTINGS["http_parser"].read(value, "a test") == parser


@pytest.mark.parametrize("name", ["forwarded_allow_ips", "proxy_allow_ips"])
def test_networks(name: str) -> None:
    networks = ["10.0.0.0/8", "::1", "unix", "*"]
    assert SETTINGS[name].read(",".join(networks), "a test") == networks
    with pytest.raises(ConfigError, match=f"{name}: '10.0.0.1/8' is not valid .*no host bits"):
        SETTINGS[name].read("10.0.0.1/8", "a test")


def test_scheme_headers_are_texts() -> None:
    setting = SETTINGS["secure_scheme_headers"]
    assert setting.read('{"X-SCHEME": "https"}', "a test") == {"X-SCHEME": "https"}
    with pytest.raises(ConfigError):
        setting.read({"X-SCHEME": 1}, "a test")
