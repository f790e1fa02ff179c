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
    """Fork a worker. `Forked` or `ForkFailed` reports the outcome.

    serial      the worker's number, never given twice
    slot        its place, 1 to N
    generation  the configuration that it runs
    """

    serial: int
    slot: int
    generation: int


@dataclass(slots=True)
class SendMessage:
    """Send a message to a worker.

    serial   the worker's
    message  what to send
    """

    serial: int
    message: Message


@dataclass(slots=True)
class KillWorker:
    """Send a signal to a worker. `KillFailed` reports a refusal of the kernel.

    serial  the worker's
    signal  such as "SIGKILL"
    why     for the log
    """

    serial: int
    signal: str
    why: str


@dataclass(slots=True)
class Release:
    """Free what a reaped worker has used: call the hook `child_exit`, close its channel, free its
    row of the scoreboard.

    serial  the worker's
    """

    serial: int


@dataclass(slots=True)
class CheckConfig:
    """Read the configuration in a child process. `ConfigChecked` reports the outcome.

    generation  the one that the configuration is for
    """

    generation: int


@dataclass(slots=True)
class CancelCheck:
    """Kill the child process of `CheckConfig`: its outcome no longer matters."""


@dataclass(slots=True)
class LoadConfig:
    """Read the configuration in the arbiter. `ConfigLoaded` or `ConfigFailed` reports the outcome.

    generation  the one that the configuration is for
    """

    generation: int


@dataclass(slots=True)
class AdoptGeneration:
    """Make this generation's settings the settings of the server.

    generation  the new current one
    """

    generation: int


@dataclass(slots=True)
class DropGeneration:
    """Free what only this generation has used: it has no workers, and will get none.

    generation  the one to free
    """

    generation: int


@dataclass(slots=True)
class CloseSlot:
    """Close the arbiter's copies of the listeners of one slot (reuse_port): the slot is given up.

    slot  its number
    """

    slot: int


@dataclass(slots=True)
class CloseListeners:
    """Close the arbiter's copies of all listeners: the server stops."""


@dataclass(slots=True)
class ReopenLogFiles:
    """Reopen the arbiter's own log files."""


@dataclass(slots=True)
class WorkerCountChanged:
    """The number of workers asked for has changed: call the hook `nworkers_changed`.

    new  the number now
    old  the number before; None at the start
    """

    new: int
    old: int | None


@dataclass(slots=True)
class Log:
    """Write one line to the error log.

    level  a name of `logging`'s levels, in lower case
    text   the line
    """

    level: str
    text: str


@dataclass(slots=True)
class RecordLifecycleEvent(Log):
    """Write one line to the error log, and record it as a lifecycle event for hooks and operators.

    name        of a worker: spawned, booting, ready, draining, exited; of the server:
                reload_started, reload_finished, reload_rolled_back, scaled, stopping
    slot        the worker's, or None
    serial      the worker's, or None
    pid         the worker's, or None
    generation  the worker's, or the one that a reload brings, or None
    reason      of draining and exited: the name of an ExitReason in lower case; of the others: who
                or what caused it
    details     a traceback, or ""
    data        numbers that belong to the event, by name
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
    """Answer a command.

    ticket   the number from `CommandReceived`
    refused  why nothing was done, or ""
    result   values for the operator, by name
    """

    ticket: int
    refused: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exit:
    """End the arbiter: no child is left, except those that can't be killed.

    code  the exit code
    """

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
