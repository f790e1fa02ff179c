"""One setting: the declaration that its flag, variable, file name, type and docs come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError
from servo.settings.types import Switch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from servo.settings.types import ValueType


@dataclass(frozen=True, slots=True)
class DefaultFrom:
    """An environment variable that takes part in a default, as platforms set them.

    variable   its name
    shown      what the default becomes, for people
    text       turns the variable's text into the setting's
    """

    variable: str
    shown: str
    text: Callable[[str], str] = str.strip


@dataclass(frozen=True, slots=True)
class Setting:
    """A declaration.

    name        its name in files; `SERVO_<NAME>` in the environment
    type        reads and writes its value
    default     already a value
    help        one sentence, for `--help`
    details     more, in Markdown, for the reference
    section     the heading that it stands under
    flags       besides `--<name>` (underscores as dashes), which always works
    no_flag     (flag, value): a flag without argument, for a setting that is not a switch
    bare        what the flag means when its argument is left out
    unit        of a number
    nullable    None is a value; empty text means it
    alias       gunicorn's name for it, where that differs
    reloadable  a reload applies a change; otherwise it takes a restart
    in_files    a configuration file may hold it
    default_from  a variable that changes the default
    secret      its value is never shown, and has no flag, which `ps` would show
    names_only  of its NAME=value pairs only the names are shown
    """

    name: str
    type: ValueType
    default: Any
    help: str
    details: str = ""
    section: str = ""
    flags: tuple[str, ...] = ()
    no_flag: tuple[str, Any] | None = None
    bare: str | None = None
    unit: str = ""
    nullable: bool = False
    alias: str = ""
    reloadable: bool = True
    in_files: bool = True
    default_from: DefaultFrom | None = None
    secret: bool = False
    names_only: bool = False

    @property
    def variable(self) -> str:
        """The environment variable."""
        return f"SERVO_{self.name.upper()}"

    @property
    def plain_flag(self) -> str:
        """The flag that follows from the name."""
        return "--" + self.name.replace("_", "-")

    @property
    def shown_flags(self) -> tuple[str, ...]:
        """The flags that people are told of."""
        return self.flags or (self.plain_flag,)

    @property
    def main_flag(self) -> str:
        """The flag to name in messages."""
        return next((flag for flag in self.flags if flag.startswith("--")), self.plain_flag)

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no argument and has a `--no-` form."""
        return isinstance(self.type, Switch)

    def read(self, value: object, source: str, *, is_text: bool = False) -> Any:
        """The setting's value from what a source holds.

        is_text   it comes from the environment, where a list is one text

        Raises ConfigError, which names the setting, the value, the source and what is valid.
        """
        if self.nullable and (value is None or (isinstance(value, str) and not value.strip())):
            return None
        try:
            if is_text and isinstance(value, str):
                return self.type.from_text(value)
            return self.type.from_value(value)
        except ValueError as error:
            raise self.refusal(value, source, error) from error

    def check(self, value: Any, source: str, base: Path) -> None:
        """Raise ConfigError if what the value names isn't there."""
        if value is None:
            return
        try:
            self.type.check(value, base)
        except ValueError as error:
            raise self.refusal(value, source, error) from error

    def refusal(self, value: object, source: str, error: ValueError) -> ConfigError:
        """The error for a bad value."""
        advice = getattr(error, "advice", "") or f"expected {self.type.valid}"
        shown = "the value" if self.secret or self.names_only else repr(value)
        return ConfigError(f"{self.name}: {shown} is not valid ({source}); {advice}")

    def show(self, value: Any) -> str:
        """The value for people."""
        if value is None:
            return "none"
        if self.names_only:
            value = [f"{pair.partition('=')[0]}=…" for pair in value]
        return "(secret)" if self.secret else self.type.to_text(value)
