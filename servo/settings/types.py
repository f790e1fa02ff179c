"""What a setting's value may be: how it is read from text, checked, and written back as text.

Every type reads three things into one value: text (an environment variable, or a flag), and what a
Python or TOML file holds. What it can't read raises ValueError; `valid` says what it could have.
"""

from __future__ import annotations

import grp
import ipaddress
import json
import math
import os
import pwd
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class ValueType:
    """The base: one line of text, surrounding blanks dropped (as gunicorn does)."""

    metavar = "TEXT"
    valid = "text"
    many = False  # a flag of this type may be repeated

    def from_text(self, text: str) -> Any:
        """The value that this text means. Raises ValueError."""
        return text.strip()

    def from_value(self, value: object) -> Any:
        """The value that this object of a configuration file means. Raises ValueError."""
        if isinstance(value, str):
            return self.from_text(value)
        raise ValueError("not text")

    def to_text(self, value: Any) -> str:
        """Text that `from_text` reads as this value."""
        return str(value)

    def check(self, value: Any, base: Path) -> None:
        """Look at the world around the value; relative paths start at `base`. Raises ValueError."""


class Text(ValueType):
    """Any text."""


class MountPoint(ValueType):
    """The path that an app is mounted at, as text ("/café") or percent-encoded ("/caf%C3%A9")."""

    metavar = "PATH"
    valid = (
        "a path such as /app or /caf%C3%A9: it begins with a slash and has no ?, # or spaces"
        " (%20 is one), and no empty, . or .. segments"
    )

    _FORM = re.compile(r"(?:[^%?#\s\x00-\x1f\x7f]|%[0-9A-Fa-f]{2})*")

    def from_text(self, text: str) -> str:
        text = text.strip()
        path = text.rstrip("/")
        if not path:
            return text
        if not self._FORM.fullmatch(path):
            raise ValueError("can't be in a path; write a space as %20, a percent sign as %25")
        decoded = unquote(path, errors="strict")
        decoded.encode()  # no surrogates: what the environment held was UTF-8
        first, *segments = decoded.split("/")
        if first or {"", ".", ".."}.intersection(segments) or not decoded.isprintable():
            raise ValueError("no path")
        return text


@dataclass(frozen=True)
class Whole(ValueType):
    """A whole number, or one of a few words."""

    minimum: int = 0
    words: tuple[str, ...] = ()
    maximum: int | None = None
    metavar = "N"

    @property
    def valid(self) -> str:  # type: ignore[override]
        words = "".join(f' or "{word}"' for word in self.words)
        if self.maximum is not None:
            return f"a whole number from {self.minimum} to {self.maximum}{words}"
        return f"a whole number, {self.minimum} or more{words}"

    def from_text(self, text: str) -> int | str:
        word = text.strip().lower()
        if word in self.words:
            return word
        try:
            number = int(word)
        except ValueError:
            number = int(word, 0)  # 0x…, 0o…: gunicorn reads them
        return self.from_value(number)

    def from_value(self, value: object) -> int | str:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("not a whole number")
        if value < self.minimum or (self.maximum is not None and value > self.maximum):
            raise ValueError("out of range")
        return value


class Seconds(ValueType):
    """A time, as a float."""

    metavar = "SECONDS"
    valid = "a number of seconds, 0 or more"

    def from_text(self, text: str) -> float:
        return self.from_value(float(text))

    def from_value(self, value: object) -> float:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError("not a number")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError("out of range")
        return float(value) + 0.0  # + 0.0: "-0" is 0

    def to_text(self, value: float) -> str:
        return repr(value).removesuffix(".0")


class Size(ValueType):
    """A number of bytes; text may end in K, M or G (powers of 1024)."""

    metavar = "BYTES"
    valid = "a number of bytes, 0 or more; K, M or G may follow"

    _FORM = re.compile(r"(\d+)\s*([kmg]?)(?:i?b)?", re.ASCII | re.IGNORECASE)
    _POWER = {"": 0, "k": 10, "m": 20, "g": 30}

    def from_text(self, text: str) -> int:
        form = self._FORM.fullmatch(text.strip())
        if form is None:
            raise ValueError("not a size")
        return int(form[1]) << self._POWER[form[2].lower()]

    def from_value(self, value: object) -> int:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError("not a size")
        return value


class Switch(ValueType):
    """On or off. Its flag comes as `--x` and `--no-x`."""

    metavar = ""
    valid = "true or false"

    _WORDS = {
        **dict.fromkeys(("true", "yes", "on", "1", "y"), True),
        **dict.fromkeys(("false", "no", "off", "0", "n"), False),
    }

    def from_text(self, text: str) -> bool:
        try:
            return self._WORDS[text.strip().lower()]
        except KeyError:
            raise ValueError("neither true nor false") from None

    def from_value(self, value: object) -> bool:
        return value if isinstance(value, bool) else bool(super().from_value(value))

    def to_text(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True)
class Choice(ValueType):
    """One of a few words. `aliases` are other words (and booleans, as words) for them."""

    options: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    name: str = ""

    @property
    def metavar(self) -> str:  # type: ignore[override]
        return self.name or "|".join(self.options)

    @property
    def valid(self) -> str:  # type: ignore[override]
        return "one of " + ", ".join(self.options)

    def from_text(self, text: str) -> str:
        word = text.strip().lower()
        word = self.aliases.get(word, word)
        if word not in self.options:
            raise ValueError("not one of them")
        return word

    def from_value(self, value: object) -> str:
        return self.from_text(str(value) if isinstance(value, bool) else super().from_value(value))


