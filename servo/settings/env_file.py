"""Reads the files of `env_file` with python-dotenv."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def read_env_files(
    files: Sequence[str], base: Path, environ: Mapping[str, str], source: str
) -> dict[str, str]:
    """The variables that files set for the app. As in uvicorn, the environment takes precedence.

    files     the paths, the least important first
    base      the directory that relative paths start at
    environ   the environment at the start: not os.environ, which has the variables of earlier reads
    source    where the setting comes from, for messages

    Raises ConfigError for a file that can't be read, and if python-dotenv is missing.
    """
    if not files:
        return {}
    try:
        from dotenv import dotenv_values  # python-dotenv is optional
        from dotenv.variables import parse_variables
    except ImportError as error:
        raise ConfigError(
            f"env_file needs python-dotenv ({source}); run pip install 'servo-server[dotenv]'"
        ) from error
    found: dict[str, str] = {}
    for file in files:
        try:
            # The package would take the values of `${NAME}` from os.environ.
            given = dotenv_values(base / file, interpolate=False, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"env_file: can't read {file}: {reason} ({source})") from error
        for name, value in given.items():
            if value is not None:
                known = {**found, **environ}
                found[name] = "".join(atom.resolve(known) for atom in parse_variables(value))
    return {name: value for name, value in found.items() if name not in environ}
