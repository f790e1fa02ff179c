"""The outputs of the supervisor: everything that the arbiter can do, one class each.

`Supervisor.handle` returns a list of actions; the arbiter's loop performs them in that order. Some
actions report their outcome with an event (`servo.arbiter.core.events`): their docstrings name it.

Nobody changes an action once it is made; see `events` for why the classes are not `frozen`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.ipc.messages import Message


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
class RecordLifecycleEvent(Log):
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
    | RecordLifecycleEvent
    | CommandAnswered
    | Exit
)
