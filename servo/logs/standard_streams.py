"""Keeps the arbiter from blocking in a write to its standard output or error.

The error log never blocks (see servo.logs.log_file), but `print` and the user's own log handlers (a
`StreamHandler` of `logconfig` or of `logging.basicConfig`) write to the standard streams. If the
reader of a stream stopped, the arbiter would stop, too, and no worker would be replaced. Within
`prints_never_block`, these write to a text stream on a LogFile instead: lines for which there is no
room wait in memory up to a limit, and beyond it they are dropped and counted.

A LogFile reports its first loss to the error log, whose handler may write to the very stream that
is just losing lines. So the text stream has no io.BufferedWriter in between: that one raises an
error when it is called again from within its own write.

Workers get the real streams back (`restore_handlers`). Their threads write through many handlers,
each with a lock of its own, and a LogFile has no lock.
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

# The stand-in for each standard descriptor, by its number. Empty outside of `prints_never_block`.
_streams: dict[int, PrintStream] = {}


@contextlib.contextmanager
def prints_never_block() -> Iterator[None]:
    """While this is entered, printing or logging to a standard stream never waits for a reader."""
    for number, real in ((1, sys.__stdout__), (2, sys.__stderr__)):
        if real is not None and number not in _streams:
            file = LogFile(None, number)
            file.on_trouble = log.warning
            _streams[number] = PrintStream(file, real)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_stand_in(stream) for stream in before)
    bind_handlers()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        restore_handlers()


def bind_handlers() -> None:
    """Within `prints_never_block`: make new log handlers write to the stand-ins, too."""
    for handler in _stream_handlers():
        _set_stream(handler, _stand_in(handler.stream))


def restore_prints() -> None:
    """In a forked process: print to the real streams, and drop the lines that the parent writes."""
    for stream in _streams.values():
        stream.file.forget_pending()
    for name in ("stdout", "stderr"):
        setattr(sys, name, _real(getattr(sys, name)))


def restore_handlers() -> None:
    """In a worker, or at the end: make log handlers write to the real streams again."""
    for handler in _stream_handlers():
        _set_stream(handler, _real(handler.stream))
    _streams.clear()


def flush_prints() -> None:
    """Retry the writes that a slow reader held up."""
    for stream in _streams.values():
        if stream.file.pending:
            stream.file.write(b"")


def drain_prints(timeout_s: float) -> None:
    """Wait up to `timeout_s` seconds for slow readers, because the process is about to end."""
    end = time.monotonic() + timeout_s
    for stream in _streams.values():
        stream.flush()
        stream.file.drain(max(end - time.monotonic(), 0.0))


def follow_standard_prints() -> None:
    """Call this after descriptors 1 and 2 were redirected."""
    for stream in _streams.values():
        stream.file.follow_standard()


class PrintStream(io.TextIOWrapper):
    """A text stream that stands in for a standard stream.

    file  receives the text
    like  the standard stream, whose encoding is used
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
    """The byte stream below a PrintStream. It passes all data on to a LogFile at once."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The standard descriptor's number."""
        return self._file.standard

    def isatty(self) -> bool:
        """Whether the standard stream is a terminal."""
        return os.isatty(self._file.standard)

    def write(self, data: Any) -> int:
        """Take all bytes. The LogFile keeps, or drops and counts, those that find no room."""
        self._file.write(bytes(data))
        return len(data)

    def close(self) -> None:
        """Close the LogFile's copy of the descriptor."""
        if not self.closed:
            self._file.close()
        super().close()


def _stand_in(stream: TextIO) -> TextIO:
    """The stand-in for a standard stream; any other stream unchanged."""
    number = {id(sys.__stdout__): 1, id(sys.__stderr__): 2}.get(id(stream), 0)
    return _streams.get(number, stream)


def _real(stream: TextIO) -> TextIO:
    """The standard stream behind a stand-in; any other stream unchanged."""
    if not isinstance(stream, PrintStream):
        return stream
    real = sys.__stdout__ if stream.file.standard == 1 else sys.__stderr__
    assert real is not None
    return real


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    """The StreamHandlers of all loggers, also those behind a MemoryHandler."""
    for logger in (logging.root, *logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            each = handler
            while isinstance(each, logging.Handler):
                if isinstance(each, logging.StreamHandler):
                    yield each
                each = getattr(each, "target", None)


def _set_stream(handler: logging.StreamHandler[Any], stream: TextIO) -> None:
    """Set a handler's stream.

    The handler's own `setStream` would flush the old stream, whose reader may be gone or stopped.
    """
    if handler.stream is stream:
        return
    handler.acquire()
    try:
        handler.stream = stream
    finally:
        handler.release()
