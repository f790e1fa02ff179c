"""Checks a JSON value on the command line before it is sent."""

from __future__ import annotations

import json

from servo.errors import UsageError

# How many characters of a line to show around an error.
_AROUND = 30


def check_json(text: str) -> None:
    """Check that a text is a JSON value.

    Raises UsageError, which shows where the text is wrong.
    """
    try:
        json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise UsageError(
            f"the message is not valid JSON: {error.msg} at {place}\n{_pointer(error)}"
        ) from error
    except ValueError as error:
        raise UsageError(f"the message is not valid JSON: {error}") from error
    except RecursionError as error:
        raise UsageError("the message has too many levels") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _pointer(error: json.JSONDecodeError) -> str:
    """The line with the error, and a caret below the wrong character."""
    before = error.doc[: error.pos].rpartition("\n")[2][-_AROUND:]
    after = error.doc[error.pos :].partition("\n")[0][:_AROUND]
    # repr escapes control characters. Its quotes are cut off.
    shown = repr(before)[1:-1]
    return f"  {shown}{repr(after)[1:-1]}\n  {' ' * len(shown)}^"
