"""Every setting, declared once: `SETTINGS` by name, in the order of the reference.

From a declaration come the flag, the environment variable, the name in files, the type, the
default, the help, and whether a reload applies a change (see `servo.settings.setting.Setting`).
"""

from __future__ import annotations

from servo.settings.sections import application, http, process, workers
from servo.settings.setting import Setting

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for module in (application, workers, http, process)
    for setting in module.SETTINGS
}
_ALIASES = {setting.alias: setting.name for setting in SETTINGS.values() if setting.alias}


def canonical(name: str) -> str | None:
    """The setting that a name (its own, or gunicorn's) means."""
    return name if name in SETTINGS else _ALIASES.get(name)


__all__ = ["SETTINGS", "Setting", "canonical"]
