"""The access log: one line for each request, in gunicorn's format language or as JSON.

The format is a template of "atoms": `%(h)s "%(r)s" %(s)s` gives `127.0.0.1 "GET / HTTP/1.1" 200`.
gunicorn builds a dictionary of all atoms for each request and formats it. Servo has a table with a
Python expression for each atom. When a worker starts, it generates a function that evaluates only
the expressions of the atoms in the format, and fills in the template. So unused atoms cost no time.

Finished lines are collected in a batch, which is written with one system call. Every value that a
client chooses is escaped, so that no request can forge a line or a field.

Atoms: h remote address, l "-", u user (Basic), t time, r request line, m method, U path, q query,
H protocol, s status, b/B body bytes, f referer, a user agent, T seconds, M milliseconds,
D microseconds, L decimal seconds, p <pid>, {name}i request header, {name}o response header,
{name}e environ variable. An unknown atom is written as "-".
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import re
import time
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any, Protocol

from servo.errors import ConfigError
from servo.logs import app_output
from servo.logs import error_log as error_log
from servo.logs.error_log import ACCESS_LOGGER, safe
from servo.logs.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    HeaderPairs = Iterable[tuple[bytes, bytes]] | Iterable[tuple[str, str]]
    # Takes the arguments of `AccessLog.record`, in the same order, and returns the line.
    Formatter = Callable[..., str]

# A batch of this many characters is written at once, not at the end of the loop's turn.
BATCH_BYTES = 32 << 10
# How long a line may wait in the batch of a busy worker. An idle worker writes the line of a single
# request at once.
FLUSH_INTERVAL_NS = 500_000_000

_APACHE_TIME = "[%d/%b/%Y:%H:%M:%S %z]"
_ISO_TIME = "%Y-%m-%dT%H:%M:%S%z"

# The JSON format: each key, in order, with the expression (see `_ATOMS`) that gives its JSON value.
_JSON_FIELDS = {
    "time": "quote(iso())",
    "pid": "getpid()",
    "remote": "quote(text(remote))",
    "user": "quote(text(user(received[b'authorization']))) if b'authorization' in received"
    " else 'null'",
    "method": "quote(text(method))",
    "target": "quote(text(target))",
    "protocol": "quote(text('HTTP/' + version))",
    "status": "status",
    "bytes": "sent or 0",
    "duration_us": "duration_ns // 1000",
    "referer": "quote(text(received[b'referer'])) if b'referer' in received else 'null'",
    "user_agent": "quote(text(received[b'user-agent'])) if b'user-agent' in received else 'null'",
}

# Atom -> the expression for its value. An expression can use the arguments of `AccessLog.record`,
# the functions in `_HELPERS`, and two dictionaries of header fields by lower-case name: `received`
# for the request, `answered` for the response.
_ATOMS = {
    "h": "escaped_text[remote]",
    "l": "'-'",
    # The client chooses this value, and the usual format doesn't quote it. So escape spaces, which
    # separate the fields of a line.
    "u": "escape(user(received[b'authorization'])).replace(' ', '\\\\x20')"
    " if b'authorization' in received else '-'",
    "t": "apache()",
    "r": "f'{escaped_text[method]} {escaped_target[target]} HTTP/{escaped_text[version]}'",
    "m": "escape(method)",
    "U": "escape(target.partition(b'?' if target.__class__ is bytes else '?')[0])",
    "q": "escape(target.partition(b'?' if target.__class__ is bytes else '?')[2])",
    "H": "escape('HTTP/' + version)",
    "s": "status",
    "b": "'-' if sent is None else sent",
    "B": "sent",
    "f": "escaped[received.get(b'referer', b'-')]",
    "a": "escaped[received.get(b'user-agent', b'-')]",
    "T": "duration_ns // 1000000000",
    "M": "duration_ns // 1000000",
    "D": "duration_ns // 1000",
    "L": "'%d.%06d' % (duration_ns // 1000000000, duration_ns // 1000 % 1000000)",
    "p": "'<%d>' % getpid()",
}
# A user's own formatters expect these two atoms as text, as gunicorn passes them. Our own lines
# format the numbers directly, which saves a conversion and has the same result.
_RECORD_ATOMS = {**_ATOMS, "s": "str(status)", "b": "'-' if sent is None else str(sent)"}
_MAPPED_ATOMS = {
    "i": "escaped[received.get({name!r}, b'-')]",
    "o": "escape(answered.get({name!r}, '-'))",
    "e": "escape(variable(environ, {text!r}))",
}
# The loggers on which applications set levels and filters. `gunicorn.access` is the first one.
_LOGGERS = (ACCESS_LOGGER, "uvicorn.access")
# Arguments of `AccessLog.record` to test a format with.
_SAMPLE: tuple[Any, ...] = ("-", "GET", b"/", "1.1", 200, 0, 0, (), (), None)
_ARGUMENTS = (
    "remote, method, target, version, status, sent, duration_ns, headers, response_headers, environ"
)


class AccessSettings(Protocol):
    """The settings that this module reads."""

    @property
    def accesslog(self) -> str | None: ...
    @property
    def access_log_format(self) -> str: ...


class AccessLog:
    """The access log of one worker. One thread uses it.

    settings  have the log's file and format
    file      receives the lines; by default the file that `setup_logging` opened
    now       returns the time, in seconds since the epoch

    Raises ConfigError for a format that can't be used.
    """

    def __init__(
        self,
        settings: AccessSettings,
        file: LogFile | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = file or error_log.access_file() or _open(settings.accesslog)
        self._goes_to_user = file is None and error_log.user_handles_access_log()
        self.enabled = self._goes_to_user or self._file is not None
        self._lines: list[str] = []
        self._size = 0
        self._next_flush_ns = 0
        self._source = settings.access_log_format
        clocks = {"apache": _Clock(_APACHE_TIME, now).text, "iso": _Clock(_ISO_TIME, now).text}
        self._line = compile_format(self._source, clocks)
        self._basic_atoms = _compile(None, list(_RECORD_ATOMS.values()), {**_HELPERS, **clocks})
        self._format: Formatter = self._log if self._goes_to_user else self._line
        self._filtering: tuple[logging.Logger, ...] = ()
        self.follow_loggers()
        if self._goes_to_user and self._source != "json":
            self._check_record_format()

    def record(
        self,
        remote: str,
        method: str,
        target: bytes | str,
        version: str,
        status: int,
        sent: int | None,
        duration_ns: int,
        headers: Iterable[tuple[bytes, bytes]],
        response_headers: HeaderPairs = (),
        environ: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the line of one request. If it can't be formatted, log an error instead.

        remote            the client's address
        method            the method, such as "GET"
        target            the target of the request line: path and query
        version           the version of HTTP, such as "1.1"
        status            the response's status
        sent              bytes of the response's body; None if unknown
        duration_ns       the request's duration, in nanoseconds
        headers           the request's fields, with lower-case names
        response_headers  the response's fields, with names in any case
        environ           the environ of a WSGI application; None for ASGI
        """
        try:
            # Pass the arguments one by one: a tuple (`*values`) would take more time than all other
            # steps here.
            line = self._format(
                remote,
                method,
                target,
                version,
                status,
                sent,
                duration_ns,
                headers,
                response_headers,
                environ,
            )
        except Exception:
            # The environ and the header lists belong to the application, and may contain any
            # object with its own `__str__`. The request is already answered, so an error in a log
            # line must not end the worker.
            logging.getLogger(error_log.ERROR_LOGGER).exception(
                "Can't write the access-log line of %s %s: the application has put a value into "
                "its environ or headers that can't be formatted",
                safe(method),
                safe(target),
            )
            return
        if line:
            self._lines.append(line)
            self._size += len(line)
            if self._size >= BATCH_BYTES:
                self.flush()

    def follow_loggers(self) -> None:
        """Apply the levels and filters that the application has set on the access log's loggers.

        The lines don't pass through logging, unless the configuration says so, because that takes
        several times as long. But applications filter the lines of health checks, or turn the log
        off, by way of `uvicorn.access` or `gunicorn.access`. Call this when they have started.
        """
        loggers = [logging.getLogger(name) for name in _LOGGERS]
        if any(each.level > logging.INFO for each in loggers):
            self._format = _no_line
        elif not self._goes_to_user:
            self._filtering = tuple(each for each in loggers if each.filters)
            self._format = self._filtered if self._filtering else self._line

    @property
    def pending(self) -> bool:
        """Whether lines wait to be written."""
        return bool(self._lines) or (self._file is not None and self._file.pending)

    def flush_due(self, now_ns: int) -> None:
        """Flush, unless the last call that flushed was less than FLUSH_INTERVAL_NS ago.

        now_ns  monotonic nanoseconds
        """
        if now_ns >= self._next_flush_ns:
            self._next_flush_ns = now_ns + FLUSH_INTERVAL_NS
            self.flush()

    def flush(self) -> None:
        """Write the batch with one system call."""
        if self._file is not None and self.pending:
            data = "".join(self._lines).encode("utf-8", "surrogateescape")
            self._lines.clear()
            self._size = 0
            app_output.keep_access(data)
            self._file.write(data)

    def close(self) -> None:
        """Flush, and wait up to a second for a slow reader, because the worker is about to end."""
        self.flush()
        if self._file is not None:
            self._file.drain(1.0)

    def reopen(self) -> None:
        """Continue in a new file of the same name, after a log rotation."""
        self.flush()
        failure = self._file.reopen() if self._file is not None else ""
        if failure:
            logging.getLogger(error_log.ERROR_LOGGER).error(
                "The old access log stays in use: %s", failure
            )

    def _check_record_format(self) -> None:
        """Raise ConfigError if a record's atoms don't fit the format, such as `%(s)d`."""
        try:
            _ = self._source % _all_atoms(self._basic_atoms, *_SAMPLE)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"access_log_format {self._source!r}: {error}") from error

    def _filtered(self, *values: Any) -> str:
        """The line of a request, or "" if a filter of the application rejects its record.

        Filters for gunicorn read `record.args["U"]`, those for uvicorn `record.args[2]`, and all
        others `record.getMessage()`.
        """
        line = self._line(*values)
        atoms: dict[Any, Any] = _all_atoms(self._basic_atoms, *values)
        remote, method, target, version, status = values[:5]
        atoms.update(enumerate((remote, safe(method), safe(target), version, status)))
        text = "%s" if self._source == "json" else self._source
        arguments = (line.rstrip("\n"),) if self._source == "json" else (atoms,)
        for logger in self._filtering:
            record = logger.makeRecord(logger.name, logging.INFO, "", 0, text, arguments, None)
            if not logger.filter(record):
                return ""
        return line

    def _log(self, *values: Any) -> str:
        """Log through `servo.access`, which a user's logging configuration has set up.

        This is slower than our own lines. The record is like gunicorn's: its `args` is a mapping of
        all atoms, as JSON formatters for gunicorn expect. Returns "", because the line is already
        written.
        """
        logger = logging.getLogger(ACCESS_LOGGER)
        if self._source == "json":
            logger.info("%s", self._line(*values).rstrip("\n"))
        else:
            logger.info(self._source, _all_atoms(self._basic_atoms, *values))
        return ""


