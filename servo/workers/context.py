"""The things that a worker process starts with. The arbiter collects them before it forks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servo.ipc.channel import Channel
    from servo.net.listeners import Listener
    from servo.net.tls import TLS
    from servo.settings.sources import Settings
    from servo.shared_memory.scoreboard import Scoreboard
    from servo.workers.forks import Forks
    from servo.workers.messages.mailbox import Mailbox
    from servo.workers.request.hooks import HookWorker


@dataclass
class WorkerContext:
    """Everything that a worker process may use.

    slot         the number by which operators name the worker; its successor reuses it
    serial       the number of forks before this one; an arbiter never reuses it
    generation   the number of reloads of the arbiter before this worker
    settings     the generation's settings
    listeners    the sockets to accept from
    channel      the worker's end of its channel to the arbiter
    scoreboard   the shared memory with a row for each worker
    row_index    the worker's row of the scoreboard
    arbiter_pid  the arbiter's process id
    server       the `server` argument of hooks
    dump_fd      the file for answers to query signals; -1 if there is none
    kept         the attributes that the pre_fork hook has set on its `worker`
    tls          the generation's TLS contexts; None if the worker serves plain HTTP

    The worker makes these three itself, right after the fork:

    mailbox      the worker's end of `servo.cluster`
    hook_worker  the `worker` argument of hooks
    forks        keeps child processes of the application apart from the worker
    """

    slot: int
    serial: int
    generation: int
    settings: Settings
    listeners: list[Listener]
    channel: Channel
    scoreboard: Scoreboard
    row_index: int
    arbiter_pid: int
    server: object
    dump_fd: int = -1
    kept: dict[str, Any] = field(default_factory=dict)
    tls: TLS | None = None
    mailbox: Mailbox = field(init=False)
    hook_worker: HookWorker = field(init=False)
    forks: Forks = field(init=False)
