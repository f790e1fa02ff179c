"""The choice of the HTTP version."""

from __future__ import annotations

import pytest
from h2frames import PREFACE

from servo.http.events import Request
from servo.http.negotiate import Sniffer, protocols, upgrade_settings


@pytest.mark.parametrize("rest", [b"", b"\0\0\0\4\0\0\0\0\0"])
def test_the_preface_in_any_parts(rest: bytes) -> None:
    whole = PREFACE + rest
    for at in range(1, len(PREFACE)):
        sniffer = Sniffer()
        assert sniffer.feed(whole[:at]) is None
        assert sniffer.feed(whole[at:]) == (True, whole)


@pytest.mark.parametrize("first", [b"G", b"PO", b"PRX", b"PRI * HTTP/1", b"\0", b"\r"])
def test_anything_else_is_http_1_at_its_first_other_byte(first: bytes) -> None:
    sniffer = Sniffer()
    for i in range(len(first) - 1):
        assert sniffer.feed(first[i : i + 1]) is None
    assert sniffer.feed(first[-1:] + b"more") == (False, first + b"more")


@pytest.mark.parametrize("first", [b"INVALID CONNECTION PREFACE\r\n\r\n", b"\0\0\1\n", b"GET /\n"])
def test_a_first_line_without_a_version_is_a_wrong_preface(first: bytes) -> None:
    assert Sniffer().feed(first) == (True, first)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n", b"\r\n\nGET / HTTP/1.1\r\n", b"GE"])
def test_a_first_line_with_a_version_is_none(first: bytes) -> None:
    assert Sniffer().feed(first) == (False, first)


def asking(*fields: tuple[bytes, bytes]) -> Request:
    return Request("GET", b"/", b"/", b"", "1.1", [(b"host", b"h"), *fields], True)


CONNECTION = (b"connection", b"Upgrade, HTTP2-Settings")


def test_the_settings_of_an_upgrade() -> None:
    assert upgrade_settings(asking(CONNECTION, (b"http2-settings", b"AAMAAABkAAQAAP__"))) == (
        b"\0\3\0\0\0\x64\0\4\0\0\xff\xff"
    )
    assert upgrade_settings(asking(CONNECTION, (b"http2-settings", b""))) == b""


@pytest.mark.parametrize(
    "fields",
    [
        [CONNECTION],
        [CONNECTION, (b"http2-settings", b"AAMA"), (b"http2-settings", b"AAMA")],
        [(b"connection", b"upgrade"), (b"http2-settings", b"AAMAAABk")],
        [(b"connection", b"http2-settings"), (b"http2-settings", b"AAMAAABk")],
        [CONNECTION, (b"http2-settings", b"AAMAAAB")],
        [CONNECTION, (b"http2-settings", b"AAM+AABk")],
        [CONNECTION, (b"http2-settings", b"AAMA\xe4ABk")],
        [CONNECTION, (b"http2-settings", b"A")],
    ],
)
def test_what_is_no_valid_upgrade_is_none(fields: list[tuple[bytes, bytes]]) -> None:
    assert upgrade_settings(asking(*fields)) is None


def test_the_versions_to_offer() -> None:
    assert protocols(None) == ("h2", "h1")
    assert protocols(["h1"]) == ("h1",)
    assert protocols(["h1", "h2", "h1"]) == ("h1", "h2")
