"""Tables and numbers for people: rich ones at a terminal, aligned plain text elsewhere."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

_MIB = 1 << 20
_GAP = 2
# https://no-color.org is rich's business, too; this is what has colours at all.
_STYLES = {
    "ready": "green",
    "running": "green",
    "booting": "yellow",
    "spawned": "yellow",
    "reloading": "yellow",
    "starting": "yellow",
    "draining": "dim",
    "stopping": "yellow",
    "does not answer": "bold red",
    "error": "red",
    "critical": "bold red",
    "warning": "yellow",
}


class Column(NamedTuple):
    """A table's column. `number`: its values stand at the right; `keep`: it is never shortened.

    spare   left out at a terminal that is too narrow, the highest number first; 0: never
    """

    title: str
    number: bool = False
    keep: bool = True
    spare: int = 0


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    if is_rich():
        _show_rich(columns, rows)
    else:
        click.echo(plain_table(columns, rows))


def plain_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """The table in aligned columns, two blanks apart; an empty value is a dash."""
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
    """Text in the colour of its kind (a state, a log level), where colours are shown."""
    style = _STYLES.get(kind)
    if style is None or not is_rich() or os.environ.get("NO_COLOR"):
        return text
    words = style.split()
    return click.style(text, fg=words[-1] if words[-1] != "dim" else None, dim="dim" in words)


def is_rich() -> bool:
    """Whether a person at a terminal reads this, and rich is there to please them."""
    at_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return at_terminal and importlib.util.find_spec("rich") is not None


def _show_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=False)
    shown = fitting(columns, rows, console.width)
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
        table.add_row(*(Text(cell or "-", style=_STYLES.get(cell, "")) for cell in row))
    console.print(table)
    left_out = ", ".join(columns[i].title for i in range(len(columns)) if i not in shown)
    if left_out:
        console.print(f"A wider terminal shows {left_out}, too.", style="dim")


def fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> dict[int, int]:
    """Which columns have room in so many characters, by index, and how wide each of them is."""
    widths = {
        i: max(len(column.title), *(len(row[i]) for row in rows), 1) if rows else len(column.title)
        for i, column in enumerate(columns)
    }
    for i in sorted(widths, key=lambda i: -columns[i].spare):
        needed = sum(
            w if columns[j].keep else len(columns[j].title) for j, w in widths.items()
        ) + _GAP * (len(widths) - 1)
        if needed <= width or not columns[i].spare:
            break
        del widths[i]
    return widths


def span(seconds: float | None) -> str:
    """A time as people say it: 3 ms, 0.42 s, 12 s, 3 min, 5 h, 2 d."""
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


def mebibytes(size: int | None) -> str:
    """A size in MB of 1,048,576 bytes."""
    return "" if size is None else f"{size / _MIB:.0f} MB"


def number(value: float | None) -> str:
    """A count, or a rate with a decimal while it is small."""
    if value is None:
        return ""
    if isinstance(value, float) and value < 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.0f}"
