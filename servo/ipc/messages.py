"""The messages between the arbiter and its workers, and their encoding.

Servo's own messages are dataclasses (not frozen: see servo.arbiter.core.events). Each is encoded as
a JSON object: `{"type": "Ready", …fields}`.

Messages between applications (servo.cluster) are AppMessages. They begin with a fixed binary
header, so the arbiter can route them without parsing. A topic and a value follow, which the
arbiter passes on unchanged. The first byte distinguishes the two formats: a JSON object begins with
a brace, and no header does. A value is JSON, or bytes after a zero byte.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, NamedTuple, get_args

from servo.errors import ServoError


class MessageError(ServoError):
    """Raised for bytes on a channel that are not a valid message."""


# --- worker -> arbiter ------------------------------------------------------------------------


@dataclass(slots=True)
class Booting:
    """The worker's process has started, and will now import the application."""


@dataclass(slots=True)
class Ready:
    """The application is loaded, its lifespan has started, and the worker accepts connections.

    worker_class  the class for the application; `workers = "auto"` depends on it
    capacity      how many requests the worker can work on at a time; autoscaling depends on it
    """

    worker_class: str = ""
    capacity: int = 1


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
class Lingering:
    """The worker drains, and keeps WebSockets or event streams open (`drain_websockets`)."""


@dataclass(slots=True)
class ReplaceMe:
    """The worker requests a replacement, and serves until it gets `Retire`.

    reason  the name of an ExitReason: "recycled", "terminated" or "request_timeout"
    detail  a text for the log
    """

    reason: str
    detail: str = ""


@dataclass(slots=True)
class AppCommand:
    """The application asks for a reload or another number of workers (`cluster_control`).

    command   "reload" or "scale"
    argument  the number of workers: "4"
    """

    command: str
    argument: str = ""


@dataclass(slots=True)
class MoldForked:
    """The answer to `MakeMold`: the worker has drained, and has forked the mold.

    pid   the mold's process id; 0 if it could not be forked
    text  why not, in one line; "" if it was forked
    """

    pid: int
    text: str = ""


@dataclass(slots=True)
class LogRecords:
    """Records that the worker has written to its error log.

    records  lists of [time in seconds since the epoch, level, text]
    lost     the number of records that were left out, because there were too many
    """

    records: list[list[Any]]
    lost: int = 0


@dataclass(slots=True)
class Report:
    """The answer to a WorkerQuery.

    number  the number of the WorkerQuery
    values  the answer
    """

    number: int
    values: dict[str, Any]


# --- arbiter -> worker ------------------------------------------------------------------------


@dataclass(slots=True)
class Retire:
    """Close the listeners, finish open requests, exit. Other workers accept the queued connections.

    reason       a text for the log
    take_queued  whether to accept the queued connections first, because no other worker has these
                 listeners
    """

    reason: str
    take_queued: bool = False


@dataclass(slots=True)
class MakeMold:
    """Fork the mold of a new generation after the next `Retire` and drain; answer `MoldForked`.

    generation  the number of the new generation
    """

    generation: int


@dataclass(slots=True)
class Stop:
    """Accept the queued connections, finish open requests, exit: the whole server stops.

    quick  whether to stop at once: accept no more connections, and cut off open requests
    """

    quick: bool = False


@dataclass(slots=True)
class ReopenLogs:
    """Close and reopen the log files (USR1)."""


@dataclass(slots=True)
class CertificateFile:
    """One of the certificate files, after any of them has changed.

    path  the file's absolute path
    text  the file's bytes, decoded as Latin-1
    last  whether this is the last file of the set
    """

    path: str
    text: str
    last: bool


@dataclass(slots=True)
class WorkerQuery:
    """An operator's query about the worker.

    number  the number of the query; the Report repeats it
    what    "stack" or "requests"
    """

    number: int
    what: str


# --- between applications ---------------------------------------------------------------------

# The kinds of an AppMessage. FAILURE is the answer to a request that failed or had no receiver.
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
    slot          the sender's slot; 0 for the arbiter
    serial        the sender's serial; 0 for the arbiter
    target        a slot, ARBITER or EVERYONE. In a reply it is the serial of the requesting worker,
                  because a new worker in the same slot must not get the reply
    number        the number of a request, which its reply repeats. In a plain message to EVERYONE
                  it is the serial of the worker to leave out, or 0
    topic_length  the length of the topic in bytes
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
        sender   the sender's slot and serial
        target   see the class
        topic    at most MAX_TOPIC_BYTES
        payload  the value, from `encode_value`
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
        """The encoded value; see `encode_value`."""
        return self.data[_HEADER.size + self.topic_length :]

    def value(self) -> Any:
        """The decoded value. Raises MessageError if it is neither JSON nor bytes."""
        return decode_value(self.payload)


def encode_value(value: object) -> bytes:
    """Encode a message's value: bytes as they are, and everything else in JSON. Raises TypeError.

    Bytes get a zero byte before them, with which no JSON text begins.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return b"\0" + bytes(value)
    return to_json(value)


def decode_value(payload: bytes) -> Any:
    """Decode the result of `encode_value`. Raises MessageError."""
    if payload[:1] == b"\0":
        return payload[1:]
    try:
        return from_json(_text(payload))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"not JSON: {payload[:80]!r}") from error


def to_json(value: object) -> bytes:
    """Encode a value in JSON. Raises TypeError if JSON has no such value: NaN, a set, a cycle, …"""
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
    | Lingering
    | ReplaceMe
    | AppCommand
    | MoldForked
    | LogRecords
    | Report
    | Retire
    | MakeMold
    | Stop
    | ReopenLogs
    | CertificateFile
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

    An attacker who controls a worker can send any bytes, and the arbiter must survive them. So this
    function checks the type of each field, and the arbiter's code can rely on the types.
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
# The year 5138: far in the future, but still a time that can be formatted.
MAX_TIME_S = 1e11


def _is_record(record: object) -> bool:
    if not isinstance(record, list) or [type(each) for each in record] not in _RECORDS:
        return False
    return bool(0 <= record[0] < MAX_TIME_S)  # False for infinity and NaN


_RECORDS = ([float, str, str], [int, str, str])


def _decode_app_message(data: bytes) -> AppMessage:
    if len(data) >= _HEADER.size and PLAIN <= data[0] <= FAILURE:
        message = AppMessage._make((*_HEADER.unpack_from(data), data))
        if _HEADER.size + message.topic_length <= len(data):
            return message
    raise MessageError(f"not a message: {data[:80]!r}")
