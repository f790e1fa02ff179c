"""Text of others' making, made fit for a terminal.

At a terminal a control character moves the cursor, changes the title or types for the user, and a
bidirectional one (U+202E, say) shows text in another order than it is in.
"""

from __future__ import annotations

_CONTROLS = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ALL = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROLS}
_LINES = {code: shown for code, shown in _ALL.items() if code not in (9, 10)}
_ALL |= {9: "\\t", 10: "\\n"}


def printable(text: str) -> str:
    """Text with its control characters but line feed and tab escaped, bidirectional ones too."""
    return text.translate(_LINES)


def printable_line(text: str) -> str:
    """The same on one line: line feed and tab are escaped, too."""
    return text.translate(_ALL)
