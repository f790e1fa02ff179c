"""Names that somebody may have meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


# For what is chosen from many: "prot" and "port" are more alike than this, "servo" and "user" less.
ALIKE = 0.7


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that is most like this one, if any is. Dashes before a flag don't count."""
    import difflib  # not needed before somebody errs

    folded = {_folded(other): other for other in known}
    found = difflib.get_close_matches(_folded(name), folded, 1, cutoff)
    return folded[found[0]] if found else None


def _folded(name: str) -> str:
    return name.lower().lstrip("-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: a suggestion, or nothing."""
    found = nearest(name, known, ALIKE)
    return f"; did you mean {found}?" if found else ""
