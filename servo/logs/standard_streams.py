"""Keeps the arbiter from blocking in a write to its standard output or error.

The error log never blocks (see servo.logs.log_file). But `print` and the user's own log handlers (a
`StreamHandler` of `logconfig` or of `logging.basicConfig`) write to the standard streams. If the
reader of a stream stopped, the arbiter would block, and no worker would be replaced. Within
`prints_never_block`, `print` and these handlers write to a text stream on a LogFile instead. Lines
that can't be written at once wait in memory up to a limit; above the limit they are dropped and
counted.

A LogFile reports its first loss to the error log, and the handler of that log may write to the same
stream. So the text stream must not contain an io.BufferedWriter, which raises an error if it is
called again during its own write.

Workers get the real streams back (`restore_handlers`). Their threads write through many handlers,
each with its own lock, and a LogFile has no lock.
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

# The replacement stream of each standard descriptor, by its number. Empty outside of
# `prints_never_block`.
_streams: dict[int, PrintStream] = {}


@contextlib.contextmanager
def prints_never_block() -> Iterator[None]:
    """Keep `print` and log handlers from waiting for a reader of a standard stream."""
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
    """Within `prints_never_block`: make new log handlers write to the replacement streams."""
    for handler in _stream_handlers():
        _set_stream(handler, _stand_in(handler.stream))


def restore_prints() -> None:
    """In a forked process: print to the real streams, and drop waiting lines of the parent."""
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
    """Retry the writes that wait for a slow reader."""
    for stream in _streams.values():
        if stream.file.pending:
            stream.file.write(b"")


def drain_prints(timeout_s: float) -> None:
    """Wait up to `timeout_s` seconds for slow readers, before the process ends."""
    end = time.monotonic() + timeout_s
    for stream in _streams.values():
        stream.flush()
        stream.file.drain(max(end - time.monotonic(), 0.0))


def follow_standard_prints() -> None:
    """Follow descriptors 1 and 2 after they were redirected."""
    for stream in _streams.values():
        stream.file.follow_standard()


class PrintStream(io.TextIOWrapper):
    """A text stream that replaces a standard stream.

    file  receives the text
    like  the standard stream; the new one has the same encoding
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
    """The byte stream of a PrintStream. It passes all data to a LogFile at once."""

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
        """Take all bytes. The LogFile keeps, or drops and counts, those that don't fit."""
        self._file.write(bytes(data))
        return len(data)

    def close(self) -> None:
        """Close the LogFile's copy of the descriptor."""
        if not self.closed:
            self._file.close()
        super().close()


def _stand_in(stream: TextIO) -> TextIO:
    """The replacement of a standard stream; any other stream unchanged."""
    number = {id(sys.__stdout__): 1, id(sys.__stderr__): 2}.get(id(stream), 0)
    return _streams.get(number, stream)


def _real(stream: TextIO) -> TextIO:
    """The standard stream of a replacement; any other stream unchanged."""
    if not isinstance(stream, PrintStream):
        return stream
    real = sys.__stdout__ if stream.file.standard == 1 else sys.__stderr__
    assert real is not None
    return real


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    """The StreamHandlers of all loggers, including the targets of MemoryHandlers."""
    for logger in (logging.root, *logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            each = handler
            while isinstance(each, logging.Handler):
                if isinstance(each, logging.StreamHandler):
                    yield each
                each = getattr(each, "target", None)


def _set_stream(handler: logging.StreamHandler[Any], stream: TextIO) -> None:
    """Set a handler's stream.

    The handler's own `setStream` would flush the old stream, and block if its reader has stopped.
    """
    if handler.stream is stream:
        return
    handler.acquire()
    try:
        handler.stream = stream
    finally:
        handler.release()
