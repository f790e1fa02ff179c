"""TOML, read by the standard library or, on Python 3.10, by the package that it was made from."""

from __future__ import annotations

import re
import sys
from typing import Any


class TOMLError(ValueError):
    """Text that is no TOML; `line` is where, from 1, as far as it is known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.search(r"line (\d+)", message)
        self.line = int(found[1]) if found else 0


def parse_toml(text: str) -> dict[str, Any]:
    """The table that a TOML document is. Raises TOMLError."""
    if sys.version_info >= (3, 11):
        import tomllib  # not needed by most starts
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TOMLError(str(error)) from error