def compile_format(source: str, clocks: Mapping[str, Callable[[], str]]) -> Formatter:
    """Return a function that takes the arguments of `AccessLog.record` and returns a line.

    source  the format, or "json"
    clocks  functions "apache" and "iso", which return the current time as text

    The line ends with a newline. Raises ConfigError for a bad format.
    """
    if source == "json":
        template = ", ".join(f'"{key}": %s' for key in _JSON_FIELDS)
        expressions = list(_JSON_FIELDS.values())
        template = f"{{{template}}}"
    else:
        expressions = []

        def positional(match: re.Match[str]) -> str:
            if match[0] == "%%":
                return match[0]
            expressions.append(_expression(match[1]))
            return "%"

        template = re.sub(r"%%|%\(([^()]*)\)", positional, source)
    formatter: Formatter = _compile(template + "\n", expressions, {**_HELPERS, **clocks})
    try:
        formatter(*_SAMPLE)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"access_log_format {source!r}: {error}") from error
    return formatter


def _compile(template: str | None, expressions: list[str], names: dict[str, Any]) -> Any:
    """Generate a function that takes the arguments of `AccessLog.record`.

    template     the template for the values; if None, the function returns a tuple of the values
    expressions  expressions for the values; they may use the record's arguments and `names`
    names        the functions that the expressions can call
    """
    # The function runs for every request. A generated function takes half the time that a list of
    # closures would take. `exec` is safe here: the code comes from the tables above, and contains
    # the user's template and header names only as literals (`repr`).
    body = f"({''.join(f'({e}), ' for e in expressions)})"
    lines = [f"def line({_ARGUMENTS}):"]
    if "received" in body:
        lines.append("    received = dict(headers)")
    if "answered" in body:
        lines.append("    answered = by_name(response_headers)")
    lines.append(f"    return {body}" if template is None else f"    return {template!r} % {body}")
    exec(compile("\n".join(lines), "<access_log_format>", "exec"), names)  # noqa: S102
    return names["line"]


