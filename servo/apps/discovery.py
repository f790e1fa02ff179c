"""Guesses which app a directory contains, for a suggestion in an error message.

It only reads the source files, and imports nothing.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from servo.apps.loader import DEFAULTS

if TYPE_CHECKING:
    from pathlib import Path

_MAX_FILES = 100
_MAX_BYTES = 1 << 20


def likely_app(directory: Path) -> str | None:
    """`module:attribute`, if exactly one file in the directory defines a usual name of an app."""
    try:
        files = sorted(directory.glob("*.py"))
    except OSError:
        return None
    found = [(path.stem, name) for path in files[:_MAX_FILES] if (name := _app_in(path))]
    return ":".join(found[0]) if len(found) == 1 else None


def _app_in(path: Path) -> str | None:
    if not path.stem.isidentifier():
        return None  # not a module, such as servo.conf.py
    try:
        if path.stat().st_size > _MAX_BYTES:
            return None
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names = {name for statement in tree.body for name in _bound_by(statement)}
    return next((each for each in DEFAULTS if each.removesuffix("()") in names), None)


def _bound_by(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
