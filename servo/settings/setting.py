"""A setting's declaration, from which its flag, its variable and its documentation follow."""

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
    """An environment variable, set by hosting platforms, that replaces a setting's default.

    variable   the variable's name
    shown      the resulting default as documentation shows it, such as `0.0.0.0:$PORT`
    text       turns the variable's text into that of the setting
    """

    variable: str
    shown: str
    text: Callable[[str], str] = str.strip


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting.

    name          its name in files; in the environment it is `SERVO_<NAME>`
    type          reads, checks and writes its values
    default       its default: a value, not text
    help          one sentence, for `--help`
    details       more about it, in Markdown, for the reference
    section       its heading in `--help` and in the reference
    flags         its flags besides `--<name>` (with dashes), which always exists
    no_flag       (flag, value): a flag without argument that sets this value, if the setting is not
                  a switch
    bare          the value's text if the flag has no argument
    unit          the unit of a number
    nullable      whether None is a value; empty text means None
    alias         gunicorn's name for it, if that differs
    reloadable    whether a reload applies a change; otherwise a restart is needed
    in_files      whether a configuration file may contain it
    default_from  an environment variable that replaces the default
    secret        whether the value is never shown. There is no flag, because `ps` would show it
    names_only    whether the value is a list of NAME=value pairs, of which only the names are shown
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
        """The name of its environment variable."""
        return f"SERVO_{self.name.upper()}"

    @property
    def plain_flag(self) -> str:
        """The flag derived from the name: `--<name>`, with dashes."""
        return "--" + self.name.replace("_", "-")

    @property
    def shown_flags(self) -> tuple[str, ...]:
        """The flags that `--help` shows."""
        return self.flags or (self.plain_flag,)

    @property
    def main_flag(self) -> str:
        """The flag that messages name."""
        return next((flag for flag in self.flags if flag.startswith("--")), self.plain_flag)

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no argument and has a `--no-…` form."""
        return isinstance(self.type, Switch)

    def read(self, value: object, source: str, *, is_text: bool = False) -> Any:
        """Make the setting's value from a source's text or object.

        value     the text or object
        source    where it comes from, for messages
        is_text   whether the source is the environment, where even a list is one text

        Raises ConfigError, which names the setting, the value, the source and the valid values.
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
        """Check that a value can be used on this system, for example that its file exists.

        value    a value that `read` has returned
        source   where it comes from, for messages
        base     the directory that relative paths start at

        Raises ConfigError.
        """
        if value is None:
            return
        try:
            self.type.check(value, base)
        except ValueError as error:
            raise self.refusal(value, source, error) from error

    def refusal(self, value: object, source: str, error: ValueError) -> ConfigError:
        """The error for an invalid value.

        value    the value as its source has it; a secret one is left out of the message
        source   where it comes from
        error    why it is invalid; the text of its attribute `advice`, if any, says what to do
        """
        advice = getattr(error, "advice", "") or f"expected {self.type.valid}"
        shown = "the value" if self.secret or self.names_only else repr(value)
        return ConfigError(f"{self.name}: {shown} is not valid ({source}); {advice}")

    def show(self, value: Any) -> str:
        """A value as people see it, without its secrets."""
        if value is None:
            return "none"
        if self.names_only:
            value = [f"{pair.partition('=')[0]}=…" for pair in value]
        return "(secret)" if self.secret else self.type.to_text(value)
