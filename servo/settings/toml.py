"""Reads TOML: with tomllib or, on Python 3.10, with tomli, on which tomllib is based."""

from __future__ import annotations

import re
import sys
from typing import Any


class TOMLError(ValueError):
    """Invalid TOML; `line` is the number of the line, from 1, or 0 if it isn't known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        found = re.search(r"line (\d+)", message)
        self.line = int(found[1]) if found else 0


def parse_toml(text: str) -> dict[str, Any]:
    """Parse a TOML document into a table. Raises TOMLError."""
    if sys.version_info >= (3, 11):
        import tomllib  # imported here, because most starts read no TOML
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TOMLError(str(error)) from error
