"""What a worker is born with. The arbiter fills it in before it forks."""

from __future__ import annotations

import signal
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


# What the arbiter sends to a worker that does not read its channel, where there are such signals.
# Unhandled they end a process: a worker gets them only when it has said that it boots (STACK) or is
# ready (REQUESTS).
_FIRST_SPARE = getattr(signal, "SIGRTMIN", None)
STACK_SIGNAL: int = 0 if _FIRST_SPARE is None else _FIRST_SPARE + 6
REQUESTS_SIGNAL: int = 0 if _FIRST_SPARE is None else _FIRST_SPARE + 7


@dataclass
class WorkerContext:
    """Everything that a worker process may use.

    slot         what an operator names; reused by a successor
    serial       never reused in the life of an arbiter
    generation   counts the releases (reloads) of this arbiter
    row_index    the worker's row of the scoreboard
    server       what gunicorn's hooks get as their `server` argument
    dump_fd      the file in which it answers those signals; -1: there is none
    tls          the generation's contexts; None where plain HTTP is served
    kept         what the pre_fork hook has put into its `worker`
    mailbox      what `servo.cluster` goes through; made in the worker, once it is forked
    hooked       the `worker` of the hooks; likewise
    forks        keeps processes that the application forks from passing for the worker; likewise
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
    hooked: HookWorker = field(init=False)
    forks: Forks = field(init=False)
