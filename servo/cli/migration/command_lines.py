"""Migrates command lines of gunicorn, uvicorn, hypercorn and granian, and their files."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from servo.cli.migration.migrated import Migrated
from servo.errors import ConfigError, UsageError
from servo.settings.files import read_config
from servo.settings.flags import parse_flags
from servo.settings.gunicorn_compat import FOREIGN
from servo.settings.hypercorn_file import read_as_hypercorns
from servo.settings.peer_flags import translate
from servo.settings.schema import SETTINGS, canonical
from servo.settings.toml import TOMLError, parse_toml

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVERS = ("gunicorn", "uvicorn", "hypercorn", "granian", "servo")


def server_of(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The server that a command line starts, and its arguments; None if it starts another program.

    words   the command line, such as `gunicorn app:app` or `python3 -m uvicorn app:app`
    """
    rest = list(words)
    while rest and (rest[0] in ("exec", "env") or _is_assignment(rest[0])):
        del rest[0]
    if len(rest) > 2 and Path(rest[0]).name.startswith("python") and rest[1] == "-m":
        del rest[:2]
    if rest and Path(rest[0]).name in SERVERS:
        return Path(rest[0]).name, rest[1:]
    return None


def _is_assignment(word: str) -> bool:
    return word.partition("=")[0].isidentifier() and "=" in word


def migrate_command_line(words: Sequence[str], directory: Path) -> Migrated:
    """Migrate a command line.

    words       the command line, which starts one of SERVERS
    directory   where relative paths start

    Raises UsageError or ConfigError if it can't be read.
    """
    _, arguments = server_of(words) or ("", list(words))
    given = parse_flags(arguments)
    config = given.pop("config", None)
    translation = translate(given)
    found = Migrated("", f"the command line {shlex.join(words)}")
    if config is not None:
        add_file(found, str(config), directory)
    for name, value in translation.values.items():
        option = translation.sources.get(name) or _flag(name)
        if name in FOREIGN:
            found.lost(option, FOREIGN[name].advice)
        else:
            found.put(name, value, option)
    for flag, advice in [*translation.refused, *translation.ignored]:
        found.lost(flag, advice)
    for word in words:
        if not _is_assignment(word):
            break
        found.add("raw_env", word, word.partition("=")[0])
    return found


def _flag(name: str) -> str:
    return SETTINGS[name].main_flag if name in SETTINGS else FOREIGN[name].main_flag


def migrate_file(path: Path) -> Migrated:
    """Migrate a Python file of gunicorn or hypercorn, or a TOML file of hypercorn.

    path   the file

    Raises ConfigError if it can't be read.
    """
    found = Migrated("", str(path))
    add_file(found, path.name, path.parent)
    return found


def add_file(found: Migrated, config: str, directory: Path) -> None:
    """Add the settings of a configuration file.

    found       gets the settings
    config      the value of the flag `--config`
    directory   where a relative path starts

    Raises ConfigError if the file can't be read.
    """
    if config.endswith(".toml") and "hypercorn" in Path(config).name:
        _add_hypercorns(found, directory / config)
        return
    content = read_config(config, [directory])
    for name, each in content.values.items():
        if each.optional and SETTINGS[name].default == each.value:
            continue
        found.put(name, each.value, name)
    for level, text in content.notes:
        if level == "warning":
            found.notes.append(text)
    if content.hooks:
        found.lost(
            ", ".join(sorted(content.hooks)),
            f"hooks need a Python file, so keep {config}: `servo -c {config}` reads it as it is",
        )


def _add_hypercorns(found: Migrated, path: Path) -> None:
    try:
        table = parse_toml(path.read_text(encoding="utf-8"))
    except (TOMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    theirs = read_as_hypercorns(table)
    for setting, (value, name) in theirs.values.items():
        found.put(setting, value, name)
    for name, advice in [*theirs.problems, *theirs.ignored]:
        found.lost(name, advice)
    for name, value in theirs.others.items():
        setting_name = canonical(name)
        if setting_name is not None:
            found.put(setting_name, value, name)
        else:
            found.lost(name, "unknown to Servo")


def split(text: str, option: str) -> list[str]:
    """Split a command line as a shell does.

    text     the command line
    option   where it comes from, for the error

    Raises UsageError for an unclosed quote.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{option} can't be split into words: {error}") from error
