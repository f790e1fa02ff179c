"""Tokens, cookies, and requests of other pages."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from servo.dashboard.access import (
    COOKIE_S,
    FAILURES,
    Access,
    Rules,
    bearer_token,
    why_foreign,
    why_not_control,
)

TOKEN = "0123456789abcdef"
NOW = 1_000_000.0


def access(*, token: str | None = TOKEN, secure: bool = False, **more: Any) -> Access:
    digest = hashlib.sha256(token.encode()).digest() if token is not None else b""
    values = {"key": b"k" * 32, "port": 9000, "control": False, **more}
    return Access(Rules(digest=digest, secure=secure, **values))


def cookie(rules: Access, now: float = NOW) -> str:
    return rules.cookie(now).partition(";")[0]


def test_only_the_token_is_accepted() -> None:
    rules = access()
    assert rules.accepts(TOKEN)
    for wrong in ("", TOKEN[:-1], TOKEN + "0", "\udcff"):
        assert not rules.accepts(wrong)


def test_a_cookie_signs_in_until_it_expires() -> None:
    rules = access()
    fields = {"cookie": f"other=1; {cookie(rules)}"}
    assert rules.is_signed_in(fields, NOW)
    assert rules.is_signed_in(fields, NOW + COOKIE_S - 1)
    assert not rules.is_signed_in(fields, NOW + COOKIE_S)
    assert not rules.is_signed_in({}, NOW)


def test_a_cookie_is_good_for_one_key_and_port() -> None:
    fields = {"cookie": cookie(access())}
    assert access().is_signed_in(fields, NOW)
    assert not access(key=b"x" * 32).is_signed_in(fields, NOW)
    assert not access(port=9001).is_signed_in(fields, NOW)


@pytest.mark.parametrize(
    "value",
    ["", ".", "1.", "99999999999.", "x.y", "9" * 5000 + ".a", "-1.a", "٣.a", '"', "\x80.é"],
)
def test_a_forged_cookie_is_not_accepted(value: str) -> None:
    assert not access().is_signed_in({"cookie": f"servo_dashboard_9000={value}"}, NOW)


def test_a_later_time_needs_another_signature() -> None:
    rules = access()
    name, _, value = cookie(rules).partition("=")
    signature = value.partition(".")[2]
    forged = {"cookie": f"{name}={int(NOW) + 2 * COOKIE_S}.{signature}"}
    assert not rules.is_signed_in(forged, NOW)


def test_no_script_and_no_other_site_gets_the_cookie() -> None:
    words = access(secure=True).cookie(NOW).split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/"} <= set(words)
    assert "Secure" not in access().cookie(NOW).split("; ")
    assert "Max-Age=0" in access().no_cookie().split("; ")


def test_a_unix_socket_asks_for_no_token() -> None:
    rules = access(token=None)
    assert not rules.asks_token
    assert rules.is_signed_in({}, NOW)


@pytest.mark.parametrize(
    ("host", "is_refused"),
    [
        *(("localhost", False), ("LOCALHOST:9000", False), ("127.0.0.1", False)),
        *(("127.9.9.9:80", False), ("[::1]:9000", False)),
        *(("evil.example", True), ("localhost.evil.example", True), ("10.0.0.1", True)),
        *(("", True), ("[", True), ("127.0.0.1.nip.io", True), ("evil@localhost:x", False)),
    ],
)
def test_without_a_token_the_host_must_be_this_machine(host: str, is_refused: bool) -> None:
    assert access(token=None).refuses_host({"host": host}) is is_refused
    assert not access().refuses_host({"host": host})


def test_without_a_host_there_is_no_proof() -> None:
    assert access(token=None).refuses_host({})


def test_few_wrong_tokens_wait_at_a_time() -> None:
    rules = access()
    for _ in range(FAILURES):
        assert not rules.is_busy
        assert rules.begin_failure()
    assert rules.is_busy
    assert not rules.begin_failure()
    rules.end_failure()
    assert not rules.is_busy


@pytest.mark.parametrize(
    ("field", "token"),
    [("Bearer abc", "abc"), ("bearer  abc ", "abc"), ("Basic abc", None), ("", None)],
)
def test_the_token_of_a_program(field: str, token: str | None) -> None:
    assert bearer_token({"authorization": field}) == token


GOOD = {
    "host": "127.0.0.1:9000",
    "x-servo-control": "1",
    "content-type": "application/json; charset=utf-8",
}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "https://127.0.0.1:9000", "sec-fetch-site": "same-origin"},
        {"host": "ops.example", "origin": "https://ops.example"},
        {"host": "ops.example:443", "origin": "https://ops.example:443"},
        {"sec-fetch-site": "none"},
    ],
)
def test_the_dashboards_own_page_may_control(more: dict[str, str]) -> None:
    assert why_not_control({**GOOD, **more}) == ""


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"origin": "http://evil.example"}, "Origin"),
        ({"origin": "http://127.0.0.1:8000"}, "Origin"),
        ({"origin": "null"}, "Origin"),
        ({"origin": ""}, "Origin"),
        ({"origin": "http://["}, "Origin"),
        ({"origin": "http://127.0.0.1:9000", "host": ""}, "Origin"),
        ({"sec-fetch-site": "cross-site"}, "Sec-Fetch-Site"),
        ({"sec-fetch-site": "same-site"}, "Sec-Fetch-Site"),
        ({"x-servo-control": "0"}, "X-Servo-Control"),
        ({"content-type": "text/plain"}, "Content-Type"),
        ({"content-type": "application/x-www-form-urlencoded"}, "Content-Type"),
    ],
)
def test_other_pages_may_not_control(more: dict[str, str], why: str) -> None:
    assert why in why_not_control({**GOOD, **more})


def test_a_form_of_another_site_is_foreign() -> None:
    assert why_foreign({"sec-fetch-site": "cross-site"})
    assert not why_foreign({"origin": "null", "sec-fetch-site": "same-origin"})
    assert not why_foreign({})
