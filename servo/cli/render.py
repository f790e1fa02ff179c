"""The output of the `servo` command: errors, help, and the table of settings."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import click

from servo.settings.schema import SETTINGS

if TYPE_CHECKING:
    from servo.settings.setting import Setting
    from servo.settings.sources import Settings

_INTRO = """\
Serve a WSGI or ASGI app. APP is module:attribute, module, module:factory() or
path/to/file.py:attribute.
"""
_OUTRO = """\
Each setting can also be given in servo.toml, in [tool.servo] of pyproject.toml, in servo.conf.py,
or as a variable SERVO_<NAME>. --print-config shows all names, values and their sources.

The flags of gunicorn, uvicorn, hypercorn and granian work, too, if there is a counterpart.
TIME is a number of seconds, or has units: 500ms, 30s, 5m, 2h, 1h30m. BYTES may end in K, M or G.
"""

# A value of more characters gets its own line, so that it doesn't widen its column.
_MAX_CELL = 40
# A longer default is left out of --help.
_MAX_DEFAULT = 24


def print_error(message: str, details: str = "") -> None:
    """Print the reason why the command ends to stderr.

    message   the reason, in one line
    details   text to print before it, such as a traceback
    """
    if details:
        click.echo(details + "\n", err=True)
    click.echo(f"servo: error: {message}", err=True)


class GroupedCommand(click.Command):
    """A command whose help lists the settings by section."""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the whole help."""
        formatter.write(f"Usage: {ctx.command_path} [FLAGS] APP\n\n{_INTRO}")
        sections = itertools.groupby(SETTINGS.values(), lambda setting: setting.section)
        for section, settings in sections:
            rows = [
                (_flags(setting), _help(setting))
                for setting in settings
                if setting.name != "app" and not setting.secret
            ]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=34, col_spacing=2)
        with formatter.section("About"):
            formatter.write_dl(
                [
                    ("-h, --help", "Show this help and exit."),
                    ("-v, --version", "Show the version and exit."),
                ]
            )
        formatter.write(f"\n{_OUTRO}")


def _flags(setting: Setting) -> str:
    """A setting's short flags and its main long one; the reference lists all flags."""
    short = [flag for flag in setting.shown_flags if not flag.startswith("--")]
    long = setting.main_flag
    if setting.is_switch:
        # Commands such as --print-config, and flags such as --no-control-socket, have no useful
        # --no-… form.
        negatable = setting.in_files and not long.startswith("--no-")
        return ", ".join([*short, f"--[no-]{long[2:]}" if negatable else long])
    text = f"{', '.join([*short, long])} {setting.type.metavar}"
    return text + (f", {setting.no_flag[0]}" if setting.no_flag else "")


def _help(setting: Setting) -> str:
    if setting.default in (None, "", [], {}):
        return setting.help
    default = setting.show(setting.default)
    if setting.is_switch:
        default = "on" if setting.default else ""
    return f"{setting.help}  [{default}]" if 0 < len(default) <= _MAX_DEFAULT else setting.help


def config_table(settings: Settings) -> str:
    """The table of all settings: name, value, unit and source, in aligned columns."""
    rows = [
        (name, settings.show(name), setting.unit, settings.source(name))
        for name, setting in SETTINGS.items()
    ]
    widths = [
        max(len(cell) for cell in column if len(cell) <= _MAX_CELL)
        for column in zip(*rows, strict=True)
    ]
    lines: list[str] = []
    for row in rows:
        if len(row[1]) > _MAX_CELL:
            lines.append(f"{row[0].ljust(widths[0])}  {row[1]}")
            row = ("", "", *row[2:])
        lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
    return "\n".join(lines)
