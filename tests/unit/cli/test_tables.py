"""Tables and numbers for people."""

from __future__ import annotations

import importlib.util
import sys

import click
import pytest

from servo.cli import tables
from servo.cli.tables import (
    Column,
    fitting_columns,
    format_mebibytes,
    format_number,
    format_seconds,
    plain_table,
    show_table,
    styled,
)

COLUMNS = [Column("name"), Column("pid", number=True)]
ROWS = [["shop", "7"], ["", "4711"]]


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make stdout a terminal of 80 columns with colours.

    This is not a fixture because pytest replaces sys.stdout between a test's set-up and its call.
    """
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_columns_without_room_are_left_out() -> None:
    columns = [
        Column("pid"),
        Column("a", drop_rank=1),
        Column("bb", drop_rank=2),
        Column("c", keep=False),
    ]
    rows = [["12345", "x", "yy", "z" * 50], ["1", "x", "yyyy", ""]]
    assert fitting_columns(columns, rows, 80) == {0: 5, 1: 1, 2: 4, 3: 50}
    assert fitting_columns(columns, rows, 17) == {0: 5, 1: 1, 2: 4, 3: 50}  # the last is shortened
    assert [*fitting_columns(columns, rows, 16)] == [0, 1, 3]
    assert [*fitting_columns(columns, rows, 5)] == [0, 3]
    assert fitting_columns(columns, [], 80) == {0: 3, 1: 1, 2: 2, 3: 1}


def test_a_plain_table_is_aligned() -> None:
    assert plain_table(COLUMNS, ROWS) == "name   pid\nshop     7\n-     4711"
    assert plain_table(COLUMNS, []) == "name  pid"


def test_a_table_is_plain_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(COLUMNS, ROWS)
    assert capsys.readouterr().out == plain_table(COLUMNS, ROWS) + "\n"


def test_rich_draws_at_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_terminal(monkeypatch)
    assert tables.is_rich()
    show_table([*COLUMNS, Column("wide", drop_rank=1)], [[*ROWS[0], "w" * 100]])
    out = capsys.readouterr().out
    assert "shop" in out
    assert "www" not in out
    assert "A wider terminal shows wide, too." in out


@pytest.mark.parametrize("why", ["a dumb terminal", "no rich"])
def test_a_table_is_plain_at_some_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    use_terminal(monkeypatch)
    if why == "no rich":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    else:
        monkeypatch.setenv("TERM", "dumb")
    assert not tables.is_rich()
    show_table(COLUMNS, ROWS)
    assert capsys.readouterr().out == plain_table(COLUMNS, ROWS) + "\n"


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    red, dim = styled("ERROR", "error"), styled("x", "draining")
    assert (click.unstyle(red), click.unstyle(dim)) == ("ERROR", "x")
    assert red.startswith("\x1b[31m")
    assert dim.startswith("\x1b[2m")
    assert styled("INFO", "info") == "INFO"
    assert styled("KeyError", "exception").startswith("\x1b[31m\x1b[1m")
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("ERROR", "error") == "ERROR"


@pytest.mark.parametrize("state", ["blocked 2.1 s", "draining, blocked 65 s"])
def test_a_blocked_worker_is_red(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    use_terminal(monkeypatch)
    show_table([Column("state"), Column("target")], [[state, "/blocked 2 s"]])
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"\x1b[1;31m{state}\x1b[0m" in line
    assert line.count("\x1b[1;31m") == 1


def test_no_colours_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert styled("ERROR", "error") == "ERROR"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.0, "0"),
        (0.0012, "1.2 ms"),
        (0.25, "250 ms"),
        (3.0, "3.0 s"),
        (75.0, "75 s"),
        (120.0, "2 min"),
        (7200.0, "2 h"),
        (172_800.0, "2 d"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text


def test_sizes_and_counts() -> None:
    assert format_mebibytes(None) == ""
    assert format_mebibytes(3 << 20) == "3 MB"
    assert format_number(None) == ""
    assert [*map(format_number, (7, 7.0, 7.26, 12.6))] == ["7", "7", "7.3", "13"]
