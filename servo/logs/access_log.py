"""The access log: one line for each request, in gunicorn's format language or as JSON.

The format is compiled once into one expression that computes only what it uses; lines are batched
and written with one system call. Whatever a client can choose is escaped, so that no request can
write a line, or a field, of its own.

Atoms: h remote address, l "-", u user (Basic), t time, r request line, m method, U path, q query,
H protocol, s status, b/B body bytes, f referer, a user agent, T seconds, M milliseconds,
D microseconds, L decimal seconds, p <pid>, {name}i request header, {name}o response header,
{name}e environ variable. An unknown one is "-".
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
from servo.logs import error_log as error_log
from servo.logs.error_log import ACCESS_LOGGER, safe
from servo.logs.log_file import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    HeaderPairs = Iterable[tuple[bytes, bytes]] | Iterable[tuple[str, str]]
    # A record's arguments in the order of `AccessLog.record`, and a clock -> the line.
    Formatter = Callable[..., str]

BATCH_BYTES = 32 << 10
# Under load, lines reach the log at most this late; a single request's line goes out at once.
FLUSH_INTERVAL_NS = 500_000_000

_APACHE_TIME = "[%d/%b/%Y:%H:%M:%S %z]"
_ISO_TIME = "%Y-%m-%dT%H:%M:%S%z"

# The fields of the JSON format, in their order: key, and expression (see `_ATOMS`) of its JSON.
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

# Atom -> the expression of its value, over the arguments of `AccessLog.record` and `_HELPERS`;
# `received` and `answered` are the header fields by lower-case name.
_ATOMS = {
    "h": "known_text[remote]",
    "l": "'-'",
    # The one field that a client chooses and that stands without quotes: its spaces would be read
    # as the ends of fields.
    "u": "escape(user(received[b'authorization'])).replace(' ', '\\\\x20')"
    " if b'authorization' in received else '-'",
    "t": "apache()",
    "r": "f'{known_text[method]} {targets[target]} HTTP/{known_text[version]}'",
    "m": "escape(method)",
    "U": "escape(target.partition(b'?' if target.__class__ is bytes else '?')[0])",
    "q": "escape(target.partition(b'?' if target.__class__ is bytes else '?')[2])",
    "H": "escape('HTTP/' + version)",
    "s": "status",
    "b": "'-' if sent is None else sent",
    "B": "sent",
    "f": "known[received.get(b'referer', b'-')]",
    "a": "known[received.get(b'user-agent', b'-')]",
    "T": "duration_ns // 1000000000",
    "M": "duration_ns // 1000000",
    "D": "duration_ns // 1000",
    "L": "'%d.%06d' % (duration_ns // 1000000000, duration_ns // 1000 % 1000000)",
    "p": "'<%d>' % getpid()",
}
# In the records that a user's loggers and formatters get these two are text, as in gunicorn's.
# In a line of ours the digits are the same, and making text of them first would be for nothing.
_RECORD_ATOMS = {**_ATOMS, "s": "str(status)", "b": "'-' if sent is None else str(sent)"}
_MAPPED_ATOMS = {
    "i": "known[received.get({name!r}, b'-')]",
    "o": "escape(answered.get({name!r}, '-'))",
    "e": "escape(variable(environ, {text!r}))",
}
# A record's arguments, to try a format with.
_SAMPLE: tuple[Any, ...] = ("-", "GET", b"/", "1.1", 200, 0, 0, (), (), None)
_ARGUMENTS = (
    "remote, method, target, version, status, sent, duration_ns, headers, response_headers, environ"
)


class AccessSettings(Protocol):
    """The settings that are read here."""

    @property
    def accesslog(self) -> str | None: ...
    @property
    def access_log_format(self) -> str: ...


class AccessLog:
    """One process's access log. Made in the worker, used by one thread.

    `file` is where lines go, by default what `setup_logging` opened; `now` is the wall clock.
    Raises ConfigError when the format can't be used.
    """

    def __init__(
        self,
        settings: AccessSettings,
        file: LogFile | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = file or error_log.access_file() or _open(settings.accesslog)
        self._by_user = file is None and error_log.access_by_user()
        self.enabled = self._by_user or self._file is not None
        self._lines: list[str] = []
        self._size = 0
        self._next_flush_ns = 0
        self._source = settings.access_log_format
        clocks = {"apache": _Clock(_APACHE_TIME, now).text, "iso": _Clock(_ISO_TIME, now).text}
        self._line = compile_format(self._source, clocks)
        self._basic_atoms = _compile(None, list(_RECORD_ATOMS.values()), {**_HELPERS, **clocks})
        self._format: Formatter = self._log if self._by_user else self._line
        if self._by_user and self._source != "json":
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
        """Add a request's line. The names of `headers` are in lower case, `version` as "1.1".

        Where no line can be made, an error is logged instead.
        """
        try:
            # One by one: spreading a tuple of them costs more than all else here.
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
            # Environ and header lists are the application's own objects: it may have put anything
            # there since, and their text is made by its code. Its request is answered; the worker
            # must not end for the log's sake.
            logging.getLogger(error_log.ERROR_LOGGER).exception(
                "No access-log line can be made of %s %s, as the application left its data",
                safe(method),
                safe(target),
            )
            return
        if line:
            self._lines.append(line)
            self._size += len(line)
            if self._size >= BATCH_BYTES:
                self.flush()

    @property
    def pending(self) -> bool:
        """Whether there is something that a flush would write."""
        return bool(self._lines) or (self._file is not None and self._file.pending)

    def flush_due(self, now_ns: int) -> None:
        """Flush, unless the last time was less than FLUSH_INTERVAL_NS ago (monotonic)."""
        if now_ns >= self._next_flush_ns:
            self._next_flush_ns = now_ns + FLUSH_INTERVAL_NS
            self.flush()

    def flush(self) -> None:
        """Write the batch: once a turn of the loop, or at least twice a second."""
        if self._file is not None and self.pending:
            data = "".join(self._lines).encode("utf-8", "surrogateescape")
            self._lines.clear()
            self._size = 0
            self._file.write(data)

    def close(self) -> None:
        """Flush, and wait a moment for a slow reader: the worker is about to end."""
        self.flush()
        if self._file is not None:
            self._file.drain(1.0)

    def reopen(self) -> None:
        """Go on in a new file of the same name, after a rotation."""
        self.flush()
        failure = self._file.reopen() if self._file is not None else ""
        if failure:
            logging.getLogger(error_log.ERROR_LOGGER).error(
                "The old access log stays in use: %s", failure
            )

    def _check_record_format(self) -> None:
        """Raises ConfigError for a format that records can't fill in, such as `%(s)d`."""
        try:
            _ = self._source % _all_atoms(self._basic_atoms, *_SAMPLE)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"access_log_format {self._source!r}: {error}") from error

    def _log(self, *values: Any) -> str:
        """The slow way, for a logging configuration of the user's: a record as gunicorn's is.

        Its `args` is the mapping of atoms, which JSON formatters written for gunicorn read.
        Returns "", as no line is left to write.
        """
        logger = logging.getLogger(ACCESS_LOGGER)
        if self._source == "json":
            logger.info("%s", self._line(*values).rstrip("\n"))
        else:
            logger.info(self._source, _all_atoms(self._basic_atoms, *values))
        return ""