def _expression(atom: str) -> str:
    """The expression that gives the value of an atom. An unknown atom gives "-"."""
    if atom.startswith("{"):
        text, _, kind = atom[1:].rpartition("}")
        name = text.lower().encode("utf-8", "surrogateescape")
        return _MAPPED_ATOMS.get(kind, "'-'").format(name=name, text=text)
    return _ATOMS.get(atom, "'-'")


def _no_line(*_values: Any) -> str:
    return ""


class _Clock:
    """The current time as text, formatted once a second instead of once per request."""

    def __init__(self, form: str, now: Callable[[], float]) -> None:
        self._form = form
        self._now = now
        self._second = -1
        self._text = ""

    def text(self) -> str:
        second = int(self._now())
        if second != self._second:
            self._second = second
            self._text = time.strftime(self._form, time.localtime(second))
        return self._text


class _EscapeCache(dict[Any, str]):
    """A cache of escaped values. Addresses, user agents and referers repeat in most requests.

    A hit costs one look-up and saves the escaping. Values over 512 bytes are not kept, and the
    cache is emptied at 1024 entries, so clients can't fill the memory with new values.
    """

    def __missing__(self, value: bytes | str) -> str:
        text = _escape(value)
        if len(value) <= 512:
            if len(self) >= 1024:
                self.clear()
            self[value] = text
        return text


