"""Standard output and error of the arbiter: no write to them waits for a reader.

Within `prints_never_block`, `print` and the log handlers that have taken a standard stream (a
`StreamHandler` of `logconfig`, of `logging.basicConfig`) write to a text stream on a LogFile: what
finds no room there waits within a bound, and is lost and counted beyond it.

A LogFile reports its first loss to the error log, whose handler may write to the very stream that
is just losing: so the stream has no io.BufferedWriter, which refuses to be entered twice.

Workers get the real streams back (`handlers_as_before`): their threads write through many handlers,
each with a lock of its own, and a LogFile has none.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from servo.logs.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("servo.error")

# By the number of the standard descriptor; empty outside of `prints_never_block`.
_streams: dict[int, PrintStream] = {}


@contextlib.contextmanager
def prints_never_block() -> Iterator[None]:
    """While entered, nothing printed or logged to a standard stream waits for its reader."""
    for number, real in ((1, sys.__stdout__), (2, sys.__stderr__)):
        if real is not None and number not in _streams:
            file = LogFile(None, number)
            file.on_trouble = log.warning
            _streams[number] = PrintStream(file, real)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_bounded(stream) for stream in before)
    bind_handlers()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        handlers_as_before()


def bind_handlers() -> None:
    """Within `prints_never_block`: let new log handlers, too, write to streams that never block."""
    for handler in _stream_handlers():
        _set_stream(handler, _bounded(handler.stream))


def prints_as_before() -> None:
    """In a forked process: its prints are its own business, and what waits is its parent's."""
    for stream in _streams.values():
        stream.file.forget_pending()
    for name in ("stdout", "stderr"):
        setattr(sys, name, _real(getattr(sys, name)))


def handlers_as_before() -> None:
    """In a worker, or at the end: log handlers write to the real streams again."""
    for handler in _stream_handlers():
        _set_stream(handler, _real(handler.stream))
    _streams.clear()


def flush_prints() -> None:
    """Try again to write what a slow reader had no room for."""
    for stream in _streams.values():
        if stream.file.pending:
            stream.file.write(b"")


def drain_prints(timeout_s: float) -> None:
    """Wait up to `timeout_s` for slow readers: the process is about to end."""
    end = time.monotonic() + timeout_s
    for stream in _streams.values():
        stream.flush()
        stream.file.drain(max(end - time.monotonic(), 0.0))


def follow_standard_prints() -> None:
    """Standard output and error lead elsewhere now."""
    for stream in _streams.values():
        stream.file.follow_standard()


class PrintStream(io.TextIOWrapper):
    """Stands for a standard stream.

    file    where it writes to
    like    the stream that it stands for: of the same encoding
    """

    def __init__(self, file: LogFile, like: TextIO) -> None:
        self.file = file
        super().__init__(
            _LogBuffer(file),  # type: ignore[arg-type]
            like.encoding,
            like.errors,
            line_buffering=True,
        )


class _LogBuffer(io.BufferedIOBase):
    """A LogFile as the bottom of a text stream: it takes everything at once."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The standard descriptor's number."""
        return self._file.standard

    def isatty(self) -> bool:
        """Whether the standard stream is a terminal."""
        return os.isatty(self._file.standard)

    def write(self, data: Any) -> int:
        """Take bytes; what finds no room is dropped and counted by the LogFile."""
        self._file.write(bytes(data))
        return len(data)

    def close(self) -> None:
        """Close the copy of the descriptor."""
        if not self.closed:
            self._file.close()
        super().close()


def _bounded(stream: TextIO) -> TextIO:
    """The stream that stands for this one; the very one if none does."""
    number = {id(sys.__stdout__): 1, id(sys.__stderr__): 2}.get(id(stream), 0)
    return _streams.get(number, stream)


def _real(stream: TextIO) -> TextIO:
    """The standard stream that this one stands for; the very one if it stands for none."""
    if not isinstance(stream, PrintStream):
        return stream
    real = sys.__stdout__ if stream.file.standard == 1 else sys.__stderr__
    assert real is not None
    return real


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    """Of all loggers, and those that a MemoryHandler passes its records on to."""
    for logger in (logging.root, *logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            each = handler
            while isinstance(each, logging.Handler):
                if isinstance(each, logging.StreamHandler):
                    yield each
                each = getattr(each, "target", None)


def _set_stream(handler: logging.StreamHandler[Any], stream: TextIO) -> None:
    """Not `setStream`: it flushes the old stream, whose reader may be gone or have stopped."""
    if handler.stream is stream:
        return
    handler.acquire()
    try:
        handler.stream = stream
    finally:
        handler.release()
