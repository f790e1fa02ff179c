"""The error log: Servo's own messages, and errors of the application (`wsgi.errors`, tracebacks).

The arbiter opens the error log and the access log with `setup_logging`, and workers inherit them.
The loggers are `servo.error` and `servo.access`. `gunicorn.error` and `gunicorn.access` are the
same objects under other names, so an application that uses gunicorn's handlers gets Servo's.
`uvicorn`, `uvicorn.error` and `uvicorn.access` are loggers of their own, with Servo's as parents:
applications often configure them, all three, and this must not take away Servo's handlers. Each
record is one write to the descriptor, so that the records of several processes don't mix.

To rotate a log, rename its file and send SIGUSR1. Then `reopen_logs` opens a new file with the old
name under the same descriptor.

A message may have several lines, such as a traceback. Text from clients passes through `safe`
first, so no client can forge a line of the log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from servo.errors import ConfigError
from servo.logs.log_file import LogFile, blocking_copy, check_log_file
from servo.logs.standard_streams import (
    bind_handlers,
    drain_prints,
    flush_prints,
    follow_standard_prints,
)
from servo.logs.user_config import apply_user_config, check_user_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ERROR_LOGGER = "servo.error"
ACCESS_LOGGER = "servo.access"

# uvicorn's loggers, and Servo's that get their records.
_UVICORNS = {
    "uvicorn": ERROR_LOGGER,
    "uvicorn.error": ERROR_LOGGER,
    "uvicorn.access": ACCESS_LOGGER,
}

LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}

_COLOURS = {
    logging.CRITICAL: "\x1b[1;31m",
    logging.ERROR: "\x1b[31m",
    logging.WARNING: "\x1b[33m",
    logging.INFO: "\x1b[32m",
    logging.DEBUG: "\x1b[2m",
}
_PLAIN = "\x1b[0m"

# These settings mean a standard descriptor, not a path. Under systemd /dev/stdout is a socket,
# which can't be opened by its path.
_STANDARD = {"-": -1, "/dev/stdout": 1, "/dev/stderr": 2}

# Printable ASCII stays as it is, except the quote and the backslash.
_ESCAPES = {byte: f"\\x{byte:02x}" for byte in range(256) if not 32 <= byte < 127 or byte in b'"\\'}


class LogSettings(Protocol):
    """The settings that this module reads."""

    @property
    def errorlog(self) -> str | None: ...
    @property
    def accesslog(self) -> str | None: ...
    @property
    def loglevel(self) -> str: ...
    @property
    def log_format(self) -> str: ...
    @property
    def capture_output(self) -> bool: ...
    @property
    def logconfig(self) -> str | None: ...
    @property
    def logconfig_json(self) -> str | None: ...
    @property
    def logconfig_dict(self) -> Mapping[str, Any] | None: ...


@dataclass
class _Logs:
    """The logs of this process.

    error                    the error log's file
    access                   the access log's file, if there is one
    has_user_config          whether a user's logging configuration was applied
    user_handles_access_log  whether that configuration handles `servo.access`
    captured                 whether standard output and error go to the error log (capture_output)
    owner                    the uid and gid of reopened files
    """

    error: LogFile
    access: LogFile | None = None
    has_user_config: bool = False
    user_handles_access_log: bool = False
    captured: bool = False
    owner: tuple[int, int] | None = None


_logs = _Logs(LogFile(None, 2))


def setup_logging(settings: LogSettings) -> None:
    """Open the logs and set up the loggers. Call it again to apply changed settings.

    Raises ConfigError if a file can't be opened (then nothing has changed), or if the user's
    logging configuration fails (then a part of it may already be applied).
    """
    level = LEVELS.get(settings.loglevel.lower())
    if level is None:
        raise ConfigError(f"loglevel {settings.loglevel!r} is not one of {', '.join(LEVELS)}")
    _open_files(settings)
    error = _logs.error
    logger = logging.getLogger(ERROR_LOGGER)
    logger.setLevel(level)
    access_logger = logging.getLogger(ACCESS_LOGGER)
    access_logger.setLevel(logging.INFO)
    for each in (logger, access_logger):
        each.propagate = False
        if _logs.has_user_config:
            # Remove the handlers of the previous user configuration. The new one, if there is one,
            # sets its own.
            each.handlers = []
        _alias_for_gunicorn(each)
    for name, parent in _UVICORNS.items():
        logging.getLogger(name).parent = logging.getLogger(parent)
    handler = _FileHandler(error)
    handler.setFormatter(_formatter(settings.log_format, error))
    logger.handlers = [h for h in logger.handlers if not isinstance(h, _FileHandler)]
    logger.addHandler(handler)
    error.on_trouble = logger.warning
    if _logs.access is not None:
        _logs.access.on_trouble = logger.warning

    _log_lost_exceptions()
    _logs.captured = settings.capture_output and error.path is not None
    _capture_output()
    # Set this before the call. A configuration may fail after it has added some handlers, and the
    # next `setup_logging` must remove them.
    _logs.has_user_config = True
    _logs.has_user_config = apply_user_config(settings)
    _logs.user_handles_access_log = bool(access_logger.handlers) or access_logger.propagate
    bind_handlers()


def check_logging(settings: LogSettings) -> None:
    """Raise the ConfigError that `setup_logging` would raise. Creates and changes no file."""
    for setting in (settings.errorlog, settings.accesslog):
        if setting and setting not in _STANDARD:
            check_log_file(setting)
    check_user_config(settings)


def reopen_logs() -> dict[str, str]:
    """Open the log files again by their paths, after a rotation.

    If a file can't be opened, this is logged, and the old one stays in use.

    Returns, by path, "" or the error.
    """
    logger = logging.getLogger(ERROR_LOGGER)
    outcome: dict[str, str] = {}
    for file in (_logs.error, _logs.access):
        if file is not None and file.path is not None:
            outcome[file.path] = failure = file.reopen()
            if failure:
                logger.error("The old log stays in use: %s", failure)
    if _logs.owner is not None and os.geteuid() == 0:
        chown_logs(*_logs.owner)
    _capture_output()
    for each in (*logging.Logger.manager.loggerDict.values(), logging.root):
        for handler in getattr(each, "handlers", ()):
            if isinstance(handler, logging.FileHandler):
                outcome[handler.baseFilename] = _reopen_handler(handler)
    return outcome


def chown_logs(uid: int | None, gid: int | None) -> None:
    """Make the workers' user the owner of the log files, so that workers can reopen them.

    uid  the workers' user; None to keep the owner
    gid  the workers' group; None to keep the group

    `reopen_logs` does the same for new files.
    """
    _logs.owner = (-1 if uid is None else uid, -1 if gid is None else gid)
    for file in (_logs.error, _logs.access):
        if file is not None:
            try:
                file.chown(*_logs.owner)
            except OSError as error:
                logging.getLogger(ERROR_LOGGER).warning(
                    "Can't give the log file %s to the workers' user, who may be unable to reopen "
                    "it: %s",
                    file.path,
                    error,
                )


def set_tap(see: Callable[[logging.LogRecord], None] | None) -> None:
    """Also pass every record of the error log to a function.

    see  the function; None to stop

    A filter of the logger calls it, not a handler, because a user's logging configuration may
    replace the handlers.
    """
    logger = logging.getLogger(ERROR_LOGGER)
    logger.filters = [each for each in logger.filters if not isinstance(each, _Tap)]
    if see is not None:
        logger.addFilter(_Tap(see))


def message_of(record: logging.LogRecord) -> str:
    """The message of a record with its traceback, but without time and level."""
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001  handlers report a bad record; here use its format string
        text = str(record.msg)
    details = _details(_PLAIN_FORMATTER, record)
    return f"{text}\n{details}" if details else text


def flush_logs() -> None:
    """Retry the writes that wait for a slow reader of the error log or of standard output."""
    if _logs.error.pending:
        _logs.error.write(b"")
    flush_prints()


def drain_logs(timeout_s: float) -> None:
    """Wait up to `timeout_s` seconds for slow readers, before the process ends."""
    end = time.monotonic() + timeout_s
    _logs.error.drain(timeout_s)
    drain_prints(max(end - time.monotonic(), 0.0))


def forget_pending() -> None:
    """In a forked process: drop the lines that wait for a slow reader. The parent writes them."""
    for file in (_logs.error, _logs.access):
        if file is not None:
            file.forget_pending()


def follow_standard_streams() -> None:
    """Follow descriptors 1 and 2 after they were redirected: a daemon's go to /dev/null."""
    for file in (_logs.error, _logs.access):
        if file is not None:
            file.follow_standard()


