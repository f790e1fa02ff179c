"""TOML documents, and the positions of their errors."""

from __future__ import annotations

import pytest

from servo.settings.toml import TOMLError, parse_toml


def test_a_document_becomes_a_table() -> None:
    text = 'workers = 2\nbind = ["a", "b"]\n[sni_certs]\n"example.org" = "cert.pem"\n'
    assert parse_toml(text) == {
        "workers": 2,
        "bind": ["a", "b"],
        "sni_certs": {"example.org": "cert.pem"},
    }
    assert parse_toml("") == {}


@pytest.mark.parametrize(
    ("text", "line"),
    [("workers = = 2\n", 1), ("workers = 2\n\nworkers = 3 4\n", 3)],
)
def test_an_error_has_its_line(text: str, line: int) -> None:
    with pytest.raises(TOMLError) as caught:
        parse_toml(text)
    assert caught.value.line == line
    assert str(caught.value)


def test_an_error_without_a_line() -> None:
    """For the end of a document, tomllib names no line."""
    with pytest.raises(TOMLError, match="end of document") as caught:
        parse_toml("workers = ")
    assert caught.value.line == 0
