"""The outputs of the supervisor: everything that the arbiter can do, one class each.

`Supervisor.handle` returns a list of actions; the arbiter's loop performs them in that order. Some
actions report their outcome with an event (`servo.arbiter.core.events`): their docstrings name it.

Actions never change, but the classes are not `frozen`: the head of `events` says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from servo.ipc.messages import Message


@dataclass(slots=True)
class Fork:
    """Fork a worker, or let its generation's mold fork it. `Forked` or `ForkFailed` reports the
    outcome: at once, or (with a mold) later.

    serial      the worker's number, never reused
    slot        its place, 1 to N
    generation  the number of its configuration
    """

    serial: int
    slot: int
    generation: int


@dataclass(slots=True)
class SendMessage:
    """Send a message to a worker.

    serial   the worker's number
    message  the message
    """

    serial: int
    message: Message


@dataclass(slots=True)
class CancelFork:
    """Cancel an order to fork a worker. If the mold has begun to fork, it is stuck: kill it.

    `ForkFailed` reports that the worker was not forked, `Forked` that it was.

    serial  the worker's number
    """

    serial: int


@dataclass(slots=True)
class KillWorker:
    """Send a signal to a worker. `KillFailed` reports that the kernel refused to deliver it.

    serial  the worker's number
    signal  such as "SIGKILL"
    why     the reason, for the log
    """

    serial: int
    signal: str
    why: str


@dataclass(slots=True)
class Release:
    """Release a reaped worker: call the hook `child_exit`, close its channel, free its row of the
    scoreboard.

    serial  the worker's number
    """

    serial: int


@dataclass(slots=True)
class CheckConfig:
    """Read the configuration in a child process. `ConfigChecked` reports the outcome.

    generation  the generation that gets this configuration
    """

    generation: int


@dataclass(slots=True)
class CancelCheck:
    """Kill the child process of `CheckConfig`, because its outcome no longer matters."""


@dataclass(slots=True)
class LoadConfig:
    """Read the configuration in the arbiter. `ConfigLoaded` or `ConfigFailed` reports the outcome.

    generation  the generation that gets this configuration
    """

    generation: int


@dataclass(slots=True)
class Preflight:
    """Try the new program in a child process. `PreflightEnded` reports the outcome.

    python  the path of its interpreter, or "" for the current one
    """

    python: str


@dataclass(slots=True)
class CancelPreflight:
    """Kill the child process of `Preflight`, because its outcome no longer matters."""


@dataclass(slots=True)
class Execute:
    """Replace the arbiter's program. Only a failure is reported, by `ExecuteFailed`.

    python  see `Preflight`
    """

    python: str


@dataclass(slots=True)
class AdoptGeneration:
    """Make this generation the current one: its settings become the server's.

    generation  its number
    """

    generation: int


@dataclass(slots=True)
class DropGeneration:
    """Release the settings and certificates of a generation without workers, and end its mold.

    generation  its number
    """

    generation: int


@dataclass(slots=True)
class ForkMold:
    """Fork the mold of a generation (preload_app). `MoldReady` or `MoldEnded` reports the outcome.

    generation  the number of its configuration
    """

    generation: int


@dataclass(slots=True)
class MakeMold:
    """Let a worker drain, and then fork the mold of a new generation (refork_after).

    The new generation gets the settings of the old one. `MoldForked`, a message of the worker,
    reports the outcome.

    generation      the new generation
    old_generation  the worker's generation
    serial          the worker's number
    """

    generation: int
    old_generation: int
    serial: int


@dataclass(slots=True)
class AdoptMold:
    """Take over the mold that a worker has forked. `MoldReady` or `MoldEnded` reports the outcome.

    generation  the mold's generation
    pid         its process id, as the worker has reported it
    """

    generation: int
    pid: int


@dataclass(slots=True)
class KillMold:
    """Send a signal to the mold of a generation. `MoldEnded` follows.

    generation  the mold's generation
    signal      such as "SIGKILL"
    """

    generation: int
    signal: str


@dataclass(slots=True)
class CloseSlot:
    """Close the arbiter's copies of one slot's listeners (reuse_port): no worker will use the slot.

    slot  the slot's number
    """

    slot: int


@dataclass(slots=True)
class CloseListeners:
    """Close the arbiter's copies of all listeners, because the server stops."""


@dataclass(slots=True)
class ReopenLogFiles:
    """Reopen the arbiter's own log files."""


@dataclass(slots=True)
class WorkerCountChanged:
    """Call the hook `nworkers_changed`, because the target number of workers has changed.

    new  the new target number
    old  the previous one; None at the start
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
                reload_started, reload_finished, reload_rolled_back, rolled_back,
                refork_started, refork_finished, refork_rolled_back,
                upgrade_started, upgrade_failed, upgraded, scaled, stopping
    slot        the worker's slot, or None
    serial      the worker's number, or None
    pid         the worker's process id, or None
    generation  the worker's generation; for a reload, the new one; or None
    reason      for draining and exited: the name of an ExitReason in lower case; otherwise the
                cause, such as "SIGHUP" or "servoctl"
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
    refused  why the command was refused; "" if it was carried out
    result   values for the operator, by name
    """

    ticket: int
    refused: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Exit:
    """End the arbiter. No child is left, except those that can't be killed.

    code  the exit code
    """

    code: int


Action = (
    Fork
    | SendMessage
    | CancelFork
    | KillWorker
    | Release
    | CheckConfig
    | CancelCheck
    | LoadConfig
    | Preflight
    | CancelPreflight
    | Execute
    | AdoptGeneration
    | DropGeneration
    | ForkMold
    | MakeMold
    | AdoptMold
    | KillMold
    | CloseSlot
    | CloseListeners
    | ReopenLogFiles
    | WorkerCountChanged
    | Log
    | RecordLifecycleEvent
    | CommandAnswered
    | Exit
)