def _escape(value: bytes | str) -> str:
    """The same as `safe`, but faster for text that needs no escaping."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return safe(value)


def _text(value: bytes | str) -> str:
    """Text for JSON, without lone surrogates: undecodable bytes become `\\xNN`."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def _user(authorization: bytes) -> str:
    """The user name in an `Authorization: Basic` field, or "-"."""
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return "-"
    try:
        user = base64.b64decode(credentials.strip(), validate=True).partition(b":")[0]
    except binascii.Error:
        return "-"
    return user.decode("latin-1") or "-"


def _variable(environ: Mapping[str, Any] | None, name: str) -> bytes | str:
    """The environ variable of this name, or "-".

    As in gunicorn the format may write the name in any case. CGI's variables are in capitals,
    `wsgi.*` is in lower case.
    """
    if environ is None:
        return "-"
    return _shown(environ.get(name, environ.get(name.upper(), environ.get(name.lower(), "-"))))


def _shown(value: object) -> bytes | str:
    return value if isinstance(value, (bytes, str)) else str(value)


def _by_name(headers: HeaderPairs) -> dict[bytes, bytes | str]:
    """The fields of a response by lower-case name. The last one of a repeated name counts."""
    fields: dict[bytes, bytes | str] = {}
    for name, value in headers:
        key = name if isinstance(name, bytes) else name.encode("latin-1", "replace")
        fields[key.lower()] = value
    return fields


_HELPERS: dict[str, Any] = {
    "by_name": _by_name,
    "escape": _escape,
    "getpid": os.getpid,
    # Bytes and text have separate caches: b"GET" and "GET" have the same hash, so in one dictionary
    # they would be compared, and `python -b` warns about such comparisons.
    "escaped": _EscapeCache(),
    "escaped_text": _EscapeCache(),
    # Targets have a separate cache: a client that tries many paths must not empty the others.
    "escaped_target": _EscapeCache(),
    "quote": encode_basestring_ascii,
    "text": _text,
    "user": _user,
    "variable": _variable,
}


class _Atoms(dict[str, Any]):
    """All atoms of one record. Names in braces are found in any case; unknown atoms are "-"."""

    def __missing__(self, key: str) -> Any:
        return self.get(key.lower(), "-") if key.startswith("{") else "-"


def _all_atoms(basic: Callable[..., tuple[Any, ...]], *values: Any) -> _Atoms:
    """All atoms of one record, as gunicorn passes them to a formatter.

    basic   returns the atoms without braces, in the order of `_RECORD_ATOMS`
    values  the arguments of `AccessLog.record`
    """
    atoms = _Atoms(zip(_RECORD_ATOMS, basic(*values), strict=True))
    headers, response_headers, environ = values[-3:]
    for kind, fields in (("i", headers), ("o", response_headers), ("e", (environ or {}).items())):
        for name, value in fields:
            key = name.decode("latin-1") if isinstance(name, bytes) else name
            atoms[f"{{{key.lower()}}}{kind}"] = _escape(_shown(value))
    return atoms


def _open(accesslog: str | None) -> LogFile | None:
    """Open the log's file, if `setup_logging` has not done so."""
    if not accesslog:
        return None
    return LogFile(None, 1) if accesslog == "-" else LogFile(accesslog)
