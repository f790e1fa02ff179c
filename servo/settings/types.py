"""The types of settings: how a value is read, checked, and written as text.

A type makes one value from text (of an environment variable or a flag) or from an object of a
Python or TOML file. It raises ValueError for anything invalid; its attribute `valid` describes the
valid values.
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
    """The base class: one text. As in gunicorn, surrounding blanks are removed."""

    metavar = "TEXT"
    valid = "text"
    many = False  # whether a flag of this type may be repeated

    def from_text(self, text: str) -> Any:
        """Make a value from text of the environment or of a flag. Raises ValueError."""
        return text.strip()

    def from_value(self, value: object) -> Any:
        """Make a value from an object of a configuration file. Raises ValueError."""
        if isinstance(value, str):
            return self.from_text(value)
        raise ValueError("not text")

    def to_text(self, value: Any) -> str:
        """Write a value as text from which `from_text` makes an equal value."""
        return str(value)

    def check(self, value: Any, base: Path) -> None:
        """Check a value against the system, for example that its file exists.

        value   a value that `from_text` or `from_value` has returned
        base    the directory that relative paths start at

        Raises ValueError.
        """


class Text(ValueType):
    """Any text."""


class MountPoint(ValueType):
    """The path that an app is mounted at: text ("/café") or percent-encoded ("/caf%C3%A9")."""

    metavar = "PATH"
    valid = (
        "a path such as /app or /caf%C3%A9 that begins with a slash and has no ?, no #, no space"
        " (write %20), and no empty, . or .. segments"
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
        decoded.encode()  # raises an error for surrogates, which come from text that is not UTF-8
        first, *segments = decoded.split("/")
        if first or {"", ".", ".."}.intersection(segments) or not decoded.isprintable():
            raise ValueError("not a path")
        return text


class PathOrFunction(ValueType):
    """A path of the application to request, or the name of a function to call."""

    metavar = "PATH|MODULE:FUNCTION"
    valid = "a path such as /healthz, or module:function"

    _PATH = re.compile(r"/[!-\"$-~]*", re.ASCII)  # printable characters except space and #
    _FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

    def from_text(self, text: str) -> str:
        text = text.strip()
        if not (self._PATH.fullmatch(text) or self._FUNCTION.fullmatch(text)):
            raise ValueError("neither of them")
        return text


@dataclass(frozen=True)
class Whole(ValueType):
    """A whole number, or one of a few keywords.

    minimum    the least number
    keywords   texts in lower case that are values, too
    maximum    the greatest number; None: no limit
    """

    minimum: int = 0
    keywords: tuple[str, ...] = ()
    maximum: int | None = None
    metavar = "N"

    @property
    def valid(self) -> str:  # type: ignore[override]
        keywords = "".join(f' or "{keyword}"' for keyword in self.keywords)
        if self.maximum is not None:
            return f"a whole number from {self.minimum} to {self.maximum}{keywords}"
        return f"a whole number, {self.minimum} or more{keywords}"

    def from_text(self, text: str) -> int | str:
        plain = text.strip().lower()
        if plain in self.keywords:
            return plain
        try:
            number = int(plain)
        except ValueError:
            number = int(plain, 0)  # gunicorn accepts 0x… and 0o…, too
        return self.from_value(number)

    def from_value(self, value: object) -> int | str:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError("not a whole number")
        if value < self.minimum or (self.maximum is not None and value > self.maximum):
            raise ValueError("out of range")
        return value


class WorkerCount(Whole):
    """A number of workers, "auto", or the bounds of autoscaling: MIN:MAX."""

    metavar = "N|auto|MIN:MAX"

    @property
    def valid(self) -> str:  # type: ignore[override]
        return f"{super().valid}, or MIN:MAX, such as 2:16"

    def from_text(self, text: str) -> int | str:
        if ":" not in text:
            return super().from_text(text)
        parts = [part.strip() for part in text.split(":")]
        low, high = (int(part) if part.isdecimal() else 0 for part in parts[:2])
        most = math.inf if self.maximum is None else self.maximum
        are_valid = len(parts) == 2 and all(part.isdecimal() for part in parts)
        if not (are_valid and 0 < low <= high <= most):
            raise BoundsError(low, high, self.maximum)
        return f"{low}:{high}"


class BoundsError(ValueError):
    """Raised for invalid bounds of autoscaling.

    low, high   the given numbers; 0 for a missing one
    maximum     the greatest number that is allowed, or None
    """

    def __init__(self, low: int, high: int, maximum: int | None) -> None:
        super().__init__("not MIN:MAX")
        limit = ""
        if maximum is not None and max(low, high) > maximum:
            low, high, limit = min(low, maximum), min(high, maximum), f" <= {maximum}"
        given = [number for number in (low, high) if number]
        least = min(given, default=1) if low else 1
        most = max(given, default=1)
        if most == least and not limit:
            most = 4 * least
        self.advice = f"expected MIN:MAX with 1 <= MIN <= MAX{limit}, such as {least}:{most}"


@dataclass(frozen=True)
class Seconds(ValueType):
    """A time in seconds, as a float. Text may have units: `30s`, `5m`, `1h30m`, `250ms`.

    minimum   the shortest time
    """

    minimum: float = 0.0
    metavar = "TIME"

    # systemd and Go have these units, too.
    _UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    _PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhd])\s*", re.ASCII)

    @property
    def valid(self) -> str:  # type: ignore[override]
        return f"seconds, {self.minimum:g} or more, or a time with units, such as 30s, 5m or 1h30m"

    def from_text(self, text: str) -> float:
        plain = text.strip().lower()
        if not plain.endswith(tuple(self._UNITS)):
            return self.from_value(float(plain))
        rest = self._PART.sub("", plain)
        if rest:
            raise ValueError("not a time")
        parts = self._PART.findall(plain)
        # Milliseconds are divided, because 0.001 is not exact: 300ms must be 0.3.
        seconds = sum(
            float(number) / 1000 if unit == "ms" else float(number) * self._UNITS[unit]
            for number, unit in parts
        )
        return self.from_value(seconds)

    def from_value(self, value: object) -> float:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError("not a number")
        if not (math.isfinite(value) and value >= self.minimum):
            raise ValueError("out of range")
        return float(value) + 0.0  # turns -0.0 into 0.0

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


class Memory(Size):
    """A number of bytes, or a share of the container's memory: 512M, 25%."""

    metavar = "BYTES|PERCENT"
    valid = (
        "a number of bytes, 0 or more (K, M or G may follow), or a share of the container's memory,"
        " from 1% to 100%"
    )

    _SHARE = re.compile(r"(\d{1,3})\s*%", re.ASCII)

    def from_text(self, text: str) -> int | str:  # type: ignore[override]
        form = self._SHARE.fullmatch(text.strip())
        if form is None:
            return super().from_text(text)
        if not 1 <= int(form[1]) <= 100:
            raise ValueError("out of range")
        return f"{int(form[1])}%"

    def from_value(self, value: object) -> int | str:  # type: ignore[override]
        return self.from_text(value) if isinstance(value, str) else super().from_value(value)


