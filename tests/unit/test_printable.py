"""Foreign text is escaped before it goes to a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.printable import printable, printable_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Größe 漢字 \U0001f600", "plain Größe 漢字 \U0001f600"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x7f\x85\x9f", r"\x7f\x85\x9f"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("\u2066a\u2069", r"\u2066a\u2069"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert printable(text) == printable_line(text) == shown


def test_only_printable_line_escapes_line_feeds():
    assert printable("a\n\tb\r") == "a\n\tb" + r"\x0d"
    assert printable_line("a\n\tb\r") == r"a\n\tb\x0d"


@given(st.text())
def test_nothing_that_controls_a_terminal_is_left(text):
    assert not any(unicodedata.category(each) == "Cc" for each in printable_line(text))
    assert set(printable(text)) <= {"\n", "\t", *printable_line(text)}
