"""The control socket's language: one JSON object a line, both ways. Pure: no I/O here.

A request names a command:

    {"command": "scale", "args": {"to": "+2"}}

Its answer is any number of notes (progress, events, log lines), then one result:

    {"note": {"step": "ready", "slot": 1, …}}
    {"lost": 12}                                  notes that a slow reader did not get
    {"ok": true, "result": {…}}
    {"ok": false, "kind": "refused", "error": "…", "details": "a traceback"}

An empty line from the server is a sign of life during a long answer. Requests on one connection are
answered one after the other. `COMMANDS` is the whole vocabulary; a new command is a row of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from servo.errors import ServoError
from servo.printable import printable

# A request has a few short arguments; more bytes than this without an end of line are no request.
MAX_REQUEST_BYTES = 65_536
# Requests that one connection may have waiting: a tool sends one and reads its answer.
MAX_WAITING_REQUESTS = 32

# Why a request failed.
REFUSED = "refused"  # understood, and not possible now
ROLLED_BACK = "rolled back"  # a reload that was
USAGE = "usage"  # no such command, or wrong arguments
DENIED = "denied"  # this user may not


class RequestError(ServoError):
    """A line that is no request; `str(error)` tells the peer why."""


class LineTooLong(RequestError):  # noqa: N818
    """More bytes than MAX_REQUEST_BYTES without an end of line, or too many lines at once."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a command takes.

    arguments  name -> (type, default); a default of ... means that it must be given
    changes    it changes the server: peers with read access may not
    """

    arguments: dict[str, tuple[type, Any]] = field(default_factory=dict)
    changes: bool = False


COMMANDS: dict[str, Command] = {
    "status": Command(),
    "workers": Command(),
    "requests": Command(),
    "config": Command(),
    "stack": Command({"slot": (int, ...)}),
    "logs": Command({"follow": (bool, False)}),
    "events": Command({"follow": (bool, False)}),
    "reload": Command({"wait": (bool, True)}, changes=True),
    "scale": Command({"to": (str, ...)}, changes=True),
    "restart-worker": Command({"slot": (int, ...), "wait": (bool, True)}, changes=True),
    # The message is text, of JSON; slot 0 stands for all.
    "send": Command({"message": (str, ...), "slot": (int, 0), "topic": (str, "")}, changes=True),
    "stop": Command({"now": (bool, False), "wait": (bool, True)}, changes=True),
}


@dataclass(frozen=True, slots=True)
class Request:
    """One request, checked against `COMMANDS`; every argument is there."""

    command: str
    args: dict[str, Any]

    @property
    def changes(self) -> bool:
        """Whether it takes full access."""
        return COMMANDS[self.command].changes


class LineReader:
    """Cuts a stream of bytes into lines, and never holds more than one request's worth."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def complete(self) -> bool:
        """Whether there is a whole line to take."""
        return b"\n" in self._buffer

    def feed(self, data: bytes) -> None:
        """Take in bytes. Raises LineTooLong when they can't be requests of a well-meaning peer."""
        self._buffer += data
        lines = self._buffer.count(b"\n")
        if lines > MAX_WAITING_REQUESTS:
            raise LineTooLong(f"more than {MAX_WAITING_REQUESTS} requests at once")
        tail = len(self._buffer) - (self._buffer.rfind(b"\n") + 1)
        if tail > MAX_REQUEST_BYTES or len(self._buffer) > 2 * MAX_REQUEST_BYTES:
            raise LineTooLong(f"a request is longer than {MAX_REQUEST_BYTES} bytes")

    def take(self) -> bytes | None:
        """The next whole line without its end, or None."""
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if len(line) > MAX_REQUEST_BYTES:
            raise LineTooLong(f"a request is longer than {MAX_REQUEST_BYTES} bytes")
        return line


def parse_request(line: bytes) -> Request:
    """The request in this line. Raises RequestError, which says what would be right."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError("not a line of JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("command"), str):
        raise RequestError('not a request: {"command": "…", "args": {…}} is one')
    name = value["command"]
    command = COMMANDS.get(name)
    if command is None:
        raise RequestError(f"there is no command {name[:40]!r}; there are {', '.join(COMMANDS)}")
    given = value.get("args", {})
    if not isinstance(given, dict):
        raise RequestError(f"{name}: args is no object")
    unknown = sorted(set(given) - set(command.arguments))
    if unknown:
        raise RequestError(f"{name} takes no argument {unknown[0][:40]!r}")
    args = {}
    for argument, (kind, default) in command.arguments.items():
        found = given.get(argument, default)
        if found is ...:
            raise RequestError(f"{name} needs the argument {argument!r}")
        # bool is an int to Python, and `true` is no slot.
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise RequestError(f"{name}: {argument} is no {_KINDS[kind]}")
        args[argument] = found
    return Request(name, args)


_KINDS = {int: "whole number", str: "text", bool: "true or false"}


def request_line(command: str, args: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    return _line({"command": command, "args": args})


def note_line(note: dict[str, Any]) -> bytes:
    """The bytes of a note."""
    return _line({"note": note})


def lost_line(count: int) -> bytes:
    """The bytes that tell of notes which a slow reader did not get."""
    return _line({"lost": count})


def result_line(result: dict[str, Any]) -> bytes:
    """The bytes of a good result."""
    return _line({"ok": True, "result": result})


def failure_line(kind: str, error: str, details: str = "") -> bytes:
    """The bytes of a failure."""
    return _line({"ok": False, "kind": kind, "error": error, "details": details})


def parse_answer(line: bytes) -> dict[str, Any]:
    """One line of an answer, with its texts made `printable`.

    At a terminal a control character moves the cursor, changes the title or types for the user, and
    the peer at a socket may not be a Servo. Raises RequestError for what no Servo says.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not a line of JSON: {line[:80]!r}") from error
    if not isinstance(value, dict) or not {"note", "lost", "ok"} & set(value):
        raise RequestError(f"not an answer: {line[:80]!r}")
    answer: dict[str, Any] = _printable_value(value)
    return answer


def _printable_value(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable_value(each) for each in value]
    if isinstance(value, dict):
        return {printable(name): _printable_value(each) for name, each in value.items()}
    return value


def _line(value: dict[str, Any]) -> bytes:
    # ASCII, so that no text can hold a line separator.
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
