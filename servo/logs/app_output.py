"""Keeps what the application prints and logs, for `servoctl logs`.

The text still goes where it went before. A copy goes into the worker's ring of shared memory (see
servo.shared_memory.output_rings), where the arbiter reads it if an operator asks.

Standard streams. `install` replaces sys.stdout and sys.stderr by text streams on the same buffers,
which pass each line on at once, even if standard output is a pipe and Python keeps the line for
later. The application may wrap or replace these streams. Output of other programs and of C code
goes directly to the descriptors 1 and 2, so it is not kept. A pipe in their place could hold it.
But the application would then stop when the arbiter stops, and lose its terminal.

Logging. A record is kept when a handler formats it: then the handler's filters, which may remove
secrets, have seen it. A record that no handler writes is not kept. Each record is kept once, with
the text of its first handler; what handlers write to a standard stream meanwhile is not kept again.
Handlers are hooked in their base class, because an application's logging configuration replaces
handlers, and because a handler on the root logger would turn off `logging.basicConfig`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TextIO

from servo.logs.error_log import ACCESS_LOGGER, message_of
from servo.shared_memory.output_rings import (
    ACCESS_LINES,
    LEVELS,
    MAX_TEXT_BYTES,
    RECORD,
    STDERR,
    STDOUT,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.shared_memory.output_rings import RingWriter

_INFO = LEVELS.index("info")
_UNKNOWN = len(LEVELS)

# The rings of this process. They are None outside of workers.
_ring: RingWriter | None = None
_access_ring: RingWriter | None = None
_is_hooked = False
_ACCESS_LOGGERS = (ACCESS_LOGGER, "uvicorn.access")
# The replaced streams. Without this reference, Python would close a stream, and with it its buffer,
# when the application replaces it.
_streams: list[KeptStream] = []


class _Thread(threading.local):
    """What this thread is logging.

    record   the record that a handler is handling; None if there is none
    is_kept  whether it is in the ring
    last     returns the record that this thread has kept last, as long as it exists
    """

    record: logging.LogRecord | None = None
    is_kept = False
    last: Callable[[], logging.LogRecord | None] = staticmethod(lambda: None)


_thread = _Thread()
_handle = logging.Handler.handle
_format = logging.Handler.format


def keep_in(ring: RingWriter | None, access_ring: RingWriter | None) -> None:
    """Set the rings of this process; None to keep nothing. A forked child keeps nothing."""
    global _ring, _access_ring
    _ring, _access_ring = ring, access_ring


def install() -> None:
    """Hook the standard streams and the handlers of logging. A second call does nothing."""
    global _is_hooked
    if not _is_hooked:
        # Only one process may write to a ring. And another thread may just have its lock.
        os.register_at_fork(after_in_child=lambda: keep_in(None, None))
        _is_hooked = True
    if logging.Handler.handle is not _handle_and_note:
        logging.Handler.handle = _handle_and_note  # type: ignore[assignment,method-assign]
        logging.Handler.format = _format_and_keep  # type: ignore[assignment,method-assign]
    for name, kind in (("stdout", STDOUT), ("stderr", STDERR)):
        stream = getattr(sys, name)
        # Leave a stream alone that a hook of the configuration has put there, or that is closed.
        if stream is getattr(sys, f"__{name}__") and stream is not None and not stream.closed:
            kept = KeptStream(stream, kind)
            _streams.append(kept)
            setattr(sys, name, kept)


def uninstall() -> None:
    """Undo `install`."""
    if logging.Handler.handle is _handle_and_note:
        logging.Handler.handle = _handle  # type: ignore[method-assign]
        logging.Handler.format = _format  # type: ignore[method-assign]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, KeptStream):
            with contextlib.suppress(OSError):  # the stream has no reader
                stream.flush()
            setattr(sys, name, getattr(sys, f"__{name}__"))


def keep_record(record: logging.LogRecord) -> None:
    """Keep a record of Servo's error log, even if a user's configuration has no handler for it."""
    if _ring is not None:
        _keep_text(record, message_of(record))


def keep_access(data: bytes) -> None:
    """Keep lines of the access log.

    data  whole lines
    """
    ring = _access_ring
    start = 0
    while ring is not None and start < len(data):
        end = start + MAX_TEXT_BYTES
        if end < len(data):
            # A line that is longer than an entry is cut.
            end = (data.rfind(b"\n", start, end) + 1) or (data.find(b"\n", end) + 1) or len(data)
        ring.append(ACCESS_LINES, _INFO, b"", data[start:end])
        start = end


def _handle_and_note(handler: logging.Handler, record: logging.LogRecord) -> Any:
    thread = _thread
    before = thread.record, thread.is_kept
    thread.record, thread.is_kept = record, False
    try:
        return _handle(handler, record)
    finally:
        thread.record, thread.is_kept = before


def _format_and_keep(handler: logging.Handler, record: logging.LogRecord) -> str:
    text = _format(handler, record)
    thread = _thread
    # A QueueHandler passes the record to other handlers, in another thread, which may filter it.
    if _ring is not None and thread.record is not None and not hasattr(handler, "enqueue"):
        if thread.last() is not record:
            _keep_text(record, text)
        thread.is_kept = True
    return text


def _keep_text(record: logging.LogRecord, text: Any) -> None:
    if not isinstance(text, str):
        return  # a formatter of the application's returns something else
    _thread.last = weakref.ref(record)
    data = text.encode("utf-8", "backslashreplace")
    if record.name in _ACCESS_LOGGERS:
        keep_access(data + b"\n")
    elif _ring is not None:
        _ring.append(RECORD, _level_of(record.levelno), _encoded(record.name), data)


@lru_cache(maxsize=256)
def _level_of(number: int) -> int:
    # The application may have its own levels, such as 5 for TRACE or 25 for SUCCESS.
    return min(max(number // 10 - 1, 0), len(LEVELS) - 1)


@lru_cache(maxsize=1024)
def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "backslashreplace")


class KeptStream(io.TextIOWrapper):
    """A standard stream that keeps a copy of each line.

    It does not change when the line itself is written: at once to a terminal, but only when the
    buffer is full to a pipe or file, as usual in Python.

    real  the stream that it replaces
    kind  STDOUT or STDERR
    """

    def __init__(self, real: TextIO, kind: int) -> None:
        assert isinstance(real, io.TextIOWrapper)
        self._real = real
        self._lines = _KeptBuffer(real.buffer, kind, real.line_buffering)
        # Code that writes bytes flushes this object, and means it.
        self._bytes = _KeptBuffer(real.buffer, kind, True)
        super().__init__(
            self._lines,
            real.encoding,
            real.errors,
            newline="\n",
            line_buffering=True,
            write_through=real.write_through,
        )
        # As Python does for the stream itself; the class has no such attribute.
        vars(self)["mode"] = getattr(real, "mode", "w")

    @property
    def buffer(self) -> Any:
        """The stream for bytes."""
        return self._bytes

    def flush(self) -> None:
        """Write all text."""
        super().flush()
        if not self._real.closed:
            self._real.flush()

    def reconfigure(self, **options: Any) -> None:
        """See io.TextIOWrapper.reconfigure."""
        lines = options.pop("line_buffering", None)
        super().reconfigure(**options)
        if lines is not None:
            self._lines.flushes = lines


class _KeptBuffer(io.BufferedIOBase):
    """The byte stream of a KeptStream.

    real     the byte stream of the real one
    kind     STDOUT or STDERR
    flushes  whether `flush` flushes the real one
    """

    # There is no property `closed`, and no `__getattr__`: io.TextIOWrapper looks up `closed` in
    # each write, and both would double its time.

    def __init__(self, real: Any, kind: int, flushes: bool) -> None:
        super().__init__()
        self._real = real
        self._write = real.write
        self._kind = kind
        self.flushes = flushes

    @property
    def raw(self) -> Any:
        """The stream under the real one."""
        return self._real.raw

    @property
    def name(self) -> Any:
        """The real stream's name."""
        return self._real.name

    @property
    def mode(self) -> Any:
        """The real stream's mode."""
        return self._real.mode

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The descriptor's number."""
        number: int = self._real.fileno()
        return number

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return bool(self._real.isatty())

    def write(self, data: Any) -> Any:
        """Keep a copy, then write the data. The write may block or fail, but not the copy."""
        # A TextIOWrapper also writes b"" to an unbuffered stream.
        if _ring is not None and data and not _thread.is_kept:
            self._keep(_ring, data)
        return self._write(data)

    def _keep(self, ring: RingWriter, data: Any) -> None:
        record = _thread.record
        level = _UNKNOWN if record is None else _level_of(record.levelno)
        if not isinstance(data, bytes):
            data = memoryview(data).tobytes()  # a TypeError here is what the stream would raise
        ring.append(self._kind, level, b"", data)

    def flush(self) -> None:
        """Flush the real stream, if this one should."""
        if self.flushes and not self._real.closed:
            self._real.flush()

    def close(self) -> None:
        """Close the real stream."""
        super().close()
        self._real.close()
