"""All settings by name, in the order of the reference, and advice about unknown names.

Each setting is declared once, in a module of `servo.settings.sections`. Its flag, its environment
variable, its type, its default and its documentation all follow from the declaration (see
`servo.settings.setting.Setting`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.peers import advice, peer_of
from servo.settings.sections import (
    application,
    control,
    dashboard,
    http,
    http2,
    metrics,
    pools,
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
    for module in (
        *(application, workers, pools, http, http2, websocket, tls),
        *(process, control, dashboard, metrics),
    )
    for setting in module.SETTINGS
}
_ALIASES = {setting.alias: setting.name for setting in SETTINGS.values() if setting.alias}

# A misspelt name is compared with the names of settings, of gunicorn's settings, and of flags, to
# suggest the most similar one. Flags shorter than this are left out: in a configuration file, `env`
# or `name` is more likely the user's own variable than a misspelt setting.
_MIN_FLAG_LENGTH = 6
_FLAG_NAMES = {
    flag.lstrip("-").replace("-", "_"): name
    for name, flags in [
        *((foreign.name, foreign.flags) for foreign in FOREIGN.values()),
        *((setting.name, setting.flags) for setting in SETTINGS.values()),
    ]
    for flag in flags
}
_KNOWN_NAMES = {
    **{flag: name for flag, name in _FLAG_NAMES.items() if len(flag) >= _MIN_FLAG_LENGTH},
    **_ALIASES,
    **{name: name for name in (*FOREIGN, *SETTINGS)},
}


def canonical(name: str) -> str | None:
    """The name of the setting that has this name, here or in gunicorn; None if there is none."""
    return name if name in SETTINGS else _ALIASES.get(name)


def suggest(name: str, cutoff: float = ALIKE) -> str | None:
    """The setting, ours or gunicorn's, that an unknown name in a file most likely means.

    name     the unknown name
    cutoff   how similar it must be to a known name, from 0 to 1
    """
    peer = peer_of(name)
    if peer is not None:
        return peer.setting or None
    found = nearest(name, _KNOWN_NAMES, cutoff)
    return _KNOWN_NAMES[found] if found else None


def advise(name: str) -> str:
    """The end of a message about an unknown name in a file: the name to use instead, or ""."""
    peer = peer_of(name)
    if peer is not None:
        return advice(peer, peer.setting, " = ")
    found = suggest(name)
    return f"; did you mean {found}?" if found else ""


def advise_variable(variable: str) -> str:
    """The end of a message about an unknown variable that begins with SERVO_, like `advise`."""
    name = variable.removeprefix("SERVO_")
    peer = peer_of(name)
    if peer is not None:
        return advice(peer, f"SERVO_{peer.setting.upper()}", "=")
    known = [f"SERVO_{known.upper()}" for known in ("cmd_args", suggest(name)) if known]
    return did_you_mean(variable, known)


def advise_flag(flag: str, flags: Iterable[str]) -> str:
    """The end of a message about an unknown flag, like `advise`.

    flag    the unknown flag, with its dashes
    flags   all flags that exist
    """
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
