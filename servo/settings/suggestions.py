"""Suggestions for misspelt names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


# A suggestion must be at least this similar to the unknown name (difflib's ratio): "prot" and
# "port" are similar enough, "servo" and "user" are not.
ALIKE = 0.7


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most similar to this one, or None.

    name     the unknown name; its case and the dashes before a flag are ignored
    known    the names to choose from
    cutoff   how similar they must be, from 0 to 1 (difflib's ratio)
    """
    import difflib  # imported here, because it is only needed after a mistake

    folded = {_folded(other): other for other in known}
    found = difflib.get_close_matches(_folded(name), folded, 1, cutoff)
    return folded[found[0]] if found else None


def _folded(name: str) -> str:
    return name.lower().lstrip("-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar of the known names, or ""."""
    found = nearest(name, known, ALIKE)
    return f"; did you mean {found}?" if found else ""
