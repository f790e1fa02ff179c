"""The destination of a log: reopening, full disks, slow readers, and lines that stay whole."""

from __future__ import annotations

import errno
import fcntl
import os
import socket

import pytest

from servo.errors import ConfigError
from servo.logs import log_file
from servo.logs.log_file import LogFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "servo.log"


@pytest.fixture
def file(path):
    file = LogFile(str(path))
    yield file
    file.close()


@pytest.fixture
def pipe():
    """A LogFile on a non-blocking pipe with a small buffer, and the pipe's reading end."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    yield LogFile(None, writer), reader
    os.close(reader)
    os.close(writer)


class Disk:
    """Replaces `os.write`: the disk has this many free bytes."""

    def __init__(self, monkeypatch, left: int) -> None:
        self.left = left
        self._write = os.write
        monkeypatch.setattr(log_file.os, "write", self.write)

    def write(self, fd: int, data: bytes) -> int:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(fd, data[: self.left])
        self.left -= written
        return written


def read_all(fd: int) -> bytes:
    data = b""
    while True:
        try:
            data += os.read(fd, 1 << 16)
        except BlockingIOError:
            return data


def test_lines_are_appended(path, file):
    path.write_bytes(b"before\n")
    file.write(b"one\n")
    file.write(b"two\nthree\n")
    assert path.read_bytes() == b"before\none\ntwo\nthree\n"
    assert not os.get_inheritable(file.fd)


def test_a_path_that_can_not_be_opened_is_an_error_of_the_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"missing/log: No such file"):
        LogFile(str(tmp_path / "missing" / "log"))


def test_reopening_keeps_the_descriptor_and_makes_a_new_file(path, file):
    number = file.fd
    file.write(b"old\n")
    rotated = path.with_suffix(".1")
    path.rename(rotated)
    assert file.reopen() == ""
    file.write(b"new\n")
    assert file.fd == number
    assert not os.get_inheritable(number)
    assert rotated.read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\n"


def test_a_relative_path_is_reopened_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = LogFile("servo.log")
    monkeypatch.chdir("/")
    (tmp_path / "servo.log").unlink()
    assert file.reopen() == ""
    assert (tmp_path / "servo.log").exists()
    file.close()


def test_a_failed_reopening_keeps_the_old_file(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    file = LogFile(str(directory / "log"))
    directory.rename(tmp_path / "moved")
    assert "No such file" in file.reopen()
    file.write(b"still\n")
    assert (tmp_path / "moved" / "log").read_bytes() == b"still\n"
    file.close()


def test_a_standard_descriptor_is_neither_reopened_nor_closed(pipe):
    file, reader = pipe
    assert file.reopen() == ""
    file.close()
    file.write(b"one\n")
    assert read_all(reader) == b"one\n"


def test_a_full_disk_loses_whole_lines_and_says_so(path, file, monkeypatch):
    told = []
    file.on_trouble = told.append
    disk = Disk(monkeypatch, left=14)
    file.write(b"line one\n")
    file.write(b"line two\nline three\n")
    file.write(b"line four\n")
    assert told == [f"Lines of the log {path} are being lost: No space left on device"]
    assert file.lost == 3
    disk.left = 1000
    file.write(b"line five\n")
    assert told[1:] == [f"The log {path} can be written again; 3 lines were lost"]
    assert file.lost == 0
    # A newline ends the torn line, so that the next line doesn't read as a part of it.
    assert path.read_bytes() == b"line one\nline \nline five\n"


def test_a_disk_that_was_full_at_a_lines_end_leaves_no_empty_line(path, file, monkeypatch):
    disk = Disk(monkeypatch, left=4)
    file.write(b"one\ntwo\n")
    disk.left = 100
    file.write(b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_torn_line_is_lost_once(path, file, monkeypatch):
    disk = Disk(monkeypatch, left=2)
    for _ in range(3):
        file.write(b"line\n")
    assert file.lost == 3
    disk.left = 100
    file.write(b"end\n")
    assert path.read_bytes() == b"li\nend\n"


def test_a_short_write_is_continued(path, file, monkeypatch):
    write = os.write
    monkeypatch.setattr(log_file.os, "write", lambda fd, data: write(fd, data[:3]))
    file.write(b"one two three\n")
    assert path.read_bytes() == b"one two three\n"


def test_lines_wait_for_a_slow_reader_in_order(pipe):
    file, reader = pipe
    lines = [b"%05d %s\n" % (number, b"x" * 90) for number in range(200)]
    for line in lines:
        file.write(line)
    assert file.pending
    received = b""
    while file.pending:
        received += read_all(reader)
        file.write(b"")
    received += read_all(reader)
    assert received == b"".join(lines)
    assert file.lost == 0


def test_a_reader_that_never_reads_loses_the_oldest_lines(pipe, monkeypatch):
    monkeypatch.setattr(log_file, "MAX_PENDING_BYTES", 10_000)
    told = []
    file, reader = pipe
    file.on_trouble = told.append
    for number in range(1000):
        file.write(b"%05d %s\n" % (number, b"x" * 90))
    received = b""
    lost = file.lost
    while file.pending:
        received += read_all(reader)
        file.write(b"")
    received += read_all(reader)
    numbers = [int(line[:5]) for line in received.splitlines()]
    assert all(len(line) == 96 for line in received.splitlines())
    assert numbers == sorted(numbers)
    assert numbers[-1] == 999
    assert len(numbers) + lost == 1000
    assert "does not keep up" in told[0]
    assert f"{lost} lines were lost" in told[1]


def test_pipes_get_pieces_that_can_not_mix_with_other_processes(monkeypatch, pipe):
    file, reader = pipe
    fcntl.fcntl(file.fd, fcntl.F_SETPIPE_SZ, 1 << 20)
    write, pieces = os.write, []

    def spy(fd, data):
        pieces.append(bytes(data))
        return write(fd, data)

    monkeypatch.setattr(log_file.os, "write", spy)
    data = b"".join(b"x" * length + b"\n" for length in (10, 4000, 300, 5000, 20, 4095, 1))
    file.write(data)
    assert read_all(reader) == data
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert all(len(piece) <= 4096 or piece.count(b"\n") == 1 for piece in pieces)


def test_a_closed_stdout_is_counted_not_raised():
    reader, writer = os.pipe()
    os.close(reader)
    file = LogFile(None, writer)
    file.write(b"one\ntwo\n")
    os.close(writer)
    file.write(b"three\n")
    assert file.lost == 3
    assert LogFile(None, 987654).name == "descriptor 987654"


def test_drain_waits_for_a_reader_up_to_its_timeout(pipe):
    file, reader = pipe
    file.write(b"x" * 5000 + b"\n")
    file.drain(0.0)
    assert file.pending
    assert len(read_all(reader)) == 4096
    file.drain(1.0)
    assert not file.pending


def test_chown_changes_files_only(path, file, pipe, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fchown", lambda *args: calls.append(args))
    file.chown(12, 34)
    pipe[0].chown(12, 34)
    null = LogFile("/dev/null")
    null.chown(12, 34)
    null.close()
    assert calls == [(file.fd, 12, 34)]


def test_a_link_that_another_user_may_have_put_there_is_not_followed(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    (tmp_path / "secret").write_text("")
    file = LogFile(str(shared / "log"))
    (shared / "log").unlink()
    (shared / "log").symlink_to(tmp_path / "secret")
    assert "symbolic link" in file.reopen()
    file.write(b"to the old file\n")
    assert (tmp_path / "secret").read_text() == ""
    with pytest.raises(ConfigError, match="symbolic link"):
        LogFile(str(shared / "log"))
    file.close()


def test_only_files_that_no_other_user_can_have_put_there_are_given_away(tmp_path, monkeypatch):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    given = []
    monkeypatch.setattr(log_file.os, "fchown", lambda fd, uid, gid: given.append(uid))
    for number, path in enumerate([tmp_path / "log", shared / "log", shared / "log"]):
        file = LogFile(str(path))
        file.chown(number, -1)
        file.close()
    assert given == [0, 1]  # the third file existed before


def test_a_fifo_whose_reader_went_keeps_the_old_log(tmp_path):
    file = LogFile(str(tmp_path / "log"))
    (tmp_path / "log").rename(tmp_path / "log.1")
    os.mkfifo(tmp_path / "log")
    assert "a FIFO that no process reads" in file.reopen()
    file.write(b"still here\n")
    assert (tmp_path / "log.1").read_bytes() == b"still here\n"
    file.close()


def test_a_stopped_reader_of_a_standard_stream_blocks_no_write():
    """The inherited descriptor stays blocking, because other programs share it."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    file = LogFile(None, writer)
    for _ in range(3000):
        file.write(b"x" * 999 + b"\n")
    assert file.lost > 1000
    assert os.get_blocking(writer)
    said = []
    file.on_trouble = said.append
    os.set_blocking(reader, False)
    while file.pending:
        read_all(reader)
        file.write(b"")
    assert "lines were lost" in said[0]
    file.close()
    assert os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


