"""Escapes control characters in text from others before it is shown on a terminal.

Control characters can move the cursor, change the window's title, or make the terminal send input.
Bidirectional ones, such as U+202E, change the order in which text is shown.
"""

from __future__ import annotations

_CONTROLS = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ALL = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS}
_LINES = {code: shown for code, shown in _ALL.items() if code not in (9, 10)}
_ALL |= {9: "\\t", 10: "\\n"}


def printable(text: str) -> str:
    """Escape all control characters, also bidirectional ones, except line feed and tab."""
    return text.translate(_LINES)


def printable_line(text: str) -> str:
    """Escape all control characters, including line feed and tab: the result is one line."""
    return text.translate(_ALL)
