"""Secrets in texts: found by value, by name and by form; harmless texts stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.control.redaction import (
    REMOVED,
    is_secret_name,
    redact,
    secret_values,
    with_texts,
    without_values,
)

S = "hunter2/pa$$+w0rd"


@pytest.mark.parametrize(
    "text",
    [
        f"postgres://shop:{S}@db.example/shop",
        "redis://:hunter2/pa$$+w0rd@cache:6379/0",
        "https://hunter2/pa$$+w0rd@sentry.example/4",
        "amqp://u:p@hunter2/pa$$+w0rd@mq",  # the password contains an @
        f"PASSWORD={S}",
        f"DB_PASSWORD: {S}",
        f"password = '{S}'",
        f'{{"password": "{S}", "user": "shop"}}',
        f"{{'api_key': '{S}'}}",
        f'"{{\\"password\\": \\"{S} {S}\\"}}"',
        f"('access-token', '{S}')",
        f"[(b'x-api-key', b'{S}')]",
        f"SECRET_KEY = b'{S} with blanks'",
        f"Authorization: Bearer {S}",
        f"authorization: Basic {S}",
        f"(b'authorization', b'Digest username=u, response={S}')",
        f"Cookie: theme=dark; sid={S}",
        f"{{'cookie': 'a=b; sid={S}', 'host': 'x'}}",
        f"Set-Cookie: sid={S}; Path=/",
        f"GET /reset?code={S}&page=2 HTTP/1.1",
        f"--db-password {S}",
        f"--token={S}",
        f"client_secret => '{S}'",
        f"auth={S}",
        f"sessionid={S}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{S}\n",  # the log has cut it off
    ],
)
def test_a_secret_is_removed(text: str) -> None:
    clean = redact(text)
    assert REMOVED in clean
    for part in ("hunter2", "w0rd"):
        assert part not in clean
    assert redact(clean) == clean


@pytest.mark.parametrize(
    "token",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "xoxb-123456789012-abcdefghijkl",
        "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        "glpat-abcdefghijklmnopqrst",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MEFCQ0RFRg==",
    ],
)
def test_a_token_is_known_by_its_form(token: str) -> None:
    assert redact(f"the service refused {token} today") == f"the service refused {REMOVED} today"


@pytest.mark.parametrize(
    "text",
    [
        "worker 1 (pid 25389) ended after 0.08 s: killed by signal 9 (SIGKILL), not by the arbiter",
        "importing shop failed: ModuleNotFoundError: No module named 'setings'",
        '  File "/srv/shop/lib/python3.11/site-packages/shop/keys.py", line 15, in make_report',
        "KeyError: 'name'",
        "http://127.0.0.1:8758",
        "GET /report/2026/03 took 12.5 s",
        "keyfile  /etc/ssl/private/key.pem  flag --keyfile",
        "author: Servo",
        "passed: 12",
        "monkey: 3",
    ],
)
def test_harmless_texts_stay(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("DJANGO_SECRET_KEY", True),
        ("PGPASSWORD", True),
        ("GITHUB_TOKEN", True),
        ("SENTRY_DSN", True),
        ("API_KEY", True),
        ("SERVO_KEYFILE_PASSWORD", True),
        ("PASS", True),
        ("SERVO_WORKERS", False),
        ("SERVO_KEYFILE", False),
        ("PWD", False),
        ("PYTHONPATH", False),
    ],
)
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_the_secrets_of_an_environment() -> None:
    found = secret_values(
        {
            "DB": "postgres://shop:hunter2@db/shop?x=y",
            "DSN_OF_SENTRY": "https://abc123@sentry/4",
            "API_TOKEN": "t0ken",
            "LANG": "C.UTF-8",
        }
    )
    assert {"hunter2", "abc123", "t0ken"} <= found
    assert "C.UTF-8" not in found


def test_values_are_removed_wherever_they_stand() -> None:
    text = "x=correct-horse%2Fbattery correct-horse/battery 'tiny' tinyness no"
    clean = without_values(text, ["correct-horse/battery", "tiny", "no", ""])
    assert clean == f"x={REMOVED} {REMOVED} '{REMOVED}' tinyness no"
    key = "-----BEGIN KEY-----\nabcdefghijkl\n-----END KEY-----"
    assert "abcdefgh" not in without_values("line: abcdefghijkl", [key])


def test_all_texts_of_a_json_value() -> None:
    value = {"a": ["x", 1, None, {"b": "x"}], "x": 2.5}
    assert with_texts(value, lambda text: text + "!") == {
        "a": ["x!", 1, None, {"b": "x!"}],
        "x": 2.5,
    }


@given(
    st.text("abcXYZ123-_=:;,'\"?&/@ {}()\\\n", max_size=80),
    st.sampled_from(["password=", "Authorization: Bearer ", "x://u:", '"token": "']),
)
def test_a_secret_is_removed_after_any_text(before: str, name: str) -> None:
    end = {"x://u:": "@host", '"token": "': '"'}.get(name, "")
    assert "Qh7vQh7v" not in redact(f"{before} {name}Qh7vQh7v{end}")