def compile_format(source: str, clocks: Mapping[str, Callable[[], str]]) -> Formatter:
    """The function that makes a line (with its newline) of a record's arguments.

    `clocks` has "apache" and "iso", which give the current time as text. Raises ConfigError for a
    bad format.
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
    """A function of a record's arguments: the template filled in, or without one the values."""
    # One generated function costs half of a list of closures, and this runs for every request. All
    # of its text is from the tables above, but for the template and header names: literals.
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
    if atom.startswith("{"):
        text, _, kind = atom[1:].rpartition("}")
        name = text.lower().encode("utf-8", "surrogateescape")
        return _MAPPED_ATOMS.get(kind, "'-'").format(name=name, text=text)
    return _ATOMS.get(atom, "'-'")


class _Clock:
    """The current second as text, made once a second."""

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


class _Known(dict[Any, str]):
    """Escaped values that come again and again: addresses, user agents, referers."""

    def __missing__(self, value: bytes | str) -> str:
        text = _escape(value)
        if len(value) <= 512:
            if len(self) >= 1024:
                self.clear()
            self[value] = text
        return text


def _escape(value: bytes | str) -> str:
    """`safe`, faster for what needs no escaping."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return safe(value)


def _text(value: bytes | str) -> str:
    """What JSON can hold: no lone surrogates, undecodable bytes as `\\xNN`."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def _user(authorization: bytes) -> str:
    """The user of Basic credentials, or "-"."""
    scheme, _, credentials = authorization.partition(b" ")
    if scheme.lower() != b"basic":
        return "-"
    try:
        user = base64.b64decode(credentials.strip(), validate=True).partition(b":")[0]
    except binascii.Error:
        return "-"
    return user.decode("latin-1") or "-"


def _variable(environ: Mapping[str, Any] | None, name: str) -> bytes | str:
    """A WSGI variable, by its name in any case as gunicorn has it; those of CGI are in capitals."""
    if environ is None:
        return "-"
    return _shown(environ.get(name, environ.get(name.upper(), environ.get(name.lower(), "-"))))


def _shown(value: object) -> bytes | str:
    return value if isinstance(value, (bytes, str)) else str(value)


def _by_name(headers: HeaderPairs) -> dict[bytes, bytes | str]:
    fields: dict[bytes, bytes | str] = {}
    for name, value in headers:
        key = name if isinstance(name, bytes) else name.encode("latin-1", "replace")
        fields[key.lower()] = value
    return fields


_HELPERS: dict[str, Any] = {
    "by_name": _by_name,
    "escape": _escape,
    "getpid": os.getpid,
    # Two, so that bytes and text of the same characters and hash are not compared (python -b).
    "known": _Known(),
    "known_text": _Known(),
    # Of their own, so that a scan of many paths does not push the others out.
    "targets": _Known(),
    "quote": encode_basestring_ascii,
    "text": _text,
    "user": _user,
    "variable": _variable,
}


class _Atoms(dict[str, Any]):
    """All atoms of one record; header and variable names in any case, unknown ones are "-"."""

    def __missing__(self, key: str) -> Any:
        return self.get(key.lower(), "-") if key.startswith("{") else "-"


def _all_atoms(basic: Callable[..., tuple[Any, ...]], *values: Any) -> _Atoms:
    atoms = _Atoms(zip(_RECORD_ATOMS, basic(*values), strict=True))
    headers, response_headers, environ = values[-3:]
    for kind, fields in (("i", headers), ("o", response_headers), ("e", (environ or {}).items())):
        for name, value in fields:
            key = name.decode("latin-1") if isinstance(name, bytes) else name
            atoms[f"{{{key.lower()}}}{kind}"] = _escape(_shown(value))
    return atoms


def _open(accesslog: str | None) -> LogFile | None:
    """The log's file where `setup_logging` has not opened it."""
    if not accesslog:
        return None
    return LogFile(None, 1) if accesslog == "-" else LogFile(accesslog)
