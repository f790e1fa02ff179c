"""Tables and numbers for people."""

from __future__ import annotations

from servo.cli.tables import Column, fitting_columns


def test_what_has_no_room_is_left_out_whole() -> None:
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
