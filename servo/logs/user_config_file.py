"""Reads a file with a logging configuration: INI, JSON, YAML or TOML.

gunicorn's users have INI files (and JSON files, by a separate setting). uvicorn's users have JSON
and YAML files with the usual suffixes. hypercorn's users write `json:` or `toml:` before the path.
Without suffix and prefix, the content decides.

Error messages name the file and the line. They don't quote the file, because it may contain
passwords, such as that of a mail server or a database.
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
    """The content of a file with a logging configuration.

    path    the path as the user gave it, for messages
    text    the whole file
    table   the argument for dictConfig; empty for an INI file
    parser  the argument for fileConfig; None unless it is an INI file
    """

    path: str
    text: str
    table: dict[str, Any]
    parser: configparser.ConfigParser | None = None

    def where(self, name: str | None) -> str:
        """The path and, if possible, the line where a part begins: `log.yaml:12`.

        name  the name of a handler, formatter, filter or logger; None if unknown
        """
        if name is None:
            return self.path
        # The name is a key (`name:`, "name": or name =) or the end of a section's header.
        key = re.compile(
            rf"""^\s*(?:["'{{,\s]*{re.escape(name)}["']?\s*[:=]|\[[^\]]*{re.escape(name)}["']?\s*\])""",
            re.MULTILINE,
        )
        found = key.search(self.text)
        # In JSON the name may be anywhere in a line.
        start = found.start() if found else self.text.find(json.dumps(name))
        if start < 0:
            return self.path
        start += len(self.text[start:]) - len(self.text[start:].lstrip())
        return f"{self.path}:{self.text.count(chr(10), 0, start) + 1}"


def read_log_config(given: str, form: str = "") -> LogConfigFile:
    """Read a file with a logging configuration.

    given  its path, with or without hypercorn's prefix (`json:`, `toml:`)
    form   "json" if it must be JSON, whatever its suffix; else ""

    Raises ConfigError, which names the file, the line and the problem.
    """
    prefix, path = split_form(given)
    text = _read(path)
    form = form or prefix or _form_of(path, text)
    if form == "ini":
        return LogConfigFile(path, text, {}, _parse_ini(path, text))
    table = _PARSERS[form](path, text)
    if not isinstance(table, dict):
        kind = type(table).__name__
        raise ConfigError(f"{path}: a logging configuration must be a table, not {kind}")
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
    """Recognise the form by the suffix or, for a suffix such as `.conf`, by the content."""
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
    """Whether this is TOML. An INI file is not valid TOML: its values (`keys=root`) lack quotes."""
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
        raise ConfigError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid JSON: nested too deep") from error


def _parse_toml(path: str, text: str) -> object:
    try:
        return parse_toml(text)
    except TOMLError as error:
        # Remove "(at line 3, column 7)" from the message, which already names the line.
        reason = re.sub(r" \(at .*\)$", "", str(error), flags=re.DOTALL)
        line = error.line or text.count("\n") + 1
        raise ConfigError(f"{path}:{line}: not valid TOML: {_short(reason)}") from error


def _parse_yaml(path: str, text: str) -> object:
    try:
        # Import the names, not the module: a directory `yaml` next to the application could also be
        # imported, but does not have these names.
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
        raise ConfigError(f"{path}{line}: not valid YAML: {_short(reason)}") from error
    except ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{number}: not valid YAML: {_short(error.reason)}") from error
    except (YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        raise ConfigError(f"{path}: not valid YAML: {_short(str(error))}") from error


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
        # Python 3.13 has a subclass for a continuation line without an option; it has no `errors`.
        line = getattr(error, "lineno", 0) or error.errors[0][0]
        reason = "neither a [section] nor NAME = VALUE"
        raise ConfigError(f"{path}:{line}: not valid INI: {reason}") from error
    except configparser.DuplicateSectionError as error:
        reason = f"a second [{error.section}]"
        raise ConfigError(f"{path}:{error.lineno}: not valid INI: {_short(reason)}") from error
    except configparser.DuplicateOptionError as error:
        reason = f"a second {error.option} in [{error.section}]"
        raise ConfigError(f"{path}:{error.lineno}: not valid INI: {_short(reason)}") from error
    return parser


def _short(text: str) -> str:
    """The beginning of a library's message, on one line. The rest may quote the file."""
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"


_PARSERS: dict[str, Callable[[str, str], object]] = {
    "json": _parse_json,
    "yaml": _parse_yaml,
    "toml": _parse_toml,
}
