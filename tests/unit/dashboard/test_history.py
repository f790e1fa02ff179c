"""What is kept, for how long, and across processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servo.dashboard import history as module
from servo.dashboard.history import MOST_EVENTS, MOST_SAMPLES, History


def sample(number: int, size: int = 0) -> dict[str, Any]:
    return {"n": number, "workers": ["x" * size] if size else []}


def numbers(history: History) -> list[int]:
    return [json.loads(line)["n"] for line in history.samples]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "history", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_ten_minutes_of_samples_are_kept() -> None:
    history = History()
    assert (history.last_number, history.samples) == (0, [])
    for number in range(1, MOST_SAMPLES + 11):
        history.add_sample(sample(number))
    assert numbers(history) == list(range(11, MOST_SAMPLES + 11))
    assert history.last_number == MOST_SAMPLES + 10


def test_the_last_events_are_kept() -> None:
    history = History()
    for number in range(MOST_EVENTS + 5):
        history.add_event({"name": "ready", "time": number, "text": ""})
    assert [json.loads(line)["time"] for line in history.events] == list(range(5, MOST_EVENTS + 5))


def test_long_details_of_an_event_are_left_out() -> None:
    history = History()
    history.add_event({"name": "exited", "text": "t" * 20_000, "details": "d" * 20_000})
    (event,) = map(json.loads, history.events)
    assert (event["name"], event["details"], len(event["text"])) == ("exited", "", 2048)


def test_old_samples_lose_their_workers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 5000)
    history = History()
    for number in range(1, 21):
        history.add_sample(sample(number, 1000))
    assert numbers(history) == list(range(1, 21))
    known = [len(json.loads(line)["workers"]) for line in history.samples]
    assert known == [0] * 16 + [1] * 4
    assert sum(map(len, history.samples)) <= 5000


def test_the_last_sample_keeps_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    history = History()
    for number in (1, 2, 3):
        history.add_sample(sample(number, 1000))
    assert [len(json.loads(line)["workers"]) for line in history.samples] == [0, 0, 1]


def test_a_reader_gets_what_it_does_not_know() -> None:
    history = History()
    history.set_server({"name": "shop"})
    history.add_sample(sample(5))
    history.add_event({"name": "ready", "text": ""})
    history.add_sample(sample(6))
    everything = history.after(0)
    assert [entry.kind for entry in everything] == ["server", "sample", "event", "sample"]
    assert [(entry.kind, entry.number) for entry in history.after(history.position_after(5))] == [
        ("event", 5),
        ("sample", 6),
    ]
    assert history.after(history.position_after(6)) == []
    assert history.after(history.position_after(None)) == []
    # It was away for so long that its last sample has left the history.
    assert history.position_after(2) == 0


def test_only_a_new_description_of_the_server_is_an_entry() -> None:
    history = History()
    assert history.set_server({"pid": 1})
    position = history.position_after(None)
    assert not history.set_server({"pid": 1})
    assert history.after(position) == []
    assert history.set_server({"pid": 2})
    assert [entry.kind for entry in history.after(position)] == ["server"]


def test_the_next_process_goes_on(file: int) -> None:
    history = History(file)
    for number in (3, 4, 5):
        history.add_sample(sample(number))
    again = History(file)
    assert numbers(again) == [3, 4, 5]
    again.add_sample(sample(6))
    assert numbers(History(file)) == [3, 4, 5, 6]


def test_an_incomplete_line_is_written_over(file: int) -> None:
    history = History(file)
    history.add_sample(sample(1))
    os.write(file, b"")
    end = os.fstat(file).st_size
    os.pwrite(file, b'{"n":2,"wor', end)
    again = History(file)
    assert numbers(again) == [1]
    again.add_sample(sample(3, 30))
    assert numbers(History(file)) == [1, 3]


def test_lines_that_are_no_samples_are_skipped(file: int) -> None:
    os.pwrite(file, b'nonsense\n[]\n{"n":"x"}\n{"n":7}\n', 0)
    assert numbers(History(file)) == [7]


def test_the_file_does_not_grow_without_end(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SAMPLES", 5)
    monkeypatch.setattr(module, "_WASTE", 2000)
    history = History(file)
    sizes = []
    for number in range(1, 101):
        history.add_sample(sample(number, 100))
        sizes.append(os.fstat(file).st_size)
    assert max(sizes) < 3500
    assert numbers(History(file)) == numbers(history) == [96, 97, 98, 99, 100]


def test_a_file_that_can_not_be_written_is_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("")
    fd = os.open(path, os.O_RDONLY)
    history = History(fd)
    history.add_sample(sample(1))
    history.add_sample(sample(2))
    os.close(fd)
    assert numbers(history) == [1, 2]
    assert caplog.text.count("can't be kept for a restart") == 1
