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
    """The sockets are bound: the first workers may be forked."""


@dataclass(slots=True)
class SignalReceived:
    """The arbiter got a signal.

    name  such as "SIGTERM"
    """

    name: str


@dataclass(slots=True)
class Forked:
    """A `Fork` has succeeded.

    serial  the worker's
    pid     of its process
    """

    serial: int
    pid: int


@dataclass(slots=True)
class ForkFailed:
    """A `Fork` has failed: no memory, no process, or no free row of the scoreboard.

    serial  the worker's
    text    why, for the log
    """

    serial: int
    text: str


@dataclass(slots=True)
class KillFailed:
    """The kernel refused to deliver the signal of a `KillWorker`, for example without CAP_KILL.

    serial  the worker's
    signal  such as "SIGKILL"
    """

    serial: int
    signal: str


@dataclass(slots=True)
class ChildExited:
    """A child was reaped. All its messages have been handled before this event.

    pid            the child's; it need not be a worker's
    code           its exit code; if a signal ended it, the signal's number, negated
    signal         that signal's name, or ""
    out_of_memory  the kernel's counters say that it killed a process for memory
    """

    pid: int
    code: int
    signal: str = ""
    out_of_memory: bool = False


@dataclass(slots=True)
class MessageReceived:
    """A worker sent a message.

    serial   the worker's
    message  what it sent
    """

    serial: int
    message: Message


@dataclass(slots=True)
class ChannelLost:
    """A worker's channel is closed or broken: messages no longer reach it.

    serial  the worker's
    """

    serial: int


@dataclass(slots=True)
class RowOverwritten:
    """A worker's row of the scoreboard holds impossible values: something has overwritten it.

    serial  the worker's
    """

    serial: int


@dataclass(slots=True)
class Tick:
    """Time has passed.

    heartbeats  serial -> time of the worker's last heartbeat, in seconds
    oldest      serial -> start of its oldest request in flight, in seconds; workers without a
                request are absent
    """

    heartbeats: Mapping[int, float] = field(default_factory=dict)
    oldest: Mapping[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class ConfigChecked:
    """The child process of `CheckConfig` has read the configuration.

    generation  the one that the configuration is for
    error       what is wrong with the configuration, or None
    """

    generation: int
    error: str | None = None


@dataclass(slots=True)
class ConfigLoaded:
    """The arbiter has read the new configuration, and bound listeners for it.

    generation  the one that the configuration is for
    policy      the part of the settings that concerns supervision
    """

    generation: int
    policy: Policy


@dataclass(slots=True)
class ConfigFailed:
    """The configuration was good in the child, but the arbiter can't use it: a port is taken, …

    generation  the one that the configuration is for
    error       what is wrong
    """

    generation: int
    error: str


@dataclass(slots=True)
class FileChanged:
    """Source files have changed (--reload).

    paths  at least one
    """

    paths: tuple[str, ...]


@dataclass(slots=True)
class CommandReceived:
    """An operator sent a command over the control socket; `CommandAnswered` answers it.

    ticket    a number that the answer repeats
    command   a name in `commands.COMMANDS`
    argument  the argument of that command
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
