"""The buffer for a slow client: its order, its limits, and the release of its memory."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servo.apps.wsgi_file import FileRegion
from servo.http.errors import ClientDisconnected
from servo.workers.blocking import output_buffer
from servo.workers.blocking.output_buffer import OutputBuffer, OutputSpace

OVERHEAD = output_buffer._BLOCK_OVERHEAD


class Wire:
    """A socket that takes `room` bytes, and then nothing."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.data = b""
        self.calls = 0

    def take(self, data: bytes) -> int:
        self.calls += 1
        if not self.room:
            raise BlockingIOError
        taken = data[: self.room]
        self.room -= len(taken)
        self.data += taken
        return len(taken)

    def send(self, data: bytes | memoryview) -> int:
        return self.take(bytes(data))

    def send_file(self, fd: int, offset: int, count: int) -> int:
        if not self.room:
            raise BlockingIOError
        return self.take(os.pread(fd, min(count, self.room), offset))


def space_of(memory: int = 1000, disk: int = 10_000) -> OutputSpace:
    return OutputSpace(memory, disk, None)


def free(space: OutputSpace) -> tuple[int, int]:
    return space._memory, space._disk


def drain(buffer: OutputBuffer) -> bytes:
    wire = Wire(1 << 30)
    while buffer.size():
        assert buffer.send(wire)
    return wire.data


def test_memory_first_then_disk() -> None:
    space = space_of()
    buffer = OutputBuffer(space)
    data = bytes(range(256)) * 8
    rest = buffer.append(data, spool=False)
    assert len(data) - len(rest) == 1000 - OVERHEAD
    assert buffer.append(rest, spool=False) == rest
    assert buffer.append(rest, spool=True) == b""
    assert free(space)[1] == 10_000 - len(rest)
    # Behind what is on disk nothing may stay in memory, or it would be sent too early.
    wire = Wire(1000)
    assert buffer.send(wire)
    assert buffer.append(b"more", spool=False) == b"more"
    assert buffer.append(b"more", spool=True) == b""
    assert wire.data + drain(buffer) == data + b"more"
    buffer.close()


def test_memory_again_once_all_is_sent() -> None:
    space = space_of()
    buffer = OutputBuffer(space)
    before = free(space)
    for _ in range(3):
        assert buffer.append(b"x" * 1500, spool=True) == b""
        assert drain(buffer) == b"x" * 1500
        assert buffer.append(b"y" * 100, spool=False) == b""
        assert free(space) == (before[0] - 100 - OVERHEAD, before[1])
        assert drain(buffer) == b"y" * 100
        assert free(space) == before


def test_one_buffer_takes_no_more_disk_than_it_leaves() -> None:
    space = space_of(0)
    first, second = OutputBuffer(space), OutputBuffer(space)
    rest = first.append(b"x" * 20_000, spool=True)
    assert len(rest) == 15_000
    assert first.append(rest, spool=True) == rest
    rest = second.append(b"y" * 20_000, spool=True)
    assert len(rest) == 17_500
    first.close()
    assert second.append(rest, spool=True) != rest
    second.close()
    assert free(space) == (0, 10_000)


def test_the_memory_of_all_buffers_is_bounded() -> None:
    space = space_of(1000)
    buffers = [OutputBuffer(space) for _ in range(100)]
    kept = [1000 - len(buffer.append(b"x" * 1000, spool=False)) for buffer in buffers]
    assert sum(kept) <= 64 * 1000
    assert kept[-1] == 0
    for buffer in buffers:
        buffer.close()
    assert free(space)[0] == 64 * 1000


def test_tiny_blocks_count_for_what_they_cost_and_go_out_together() -> None:
    buffer = OutputBuffer(space_of(10_000))
    count = 0
    while not buffer.append(b"x", spool=False):
        count += 1
    assert count == 10_000 // (1 + OVERHEAD)
    wire = Wire(count)
    buffer.send(wire)
    assert wire.data == b"x" * count
    assert wire.calls == 1


def test_a_whole_response_may_take_the_memory_of_the_worker() -> None:
    space = space_of(1000)
    buffer = OutputBuffer(space)
    assert buffer.append_last(memoryview(b"x" * 50_000))
    other = OutputBuffer(space)
    assert not other.append_last(b"y" * 50_000)
    assert drain(buffer) == b"x" * 50_000
    assert other.append_last(b"y" * 50_000)
    other.close()
    assert free(space)[0] == 64_000


def test_a_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    buffer = OutputBuffer(space_of())
    buffer.append(b"head" * 500, spool=True)
    region = FileRegion(b"", os.open(path, os.O_RDONLY), 2, 7)
    buffer.append_file(region)
    assert buffer.size() == 2007
    wire = Wire(2003)
    buffer.send(wire)
    assert wire.data[2000:] == b"234"
    assert drain(buffer) == b"5678"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(region.fd)


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    buffer = OutputBuffer(space_of())
    buffer.append_file(FileRegion(b"", os.open(path, os.O_RDONLY), 0, 20))
    with pytest.raises(ClientDisconnected):
        buffer.send(Wire(100))
    buffer.close()


def test_closing_gives_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    space = space_of()
    before = free(space), len(os.listdir("/proc/self/fd"))
    buffer = OutputBuffer(space)
    buffer.append(b"x" * 3000, spool=True)
    buffer.append_file(FileRegion(b"", os.open(path, os.O_RDONLY), 0, 10))
    buffer.send(Wire(1200))
    buffer.close()
    assert (free(space), len(os.listdir("/proc/self/fd"))) == before


