"""The inputs of the supervisor: everything that can happen to the arbiter, one class each.

`Supervisor.handle` takes one event and returns actions (`servo.arbiter.core.actions`). All times
are seconds of one monotonic clock. The supervisor never reads this clock: it gets times only as
arguments, so a test can simulate an hour in a millisecond.

Events never change, but the classes are not `frozen`: it takes longer to define frozen dataclasses,
and these would add 10 ms to every start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.autoscale import ServerLoad
    from servo.arbiter.core.policy import Policy
    from servo.ipc.messages import Message


@dataclass(slots=True)
class Started:
    """The sockets are bound, so the first workers may be forked."""


@dataclass(slots=True)
class SignalReceived:
    """The arbiter got a signal.

    name  such as "SIGTERM"
    """

    name: str


@dataclass(slots=True)
class Forked:
    """A `Fork` has succeeded.

    serial  the worker's number
    pid     its process id
    """

    serial: int
    pid: int


@dataclass(slots=True)
class ForkFailed:
    """A `Fork` has failed: no memory, no process, or no free row of the scoreboard.

    serial  the worker's number
    text    the reason, for the log
    """

    serial: int
    text: str


@dataclass(slots=True)
class KillFailed:
    """The kernel refused to deliver the signal of a `KillWorker`, for example without CAP_KILL.

    serial  the worker's number
    signal  such as "SIGKILL"
    """

    serial: int
    signal: str


@dataclass(slots=True)
class ChildExited:
    """A child was reaped. All its messages have been handled before this event.

    pid            the child's process id; the child need not be a worker
    code           its exit code; minus the signal's number if a signal ended it
    signal         that signal's name, or ""
    out_of_memory  whether the kernel's counters show that it was killed for lack of memory
    """

    pid: int
    code: int
    signal: str = ""
    out_of_memory: bool = False


@dataclass(slots=True)
class MessageReceived:
    """A worker sent a message.

    serial   the worker's number
    message  the message
    """

    serial: int
    message: Message


@dataclass(slots=True)
class ChannelLost:
    """A worker's channel is closed or broken, so messages no longer reach it.

    serial  the worker's number
    """

    serial: int


@dataclass(slots=True)
class RowOverwritten:
    """A worker's row of the scoreboard holds impossible values, so it was overwritten.

    serial  the worker's number
    """

    serial: int


@dataclass(slots=True)
class MemoryMeasured:
    """The memory of workers was measured: of each one when it gets ready, and later with ticks.

    sizes  serial -> the worker's memory in bytes, with shared pages divided among the processes
           (PSS). Far below the worker's limits, this may be an upper bound
    """

    sizes: Mapping[int, int]


@dataclass(slots=True)
class LoadMeasured:
    """The load was measured, for autoscaling.

    load  the load of the ready workers
    """

    load: ServerLoad


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

    generation  the generation that gets this configuration
    error       the error in the configuration, or None
    """

    generation: int
    error: str | None = None


@dataclass(slots=True)
class ConfigLoaded:
    """The arbiter has read the new configuration, and bound listeners for it.

    generation  the generation that gets this configuration
    policy      the part of the settings that concerns supervision
    """

    generation: int
    policy: Policy


@dataclass(slots=True)
class ConfigFailed:
    """The child accepted the configuration, but the arbiter can't use it: a port is taken, …

    generation  the generation that gets this configuration
    error       the reason
    """

    generation: int
    error: str


@dataclass(slots=True)
class PreflightEnded:
    """The child process of `Preflight` has ended.

    error    the reason why the new program can't take over, in one line; None if it can
    details  its output, or ""
    """

    error: str | None = None
    details: str = ""


@dataclass(slots=True)
class ResponsesCounted:
    """The responses of the workers since their start, once a second while `bake_time` is set.

    counts  serial -> the number of the worker's responses, and of those with a 5xx status
    """

    counts: Mapping[int, tuple[int, int]]


@dataclass(slots=True)
class MoldReady:
    """The mold of a generation has imported the app, and can fork workers.

    generation  its generation
    pid         its process id
    """

    generation: int
    pid: int


@dataclass(slots=True)
class MoldEnded:
    """The mold of a generation has ended, or `ForkMold` has failed.

    generation  its generation
    pid         its process id; 0 if it could not be forked
    text        why it ended, for the log
    kind        its own report: "app" if the app can't be imported, "boot" for another reason, ""
                if it reported nothing
    details     a traceback, or ""
    """

    generation: int
    pid: int
    text: str
    kind: str = ""
    details: str = ""


@dataclass(slots=True)
class ExecuteFailed:
    """The arbiter's program could not be replaced. The old one continues.

    error  the reason, in one line
    """

    error: str


@dataclass(slots=True)
class Upgraded:
    """This program has replaced the previous one, and restored the supervisor from its state.

    text  both programs, for the log
    """

    text: str


@dataclass(slots=True)
class GivenBack:
    """An upgrade's new program could not start, and has executed this one again.

    error  the reason, in one line
    """

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
    by        who has sent it, for the log and the events
    """

    ticket: int
    command: str
    argument: Any = None
    by: str = "servoctl"


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
    | MemoryMeasured
    | LoadMeasured
    | Tick
    | ConfigChecked
    | ConfigLoaded
    | ConfigFailed
    | PreflightEnded
    | ExecuteFailed
    | Upgraded
    | GivenBack
    | ResponsesCounted
    | MoldReady
    | MoldEnded
    | FileChanged
    | CommandReceived
)