def crash_fd() -> int:
    """The error log's descriptor, for faulthandler. Reopening the logs keeps its number."""
    return _logs.error.fd


def outlives_terminal() -> bool:
    """Whether the error log goes to a file, or to a destination that the user has configured."""
    return _logs.error.path is not None or _logs.has_user_config


def access_file() -> LogFile | None:
    """The access log's file; None without an access log."""
    return _logs.access


def user_handles_access_log() -> bool:
    """Whether the user's logging configuration handles the records of `servo.access`."""
    return _logs.user_handles_access_log


def safe(text: str | bytes) -> str:
    """Escape text from a client. The result is printable ASCII on one line.

    Control characters, the quote, the backslash and the bytes of characters above ASCII become
    `\\xNN`.
    """
    if isinstance(text, bytes):
        return text.decode("latin-1").translate(_ESCAPES)
    if text.isascii():
        return text.translate(_ESCAPES)
    try:
        # Each character of a WSGI string is one byte (PEP 3333): get the bytes back.
        data = text.encode("latin-1")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")
    return data.decode("latin-1").translate(_ESCAPES)


def _open_files(settings: LogSettings) -> None:
    error = _destination(settings.errorlog or "-", 2, _logs.error)
    access = None
    if settings.accesslog:
        try:
            access = _destination(settings.accesslog, 1, _logs.access)
        except ConfigError:
            if error is not _logs.error:
                error.close()
            raise
    # Close only the old access log: faulthandler may still write to the old error log's descriptor.
    if _logs.access is not None and _logs.access is not access:
        _logs.access.close()
    _logs.error, _logs.access = error, access


