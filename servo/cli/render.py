"""What the commands print: errors, help, tables."""

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
Every flag is also a name in servo.toml (or [tool.servo] in pyproject.toml, or servo.conf.py) and a
variable SERVO_<NAME>: --print-config shows the names, the values and where they came from.
"""


_WIDE = 40


def fail(message: str, details: str = "") -> None:
    """Say on stderr why the command ends, after whatever explains it at length."""
    if details:
        click.echo(details + "\n", err=True)
    click.echo(f"servo: error: {message}", err=True)


class GroupedCommand(click.Command):
    """A command whose help shows the settings by section, one line each where that fits."""

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
            formatter.write_dl([("-h, --help", "This."), ("-v, --version", "The version.")])
        formatter.write(f"\n{_OUTRO}")


def _flags(setting: Setting) -> str:
    """A setting's short flag and its first long one; the reference has them all."""
    short = [flag for flag in setting.shown_flags if not flag.startswith("--")]
    long = setting.main_flag
    if setting.is_switch:
        # The others are commands, or say no by themselves.
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
    return f"{setting.help}  [{default}]" if 0 < len(default) <= 24 else setting.help


def config_table(settings: Settings) -> str:
    """Every setting: its name, value, unit and source, in columns."""
    rows = [
        (name, settings.show(name), setting.unit, settings.source(name))
        for name, setting in SETTINGS.items()
    ]
    widths = [
        max(len(cell) for cell in column if len(cell) <= _WIDE)
        for column in zip(*rows, strict=True)
    ]
    lines: list[str] = []
    for row in rows:
        if len(row[1]) > _WIDE:
            # A long value has a line of its own, and the columns keep their places.
            lines.append(f"{row[0].ljust(widths[0])}  {row[1]}")
            row = ("", "", *row[2:])
        lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
    return "\n".join(lines)
