"""A file with a logging configuration: INI, JSON, YAML or TOML, by its name or its content.

gunicorn's users have INI (and JSON, in a setting of its own), uvicorn's JSON and YAML by the file's
suffix, hypercorn's `json:` and `toml:` before the path. What is wrong with a file is said with its
line, and without quoting the file: a configuration may hold passwords, of a mail server or a
database that a handler logs to.
"""

from __future__ import annotations

import configparser
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.errors import ConfigError
from servo.settings.sections.process import split_form
from servo.settings.toml import TOMLError, parse_toml

if TYPE_CHECKING:
    from collections.abc import Callable

_BY_SUFFIX = {
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".ini": "ini",
    ".cfg": "ini",
}


@dataclass(frozen=True)
class LogConfigFile:
    """What such a file holds.

    path    as it was given, for messages
    text    all of it
    table   for dictConfig; empty where it is INI
    parser  for fileConfig, where it is INI
    """

    path: str
    text: str
    table: dict[str, Any]
    parser: configparser.ConfigParser | None = None

    def where(self, name: str | None) -> str:
        """The file, and the line on which a handler, formatter, filter or logger begins."""
        if name is None:
            return self.path
        # As a key (`name:`, "name": or name =), or at the end of a section's header.
        key = re.compile(
            rf"""^\s*(?:["'{{,\s]*{re.escape(name)}["']?\s*[:=]|\[[^\]]*{re.escape(name)}["']?\s*\])""",
            re.MULTILINE,
        )
        found = key.search(self.text)
        # In JSON it may be anywhere on a line.
        start = found.start() if found else self.text.find(json.dumps(name))
        if start < 0:
            return self.path
        start += len(self.text[start:]) - len(self.text[start:].lstrip())
        return f"{self.path}:{self.text.count(chr(10), 0, start) + 1}"


def read_log_config(given: str, form: str = "") -> LogConfigFile:
    """Read such a file.

    given   its path, hypercorn's prefix included
    form    "json" whatever its name says, or ""

    Raises ConfigError, which names the file, the line and what is wrong there.
    """
    prefix, path = split_form(given)
    text = _read(path)
    form = form or prefix or _form_of(path, text)
    if form == "ini":
        return LogConfigFile(path, text, {}, _parse_ini(path, text))
    table = _PARSERS[form](path, text)
    if not isinstance(table, dict):
        kind = type(table).__name__
        raise ConfigError(f"{path}: a logging configuration is a table, not of type {kind}")
    return LogConfigFile(path, text, table)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from error


def _form_of(path: str, text: str) -> str:
    """By the suffix or, as `.conf` and the like say nothing, by the content."""
    form = _BY_SUFFIX.get(os.path.splitext(path)[1].lower())
    if form is not None:
        return form
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and line[0] not in "#;"), "")
    if first.startswith("{"):
        return "json"
    if first.startswith("["):
        return "toml" if _is_toml(text) else "ini"
    if re.match(r"(---|%YAML|[\w\"'.-]+\s*:(\s|$))", first):
        return "yaml"
    if re.match(r"[\w\"'.-]+\s*=", first) and _is_toml(text):
        return "toml"
    return "ini"


def _is_toml(text: str) -> bool:
    """An INI file for logging is none: its lists (`keys=root`) have no quotes."""
    try:
        parse_toml(text)
    except TOMLError:
        return False
    return True


# --- the forms --------------------------------------------------------------------------------


def _parse_json(path: str, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: no JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: no JSON: nested too deep") from error


def _parse_toml(path: str, text: str) -> object:
    try:
        return parse_toml(text)
    except TOMLError as error:
        # "... (at line 3, column 7)"
        reason = re.sub(r" \(at .*\)$", "", str(error), flags=re.DOTALL)
        line = error.line or text.count("\n") + 1
        raise ConfigError(f"{path}:{line}: no TOML: {_short(reason)}") from error


def _parse_yaml(path: str, text: str) -> object:
    try:
        # By name: a directory `yaml` beside the app can be imported, too, but has none of it.
        from yaml import MarkedYAMLError, YAMLError, safe_load
        from yaml.reader import ReaderError
    except ImportError as error:
        raise ConfigError(f"{path}: YAML needs PyYAML: pip install PyYAML") from error
    try:
        return safe_load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        reason = error.problem or error.context or "it can't be parsed"
        raise ConfigError(f"{path}{line}: no YAML: {_short(reason)}") from error
    except ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{number}: no YAML: {_short(error.reason)}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # a day that no month has; too deep
        raise ConfigError(f"{path}: no YAML: {_short(str(error))}") from error


def _parse_ini(path: str, text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        {"__file__": path, "here": os.path.dirname(os.path.abspath(path))}
    )
    try:
        parser.read_string(text, path)
    except configparser.MissingSectionHeaderError as error:
        reason = "neither INI (there is no [section] before this line) nor JSON, YAML or TOML"
        raise ConfigError(f"{path}:{error.lineno}: {reason}") from error
    except configparser.ParsingError as error:
        # Its subclass for a continuation of nothing (Python 3.13) has no list.
        line = getattr(error, "lineno", 0) or error.errors[0][0]
        raise ConfigError(f"{path}:{line}: no INI: neither a [section] nor NAME = VALUE") from error
    except configparser.DuplicateSectionError as error:
        reason = f"a second [{error.section}]"
        raise ConfigError(f"{path}:{error.lineno}: no INI: {_short(reason)}") from error
    except configparser.DuplicateOptionError as error:
        reason = f"a second {error.option} in [{error.section}]"
        raise ConfigError(f"{path}:{error.lineno}: no INI: {_short(reason)}") from error
    return parser


def _short(text: str) -> str:
    """At most so much of a library's message, on one line: it may quote the file."""
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"


_PARSERS: dict[str, Callable[[str, str], object]] = {
    "json": _parse_json,
    "yaml": _parse_yaml,
    "toml": _parse_toml,
}