@dataclass(frozen=True)
class TextList(ValueType):
    """Several texts: a repeated flag, a list in a file, and commas (or a JSON array) in text.

    commas   whether commas split what one flag, or one text in a file, holds
    item     reads one of them; raises ValueError
    each     what each of them is, as far as `check` goes
    """

    metavar: str = "TEXT"
    valid: str = "a list of texts"
    commas: bool = False
    item: Callable[[str], str] = str.strip
    each: ValueType | None = None
    many = True

    def check(self, value: list[str], base: Path) -> None:
        if self.each is not None:
            for text in value:
                self.each.check(text, base)

    def from_text(self, text: str) -> list[str]:
        if text.lstrip().startswith("["):
            try:
                parsed = json.loads(text)
            except ValueError:  # an IPv6 address starts with a bracket, too
                parsed = None
            if isinstance(parsed, list):
                return self._items(parsed)
        return self._items([part for part in text.split(",") if part.strip()])

    def from_value(self, value: object) -> list[str]:
        if isinstance(value, str):
            return self.from_text(value) if self.commas else self._items([value] if value else [])
        if not isinstance(value, (list, tuple)):
            raise ValueError("not a list")
        if self.commas:
            return [text for part in value for text in self._one_or_more(part)]
        return self._items(value)

    def to_text(self, value: list[str]) -> str:
        plain = all(
            text and text == text.strip() and "," not in text and not text.startswith("[")
            for text in value
        )
        return ",".join(value) if plain else json.dumps(value, ensure_ascii=False)

    def _one_or_more(self, part: object) -> list[str]:
        return self.from_text(part) if isinstance(part, str) else self._items([part])

    def _items(self, parts: list[Any] | tuple[Any, ...]) -> list[str]:
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("not texts")
        return [self.item(part) for part in parts]


@dataclass(frozen=True)
class Table(ValueType):
    """A dictionary: a dict in Python, a table in TOML, a JSON object as text.

    of_text   keys and values must be texts
    """

    of_text: bool = False
    metavar = "JSON"
    valid = "a table (in text: a JSON object)"

    def from_text(self, text: str) -> dict[str, Any]:
        return self.from_value(json.loads(text))

    def from_value(self, value: object) -> dict[str, Any]:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, dict):
            raise ValueError("not a table")
        if self.of_text and not all(
            isinstance(part, str) for pair in value.items() for part in pair
        ):
            raise ValueError("not texts")
        return dict(value)

    def to_text(self, value: dict[str, Any]) -> str:
        # What only Python can say (a formatter's class, say) is shown, not read back.
        return json.dumps(value, ensure_ascii=False, default=repr)


class Directory(ValueType):
    """A directory that must exist."""

    metavar = "DIR"
    valid = "an existing directory"

    def from_value(self, value: object) -> str:
        return str(super().from_value(str(value) if isinstance(value, Path) else value))

    def check(self, value: str, base: Path) -> None:
        if not os.path.isdir(base / value):
            raise ValueError("no such directory, or none that may be looked into")


class File(Directory):
    """A file that must exist."""

    metavar = "FILE"
    valid = "an existing file"

    def check(self, value: str, base: Path) -> None:
        if not os.path.isfile(base / value):
            raise ValueError("no such file, or none that may be looked at")


class Input(Directory):
    """A file that whoever opens it looks for, and says what is wrong with."""

    metavar = "FILE"
    valid = "the path of a file"

    def check(self, value: str, base: Path) -> None:
        """Not here."""


class Output(Directory):
    """A file to write to."""

    metavar = "FILE"
    valid = "the path of a file"

    def check(self, value: str, base: Path) -> None:
        """It may come into being later."""


@dataclass(frozen=True)
class Account(ValueType):
    """A user or a group: a number, or a name that the system knows."""

    lookup: Callable[[str], int]
    metavar = "NAME"
    valid = "a number or a name that this system knows"

    def from_text(self, text: str) -> int:
        word = text.strip()
        if word.isdecimal():
            return int(word)
        try:
            return self.lookup(word)
        except KeyError:
            raise ValueError("unknown") from None

    def from_value(self, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        return int(super().from_value(value))


def user() -> Account:
    """A user of this system."""
    return Account(lambda name: pwd.getpwnam(name).pw_uid)


def group() -> Account:
    """A group of this system."""
    return Account(lambda name: grp.getgrnam(name).gr_gid)


class Mode(ValueType):
    """Permission bits. Text is octal when it starts with 0, as in a shell."""

    metavar = "MODE"
    valid = "permission bits, such as 0o022 or 0022"

    def from_text(self, text: str) -> int:
        word = text.strip().lower()
        if word.isdecimal() and word[0] != "0":
            raise ValueError("meant as octal digits? Then they begin with 0")
        octal = len(word) > 1 and word[0] == "0" and word[1].isdecimal()
        return self.from_value(int(word, 8 if octal else 0))

    def from_value(self, value: object) -> int:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o7777:
            raise ValueError("not permission bits")
        return value

    def to_text(self, value: int) -> str:
        return f"0o{value:03o}"


def network(text: str) -> str:
    """An address or a network as it is written; `*` is everybody, `unix` a Unix socket's peer."""
    word = text.strip()
    if word not in ("*", "unix"):
        ipaddress.ip_network(word)
    return word


def assignment(text: str) -> str:
    """A `NAME=value` pair."""
    name, equals, _ = text.strip().partition("=")
    if not (name and equals):
        raise ValueError("not NAME=value")
    return text.strip()
