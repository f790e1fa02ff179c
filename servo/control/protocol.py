"""The protocol of the control socket: one JSON object per line, in both directions. No I/O.

A request names a command:

    {"command": "scale", "args": {"to": "+2"}}

The answer consists of any number of notes (progress, events, log lines) and then one result:

    {"note": {"step": "ready", "slot": 1, …}}
    {"lost": 12}                                  notes left out because the client read too slowly
    {"ok": true, "result": {…}}
    {"ok": false, "kind": "refused", "error": "…", "details": "a traceback"}

During a long answer, the server sends empty lines as signs of life. Requests on one connection are
answered one after the other. `COMMANDS` lists all commands.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from servo.errors import ServoError
from servo.printable import printable

# The longest line of a request. Real requests have only a few short arguments.
MAX_REQUEST_BYTES = 65_536
# How many requests of one connection may wait. Tools send one, and then read the answer.
MAX_WAITING_REQUESTS = 32

# The kinds of failures.
REFUSED = "refused"  # the request is valid but not possible now
ROLLED_BACK = "rolled back"  # a reload has been rolled back
USAGE = "usage"  # no such command, or invalid arguments
DENIED = "denied"  # this user isn't allowed to do this


class RequestError(ServoError):
    """Raised for an invalid request or answer. The message is sent to the peer."""


class LineTooLong(RequestError):  # noqa: N818
    """Raised for a line longer than MAX_REQUEST_BYTES, or too many lines at once."""


@dataclass(frozen=True, slots=True)
class Command:
    """The declaration of a command.

    arguments   the type and default of each argument, by name; ... marks a required argument
    changes     whether it changes the server; if so, it needs full access
    """

    arguments: dict[str, tuple[type, Any]] = field(default_factory=dict)
    changes: bool = False


COMMANDS: dict[str, Command] = {
    "status": Command(),
    "workers": Command(),
    "pools": Command(),
    "requests": Command(),
    "config": Command(),
    # `lines`: how many events, and how many log lines
    "report": Command({"lines": (int, 50)}),
    "stack": Command({"slot": (int, ...)}),
    # `access`: the lines of the access log
    "logs": Command({"follow": (bool, False), "access": (bool, False)}),
    "events": Command({"follow": (bool, False)}),
    "reload": Command({"wait": (bool, True)}, changes=True),
    # `python` is the path of an interpreter; "" means the one that runs the server.
    "upgrade": Command({"python": (str, ""), "wait": (bool, True)}, changes=True),
    "scale": Command({"to": (str, ...)}, changes=True),
    "restart-worker": Command({"slot": (int, ...), "wait": (bool, True)}, changes=True),
    "rollback": Command(changes=True),
    "reopen": Command(changes=True),
    "signal": Command({"slot": (int, ...), "name": (str, ...)}, changes=True),
    # `message` is JSON as text; slot 0 means all workers.
    "send": Command({"message": (str, ...), "slot": (int, 0), "topic": (str, "")}, changes=True),
    "call": Command(
        {
            "message": (str, ...),
            "slot": (int, ...),
            "topic": (str, ""),
            "timeout_ms": (int, 5000),
        },
        changes=True,
    ),
    "stop": Command({"now": (bool, False), "wait": (bool, True)}, changes=True),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request, checked against `COMMANDS`.

    command   the command's name
    args      all of the command's arguments by name, defaults included
    """

    command: str
    args: dict[str, Any]

    @property
    def changes(self) -> bool:
        """Whether the command changes the server, which needs full access."""
        return COMMANDS[self.command].changes


class LineReader:
    """Splits a stream of bytes into lines. It keeps at most twice MAX_REQUEST_BYTES."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    @property
    def complete(self) -> bool:
        """Whether `take` would return a line."""
        return b"\n" in self._buffer

    def feed(self, data: bytes) -> None:
        """Add received bytes. Raises LineTooLong for too long a line or too many lines."""
        self._buffer += data
        lines = self._buffer.count(b"\n")
        if lines > MAX_WAITING_REQUESTS:
            raise LineTooLong(f"more than {MAX_WAITING_REQUESTS} requests at once")
        tail = len(self._buffer) - (self._buffer.rfind(b"\n") + 1)
        if tail > MAX_REQUEST_BYTES or len(self._buffer) > 2 * MAX_REQUEST_BYTES:
            raise LineTooLong(f"a request is longer than {MAX_REQUEST_BYTES} bytes")

    def take(self) -> bytes | None:
        """Remove and return the next whole line without its end, or return None.

        Raises LineTooLong.
        """
        end = self._buffer.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        if len(line) > MAX_REQUEST_BYTES:
            raise LineTooLong(f"a request is longer than {MAX_REQUEST_BYTES} bytes")
        return line


def parse_request(line: bytes) -> Request:
    """Parse a line into a request. Raises RequestError with the expected form."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError("not a line of JSON") from error
    if not isinstance(value, dict) or not isinstance(value.get("command"), str):
        raise RequestError('not a request: expected {"command": "…", "args": {…}}')
    name = value["command"]
    command = COMMANDS.get(name)
    if command is None:
        raise RequestError(f"there is no command {name[:40]!r}; there are {', '.join(COMMANDS)}")
    given = value.get("args", {})
    if not isinstance(given, dict):
        raise RequestError(f"{name}: args is not an object")
    unknown = sorted(set(given) - set(command.arguments))
    if unknown:
        raise RequestError(f"{name} takes no argument {unknown[0][:40]!r}")
    args = {}
    for argument, (kind, default) in command.arguments.items():
        found = given.get(argument, default)
        if found is ...:
            raise RequestError(f"{name} needs the argument {argument!r}")
        # In Python a bool is an int, but `true` is not a valid slot.
        if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
            raise RequestError(f"{name}: {argument} is not {_KINDS[kind]}")
        args[argument] = found
    return Request(name, args)


_KINDS = {int: "a whole number", str: "text", bool: "true or false"}


def request_line(command: str, args: dict[str, Any]) -> bytes:
    """Encode a request.

    command   the command's name
    args      its arguments by name
    """
    return _line({"command": command, "args": args})


def note_line(note: dict[str, Any]) -> bytes:
    """Encode a note."""
    return _line({"note": note})


def lost_line(count: int) -> bytes:
    """Encode the number of notes that were left out because the client read too slowly."""
    return _line({"lost": count})


def result_line(result: dict[str, Any]) -> bytes:
    """Encode the result of a request that succeeded."""
    return _line({"ok": True, "result": result})


def failure_line(kind: str, error: str, details: str = "") -> bytes:
    """Encode the failure of a request.

    kind      REFUSED, ROLLED_BACK, USAGE or DENIED
    error     what happened, in one line
    details   a traceback, or ""
    """
    return _line({"ok": False, "kind": kind, "error": error, "details": details})


def parse_answer(line: bytes) -> dict[str, Any]:
    """Parse one line of an answer, and make its texts `printable`.

    The process that answers may not be Servo, and control characters in its texts could control the
    user's terminal. Raises RequestError for a line that isn't an answer.
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
    # json.dumps escapes line feeds and everything outside ASCII, so the result is one line.
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
