"""The error log's file as records: both formats, tracebacks, rotation."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path

import pytest

from servo.cli.log_reader import LogFilter, follow_file, parse_line, parse_records, tail_file

TEXT = """\
[2026-11-23 20:10:00 +0000] [7] [INFO] the server starts
[2026-11-23 20:10:01 +0000] [11] [ERROR] it failed
Traceback (most recent call last):
  File "a.py", line 1, in f
[2026-11-23 20:10:02 +0000] [12] [WARNING] a slow request
"""
EVERY = LogFilter(None, ["info", "warning", "error"], re.compile(""))


def test_tracebacks_belong_to_their_record() -> None:
    found = list(parse_records(["a line of something else\n", *TEXT.splitlines(keepends=True)]))
    assert [(each["pid"], each["level"]) for each in found] == [
        (7, "info"),
        (11, "error"),
        (12, "warning"),
    ]
    assert found[1]["text"].endswith("line 1, in f")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("[2026-11-23 20:10:00 +0000] [7] [ERROR] no", "error"),
        ('{"time": "x", "level": "ERROR", "pid": 7, "message": "no", "exc": "T"}', "error"),
        ("Traceback (most recent call last):", None),
        ("{not json", None),
        ('{"json": "of somebody else"}', None),
        ("", None),
    ],
)
def test_lines(line: str, level: str | None) -> None:
    record = parse_line(line)
    assert (record and record["level"]) == level


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.write_text(TEXT)
    assert [each["pid"] for each in tail_file(str(path), 2, EVERY)] == [11, 12]
    worker = LogFilter(2, ["warning"], re.compile("slow"))
    worker.set_workers([{"slot": 1, "pid": 11}, {"slot": 2, "pid": 12}])
    assert [each["pid"] for each in tail_file(str(path), 9, worker)] == [12]


def test_follow_goes_on_in_the_file_that_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.write_text(TEXT)
    following = follow_file(str(path), EVERY)
    with path.open("a") as file:
        file.write("[2026-11-23 20:10:03 +0000] [9] [INFO] the last in the old file\n")
        path.rename(tmp_path / "error.log.1")
        path.write_text(TEXT)
    assert [each["pid"] for each in islice(following, 4)] == [9, 7, 11, 12]
    following.close()


def test_a_line_is_printed_without_its_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.write_text(
        "[2026-11-23 20:10:00 +0000] [7] [\x1b[31mERROR\x1b[0m] a\x1b]0;b\x07\n\x1b[2J\n"
    )
    (record,) = tail_file(str(path), 9, EVERY)
    assert record["level"] == "error"
    assert record["text"] == "a\\x1b]0;b\\x07\n\\x1b[2J"
