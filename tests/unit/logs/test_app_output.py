"""What the application prints and logs is kept, and still goes where it went before."""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from servo.logs import app_output
from servo.shared_memory.output_rings import (
    ACCESS,
    APP,
    RECORD,
    STDERR,
    STDOUT,
    Entry,
    OutputRings,
)

LOGGER = logging.getLogger("test_app_output")


class Output:
    """A process with standard streams of its own, whose output is kept."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = {name: directory / name for name in ("stdout", "stderr")}
        self.real: dict[str, io.TextIOWrapper] = {}
        self.monkeypatch = monkeypatch

    def open(self) -> None:
        """Called by the test itself: pytest sets the streams after the fixtures are made."""
        for name, path in self.paths.items():
            stream = io.TextIOWrapper(
                open(path, "wb"),  # noqa: SIM115
                "utf-8",
                line_buffering=name == "stderr",
            )
            stream.mode = "w"  # type: ignore[misc]
            self.real[name] = stream
            self.monkeypatch.setattr(sys, name, stream)
            self.monkeypatch.setattr(sys, f"__{name}__", stream)
        LOGGER.handlers, LOGGER.propagate = [], False
        LOGGER.setLevel(logging.DEBUG)
        self.rings = OutputRings(1)
        app_output.keep_in(self.rings.writer(0, APP), self.rings.writer(0, ACCESS))
        app_output.install()

    def close(self) -> None:
        app_output.keep_in(None, None)
        app_output.uninstall()
        for kept in app_output._streams:
            if not kept.closed:
                kept.close()
        app_output._streams.clear()
        LOGGER.handlers = []
        self.monkeypatch.undo()
        for stream in self.real.values():
            stream.close()
        self.rings.close()

    def entries(self) -> list[Entry]:
        return self.rings.read(0, APP).entries

    @property
    def kept(self) -> list[tuple[int, str, str]]:
        return [(entry.kind, entry.level, entry.text) for entry in self.entries()]

    @property
    def texts(self) -> list[str]:
        return [entry.text for entry in self.entries()]

    def written(self, name: str) -> str:
        return self.paths[name].read_text()


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Output]:
    found = Output(tmp_path, monkeypatch)
    yield found
    found.close()


# --- standard streams -------------------------------------------------------------------------


def test_a_print_is_kept_before_it_is_written(output: Output) -> None:
    """As usual, Python writes to a file only when its buffer is full."""
    output.open()
    print("hello")
    assert output.kept == [(STDOUT, "", "hello\n")]
    assert output.written("stdout") == ""
    sys.stdout.flush()
    assert output.written("stdout") == "hello\n"
    print("naïve", "and", "more", end="!", flush=True)
    assert output.texts[1:] == ["naïve and more!"]
    assert output.written("stdout") == "hello\nnaïve and more!"


def test_standard_error_is_written_line_by_line(output: Output) -> None:
    output.open()
    print("an error", file=sys.stderr)
    assert output.kept == [(STDERR, "", "an error\n")]
    assert output.written("stderr") == "an error\n"


def test_a_traceback(output: Output) -> None:
    output.open()
    try:
        raise ValueError("on purpose")
    except ValueError:
        traceback.print_exc()
    assert "".join(output.texts).startswith("Traceback (most recent call last):\n")
    assert output.texts[-1] == "ValueError: on purpose\n"
    assert output.written("stderr") == "".join(output.texts)


def test_bytes_and_wrapped_streams(output: Output) -> None:
    output.open()
    sys.stdout.buffer.write(b"\x00\xff raw\n")
    sys.stdout.buffer.write(memoryview(b"view\n"))
    sys.stdout.buffer.flush()
    assert output.paths["stdout"].read_bytes() == b"\x00\xff raw\nview\n"
    wrapped = io.TextIOWrapper(sys.stdout.buffer, "latin-1", write_through=True)
    wrapped.write("wrapped\n")
    assert output.texts == ["\x00\\xff raw\n", "view\n", "wrapped\n"]
    wrapped.detach()
    with pytest.raises(TypeError):
        sys.stdout.buffer.write(5)  # type: ignore[arg-type]


def test_the_stream_looks_like_the_real_one(output: Output) -> None:
    output.open()
    for name in ("stdout", "stderr"):
        stream, real = getattr(sys, name), output.real[name]
        assert stream is not real
        assert (stream.encoding, stream.errors) == (real.encoding, real.errors)
        assert (stream.fileno(), stream.isatty(), stream.name) == (real.fileno(), False, real.name)
        assert (stream.mode, stream.writable(), stream.closed) == ("w", True, False)
        assert stream.buffer.raw is real.buffer.raw


def test_reconfiguring(output: Output) -> None:
    output.open()
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    print("at once")
    assert output.written("stdout") == "at once\n"
    assert sys.stdout.errors == "replace"
    sys.stdout.reconfigure(line_buffering=False)
    print("later")
    assert output.written("stdout") == "at once\n"
    assert output.texts == ["at once\n", "later\n"]


def test_a_stream_that_the_application_replaces_stays_open(output: Output) -> None:
    output.open()
    sys.stdout = io.StringIO()
    print("not kept: it is not written to standard output")
    sys.stdout = sys.__stdout__
    print("around it", flush=True)
    assert output.texts == []
    assert output.written("stdout") == "around it\n"
    app_output.install()
    print("again", flush=True)
    assert output.texts == ["again\n"]


def test_a_stream_without_a_reader(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    output.open()
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "__stderr__", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    app_output.install()
    with pytest.raises(BrokenPipeError):
        print("the last words", file=sys.stderr, flush=True)
    assert output.texts == ["the last words\n"]
    app_output.uninstall()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_no_stream_at_all(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    output.open()
    for name in ("stdout", "__stdout__"):
        monkeypatch.setattr(sys, name, None)
    app_output.install()
    print("nowhere")
    assert output.texts == []


def test_a_huge_line_is_cut_in_the_ring_only(output: Output) -> None:
    output.open()
    print("x" * (1 << 20), flush=True)
    text = "".join(output.texts)
    assert len(text) < 9000
    assert text.endswith("bytes left out)\n")
    assert len(output.written("stdout")) == (1 << 20) + 1


def test_nothing_is_kept_in_a_child(output: Output) -> None:
    output.open()
    print("kept")
    app_output.keep_in(None, None)
    print("not kept", flush=True)
    logging.getLogger("test_app_output").error("not kept")
    assert output.texts == ["kept\n"]
    assert output.written("stdout") == "kept\nnot kept\n"


# --- logging ----------------------------------------------------------------------------------


def test_a_record_is_kept_once_as_it_is_written(output: Output) -> None:
    output.open()
    for stream in (sys.stderr, sys.stdout):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(name)s says: %(message)s"))
        LOGGER.addHandler(handler)
    LOGGER.warning("%d left", 3)
    assert output.kept == [(RECORD, "warning", "test_app_output says: 3 left")]
    assert output.entries()[0].name == "test_app_output"
    assert output.written("stderr") == "test_app_output says: 3 left\n"
    print("this thread goes on")
    assert output.texts[1:] == ["this thread goes on\n"]


def test_the_level_of_a_record(output: Output) -> None:
    output.open()
    LOGGER.addHandler(logging.StreamHandler())
    for level in (5, 10, 20, 25, 30, 40, 50, 90):
        LOGGER.setLevel(1)
        LOGGER.log(level, "x")
    levels = "debug debug info info warning error critical critical"
    assert [level for _, level, _ in output.kept] == levels.split()


def test_a_record_that_goes_only_to_a_file(output: Output, tmp_path: Path) -> None:
    output.open()
    handler = logging.FileHandler(tmp_path / "app.log")
    LOGGER.addHandler(handler)
    try:
        raise ValueError("on purpose")
    except ValueError:
        LOGGER.exception("it failed")
    handler.close()
    (text,) = output.texts
    assert text.startswith("it failed\nTraceback")
    assert text + "\n" == (tmp_path / "app.log").read_text()


def test_what_no_handler_writes_is_not_kept(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    output.open()
    monkeypatch.setattr(logging.root, "handlers", [])  # without pytest's
    LOGGER.addHandler(logging.NullHandler())
    quiet = logging.StreamHandler()
    quiet.setLevel(logging.ERROR)
    LOGGER.addHandler(quiet)
    LOGGER.warning("for nobody")
    logging.getLogger("servo_test_without_handlers").warning("for the handler of last resort")
    assert output.texts == ["for the handler of last resort"]


def test_filters_and_formatters_remove_secrets_first(output: Output) -> None:
    output.open()

    class Redact(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.msg = str(record.msg).replace("hunter2", "***")
            return True

    handler = logging.StreamHandler()
    handler.addFilter(Redact())
    LOGGER.addHandler(handler)
    LOGGER.error("the password is hunter2")
    assert output.texts == ["the password is ***"]


def test_a_queue_of_records(output: Output) -> None:
    output.open()
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("<%(message)s>"))
    listener = logging.handlers.QueueListener(records, handler)
    LOGGER.addHandler(logging.handlers.QueueHandler(records))
    listener.start()
    LOGGER.error("in another thread")
    listener.stop()
    assert output.texts == ["<in another thread>"]


def test_a_handler_that_writes_by_itself(output: Output) -> None:
    output.open()

    class Prints(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print("printed:", record.getMessage())

    LOGGER.addHandler(Prints())
    LOGGER.error("x")
    assert output.kept == [(STDOUT, "error", "printed: x\n")]


def test_a_formatter_that_returns_no_text(output: Output) -> None:
    output.open()

    class Odd(logging.Formatter):
        def format(self, record: logging.LogRecord) -> Any:
            return {"message": record.getMessage()}

    class Takes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(self.format(record))

    found: list[Any] = []
    handler = Takes()
    handler.setFormatter(Odd())
    LOGGER.addHandler(handler)
    LOGGER.error("x")
    assert found == [{"message": "x"}]
    assert output.texts == []


def test_formatting_outside_of_a_handler(output: Output) -> None:
    output.open()
    record = logging.LogRecord("a", logging.INFO, "a.py", 1, "x", (), None)
    assert logging.StreamHandler().format(record) == "x"
    print("goes on")
    assert output.texts == ["goes on\n"]


def test_records_of_the_error_log_are_kept_without_a_handler(output: Output) -> None:
    output.open()
    record = logging.LogRecord("servo.error", logging.INFO, "a.py", 1, "booted", (), None)
    app_output.keep_record(record)
    logging.StreamHandler().handle(record)
    assert output.kept == [(RECORD, "info", "booted")]


def test_threads_do_not_disturb_each_other(output: Output) -> None:
    output.open()
    inside, leave = threading.Event(), threading.Event()

    class Waits(logging.StreamHandler):  # type: ignore[type-arg]
        def emit(self, record: logging.LogRecord) -> None:
            super().emit(record)
            inside.set()
            assert leave.wait(30)

    LOGGER.addHandler(Waits())
    thread = threading.Thread(target=lambda: LOGGER.error("logged"))
    thread.start()
    assert inside.wait(30)
    print("printed meanwhile")
    leave.set()
    thread.join()
    assert output.texts == ["logged", "printed meanwhile\n"]


# --- access log -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 10, 3000])
def test_lines_of_the_access_log(output: Output, count: int) -> None:
    output.open()
    lines = b"".join(b'"GET /%d HTTP/1.1" 200 2\n' % number for number in range(count))
    app_output.keep_access(lines)
    entries = output.rings.read(0, ACCESS).entries
    found = "".join(entry.text for entry in entries)
    assert lines.decode().endswith(found)
    assert found.count("\n") >= min(count, 1000)
    assert all(entry.text.startswith('"GET') and entry.text.endswith("\n") for entry in entries)


def test_a_long_line_of_the_access_log(output: Output) -> None:
    output.open()
    app_output.keep_access(b"x" * 20_000 + b"\nshort\n")
    long, short = output.rings.read(0, ACCESS).entries
    assert long.text.startswith("xxx")
    assert short.text == "short\n"


def test_an_access_log_of_the_user(output: Output) -> None:
    output.open()
    logger = logging.getLogger("servo.access")
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.StreamHandler()], False
    try:
        logger.warning("GET /")
    finally:
        logger.handlers, logger.propagate = before
    assert output.texts == []
    assert [entry.text for entry in output.rings.read(0, ACCESS).entries] == ["GET /\n"]


def test_without_hooks_nothing_is_left(output: Output) -> None:
    output.open()
    app_output.uninstall()
    assert sys.stdout is output.real["stdout"]
    handle: Callable[..., Any] = logging.Handler.handle
    assert handle.__module__ == "logging"
    print("not kept")
    assert output.texts == []
