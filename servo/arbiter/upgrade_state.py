"""Encodes the state that an arbiter passes to its next program in an upgrade. Does no I/O.

The state is a JSON object with two parts.

Any version of Servo can use the *outer part*: the descriptors of the listening sockets, the pids
and channels of the workers, the guard's socket, the signal mask. Its form must never change. With
this part alone, the new program can listen on the same sockets, boot new workers, and let the old
ones finish.

The *inner part* has all other data: the supervisor's table, the counters, the pidfile, the control
socket with its records. Each owner encodes its own section (`to_state`) and reads it again
(`from_state` or `restore`). `STATE_VERSION` is the version of this part. Increase it if an older or
a newer program would misread a section, a message between arbiter and workers, or a row of the
scoreboard. An optional new key needs no new version. The current generation's mold goes on: until
the reload after the upgrade is over, it forks the successors of workers that die. The other molds
end.

Descriptors are passed as numbers. Before execve, `Handover.pass_on` collects the descriptors to
keep open. Afterwards, `Inheritance.take` returns a copy to each owner.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import Any

from servo.errors import ServoError

STATE_VERSION = 1

# Identifies the file. There is no version number, because the form of the outer part never changes.
_FORMAT = "servo upgrade state"


class UnreadableStateError(ServoError):
    """Raised if the state is damaged, or its inner part has another version."""


class Handover:
    """Collects the descriptors that the next program gets."""

    def __init__(self) -> None:
        self.descriptors: set[int] = set()

    def pass_on(self, fd: int) -> int:
        """Keep a descriptor open for the next program. Returns its number for the state.

        fd  an open descriptor, or -1 for none
        """
        if fd >= 0:
            self.descriptors.add(fd)
        return fd


@dataclass(frozen=True, slots=True)
class OldWorker:
    """The data of a worker process that any version of Servo can use.

    pid      its process id
    channel  the arbiter's end of its channel, or -1
    grace_s  seconds that it has to end after `retire`
    unsent   bytes to send on the channel before any other bytes
    """

    pid: int
    channel: int
    grace_s: float
    unsent: bytes = b""


@dataclass(slots=True)
class UpgradeState:
    """The state that one program writes and the next one reads.

    servo              the version of the program that has written it
    python             the version of its interpreter
    signal_mask        the signals that were blocked before the upgrade, by number
    listeners          the application's listening sockets: see `Listener.to_state`
    metrics_listeners  the listening sockets of the metrics
    workers            the worker processes
    helpers            the pids of other children; the next program ends them
    retire             the encoded message that tells a worker of this program to retire
    guard              the socket to the guard, or -1
    descriptors        all descriptors in the state
    command            the command line of the program that wrote it: see `Command.to_state`
    returned           why the next program gave the process back to this one, or ""
    inner              the sections of the owners, by name
    version            the version of `inner`
    """

    servo: str
    python: str
    signal_mask: list[int]
    listeners: list[dict[str, Any]]
    metrics_listeners: list[dict[str, Any]]
    workers: list[OldWorker]
    helpers: list[int]
    retire: bytes
    guard: int
    descriptors: list[int]
    command: dict[str, Any] = field(default_factory=dict)
    returned: str = ""
    inner: dict[str, Any] = field(default_factory=dict)
    version: int = STATE_VERSION

    @property
    def program(self) -> str:
        """The program that has written the state, for the log."""
        return f"Servo {self.servo} on Python {self.python}"

    def section(self, name: str) -> Any:
        """Return a section of the inner part. Raises UnreadableStateError."""
        if self.version != STATE_VERSION:
            raise UnreadableStateError(
                f"its version is {self.version}, and this Servo reads version {STATE_VERSION}"
            )
        try:
            return self.inner[name]
        except KeyError:
            raise UnreadableStateError(f"it has no section {name!r}") from None


def encode_state(state: UpgradeState) -> bytes:
    """Encode a state."""
    values = {
        "format": _FORMAT,
        "servo": state.servo,
        "python": state.python,
        "signal_mask": state.signal_mask,
        "listeners": state.listeners,
        "metrics_listeners": state.metrics_listeners,
        "workers": [
            [each.pid, each.channel, each.grace_s, b64encode(each.unsent).decode()]
            for each in state.workers
        ],
        "retire": b64encode(state.retire).decode(),
        "helpers": state.helpers,
        "guard": state.guard,
        "descriptors": state.descriptors,
        "command": state.command,
        "returned": state.returned,
        "version": state.version,
        "inner": state.inner,
    }
    return json.dumps(values).encode()


def decode_state(data: bytes) -> UpgradeState:
    """Decode a state. Raises UnreadableStateError if even the outer part can't be read."""
    try:
        values = json.loads(data)
        if values["format"] != _FORMAT:
            raise UnreadableStateError(f"its format is {values['format']!r}")
        return UpgradeState(
            servo=str(values["servo"]),
            python=str(values["python"]),
            signal_mask=[int(number) for number in values["signal_mask"]],
            listeners=[dict(each) for each in values["listeners"]],
            metrics_listeners=[dict(each) for each in values["metrics_listeners"]],
            workers=[
                OldWorker(int(pid), int(channel), float(grace_s), b64decode(unsent))
                for pid, channel, grace_s, unsent in values["workers"]
            ],
            helpers=[int(pid) for pid in values["helpers"]],
            retire=b64decode(values["retire"]),
            guard=int(values["guard"]),
            descriptors=[int(fd) for fd in values["descriptors"]],
            command=dict(values["command"]),
            returned=str(values["returned"]),
            version=int(values["version"]),
            inner=dict(values["inner"]),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableStateError(f"it is damaged: {error!r}") from error
