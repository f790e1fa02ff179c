"""What the supervisor is told (events) and what it answers (actions).

Times are seconds of one monotonic clock; the supervisor only ever sees them as arguments.

None of them is ever changed. They are not `frozen` all the same: to make so many classes that say
it takes 10 ms of every start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.arbiter.core.policy import Policy
    from servo.ipc.messages import Message

# --- events -----------------------------------------------------------------------------------


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

# --- actions ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Fork:
    """Fork a worker; answer with `Forked` or `ForkFailed`."""

    serial: int
    slot: int
    generation: int


@dataclass(slots=True)
class SendMessage:
    """Put a message on a worker's channel."""

    serial: int
    message: Message


@dataclass(slots=True)
class KillWorker:
    """Send a signal ("SIGKILL") to a worker; answer with `KillFailed` where that isn't allowed."""

    serial: int
    signal: str
    why: str


@dataclass(slots=True)
class Release:
    """A worker was reaped: run `child_exit`, close its channel, free its row."""

    serial: int


@dataclass(slots=True)
class CheckConfig:
    """Read the configuration in a throw-away child; answer with `ConfigChecked`."""

    generation: int


@dataclass(slots=True)
class CancelCheck:
    """Kill the throw-away child of `CheckConfig`; no answer is wanted any more."""


@dataclass(slots=True)
class LoadConfig:
    """Read the configuration in the arbiter; answer with `ConfigLoaded` or `ConfigFailed`."""

    generation: int


@dataclass(slots=True)
class AdoptGeneration:
    """This generation's settings are the server's settings from now on."""

    generation: int


@dataclass(slots=True)
class DropGeneration:
    """No worker of this generation is left or will come: free what only it used."""

    generation: int


@dataclass(slots=True)
class CloseSlot:
    """Close the arbiter's copies of a slot's own listeners (reuse_port): the slot is given up."""

    slot: int


@dataclass(slots=True)
class CloseListeners:
    """Close the arbiter's copies of all listeners: the stop has begun."""


@dataclass(slots=True)
class ReopenLogFiles:
    """Reopen the arbiter's own log files."""


@dataclass(slots=True)
class WorkerCountChanged:
    """The number of workers asked for is another one (the `nworkers_changed` hook)."""

    new: int
    old: int | None


@dataclass(slots=True)
class Log:
    """One entry of the error log. `level` is a name of `logging`'s, in lower case."""

    level: str
    text: str


@dataclass(slots=True)
class Happened(Log):
    """An entry of the log that is also a lifecycle event, for hooks and operators.

    name     spawned, booting, ready, draining, exited (of a worker); reload_started,
             reload_finished, reload_rolled_back, scaled, stopping
    slot, serial, pid, generation   of the worker; a reload has only its generation
    reason   an ExitReason's name in lower case (draining, exited), or why (the others)
    details  a traceback, or ""
    data     what else there is: numbers by name
    """

    name: str = ""
    slot: int | None = None
    serial: int | None = None
    pid: int | None = None
    generation: int | None = None
    reason: str = ""
    details: str = ""
    data: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class CommandAnswered:
    """What became of a command. `refused`: why nothing was done, or ""."""

    ticket: int
    refused: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exit:
    """No child is left that could be waited for: end the arbiter with this code."""

    code: int


Action = (
    Fork
    | SendMessage
    | KillWorker
    | Release
    | CheckConfig
    | CancelCheck
    | LoadConfig
    | AdoptGeneration
    | DropGeneration
    | CloseSlot
    | CloseListeners
    | ReopenLogFiles
    | WorkerCountChanged
    | Log
    | Happened
    | CommandAnswered
    | Exit
)