class Switch(ValueType):
    """On or off. Such a setting has the flags `--name` and `--no-name`."""

    metavar = ""
    valid = "true or false"

    _VALUES = {
        **dict.fromkeys(("true", "yes", "on", "1", "y"), True),
        **dict.fromkeys(("false", "no", "off", "0", "n"), False),
    }

    def from_text(self, text: str) -> bool:
        try:
            return self._VALUES[text.strip().lower()]
        except KeyError:
            raise ValueError("neither true nor false") from None

    def from_value(self, value: object) -> bool:
        return value if isinstance(value, bool) else bool(super().from_value(value))

    def to_text(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True)
class Choice(ValueType):
    """One of a few texts.

    options   the valid values, in lower case
    aliases   other texts, and the values that they mean; "true" and "false" stand for booleans, too
    name      the placeholder for `--help`; "" shows the options
    """

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
        option = text.strip().lower()
        option = self.aliases.get(option, option)
        if option not in self.options:
            raise ValueError("not one of them")
        return option

    def from_value(self, value: object) -> str:
        return self.from_text(str(value) if isinstance(value, bool) else super().from_value(value))


@dataclass(frozen=True)
class TextList(ValueType):
    """Several texts: a repeated flag, a list in a file, or a text with a JSON array or commas.

    metavar   the placeholder for `--help`
    valid     describes the valid values
    commas    whether commas also split the text of one flag, or one text in a file
    item      checks one text and returns it in its final form; raises ValueError
    each      a type whose `check` applies to each text; None: there is nothing to check
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
            except ValueError:  # not JSON, but perhaps an IPv6 address in brackets
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

    of_text   whether keys and values must be texts
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
        # Objects of a Python file that JSON can't express, such as a formatter's class, are shown
        # by their repr, which can't be read back.
        return json.dumps(value, ensure_ascii=False, default=repr)


class Directory(ValueType):
    """A directory that must exist."""

    metavar = "DIR"
    valid = "an existing directory"

    def from_value(self, value: object) -> str:
        return str(super().from_value(str(value) if isinstance(value, Path) else value))

    def check(self, value: str, base: Path) -> None:
        if not os.path.isdir(base / value):
            raise ValueError("no such directory, or no permission to search it")


class File(Directory):
    """A file that must exist."""

    metavar = "FILE"
    valid = "an existing file"

    def check(self, value: str, base: Path) -> None:
        if not os.path.isfile(base / value):
            raise ValueError("no such file, or no permission to look for it")


class Input(Directory):
    """A file to read. The code that opens the file reports if it is missing or can't be used."""

    metavar = "FILE"
    valid = "the path of a file"

    def check(self, value: str, base: Path) -> None:
        """Check nothing: an error is reported when the file is opened."""