def test_a_stopped_reader_of_a_socket_blocks_no_write():
    ours, theirs = socket.socketpair()
    file = LogFile(None, theirs.fileno())
    for _ in range(3000):
        file.write(b"x" * 999 + b"\n")
    assert file.lost > 1000
    assert theirs.getblocking()
    file.close()
    assert theirs.fileno() >= 0
    ours.close()
    theirs.close()


def test_a_redirected_standard_stream(tmp_path):
    reader, writer = os.pipe()
    file = LogFile(None, writer)
    null = os.open(tmp_path / "null", os.O_WRONLY | os.O_CREAT)
    os.dup2(null, writer)
    file.follow_standard()
    assert os.read(reader, 1) == b""  # no copy of ours keeps the pipe open
    file.write(b"here\n")
    assert (tmp_path / "null").read_bytes() == b"here\n"
    for fd in (reader, writer, null):
        os.close(fd)


def test_a_long_line_is_not_continued_by_another_process(pipe):
    file, reader = pipe
    fcntl.fcntl(file.fd, fcntl.F_SETPIPE_SZ, 1 << 16)
    other = LogFile(None, file.standard)
    filling = b"f" * 1999 + b"\n"
    for _ in range(10):
        file.write(filling)
    long = b"l" * 29_999 + b"\n"
    file.write(long)
    assert file.pending
    other.write(b"another's\n")
    assert read_all(reader) == filling * 10 + b"another's\n"
    file.write(b"")
    assert read_all(reader) == long
    other.close()


def test_a_line_that_no_pipe_holds_is_written_in_pieces(pipe):
    file, reader = pipe
    line = b"l" * 20_000 + b"\n"
    file.write(line)
    data = read_all(reader)
    while file.pending:
        file.write(b"")
        data += read_all(reader)
    assert data == line


@pytest.mark.parametrize("lines", [[b"x" * 100], [b"y" * 10_000], [b"a", b"z" * 5000, b"b"]])
def test_a_pipe_that_can_not_be_opened_again_blocks_no_write(monkeypatch, lines):
    """The pipe belongs to another user, for instance after `su`."""
    monkeypatch.setattr(log_file, "non_blocking_copy", lambda _fd: -1)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    file = LogFile(None, writer)
    data = b"".join(line + b"\n" for line in lines)
    for _ in range(20):
        file.write(data)
    assert file.pending
    assert os.get_blocking(writer)
    read = b""
    while file.pending:
        read += read_all(reader)
        file.write(b"")
    assert read + read_all(reader) == data * 20
    os.close(reader)
    file.write(data)
    assert file.lost
    os.close(writer)
