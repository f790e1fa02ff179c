"""The messages between the arbiter and its workers, and their encoding.

Servo's own are dataclasses (not frozen: see `servo.arbiter.core.events`); on the wire each is a
JSON object: `{"type": "Ready", …fields}`. Those between applications (`servo.cluster`) are
`AppMessage`s: a fixed header that the arbiter routes by, a topic, and a JSON value that it passes
on as it is. No header begins with a brace.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple, get_args

from servo.errors import ServoError


class MessageError(ServoError):
    """Bytes on a channel that are no message of ours."""


# --- worker -> arbiter ------------------------------------------------------------------------


@dataclass(slots=True)
class Booting:
    """The worker's process runs Servo's code; its import of the app comes next."""


@dataclass(slots=True)
class Ready:
    """The app is loaded, its lifespan has started, and the worker accepts connections.

    `worker_class` is the class that the app's interface led to; `workers = "auto"` counts by it.
    """

    worker_class: str = ""


# Exit codes of a worker that could not boot. The arbiter exits with the same ones, like gunicorn.
EXIT_BOOT: Final = 3
EXIT_APP: Final = 4  # the app could not be imported


@dataclass(slots=True)
class BootFailed:
    """The worker can't serve and exits now. `kind` is "app" (import) or "boot"; `text` explains."""

    kind: str
    text: str


@dataclass(slots=True)
class Draining:
    """The worker has closed its listeners and finishes what it has."""


@dataclass(slots=True)
class ReplaceMe:
    """The worker asks for a successor and goes on serving until it is retired.

    `reason` is the name of an `ExitReason`: "recycled", "terminated" or "request_timeout".
    """

    reason: str
    detail: str = ""


@dataclass(slots=True)
class LogRecords:
    """What the worker has written to the error log: [time, level, text] each. `lost`: not sent."""

    records: list[list[Any]]
    lost: int = 0


@dataclass(slots=True)
class Report:
    """The answer to an `Inquiry` of that number."""

    number: int
    values: dict[str, Any]


# --- arbiter -> worker ------------------------------------------------------------------------


@dataclass(slots=True)
class Retire:
    """Close the shared listeners (siblings take the queue), answer what you have, exit."""

    reason: str


@dataclass(slots=True)
class Stop:
    """No sibling is left: accept what is queued (unless quick), answer it, exit."""

    quick: bool = False


@dataclass(slots=True)
class ReopenLogs:
    """Close and reopen the log files (USR1)."""


@dataclass(slots=True)
class Inquiry:
    """An operator asks what this worker does; `what` is "stack" or "requests"."""

    number: int
    what: str


# --- between applications ---------------------------------------------------------------------

# The kinds of an AppMessage. A failure is the reply to a request that nobody could answer.
PLAIN = 1
REQUEST = 2
REPLY = 3
FAILURE = 4
# Targets that are no worker's slot.
ARBITER = 0
EVERYONE = 0xFFFF_FFFF

MAX_TOPIC_BYTES = 255

_HEADER = struct.Struct("!BIIIIB")  # as the fields of AppMessage go


class AppMessage(NamedTuple):
    """A message of an application's, as it travels.

    kind          PLAIN, REQUEST, REPLY or FAILURE
    slot, serial  the sender's; 0 when it is the arbiter
    target        a slot, ARBITER or EVERYONE; a reply's is the asking worker's serial, since its
                  successor in the slot did not ask
    number        ties a reply to its request; of a plain message to EVERYONE, the serial of a
                  worker that is to be left out, or 0
    topic_length  in bytes
    data          the whole of it, encoded
    """

    kind: int
    slot: int
    serial: int
    target: int
    number: int
    topic_length: int
    data: bytes

    @classmethod
    def make(
        cls,
        kind: int,
        sender: tuple[int, int],
        target: int,
        topic: bytes,
        payload: bytes,
        number: int = 0,
    ) -> AppMessage:
        """A message to be sent. `sender` is its slot and serial, `payload` a value in JSON."""
        head = _HEADER.pack(kind, *sender, target, number, len(topic))
        return cls(kind, *sender, target, number, len(topic), b"".join((head, topic, payload)))

    @property
    def topic(self) -> str:
        """What it is about. Raises MessageError if a sender has encoded it wrongly."""
        return _text(self.data[_HEADER.size : _HEADER.size + self.topic_length])

    @property
    def payload(self) -> bytes:
        """The value in JSON."""
        return self.data[_HEADER.size + self.topic_length :]

    def value(self) -> Any:
        """The value that was sent. Raises MessageError if a sender has encoded it wrongly."""
        try:
            return from_json(_text(self.payload))
        except (ValueError, RecursionError) as error:
            raise MessageError(f"not JSON: {self.payload[:80]!r}") from error


def to_json(value: object) -> bytes:
    """A value in JSON. Raises TypeError for what has no place there: NaN, a set, a cycle, …"""
    try:
        return _to_json(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"a message consists of JSON values: {error}") from error


_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
# What `to_json` made, as text, back into a value. Raises ValueError or RecursionError.
from_json = json.JSONDecoder().decode


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MessageError(f"not UTF-8: {data[:80]!r}") from error


# --- encoding ---------------------------------------------------------------------------------

Message = (
    AppMessage
    | Booting
    | Ready
    | BootFailed
    | Draining
    | ReplaceMe
    | LogRecords
    | Report
    | Retire
    | Stop
    | ReopenLogs
    | Inquiry
)

_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in get_args(Message) if kind is not AppMessage
}


def encode(message: Message) -> bytes:
    """The message's bytes."""
    if isinstance(message, AppMessage):
        return message.data
    return json.dumps({"type": type(message).__name__, **asdict(message)}).encode()


def decode(data: bytes) -> Message:
    """The message in these bytes. Raises MessageError for anything else.

    A worker that somebody has taken over can send any bytes, and the arbiter must outlive it. So
    each field's type is checked here, and the arbiter need not doubt what it gets.
    """
    if data[:1] != b"{":
        return _decode_app_message(data)
    try:
        values: dict[str, Any] = json.loads(data)
        kind = _TYPES[values.pop("type")]
        if set(values) - {field.name for field in fields(kind)}:
            raise MessageError(f"unknown fields in {kind.__name__}: {sorted(values)}")
        message: Message = kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MessageError(f"not a message: {data[:80]!r}") from error
    for field in fields(kind):
        if type(getattr(message, field.name)) is not _KINDS[str(field.type)]:
            raise MessageError(f"{field.name} of {kind.__name__} is no {field.type}")
    if isinstance(message, LogRecords) and not all(map(_is_record, message.records)):
        raise MessageError("a log record is [time, level, text]")
    return message


# The annotations of fields, as they are written above.
_KINDS = {"str": str, "int": int, "bool": bool, "dict[str, Any]": dict, "list[list[Any]]": list}
# Far in the future, and well within what a clock can show.
_END_OF_TIME_S = 1e11


def _is_record(record: object) -> bool:
    if not isinstance(record, list) or [type(each) for each in record] not in _RECORDS:
        return False
    return bool(0 <= record[0] < _END_OF_TIME_S)  # neither infinite nor NaN


_RECORDS = ([float, str, str], [int, str, str])


def _decode_app_message(data: bytes) -> AppMessage:
    if len(data) >= _HEADER.size and PLAIN <= data[0] <= FAILURE:
        message = AppMessage._make((*_HEADER.unpack_from(data), data))
        if _HEADER.size + message.topic_length <= len(data):
            return message
    raise MessageError(f"not a message: {data[:80]!r}")
