"""Every setting, declared once: `SETTINGS` by name, in the order of the reference.

From a declaration come the flag, the environment variable, the name in files, the type, the
default, the help, and whether a reload applies a change (see `servo.settings.setting.Setting`).
"""

from __future__ import annotations

from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.names import ALIKE, nearest
from servo.settings.sections import (
    application,
    control,
    http,
    http2,
    observe,
    process,
    tls,
    websocket,
    workers,
)
from servo.settings.setting import Setting

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for module in (application, workers, http, http2, websocket, tls, process, control, observe)
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
    found = nearest(name, _WORDS, cutoff)
    return _WORDS[found] if found else None


__all__ = ["SETTINGS", "Setting", "canonical", "suggest"]
