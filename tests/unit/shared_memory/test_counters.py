"""The table of counters: exact sums over processes that are forked, killed and replaced."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from servo.shared_memory import counters
from servo.shared_memory.counters import (
    MAX_NAME_BYTES,
    CountersFull,
    CounterTable,
    CounterTableError,
)


@pytest.fixture
def table() -> Iterator[CounterTable]:
    table = CounterTable(capacity=8, rows=4)
    yield table
    table.close()


def in_child(work: Callable[[], object]) -> int:
    """Run a function in a forked process. Returns its exit code: 0 if it has returned."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_value_is_the_sum_over_all_processes(table: CounterTable) -> None:
    place = table.place_of(b"hits")
    table.add(place, 3)
    for _ in range(10):  # more processes than rows, one after the other
        assert in_child(lambda: table.add(place, 2)) == 0
    assert table.value(place) == 23


def test_the_next_process_takes_the_row_of_an_ended_one(table: CounterTable) -> None:
    place = table.place_of(b"hits")
    for _ in range(5):
        in_child(lambda: table.add(place, 1))
    assert table._high == 1


def test_a_child_counts_in_a_row_of_its_own(table: CounterTable) -> None:
    place = table.place_of(b"hits")
    table.add(place, 1)
    in_child(lambda: table.add(place, 10))
    table.add(place, 1)
    assert table.value(place) == 12
    assert table._high == 2


def test_counters_do_not_mix(table: CounterTable) -> None:
    places = [table.place_of(b"c%d" % each) for each in range(8)]
    assert places == list(range(8))
    for place in places:
        table.add(place, place)
        in_child(lambda place=place: table.add(place, 100))  # type: ignore[misc]
    assert [table.value(place) for place in places] == [100 + place for place in places]


def test_another_process_sees_new_names(table: CounterTable) -> None:
    assert in_child(lambda: table.place_of(b"from the child")) == 0
    assert table.names() == {b"from the child": 0}
    assert table.count == 1
    assert table.place_of(b"other") == 1
    assert table.place_of(b"from the child") == 0


def test_a_killed_process_loses_nothing(table: CounterTable) -> None:
    place = table.place_of(b"hits")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        while True:
            table.add(place, 1)
            os.write(writer, b"x")
    said = b""
    while len(said) < 1000:
        said += os.read(reader, 65536)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(writer)
    while more := os.read(reader, 65536):
        said += more
    os.close(reader)
    # The process may have been killed between an addition and its report.
    assert table.value(place) - len(said) in (0, 1)


def test_threads_of_one_process(table: CounterTable) -> None:
    place = table.place_of(b"hits")

    def add() -> None:
        for _ in range(5000):
            table.add(place, 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.value(place) == 20_000


def test_too_many_counters(table: CounterTable) -> None:
    for each in range(8):
        table.place_of(b"c%d" % each)
    with pytest.raises(CountersFull, match=r"has 8 counters already.*\(cluster_counters\)"):
        table.place_of(b"one more")
    assert table.place_of(b"c7") == 7


def test_too_many_processes() -> None:
    table = CounterTable(capacity=1, rows=1)
    place = table.place_of(b"x")
    table.add(place, 1)

    def add() -> None:
        with pytest.raises(CountersFull, match=r"1 processes .*\(scoreboard_size\)"):
            table.add(place, 1)

    assert in_child(add) == 0
    assert table.value(place) == 1
    table.close()


def test_a_long_name(table: CounterTable) -> None:
    assert table.place_of(b"x" * MAX_NAME_BYTES) == 0
    with pytest.raises(ValueError, match="255 bytes, more than 254"):
        table.place_of(b"y" * (MAX_NAME_BYTES + 1))


def test_an_unfinished_name_is_written_over(table: CounterTable) -> None:
    """A process was killed after it had written a name, and before it counted it."""
    start = counters._HEADER_BYTES
    table._bytes[start : start + 12] = b"\x0a\0unfinished"
    assert table.place_of(b"next") == 0
    assert table.names() == {b"next": 0}


def test_an_upgrade_keeps_values_and_rows(table: CounterTable) -> None:
    place = table.place_of(b"hits")
    table.add(place, 5)
    restored = CounterTable.from_state(table.to_state(lambda fd: fd), os.dup)
    assert restored.place_of(b"hits") == place
    restored.add(place, 1)  # its own opening of the file, so its own row
    assert restored.value(place) == table.value(place) == 6
    restored.close()


def test_an_upgrade_from_another_layout(table: CounterTable) -> None:
    state = table.to_state(lambda fd: fd)
    with pytest.raises(CounterTableError, match="layout of another version"):
        CounterTable.from_state({**state, "layout": 1}, os.dup)


@pytest.mark.parametrize("data", [b"", b"x" * 24, bytes(8192)])
def test_attach_to_another_file(data: bytes) -> None:
    fd = os.memfd_create("other")
    os.write(fd, data)
    with pytest.raises(CounterTableError, match="is not a table of counters"):
        CounterTable.attach(fd)
    os.close(fd)


def test_no_memory_is_an_error_and_not_a_signal(
    table: CounterTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = table.place_of(b"x")

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CounterTableError, match="no memory for this process's counters"):
        table.add(place, 1)
    with pytest.raises(CounterTableError, match="no memory for another counter"):
        table.place_of(b"y")
    with pytest.raises(CounterTableError, match="can't create the table"):
        CounterTable(1, 1)
    monkeypatch.undo()
    table.add(place, 1)
    assert table.value(place) == 1


def test_without_posix_fallocate_a_taken_row_keeps_its_counts(
    table: CounterTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    place = table.place_of(b"x")
    in_child(lambda: table.add(place, 1))
    in_child(lambda: table.add(place, 1))
    assert table.value(place) == 2


def test_a_stopped_process_with_the_lock_of_the_names(
    table: CounterTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "_NAMES_TIMEOUT_S", 0.0)
    other = CounterTable.attach(os.dup(table.fd))
    assert other.locks.try_lock(counters._NAMES_LOCK)
    with pytest.raises(CounterTableError, match="another process is stopped"):
        table.place_of(b"x")
    other.close()
    assert table.place_of(b"x") == 0


def test_an_overwritten_table_does_not_stop_readers(table: CounterTable) -> None:
    table.place_of(b"x")
    os.pwrite(table.fd, b"\xff" * (8192 - 24), 24)
    names = table.names()
    assert sorted(names.values()) == list(range(8))
    assert table.count == 8
    table.value(7)


def test_a_value_beyond_63_bits_is_refused(table: CounterTable) -> None:
    place = table.place_of(b"x")
    table.add(place, (1 << 63) - 1)
    with pytest.raises(ValueError, match="invalid value"):
        table.add(place, 1)
    assert table.value(place) == (1 << 63) - 1


def test_the_table_takes_no_memory_before_it_is_used() -> None:
    table = CounterTable(capacity=1000, rows=320)
    before = os.fstat(table.fd).st_blocks
    place = table.place_of(b"x")
    table.add(place, 1)
    assert before * 512 <= 4096
    assert os.fstat(table.fd).st_blocks * 512 <= 8 * 4096
    assert os.fstat(table.fd).st_size > 2_000_000
    table.close()


def test_close_twice() -> None:
    table = CounterTable(1, 1)
    table.close()
    table.close()
