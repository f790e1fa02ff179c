"""The start-up context of a worker process. The arbiter fills it before it forks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from servo.apps.loader import LoadedApp
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
    """All objects that a worker process gets from the arbiter, or makes before it boots.

    slot         the worker's place, 1 to N; its replacement gets the same
    serial       the worker's number, never reused
    generation   the number of the worker's configuration and code
    settings     the settings of the generation
    listeners    the sockets to accept from
    channel      the worker's end of its channel to the arbiter
    scoreboard   the shared memory with a row for each worker
    row_index    the worker's row of the scoreboard
    arbiter_pid  the arbiter's process id
    server       the `server` argument of hooks
    dump_fd      the descriptor of the file for answers to query signals; -1 if there is none
    kept         the attributes that the pre_fork hook has set on its `worker` argument
    tls          the TLS contexts of the generation; None if the worker serves plain HTTP
    app          the application if a mold has imported it and forked the worker; otherwise None
    loop         the event loop to serve in, if the process is not a worker: `servo.serve` serves in
                 its caller's loop. None in a worker
    fork_mold    forks the mold of a generation from this worker, and returns the mold's pid. Its
                 second argument closes the worker's descriptors in the mold. Raises OSError. None
                 unless a mold has forked the worker, with `refork_after`

    The worker makes these three itself, right after the fork:

    mailbox      the worker's end of `servo.cluster`
    hook_worker  the `worker` argument of hooks
    forks        separates processes that the application forks from the worker
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
    app: LoadedApp | None = None
    loop: asyncio.AbstractEventLoop | None = None
    fork_mold: Callable[[int, Callable[[], None]], int] | None = None
    mailbox: Mailbox = field(init=False)
    hook_worker: HookWorker = field(init=False)
    forks: Forks = field(init=False)
