"""The messages between the arbiter and a worker, and their encoding: one JSON object each.

A message is a frozen dataclass; on the wire it is `{"type": "Ready", ...fields}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from servo.errors import ServoError


class MessageError(ServoError):
    """Bytes on a channel that are no message of ours."""


# --- worker -> arbiter ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Booting:
    """The worker's process runs Servo's code; its import of the app comes next."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The app is loaded, its lifespan has started, and the worker accepts connections.

    `worker_class` is the class that the app's interface led to; `workers = "auto"` counts by it.
    """

    worker_class: str = ""


@dataclass(frozen=True, slots=True)
class BootFailed:
    """The worker can't serve and exits now. `kind` is "app" (import) or "boot"; `text` explains."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Draining:
    """The worker has closed its listeners and finishes what it has."""


@dataclass(frozen=True, slots=True)
class ReplaceMe:
    """The worker asks for a successor and goes on serving until it is retired.

    `reason` is the name of an `ExitReason`: "recycled", "terminated" or "request_timeout".
    """

    reason: str
    detail: str = ""


# --- arbiter -> worker ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retire:
    """Close the shared listeners (siblings take the queue), answer what you have, exit."""

    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """No sibling is left: accept what is queued (unless quick), answer it, exit."""

    quick: bool = False


@dataclass(frozen=True, slots=True)
class ReopenLogs:
    """Close and reopen the log files (USR1)."""


Message = Booting | Ready | BootFailed | Draining | ReplaceMe | Retire | Stop | ReopenLogs

_TYPES: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (Booting, Ready, BootFailed, Draining, ReplaceMe, Retire, Stop, ReopenLogs)
}


def encode(message: Message) -> bytes:
    """The message as one JSON object in UTF-8."""
    return json.dumps({"type": type(message).__name__, **asdict(message)}).encode()


def decode(data: bytes) -> Message:
    """The message in these bytes. Raises MessageError for anything else."""
    try:
        values: dict[str, Any] = json.loads(data)
        kind = _TYPES[values.pop("type")]
        if set(values) - {field.name for field in fields(kind)}:
            raise MessageError(f"unknown fields in {kind.__name__}: {sorted(values)}")
        return kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MessageError(f"not a message: {data[:80]!r}") from error
