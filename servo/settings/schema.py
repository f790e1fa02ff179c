"""Every setting, declared once: `SETTINGS` by name, in the order of the reference.

From a declaration come the flag, the environment variable, the name in files, the type, the
default, the help, and whether a reload applies a change (see `servo.settings.setting.Setting`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.peers import advice, peer_of
from servo.settings.sections import (
    application,
    control,
    http,
    http2,
    metrics,
    process,
    tls,
    websocket,
    workers,
)
from servo.settings.setting import Setting
from servo.settings.suggestions import ALIKE, did_you_mean, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for module in (application, workers, http, http2, websocket, tls, process, control, metrics)
    for setting in module.SETTINGS
}
_ALIASES = {setting.alias: setting.name for setting in SETTINGS.values() if setting.alias}

# Words that people take for names: the names, gunicorn's, and what flags are called. A short flag
# name (`--env`, `--name`) is too common a word to be a slip.
_FLAG_WORDS = {
    flag.lstrip("-").replace("-", "_"): name
    for name, flags in [
        *((foreign.name, foreign.flags) for foreign in FOREIGN.values()),
        *((setting.name, setting.flags) for setting in SETTINGS.values()),
    ]
    for flag in flags
}
_WORDS = {
    **{word: name for word, name in _FLAG_WORDS.items() if len(word) > 5},
    **_ALIASES,
    **{name: name for name in (*FOREIGN, *SETTINGS)},
}


def canonical(name: str) -> str | None:
    """The setting that a name (its own, or gunicorn's) means."""
    return name if name in SETTINGS else _ALIASES.get(name)


def suggest(name: str, cutoff: float = ALIKE) -> str | None:
    """The setting (ours, or gunicorn's) that an unknown name of a file most likely means."""
    peer = peer_of(name)
    if peer is not None:
        return peer.setting or None
    found = nearest(name, _WORDS, cutoff)
    return _WORDS[found] if found else None


def advise(name: str) -> str:
    """The end of a message about an unknown name in a file: what there is instead, or nothing."""
    peer = peer_of(name)
    if peer is not None:
        return advice(peer, peer.setting, " = ")
    found = suggest(name)
    return f"; did you mean {found}?" if found else ""


def advise_variable(variable: str) -> str:
    """The same for an environment variable that begins with SERVO_."""
    name = variable.removeprefix("SERVO_")
    peer = peer_of(name)
    if peer is not None:
        return advice(peer, f"SERVO_{peer.setting.upper()}", "=")
    known = [f"SERVO_{known.upper()}" for known in ("cmd_args", suggest(name)) if known]
    return did_you_mean(variable, known)


def advise_flag(flag: str, flags: Iterable[str]) -> str:
    """The same for a flag; `flags` are all that there are."""
    peer = peer_of(flag)
    if peer is not None:
        ours = SETTINGS[peer.setting].main_flag if peer.setting else ""
        return advice(peer, ours, " ")
    return did_you_mean(flag, flags)


__all__ = [
    "SETTINGS",
    "Setting",
    "advise",
    "advise_flag",
    "advise_variable",
    "canonical",
    "suggest",
]
