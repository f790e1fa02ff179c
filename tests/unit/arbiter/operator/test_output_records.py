"""The records that are made from the entries of a ring."""

from __future__ import annotations

from typing import Any

import pytest

from servo.arbiter.operator.output_records import LINE_S, MAX_OPEN, TRACEBACK_S, OutputRecords
from servo.shared_memory.output_rings import ACCESS_LINES, RECORD, STDERR, STDOUT, Entry


def entry(text: str, kind: int = STDOUT, thread: int = 1, level: str = "", name: str = "") -> Entry:
    return Entry(1.0, thread, kind, level, name, text)


def joined(*entries: Entry) -> list[dict[str, Any]]:
    records = OutputRecords({"slot": 1, "pid": 7})
    return records.feed(entries, 1.0) + records.flush()


def texts(*entries: Entry) -> list[str]:
    return [record["text"] for record in joined(*entries)]


def test_a_record_names_its_worker_and_its_source() -> None:
    assert joined(
        entry("a line\n"),
        entry("on stderr\n", STDERR),
        entry("logged", RECORD, level="error", name="shop"),
        entry("of the server", RECORD, level="info", name="servo.error"),
    ) == [
        {"time": 1.0, "level": "info", "slot": 1, "pid": 7, "text": "a line", "stream": "stdout"},
        {
            "time": 1.0,
            "level": "warning",
            "slot": 1,
            "pid": 7,
            "text": "on stderr",
            "stream": "stderr",
        },
        {"time": 1.0, "level": "error", "slot": 1, "pid": 7, "text": "logged", "logger": "shop"},
        {"time": 1.0, "level": "info", "slot": 1, "pid": 7, "text": "of the server"},
    ]


def test_the_parts_of_a_line_are_joined() -> None:
    parts = [entry("a"), entry("x", thread=2), entry("\n"), entry("y\n", thread=2)]
    assert texts(*parts) == ["a", "xy"]
    assert texts(entry("two\nlines\n"), entry("\n"), entry("third\n")) == ["two\nlines", "third"]


def test_an_incomplete_line_waits_but_not_for_long() -> None:
    records = OutputRecords({})
    assert records.feed([entry("Loading…")], 10.0) == []
    assert records.waits
    assert records.feed([], 10.0 + LINE_S / 2) == []
    (record,) = records.feed([], 10.0 + LINE_S)
    assert record["text"] == "Loading…"
    assert not records.waits


CHAIN = "During handling of the above exception, another exception occurred:"


def test_a_traceback_is_one_record() -> None:
    lines = [
        "Traceback (most recent call last):\n",
        '  File "app.py", line 1, in app\n    1 / 0\n    ~~^~~\n',
        "ZeroDivisionError: division by zero\n",
        f"\n{CHAIN}\n\n",
        "Traceback (most recent call last):\n",
        '  File "app.py", line 3, in app\n    raise KeyError\n',
        "KeyError\n",
    ]
    parts = [entry(line, STDERR) for line in lines]
    (record,) = joined(*parts)
    assert record["text"] == "".join(lines).rstrip("\n")
    assert record["level"] == "error"
    # The next one, and a line that is not a part of it, are records of their own.
    assert len(joined(*parts, *parts, entry("done\n", STDERR))) == 3
    # Another thread's line in the middle stays apart.
    mixed = joined(*parts[:2], entry("other\n", STDERR, thread=2), *parts[2:])
    assert [record["text"] for record in mixed] == ["other", "".join(lines).rstrip("\n")]


def test_the_end_of_a_traceback_is_waited_for() -> None:
    records = OutputRecords({})
    first = entry("Traceback (most recent call last):\n", STDERR)
    assert records.feed([first, entry("  File\n", STDERR)], 5.0) == []
    rest = [entry("ValueError: no\n", STDERR)]
    assert records.feed(rest, 5.0 + TRACEBACK_S / 2) == []
    (record,) = records.feed([], 5.0 + 2 * TRACEBACK_S)
    assert record["text"].endswith("ValueError: no")


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[1;32mgreen\x1b[0m\x1b[2K\n", "green"),
        ("\r 10%\r 20%\r100%\n", "100%"),
        ("windows\r\nlines\r\n", "windows\nlines"),
        ("nul\0bell\a\n", "nul\0bell\a"),  # the client escapes these
    ],
)
def test_text_for_terminals(written: str, shown: str) -> None:
    assert texts(entry(written)) == [shown]


def test_the_lines_of_an_access_log() -> None:
    lines = (
        '127.0.0.1 - - [29/Nov/2026:10:00:00 +0000] "GET /\\x22 HTTP/1.1" 200 2 "-" "a" 500 "\n'
        '127.0.0.1 - - [29/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 404 2 "-" "-"\n'
        '{"time": "2026", "status": 503, "bytes": 1}\n'
        "a format of the user's\n"
    )
    records = joined(entry(lines, ACCESS_LINES, level="info"))
    assert [record["level"] for record in records] == ["info", "warning", "error", "info"]
    assert {record["stream"] for record in records} == {"access"}
    assert "\n".join(record["text"] for record in records) + "\n" == lines


def test_unbounded_output_is_held_within_bounds() -> None:
    records = OutputRecords({})
    found = records.feed([entry("x" * 1000) for _ in range(1000)], 1.0)
    assert max(len(record["text"]) for record in found) <= 16_384
    found = records.feed([entry("x", thread=thread) for thread in range(1000)], 1.0)
    assert len(found) >= 1000 - MAX_OPEN
