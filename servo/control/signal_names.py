"""The names and numbers of signals, as operators type them."""

from __future__ import annotations

import signal

from servo.settings.suggestions import nearest

_PREFIX = "SIG"


def signal_names() -> list[str]:
    """The names of all signals, without SIG: HUP, INT and so on."""
    named = sorted(signal.Signals, key=lambda each: each.value)
    return [each.name.removeprefix(_PREFIX) for each in named]


def signal_number(text: str) -> int:
    """The number of a signal.

    text   a name with or without SIG, in any case (`TERM`, `sigterm`, `RTMIN+3`), or a number. A
           dash before it, as in `kill -9`, is ignored

    Raises ValueError. Its text names the most similar signal, or lists all signals.
    """
    word = text.strip().removeprefix("-").upper().removeprefix(_PREFIX)
    if word.isdecimal() and word.isascii() and len(word) <= 3:
        number = int(word)
    else:
        base, _, offset = word.partition("+")
        member = signal.Signals.__members__.get(_PREFIX + base)
        is_offset = offset.isdecimal() and offset.isascii() and len(offset) <= 3
        if member is None or ("+" in word and not (is_offset and base == "RTMIN")):
            raise ValueError(_unknown(text, word))
        number = member + int(offset or 0)
    if number not in signal.valid_signals():  # the C library uses two numbers itself
        raise ValueError(_unknown(text, ""))
    return number


def _unknown(text: str, word: str) -> str:
    found = nearest(word, signal_names())
    if found is not None:
        return f"{text[:40]!r} is not a signal; did you mean {found}?"
    return f"{text[:40]!r} is not a signal; `kill -l` lists all"