def _log_lost_exceptions() -> None:
    """Log the exceptions of threads, and of asyncio tasks without an `await`.

    By default, Python would only print them to standard error.
    """
    logger = logging.getLogger("asyncio")
    if not any(isinstance(each, _AsyncioHandler) for each in logger.handlers):
        logger.addHandler(_AsyncioHandler())
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _on_thread_failed


class _AsyncioHandler(logging.Handler):
    """Passes asyncio's records to the error log.

    Does nothing if the application or the user's configuration has added a handler to the root
    logger: that handler gets these records anyway.
    """

    def emit(self, record: logging.LogRecord) -> None:
        logger = logging.getLogger(ERROR_LOGGER)
        if not logging.root.handlers and logger.isEnabledFor(record.levelno):
            logger.handle(record)


def _on_thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return  # a thread may end by `sys.exit()`
    name = args.thread.name if args.thread is not None else "unknown"
    error = args.exc_value or args.exc_type()
    logging.getLogger(ERROR_LOGGER).error("Uncaught exception in thread %s", name, exc_info=error)


class _Tap(logging.Filter):
    """A filter that passes every record, and calls a function with it."""

    def __init__(self, see: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._see = see

    def filter(self, record: logging.LogRecord) -> bool:
        self._see(record)
        return True


class _FileHandler(logging.Handler):
    """Writes each record, with the lines of its traceback, to a LogFile in one write."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self.file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            self.file.write(line.encode("utf-8", "backslashreplace"))
        except Exception:  # noqa: BLE001  a bad record is reported as logging does, not raised
            self.handleError(record)


class TextFormatter(logging.Formatter):
    """gunicorn's format: `[2026-11-23 20:10:00 +0000] [pid] [INFO] message`.

    colour  whether to colour the level, for a terminal
    """

    def __init__(self, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour
        self._stamp = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        second, stamp = self._stamp
        if int(record.created) != second:
            second = int(record.created)
            stamp = time.strftime("[%Y-%m-%d %H:%M:%S %z]", time.localtime(second))
            self._stamp = (second, stamp)
        level = record.levelname
        if self._colour:
            level = f"{_COLOURS.get(record.levelno, '')}{level}{_PLAIN}"
        text = f"{stamp} [{record.process}] [{level}] {record.getMessage()}"
        details = _details(self, record)
        return f"{text}\n{details}" if details else text


class JSONFormatter(logging.Formatter):
    """One JSON object for each record, on one line.

    Its keys are time (ISO 8601), level, pid, logger and message. `exc` is added for a traceback,
    `event` for an event in the life of a worker.
    """

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created).astimezone()
        values = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        details = _details(self, record)
        if details:
            values["exc"] = details
        event = getattr(record, "event", None)
        if event is not None:
            values["event"] = event
        return json.dumps(values)


_PLAIN_FORMATTER = logging.Formatter()


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback and the stack of a record as text; "" if it has neither."""
    if record.exc_info and not record.exc_text:
        record.exc_text = formatter.formatException(record.exc_info)
    parts = [record.exc_text or ""]
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(part for part in parts if part)


def _formatter(name: str, file: LogFile) -> logging.Formatter:
    if name == "json":
        return JSONFormatter()
    at_terminal = file.fd >= 0 and os.isatty(file.fd) and os.environ.get("TERM") != "dumb"
    # No colours if the variable is set and not empty (https://no-color.org).
    return TextFormatter(colour=at_terminal and not os.environ.get("NO_COLOR"))


def _destination(setting: str, standard: int, current: LogFile | None) -> LogFile:
    """The LogFile for a setting ("-" or a path); `current` if it is the same."""
    fd = standard if setting == "-" else _STANDARD.get(setting)
    path = os.path.abspath(setting) if fd is None else None
    if current is not None and current.path == path and (path or current.standard == fd):
        return current
    return LogFile(None, fd) if fd is not None else LogFile(path)


def _capture_output() -> None:
    """With capture_output, redirect standard output and error to the error log's file."""
    if not _logs.captured:
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    source = blocking_copy(_logs.error.fd)
    for fd in (1, 2):
        os.dup2(source, fd)
    os.close(source)
    follow_standard_prints()


def _alias_for_gunicorn(logger: logging.Logger) -> None:
    name = "gunicorn." + logger.name.rpartition(".")[2]
    loggers = logging.Logger.manager.loggerDict
    existing = loggers.get(name)
    if isinstance(existing, logging.Logger) and existing is not logger:
        # The application may already use this logger. As a child of ours, it passes on its records
        # to our handlers.
        existing.parent = logger
    loggers[name] = logger


def _reopen_handler(handler: logging.FileHandler) -> str:
    """Open the log file of a user's handler again by its path. Returns "" or the error."""
    handler.acquire()
    try:
        # The stream is None before the first write (`delay`), and after the handler was closed. In
        # both cases the next write opens the path.
        if handler.stream is not None:
            fresh = handler._open()
            handler.stream.close()
            handler.stream = fresh
    except OSError as error:
        logging.getLogger(ERROR_LOGGER).error(
            "The old log %s stays in use: %s", handler.baseFilename, error
        )
        return str(error)
    finally:
        handler.release()
    return ""
