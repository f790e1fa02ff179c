"""JSON on the command line: an error names the place."""

from __future__ import annotations

import pytest

from servo.cli.json_argument import check_json
from servo.errors import UsageError


@pytest.mark.parametrize("text", ["null", "1", '{"a": [1, "é"]}', ' "x" '])
def test_valid(text: str) -> None:
    check_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value at line 1, column 1\n  \n  ^"),
        ("{'a': 1}", "line 1, column 2\n  {'a': 1}\n   ^"),
        ('{"a": 1,\n "b" 2}', 'line 2, column 6\n   "b" 2}\n       ^'),
        (
            "[" + "1, " * 40 + "x]",
            "column 122\n  1, 1, 1, 1, 1, 1, 1, 1, 1, 1, x]\n" + 32 * " " + "^",
        ),
        ("\x1b[2J", r"  \x1b[2J"),
        ("NaN", "NaN is not a JSON value"),
        ("[" * 100_000, "the message has too many levels"),
    ],
)
def test_invalid(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_json(text)
    assert message in str(error.value)
