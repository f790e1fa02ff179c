"""What `servo migrate` has found out about one app, and its text as `servo.toml`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from servo.errors import ConfigError
from servo.printable import printable_line
from servo.settings.schema import SETTINGS
from servo.settings.types import Account, Size

# A key that TOML takes without quotes.
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@dataclass
class Migrated:
    """The settings of one app.

    name     the app's name in the old configuration
    origin   where the settings come from, for the first line and for messages
    values   setting -> its value
    notes    what has no counterpart, or needs the operator's attention: one line each
    """

    name: str
    origin: str
    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, setting: str, value: object, option: str) -> None:
        """Set a setting, or note why its value can't be used.

        setting   the setting's name
        value     its value, as a text or as TOML has it
        option    the old option, for the note
        """
        try:
            read = SETTINGS[setting].read(value, option)
        except ConfigError as error:
            self.notes.append(f"{option}: {error}")
            return
        if isinstance(value, str) and isinstance(SETTINGS[setting].type, Account | Size):
            read = value  # "www-data" and "512M" say more than their numbers
        if SETTINGS[setting].secret:
            self.notes.append(
                f"{option}: a password does not belong in this file; set "
                f"{SETTINGS[setting].variable} in the environment"
            )
        elif SETTINGS[setting].in_files:
            self.values[setting] = read

    def add(self, setting: str, value: str, option: str) -> None:
        """Add a value to a setting that takes a list.

        setting   the setting's name
        value     the value to add
        option    the old option, for a note
        """
        self.put(setting, [*self.values.get(setting, []), value], option)

    def lost(self, option: str, advice: str) -> None:
        """Note an option that has no counterpart.

        option   the option, as the user wrote it
        advice   what to do instead
        """
        self.notes.append(f"{option}: {advice}")

    def to_toml(self) -> str:
        """The text of `servo.toml`, with the notes as comments at its end."""
        lines = [f"# From {printable_line(self.origin)}, by `servo migrate`."]
        tables = []
        for name in SETTINGS:  # in the order of the reference
            if name not in self.values:
                continue
            value = _native(name, self.values[name])
            if isinstance(value, dict):
                tables += ["", f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in value.items())]
            else:
                lines.append(f"{name} = {_toml(value)}")
        if self.notes:
            lines += ["", "# Please check:"]
            lines += [f"# * {printable_line(note)}" for note in self.notes]
        return "\n".join([*lines, *tables]) + "\n"


def _native(name: str, value: Any) -> Any:
    """A setting's value as TOML has it: a number, a switch, a list or a table, or else a text."""
    if isinstance(value, bool | list | dict | str):
        return value
    text = SETTINGS[name].type.to_text(value)
    if re.fullmatch(r"[1-9]\d*|0", text):
        return int(text)
    return text


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)} = {_toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, int | float):
        return str(value)
    # A basic string of TOML is one of JSON, but for one control character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
