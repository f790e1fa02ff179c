"""The messages between the arbiter and its workers, and their encoding.

Servo's own messages are dataclasses (not frozen: see servo.arbiter.core.events). Each is encoded as
a JSON object: `{"type": "Ready", …fields}`.

Messages between applications (servo.cluster) are AppMessages. They have a fixed binary header, so
that the arbiter can route them without parsing; then come a topic and a JSON value, which it passes
on unchanged. The first byte tells the two apart, because no header begins with a brace.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple, get_args

from servo.errors import ServoError


class MessageError(ServoError):
    """Bytes on a channel that are not a valid message."""


# --- worker -> arbiter ------------------------------------------------------------------------


@dataclass(slots=True)
class Booting:
    """The worker's process runs Servo's code, and imports the application next."""


@dataclass(slots=True)
class Ready:
    """The application is loaded, its lifespan has started, and the worker accepts connections.

    worker_class  the class that was chosen for the application; `workers = "auto"` depends on it
    """

    worker_class: str = ""


# Exit codes of a worker that could not boot. The arbiter exits with the same codes, like gunicorn.
EXIT_BOOT: Final = 3
EXIT_APP: Final = 4  # the application could not be imported


@dataclass(slots=True)
class BootFailed:
    """The worker can't serve, and exits now.

    kind  "app" if the import of the application failed, else "boot"
    text  the reason
    """

    kind: str
    text: str


@dataclass(slots=True)
class Draining:
    """The worker has closed its listeners, and finishes its requests."""


@dataclass(slots=True)
class ReplaceMe:
    """The worker asks for a successor, and serves until it is told to retire.

    reason  the name of an ExitReason: "recycled", "terminated" or "request_timeout"
    detail  for the log
    """

    reason: str
    detail: str = ""


@dataclass(slots=True)
class LogRecords:
    """Records that the worker has written to its error log.

    records  each one is [time in seconds since the epoch, level, text]
    lost     number of records that were left out, because there were too many
    """

    records: list[list[Any]]
    lost: int = 0


@dataclass(slots=True)
class Report:
    """The answer to a WorkerQuery.

    number  of the WorkerQuery
    values  the answer
    """

    number: int
    values: dict[str, Any]


# --- arbiter -> worker ------------------------------------------------------------------------


@dataclass(slots=True)
class Retire:
    """Close the shared listeners (siblings accept what is queued), finish your requests, exit.

    reason  for the log
    """

    reason: str


@dataclass(slots=True)
class Stop:
    """The server stops. Accept what is queued, since no sibling will, finish your requests, exit.

    quick  whether to leave queued connections
    """

    quick: bool = False


@dataclass(slots=True)
class ReopenLogs:
    """Close and reopen the log files (USR1)."""


@dataclass(slots=True)
class WorkerQuery:
    """An operator asks what this worker is doing.

    number  for the Report that answers
    what    "stack" or "requests"
    """

    number: int
    what: str


# --- between applications ---------------------------------------------------------------------

# The kinds of an AppMessage. FAILURE answers a request that failed, or that had no receiver.
PLAIN = 1
REQUEST = 2
REPLY = 3
FAILURE = 4
# Targets that are not the slot of a worker.
ARBITER = 0
EVERYONE = 0xFFFF_FFFF

MAX_TOPIC_BYTES = 255

_HEADER = struct.Struct("!BIIIIB")  # the fields of AppMessage in their order


class AppMessage(NamedTuple):
    """An encoded message of an application, with the fields of its header.

    kind          PLAIN, REQUEST, REPLY or FAILURE
    slot          of the sender; 0 for the arbiter
    serial        of the sender; 0 for the arbiter
    target        a slot, ARBITER or EVERYONE. In a reply it is the serial of the worker that has
                  asked: a successor in its slot has not
    number        ties a reply to its request. In a plain message to EVERYONE it is the serial of
                  the worker that is left out, or 0
    topic_length  in bytes
    data          the whole message, with header, topic and value
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
        """Encode a message.

        kind     PLAIN, REQUEST, REPLY or FAILURE
        sender   its slot and serial
        target   see the class
        topic    at most MAX_TOPIC_BYTES
        payload  the value in JSON
        number   see the class
        """
        head = _HEADER.pack(kind, *sender, target, number, len(topic))
        return cls(kind, *sender, target, number, len(topic), b"".join((head, topic, payload)))

    @property
    def topic(self) -> str:
        """The topic. Raises MessageError if it is not UTF-8."""
        return _text(self.data[_HEADER.size : _HEADER.size + self.topic_length])

    @property
    def payload(self) -> bytes:
        """The value in JSON."""
        return self.data[_HEADER.size + self.topic_length :]

    def value(self) -> Any:
        """The decoded value. Raises MessageError if it is not JSON."""
        try:
            return from_json(_text(self.payload))
        except (ValueError, RecursionError) as error:
            raise MessageError(f"not JSON: {self.payload[:80]!r}") from error


def to_json(value: object) -> bytes:
    """Encode a value in JSON. Raises TypeError for what JSON can't hold: NaN, a set, a cycle, …"""
    try:
        return _to_json(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"a message must consist of JSON values: {error}") from error


_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
# Decodes JSON text. Raises ValueError or RecursionError.
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
    | WorkerQuery
)

_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in get_args(Message) if kind is not AppMessage
}


def encode(message: Message) -> bytes:
    """Encode a message."""
    if isinstance(message, AppMessage):
        return message.data
    return json.dumps({"type": type(message).__name__, **asdict(message)}).encode()


def decode(data: bytes) -> Message:
    """Decode a message. Raises MessageError for bytes that are not a valid message.

    A worker that an attacker controls can send any bytes, and the arbiter must survive them. So the
    type of each field is checked here, and the arbiter's code can rely on it.
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
        if type(getattr(message, field.name)) is not _FIELD_TYPES[str(field.type)]:
            raise MessageError(f"{field.name} of {kind.__name__} is not of type {field.type}")
    if isinstance(message, LogRecords) and not all(map(_is_record, message.records)):
        raise MessageError("a log record must be [time, level, text]")
    return message


# The type for each annotation of the fields above.
_FIELD_TYPES = {
    "str": str,
    "int": int,
    "bool": bool,
    "dict[str, Any]": dict,
    "list[list[Any]]": list,
}
# The year 5138: far in the future, and still a time that can be formatted.
_MAX_TIME_S = 1e11


def _is_record(record: object) -> bool:
    if not isinstance(record, list) or [type(each) for each in record] not in _RECORDS:
        return False
    return bool(0 <= record[0] < _MAX_TIME_S)  # neither infinite nor NaN


_RECORDS = ([float, str, str], [int, str, str])


def _decode_app_message(data: bytes) -> AppMessage:
    if len(data) >= _HEADER.size and PLAIN <= data[0] <= FAILURE:
        message = AppMessage._make((*_HEADER.unpack_from(data), data))
        if _HEADER.size + message.topic_length <= len(data):
            return message
    raise MessageError(f"not a message: {data[:80]!r}")