@pytest.mark.parametrize("where", ["TemporaryFile", "pwrite"])
def test_a_disk_that_fails(
    where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object, **_options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    space = space_of()
    buffer = OutputBuffer(space)
    data = bytes(range(256)) * 8
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryFile" if where == "TemporaryFile" else "os.pwrite", fail)
        rest = buffer.append(data, spool=True)
        assert len(rest) == len(data) - 1000 + OVERHEAD
    assert buffer.append(rest, spool=True) == rest  # it is not tried again for this response
    assert caplog.text.count("Can't spool a response: [Errno 28] No space left") == 1
    assert free(space)[1] == 10_000
    assert drain(buffer) + rest == data
    buffer.close()


def test_a_write_that_fails_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = OutputBuffer(space_of(0))
    assert buffer.append(b"a" * 100, spool=True) == b""
    pwrite = os.pwrite
    answers = iter([10, OSError(errno.EDQUOT, "quota")])

    def half(fd: int, data: bytes, offset: int) -> int:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return pwrite(fd, data[:answer], offset)

    monkeypatch.setattr(os, "pwrite", half)
    assert buffer.append(b"b" * 100, spool=True) == b"b" * 100
    assert drain(buffer) == b"a" * 100
    buffer.close()


def test_files_are_given_back_as_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that always lags a little doesn't make a file grow."""
    monkeypatch.setattr(output_buffer, "_MAX_SEGMENT", 1000)
    space = space_of(0, 10_000)
    buffer = OutputBuffer(space)
    buffer.append(b"z" * 1500, spool=True)
    sent = Wire()
    for number in range(100):
        assert buffer.append(bytes([number]) * 500, spool=True) == b""
        sent.room += 500
        buffer.send(sent)
        assert free(space)[1] >= 10_000 - 4000
    expected = b"z" * 1500 + b"".join(bytes([number]) * 500 for number in range(100))
    assert sent.data + drain(buffer) == expected
    buffer.close()


def test_a_turn_is_bounded() -> None:
    buffer = OutputBuffer(OutputSpace(1 << 30, 0, None))
    for _ in range(200):
        buffer.append(bytes(65536), spool=False)
    wire = Wire(1 << 30)
    assert buffer.send(wire)
    assert len(wire.data) <= (4 << 20) + 65536
    assert buffer.size()


def test_late_is_who_takes_nothing() -> None:
    buffer = OutputBuffer(space_of())
    assert not buffer.is_stalled(1 << 62, 5)
    buffer.append(b"xy", spool=False)
    assert buffer.is_stalled(1 << 62, 5)
    assert not buffer.is_stalled(1 << 62, 0)  # no limit
    since = buffer._nonempty_since_ns
    assert not buffer.is_stalled(since + 5, 5)
    assert buffer.is_stalled(since + 6, 5)
    buffer.send(Wire(1))
    assert not buffer.is_stalled(buffer._progress_ns + 5, 5)


def test_waiting_for_progress() -> None:
    buffer = OutputBuffer(space_of())
    buffer.append(b"xy", spool=False)
    assert not buffer.wait(1e-6)
    buffer.send(Wire(1))
    assert buffer.wait(1e-6)  # it has happened before the call
    assert not buffer.wait(1e-6)
    waiter = threading.Thread(target=buffer.wait, args=(0,))
    waiter.start()
    while buffer._sent_event is None or not buffer._sent_event._cond._waiters:  # type: ignore[attr-defined]
        pass
    buffer.wake()
    waiter.join()


STEPS = st.lists(
    st.tuples(st.sampled_from("awl"), st.integers(0, 700))
    | st.tuples(st.just("s"), st.integers(0, 3000)),
    max_size=60,
)


@given(STEPS, st.integers(0, 2000), st.integers(0, 20_000))
def test_any_order_of_steps(steps: list[tuple[str, int]], memory: int, disk: int) -> None:
    space = OutputSpace(memory, disk, None)
    before = free(space)
    buffer = OutputBuffer(space)
    wire = Wire()
    expected = b""
    for number, (step, size) in enumerate(steps):
        data = bytes([number]) * size
        if step == "s":
            wire.room += size
            buffer.send(wire)
        elif step == "l":
            expected += data if buffer.append_last(data) else b""
            break
        else:
            rest = buffer.append(data, spool=step == "w")
            expected += data[: len(data) - len(rest)]
    assert wire.data + drain(buffer) == expected
    buffer.close()
    assert free(space) == before


@pytest.mark.slow
def test_two_threads_lose_nothing() -> None:
    """The producer and the consumer at the same time, without a lock."""
    space = OutputSpace(5000, 50_000, None)
    buffer = OutputBuffer(space)
    wire = Wire()
    blocks = [b"%06d" % number * (number % 50) for number in range(4000)]
    done = threading.Event()

    def produce() -> None:
        for block in blocks:
            rest = buffer.append(block, spool=True)
            while rest:
                buffer.wait(0.01)
                rest = buffer.append(rest, spool=True)
        done.set()

    producer = threading.Thread(target=produce)
    producer.start()
    pieces = []
    while not done.is_set() or buffer.size():
        wire.room = 777
        buffer.send(wire)
        pieces.append(wire.data)
        wire.data = b""
    producer.join()
    assert b"".join(pieces) == b"".join(blocks)
    buffer.close()
    assert free(space) == (64 * 5000, 50_000)
