"""Tables and numbers for people: drawn by rich at a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
_GAP = 2
# The texts that have colours at a terminal, unless $NO_COLOR is set (https://no-color.org).
_STYLES = {
    "ready": "green",
    "running": "green",
    "booting": "yellow",
    "spawned": "yellow",
    "reloading": "yellow",
    "starting": "yellow",
    "draining": "dim",
    "stopping": "yellow",
    "blocked": "bold red",
    "does not answer": "bold red",
    "error": "red",
    "critical": "bold red",
    "warning": "yellow",
    "debug": "dim",
    "frame": "dim",
    "exception": "bold red",
}
# The state of a blocked worker: "blocked 2.1 s" or "draining, blocked 2.1 s".
_BLOCKED = re.compile(r"(?:\w+, )?blocked [\d.]+ \w+")


class Column(NamedTuple):
    """A table's column.

    title       its heading
    number      whether its values are aligned at the right
    keep        whether its values are never shortened
    drop_rank   at a terminal that is too narrow, the column with the highest rank is left out
                first; 0: never
    """

    title: str
    number: bool = False
    keep: bool = True
    drop_rank: int = 0


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table.

    columns   its columns
    rows      its rows, each with one text per column
    """
    if is_rich():
        _show_rich(columns, rows)
    else:
        click.echo(plain_table(columns, rows))


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A table as text, in aligned columns two blanks apart; an empty value is a dash.

    columns   its columns
    rows      its rows, each with one text per column
    """
    lines = [[column.title for column in columns], *[[cell or "-" for cell in row] for row in rows]]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in lines
    )


def styled(text: str, kind: str) -> str:
    """Add a colour to a text if the output shows colours.

    text   the text
    kind   the state or log level that determines the colour
    """
    style = _STYLES.get(kind)
    if style is None or not is_rich() or os.environ.get("NO_COLOR"):
        return text
    attributes = style.split()
    colour = attributes[-1] if attributes[-1] != "dim" else None
    bold = "bold" in attributes or None
    return click.style(text, fg=colour, dim="dim" in attributes or None, bold=bold)


def is_rich() -> bool:
    """Whether the output goes to a terminal and rich is installed."""
    at_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return at_terminal and importlib.util.find_spec("rich") is not None


def _show_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    shown = fitting_columns(columns, rows, console.width)
    rows = [[row[i] for i in shown] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for i, width in shown.items():
        column = columns[i]
        table.add_column(
            column.title,
            justify="right" if column.number else "left",
            no_wrap=True,
            overflow="ellipsis",
            min_width=width if column.keep else None,
        )
    for row in rows:
        table.add_row(*(Text(cell or "-", style=style_of(cell)) for cell in row))
    console.print(table)
    left_out = ", ".join(columns[i].title for i in range(len(columns)) if i not in shown)
    if left_out:
        console.print(f"A wider terminal shows {left_out}, too.", style="dim")


def style_of(cell: str) -> str:
    """The style of a text in rich's words, such as "green" for "ready"; "" without one."""
    return _STYLES.get("blocked" if _BLOCKED.fullmatch(cell) else cell, "")


def fitting_columns(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int
) -> dict[int, int]:
    """The columns that fit into a terminal, by index, with their widths in characters.

    columns   the table's columns
    rows      its rows
    width     the terminal's width in characters
    """
    widths = {
        i: max(len(column.title), *(len(row[i]) for row in rows), 1) if rows else len(column.title)
        for i, column in enumerate(columns)
    }
    for i in sorted(widths, key=lambda i: -columns[i].drop_rank):
        needed = sum(
            w if columns[j].keep else len(columns[j].title) for j, w in widths.items()
        ) + _GAP * (len(widths) - 1)
        if needed <= width or not columns[i].drop_rank:
            break
        del widths[i]
    return widths


def format_seconds(seconds: float | None) -> str:
    """A duration in a unit that suits it: 3 ms, 12 s, 3 min, 5 h, 2 d; "" for None."""
    if seconds is None:
        return ""
    if seconds < 0.01:
        return f"{seconds * 1000:.2g} ms" if seconds else "0"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for limit, divisor, unit in (
        (10, 1, "s"),
        (120, 1, "s"),
        (7200, 60, "min"),
        (172_800, 3600, "h"),
    ):
        if seconds < limit:
            digits = 1 if limit == 10 else 0
            return f"{seconds / divisor:.{digits}f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def format_mebibytes(size: int | None) -> str:
    """A size in bytes as MB of 1,048,576 bytes; "" for None."""
    return "" if size is None else f"{size / MIB:.0f} MB"


def format_number(value: float | None) -> str:
    """A count, or a rate with one decimal if it is below 10; "" for None."""
    if value is None:
        return ""
    if isinstance(value, float) and value < 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.0f}"
