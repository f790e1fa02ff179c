"""The rings of output: what is written can be read, whatever the writer or reader does."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.shared_memory import output_rings
from servo.shared_memory.output_rings import (
    ACCESS,
    APP,
    MAX_NAME_BYTES,
    MAX_TEXT_BYTES,
    RECORD,
    STDERR,
    STDOUT,
    OutputRings,
    Reading,
    RingWriter,
)


@pytest.fixture
def rings() -> Iterator[OutputRings]:
    found = OutputRings(3)
    yield found
    found.close()


def write(writer: RingWriter, *texts: bytes) -> None:
    for text in texts:
        writer.append(STDOUT, 1, b"", text)


def texts(reading: Reading) -> list[str]:
    return [entry.text for entry in reading.entries]


def test_an_entry_has_all_that_was_written(rings: OutputRings) -> None:
    writer = rings.writer(1, APP)
    writer.append(RECORD, 3, b"shop.cart", "naïve".encode())
    writer.append(STDERR, 99, b"", b"\xff\x00\n")
    record, raw = rings.read(1, APP).entries
    assert (record.kind, record.level, record.name) == (RECORD, "error", "shop.cart")
    assert record.text == "naïve"
    assert (raw.kind, raw.level, raw.name, raw.text) == (STDERR, "", "", "\\xff\x00\n")
    assert record.time <= raw.time
    assert record.thread == raw.thread


def test_rings_are_separate(rings: OutputRings) -> None:
    write(rings.writer(0, APP), b"a")
    write(rings.writer(0, ACCESS), b"b")
    write(rings.writer(1, APP), b"c")
    found = [texts(rings.read(*place)) for place in ((0, APP), (0, ACCESS), (1, APP), (2, APP))]
    assert found == [["a"], ["b"], ["c"], []]


def test_reading_goes_on_where_it_has_stopped(rings: OutputRings) -> None:
    writer = rings.writer(0, APP)
    assert rings.read(0, APP) == Reading([], 0, 0, 0)
    write(writer, b"1", b"2")
    first = rings.read(0, APP)
    assert texts(first) == ["1", "2"]
    assert texts(rings.read(0, APP, first.position, first.sequence)) == []
    write(writer, b"3")
    second = rings.read(0, APP, first.position, first.sequence)
    assert (texts(second), second.lost) == (["3"], 0)


def test_the_newest_entries_are_kept_and_the_lost_ones_counted(rings: OutputRings) -> None:
    writer = rings.writer(0, APP)
    write(writer, b"first")
    before = rings.read(0, APP)
    count = 10_000
    write(writer, *(b"line %d" % number for number in range(count)))
    after = rings.read(0, APP, before.position, before.sequence)
    kept = len(after.entries)
    assert texts(after) == [f"line {number}" for number in range(count - kept, count)]
    assert kept + after.lost == count
    assert kept > 1000


def test_what_a_signal_handler_can_not_write_is_counted(rings: OutputRings) -> None:
    writer = rings.writer(0, APP)
    write(writer, b"1")
    first = rings.read(0, APP)
    writer._is_busy = True  # as if a signal had interrupted `append` in this thread
    write(writer, b"lost")
    writer._is_busy = False
    write(writer, b"2")
    second = rings.read(0, APP, first.position, first.sequence)
    assert (texts(second), second.lost) == (["2"], 1)


def test_long_texts_are_cut(rings: OutputRings) -> None:
    writer = rings.writer(0, APP)
    writer.append(RECORD, 1, b"n" * 1000, b"x" * (1 << 20) + b"\n")
    writer.append(RECORD, 1, b"", "\N{SNOWMAN}".encode() * 5000)
    long, snow = rings.read(0, APP).entries
    assert long.text == "x" * MAX_TEXT_BYTES + f" … ({(1 << 20) - MAX_TEXT_BYTES} bytes left out)\n"
    assert long.name == "n" * MAX_NAME_BYTES
    kept = MAX_TEXT_BYTES // 3
    assert snow.text == "\N{SNOWMAN}" * kept + f" … ({15_000 - 3 * kept} bytes left out)"


def test_a_new_worker_begins_with_an_empty_ring(rings: OutputRings) -> None:
    write(rings.writer(0, APP), b"old")
    rings.reset(0)
    assert texts(rings.read(0, APP)) == []
    write(rings.writer(0, APP), b"old")
    write(rings.writer(0, APP), b"new")
    assert texts(rings.read(0, APP)) == ["new"]


def test_threads_write_whole_entries(rings: OutputRings) -> None:
    writer = rings.writer(0, APP)

    def run(number: int) -> None:
        write(writer, *(b"%d %d" % (number, line) * 10 for line in range(200)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = texts(rings.read(0, APP))
    for number in range(4):
        lines = [text for text in found if text.startswith(f"{number} ")]
        assert lines == [f"{number} {line}" * 10 for line in range(200)][-len(lines) :]
    assert len(found) + 0 <= 800


@given(st.lists(st.binary(max_size=3000), max_size=200), st.integers(1, 50))
def test_any_texts_are_read_in_order(data: list[bytes], step: int) -> None:
    rings = OutputRings(1)
    writer = rings.writer(0, APP)
    seen: list[str] = []
    position = sequence = lost = 0
    for start in range(0, len(data), step):
        write(writer, *data[start : start + step])
        reading = rings.read(0, APP, position, sequence)
        position, sequence = reading.position, reading.sequence
        lost += reading.lost
        seen += texts(reading)
    rings.close()
    assert len(seen) + lost == len(data) or not position
    if not lost:
        assert seen == [text.decode("utf-8", "backslashreplace") for text in data]


@given(st.binary(max_size=2000), st.integers(0, 1 << 64), st.integers(0, 1 << 64))
def test_any_memory_can_be_read(memory: bytes, head: int, tail: int) -> None:
    """An attacker who controls a worker can write anything there."""
    rings = OutputRings(1)
    words = b"".join(min(word, (1 << 64) - 1).to_bytes(8, "little") for word in (head, tail))
    os.pwrite(rings.fd, words.ljust(64, b"\0") + memory, APP.offset)
    for position in (0, 1, head, tail):
        reading = rings.read(0, APP, position, 5)
        assert len(reading.entries) <= APP.size // output_rings._ENTRY.size
    rings.close()


def test_a_damaged_entry_ends_the_reading(rings: OutputRings) -> None:
    writer = rings.writer(0, APP)
    write(writer, b"good", b"damaged", b"after")
    place = APP.offset + 64
    data = os.pread(rings.fd, 1000, place)
    os.pwrite(rings.fd, data.replace(b"damaged", b"DAMAGED"), place)
    assert texts(rings.read(0, APP)) == ["good"]


def test_the_next_program_reads_on(rings: OutputRings) -> None:
    write(rings.writer(2, APP), b"before the upgrade")
    state = json.loads(json.dumps(rings.to_state(os.dup)))
    after = OutputRings.from_state(state, lambda fd: fd, 3)
    assert texts(after.read(2, APP)) == ["before the upgrade"]
    after.close()


@pytest.mark.parametrize("change", [{"layout": 0}, {"rows": 2}])
def test_rings_of_another_layout_are_replaced(rings: OutputRings, change: dict[str, int]) -> None:
    write(rings.writer(0, APP), b"in the old ones")
    state = {**rings.to_state(os.dup), **change}
    after = OutputRings.from_state(state, lambda fd: fd, 3)
    assert texts(after.read(0, APP)) == []
    after.close()
    older = OutputRings.from_state({}, lambda fd: fd, 3)
    assert texts(older.read(0, APP)) == []
    older.close()


def test_an_attacker_can_not_change_the_size(rings: OutputRings) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(rings.fd, 0)
