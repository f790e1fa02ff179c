"""`servo migrate`: prints the `servo.toml` for another server's command line or file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from servo.cli.migration.command_lines import SERVERS, migrate_command_line, migrate_file, server_of
from servo.cli.migration.pm2 import migrate_pm2, read_ecosystem
from servo.cli.migration.unit_config import is_unit, migrate_unit
from servo.cli.migration.uwsgi import is_uwsgi, migrate_uwsgi
from servo.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servo.cli.migration.migrated import Migrated

_ECOSYSTEM = (".js", ".cjs", ".json", ".yml", ".yaml")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def migrate(words: Sequence[str], directory: Path) -> list[Migrated]:
    """Migrate a command line, or a file of another server. Returns an entry for each app.

    words       the command line, or the path of the file
    directory   where relative paths start

    Raises UsageError or ConfigError.
    """
    if server_of(words) is not None:
        return [migrate_command_line(words, directory)]
    path = directory / words[0]
    if len(words) > 1 or not path.is_file():
        raise UsageError(
            f"{words[0]} is no file and none of {', '.join(SERVERS)}; to serve a module of the "
            "name migrate, write servo migrate:app"
        )
    if path.suffix == ".ini":
        if not is_uwsgi(path.read_text(encoding="utf-8", errors="replace")):
            raise ConfigError(f"{words[0]} has no section [uwsgi]")
        return [migrate_uwsgi(path)]
    if path.suffix in _ECOSYSTEM:
        content = read_ecosystem(path)
        return migrate_unit(content, path) if is_unit(content) else migrate_pm2(content, path)
    if path.suffix in (".py", ".toml"):
        return [migrate_file(path)]
    raise UsageError(
        f"{words[0]} is of an unknown kind: *.py and *.toml are files of gunicorn and hypercorn, "
        "*.ini of uWSGI, *.json of NGINX Unit, and ecosystem.config.js, *.json and *.yml of PM2"
    )


@click.command(
    "migrate",
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write the file; for several apps, a directory of files. Nothing is overwritten.",
)
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND|FILE")
def migrate_command(words: tuple[str, ...], output: Path | None) -> None:
    """Print the servo.toml for another server's command line or configuration file.

    \b
    servo migrate gunicorn -c gunicorn.conf.py -w 4 shop.wsgi
    servo migrate uvicorn main:app --host 0.0.0.0 --port 80
    servo migrate uwsgi.ini
    servo migrate ecosystem.config.js       # of PM2
    servo migrate config.json               # of NGINX Unit
    """
    found = migrate(words, Path.cwd())
    if output is None:
        for app in found:
            if len(found) > 1:
                click.echo(f"# --- {_file_name(app)} ---")
            click.echo(app.to_toml())
    elif len(found) == 1:
        _write(output, found[0])
    else:
        try:
            output.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"can't make the directory {output}: {error.strerror}") from error
        for app in found:
            _write(output / _file_name(app), app)
    count = sum(len(app.notes) for app in found)
    if count:
        what = "one thing has" if count == 1 else f"{count} things have"
        click.echo(f"{what} no exact counterpart: see the comments at the end", err=True)


def _file_name(app: Migrated) -> str:
    return f"{_UNSAFE.sub('-', app.name).strip('-.') or 'servo'}.toml"


def _write(path: Path, app: Migrated) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(app.to_toml())
    except FileExistsError as error:
        raise ConfigError(f"{path} exists already; nothing was overwritten") from error
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror}") from error
    print(f"wrote {path}", file=sys.stderr)


def run(arguments: Sequence[str]) -> int:
    """Run the command. Returns the exit code.

    arguments   the command line after `servo migrate`

    Raises ServoError.
    """
    try:
        migrate_command.main(list(arguments), prog_name="servo migrate", standalone_mode=False)
    except click.UsageError as error:
        raise UsageError(error.format_message()) from error
    return 0
