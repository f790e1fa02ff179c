"""The arbiter never waits for a reader of its standard output or error."""

from __future__ import annotations

import fcntl
import io
import logging
import logging.handlers
import os
import subprocess
import sys

import pytest

from servo.logs.log_file import MAX_PENDING_BYTES, LogFile
from servo.logs.standard_streams import (
    PrintStream,
    bind_handlers,
    prints_never_block,
    restore_handlers,
)


@pytest.fixture
def logger():
    """A logger without handlers. Handlers that a test adds are removed."""
    logger = logging.getLogger("test_prints")
    logger.propagate = False
    yield logger
    logger.handlers = []
    logger.propagate = True


@pytest.fixture
def pipe():
    """A LogFile on a small pipe, and the pipe's reading end."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    yield LogFile(None, writer), reader
    os.close(reader)
    os.close(writer)


def test_handlers_of_standard_streams_are_bound_and_restored(logger, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # some programs replace it
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    direct = logging.StreamHandler(sys.__stdout__)
    behind = logging.StreamHandler(sys.__stderr__)
    memory = logging.handlers.MemoryHandler(10, target=behind)
    with (tmp_path / "own").open("w") as own:
        foreign = logging.StreamHandler(own)
        logger.handlers = [direct, memory, foreign]
        with prints_never_block():
            assert isinstance(direct.stream, PrintStream)
            assert direct.stream is sys.stdout
            assert direct.stream.encoding == sys.__stdout__.encoding
            assert direct.stream.fileno() == 1
            assert isinstance(behind.stream, PrintStream)
            assert behind.stream.fileno() == 2
            assert foreign.stream is own
            late = logging.StreamHandler(sys.__stdout__)
            printing = logging.StreamHandler(sys.stdout)
            logger.handlers += [late, printing]
            bind_handlers()
            assert late.stream is printing.stream is direct.stream
        assert foreign.stream is own
    assert [each.stream for each in (direct, behind, late, printing)] == [
        sys.__stdout__,
        sys.__stderr__,
        sys.__stdout__,
        sys.__stdout__,
    ]
    late = logging.StreamHandler(sys.__stdout__)
    logger.addHandler(late)
    bind_handlers()
    assert late.stream is sys.__stdout__


def test_a_worker_has_the_real_streams(logger):
    handler = logging.StreamHandler(sys.__stdout__)
    logger.addHandler(handler)
    with prints_never_block():
        restore_handlers()
        assert handler.stream is sys.__stdout__
        bind_handlers()
        assert handler.stream is sys.__stdout__


def test_the_warning_about_lost_lines_may_go_to_the_same_stream(logger, pipe, monkeypatch):
    """The warning is written to the same stream, while another line is being written there."""
    file, reader = pipe
    stream = PrintStream(file, sys.__stdout__)
    file.on_trouble = logger.warning
    handler = logging.StreamHandler(stream)
    failures = []
    monkeypatch.setattr(handler, "handleError", failures.append)
    logger.addHandler(handler)
    for number in range(2 * MAX_PENDING_BYTES // 1000):
        logger.error("%d %s", number, "x" * 1000)
        if file.lost:
            break
    lost = file.lost
    data = b""
    while file.pending:
        data += os.read(reader, 1 << 16)
        file.write(b"")
    data += os.read(reader, 1 << 16)
    lines = data.decode().splitlines()
    assert failures == []
    assert "are being lost: its reader does not keep up" in data.decode()
    assert lines[-1].endswith(f"can be written again; {lost} lines were lost")
    assert sum(line.endswith("x" * 1000) for line in lines) == number + 1 - lost


DRAINED = """
import logging, sys, time
from servo.logs.standard_streams import drain_prints, prints_never_block
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with prints_never_block():
    for number in range(200):
        logging.error("%d %s", number, "x" * 1000)
    print("the end", end="")
    print(file=sys.stderr)  # everything before has been written, or waits
    drain_prints(30)
"""


def test_drain_waits_for_slow_readers():
    with subprocess.Popen(
        [sys.executable, "-c", DRAINED], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr.readline() == b"\n"
        lines = process.stdout.read().splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [b"%d" % n for n in range(200)]
    assert lines[-1] == b"the end"


STOPPED = """
import logging, sys, time
from servo.logs.standard_streams import drain_prints, prints_never_block
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with prints_never_block():
    logging.error("x" * 200_000)
    begin = time.monotonic()
    drain_prints(0.1)
    sys.exit(0 if 0.1 <= time.monotonic() - begin < 20 else 3)
"""


def test_drain_gives_up_on_stopped_readers():
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE) as process:
        assert process.wait(30) == 0