class Output(Directory):
    """A file to write to."""

    metavar = "FILE"
    valid = "the path of a file"

    def check(self, value: str, base: Path) -> None:
        """Check nothing: the file may be created later."""


@dataclass(frozen=True)
class Account(ValueType):
    """A user or a group, as a number. Text may also be the name.

    lookup   returns the number for a name; raises KeyError
    """

    lookup: Callable[[str], int]
    metavar = "NAME"
    valid = "a number, or a name that exists on this system"

    def from_text(self, text: str) -> int:
        name = text.strip()
        if name.isdecimal():
            return int(name)
        try:
            return self.lookup(name)
        except KeyError:
            raise ValueError("no such name") from None

    def from_value(self, value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        return int(super().from_value(value))


def user() -> Account:
    """The type of a user of this system."""
    return Account(lambda name: pwd.getpwnam(name).pw_uid)


def group() -> Account:
    """The type of a group of this system."""
    return Account(lambda name: grp.getgrnam(name).gr_gid)


class Mode(ValueType):
    """Permission bits. As in a shell, text is octal if it starts with 0."""

    metavar = "MODE"
    valid = "permission bits, such as 0o022 or 0022"

    def from_text(self, text: str) -> int:
        digits = text.strip().lower()
        if digits.isdecimal() and digits[0] != "0":
            raise ValueError("octal digits must begin with 0")
        octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdecimal()
        return self.from_value(int(digits, 8 if octal else 0))

    def from_value(self, value: object) -> int:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o7777:
            raise ValueError("not permission bits")
        return value

    def to_text(self, value: int) -> str:
        return f"0o{value:03o}"


def network(text: str) -> str:
    """Check an address or a network and return its text without surrounding blanks.

    text   an address, a network, `*` (all peers) or `unix` (peers on Unix sockets)

    Raises ValueError.
    """
    plain = text.strip()
    if plain not in ("*", "unix"):
        ipaddress.ip_network(plain)
    return plain


def assignment(text: str) -> str:
    """Check a `NAME=value` pair and return it without surrounding blanks. Raises ValueError."""
    name, equals, _ = text.strip().partition("=")
    if not (name and equals):
        raise ValueError("not NAME=value")
    return text.strip()
