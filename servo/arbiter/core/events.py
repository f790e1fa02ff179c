"""The inputs of the supervisor: everything that can happen to the arbiter, one class each.

`Supervisor.handle` takes one event and returns actions (`servo.arbiter.core.actions`). All times
are seconds of one monotonic clock. The supervisor never reads that clock itself: times reach it
only as arguments, which is why a test can play an hour in a millisecond.

Nobody changes an event once it is made. The classes are still not `frozen`: building that many
frozen dataclasses takes 10 ms of every start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.policy import Policy
    from servo.ipc.messages import Message


@dataclass(slots=True)
class Started:
    """The sockets are bound; the first generation may be forked."""


@dataclass(slots=True)
class SignalReceived:
    """The arbiter got a signal; `name` as in "SIGTERM"."""

    name: str


@dataclass(slots=True)
class Forked:
    """A `Fork` was performed."""

    serial: int
    pid: int


@dataclass(slots=True)
class ForkFailed:
    """A `Fork` could not be performed (no memory, no process, no scoreboard row)."""

    serial: int
    text: str


@dataclass(slots=True)
class KillFailed:
    """The kernel refused the signal of a `KillWorker`: the arbiter lacks CAP_KILL, say."""

    serial: int
    signal: str


@dataclass(slots=True)
class ChildExited:
    """A child was reaped; every message that it had sent came before this.

    code           its exit code; for a death by a signal, the signal's negative number
    signal         that signal's name, else ""
    out_of_memory  the kernel's counters say that it killed for memory
    """

    pid: int
    code: int
    signal: str = ""
    out_of_memory: bool = False


@dataclass(slots=True)
class MessageReceived:
    """A worker said something."""

    serial: int
    message: Message


@dataclass(slots=True)
class ChannelLost:
    """A worker's channel is closed or broken; messages no longer reach it."""

    serial: int


@dataclass(slots=True)
class RowOverwritten:
    """A worker's row of the scoreboard made no sense: something has written over it."""

    serial: int


@dataclass(slots=True)
class Tick:
    """Time passed.

    beats   serial -> the moment of its last heartbeat
    oldest  serial -> the start of its oldest request in flight; absent when there is none
    """

    beats: Mapping[int, float] = field(default_factory=dict)
    oldest: Mapping[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class ConfigChecked:
    """The throw-away child has read the configuration. `error` is None when it is good."""

    generation: int
    error: str | None = None


@dataclass(slots=True)
class ConfigLoaded:
    """The arbiter has the new settings, and listeners for them."""

    generation: int
    policy: Policy


@dataclass(slots=True)
class ConfigFailed:
    """The configuration was good in the child but can't be taken up (a port is taken, …)."""

    generation: int
    error: str


@dataclass(slots=True)
class FileChanged:
    """The watcher saw source files change."""

    paths: tuple[str, ...]


@dataclass(slots=True)
class CommandReceived:
    """An operator asks for something, through the control socket; answered by `CommandAnswered`.

    ticket    given back with the answer
    command   a name in `commands.COMMANDS`
    argument  what that command takes
    """

    ticket: int
    command: str
    argument: Any = None


Event = (
    Started
    | SignalReceived
    | Forked
    | ForkFailed
    | KillFailed
    | ChildExited
    | MessageReceived
    | ChannelLost
    | RowOverwritten
    | Tick
    | ConfigChecked
    | ConfigLoaded
    | ConfigFailed
    | FileChanged
    | CommandReceived
)
