"""The dashboard's process: an ordinary `async` worker that serves one application.

The worker gets what the arbiter would give it: settings, a row of a scoreboard, a channel. Here the
row and the other end of the channel belong to this process, because the arbiter must neither count
the dashboard's requests nor replace it like a worker. The process ends when the arbiter closes the
connections to it. It ignores SIGTERM, which systemd sends to all processes of a server at its stop:
the page shows how the server stops.
"""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from servo.apps.loader import LoadedApp
from servo.dashboard.access import Access, Rules
from servo.dashboard.app import Dashboard
from servo.dashboard.history import History
from servo.dashboard.pages import read_files
from servo.dashboard.server_link import ServerLink
from servo.dashboard.streams import MOST_STREAMS, Streams
from servo.ipc.channel import SharedChannel, channel_pair
from servo.settings.sources import Settings
from servo.shared_memory import row_layout
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.aio.worker import AsyncWorker
from servo.workers.context import WorkerContext
from servo.workers.forks import Forks
from servo.workers.messages.mailbox import Mailbox
from servo.workers.request.hooks import HookWorker

if TYPE_CHECKING:
    import socket

    from servo.ipc.channel import Channel
    from servo.net.listeners import Listener
    from servo.net.tls import TLS

log = logging.getLogger("servo.error")

KEY_BYTES = 32

_SETTINGS: dict[str, Any] = {
    "app": "servo.dashboard",
    "bind": [],
    "workers": 1,
    # uvloop would take 5 MB more, and saves nothing with so few requests.
    "loop": "asyncio",
    "websocket": False,
    # The acceptor then does not look for other workers to share the listeners with.
    "reuse_port": True,
    "server_header": "",
    "forwarded_allow_ips": [],
    # A browser opens up to six connections to a host.
    "worker_connections": 6 * MOST_STREAMS,
    "limit_request_line": 2048,
    "limit_request_fields": 64,
    # All programs of a host share their cookies, so the Cookie field may be long.
    "limit_request_field_size": 8190,
    "limit_request_head_size": 16_384,
    "limit_request_body": 4096,
    "limit_pipeline": 16,
    "header_timeout": 10.0,
    "body_timeout": 10.0,
    "send_timeout": 10.0,
    "graceful_timeout": 1.0,
}


@dataclass(frozen=True)
class DashboardSetup:
    """The inputs of the process.

    listeners   the sockets to serve on
    links       the connections to the arbiter: for figures, for events and for commands
    digest      the SHA-256 of the token; b"" if none is asked for
    control     whether the dashboard may control the server
    history     the descriptor of the file for samples
    key         the descriptor of a file that has, or gets, the key for cookies
    tls         the TLS contexts; None without TLS
    """

    listeners: list[Listener]
    links: list[socket.socket]
    digest: bytes
    control: bool
    history: int
    key: int
    tls: TLS | None


def serve_dashboard(setup: DashboardSetup) -> int:
    """Serve until the arbiter closes the connections. Returns the exit code."""
    where = setup.listeners[0].socket.getsockname()
    rules = Rules(
        digest=setup.digest,
        key=_read_key(setup.key),
        port=where[1] if isinstance(where, tuple) else 0,
        secure=setup.tls is not None,
        control=setup.control,
    )
    history = History(setup.history)
    streams = Streams(history)
    worker: AsyncWorker | None = None

    def end() -> None:
        assert worker is not None
        worker.stop(quick=True)

    access = Access(rules)
    about = {"control": access.control, "token": access.asks_token}
    link = ServerLink(setup.links, history, about, streams.wake, end)
    app = Dashboard(access, read_files(), history, streams, link)
    context, arbiter_end = _make_context(setup)
    worker = AsyncWorker(context, LoadedApp(app, "asgi"))
    # Nobody answers the worker's messages, such as the wish for a replacement after SIGTERM.
    worker.loop.add_reader(arbiter_end.fileno(), lambda: list(arbiter_end.receive()))
    worker.serve()
    return 0


def _read_key(file: int) -> bytes:
    """The key for cookies, which the first dashboard process of a server makes.

    It is in a file that only these processes read, and not in the arbiter's memory, which every
    worker gets a copy of.
    """
    key = os.pread(file, KEY_BYTES, 0)
    if len(key) < KEY_BYTES:
        key = secrets.token_bytes(KEY_BYTES)
        os.pwrite(file, key, 0)
    return key


def _make_context(setup: DashboardSetup) -> tuple[WorkerContext, Channel]:
    """Make the worker's context. Returns it with the other end of its channel."""
    board = Scoreboard(1)
    index = board.allocate(1, 1, 1, row_layout.now_ns())
    row = board.row(index)
    ours, theirs = channel_pair()
    channel = SharedChannel(ours)
    context = WorkerContext(
        slot=1,
        serial=1,
        generation=1,
        settings=Settings(_SETTINGS, dict.fromkeys(_SETTINGS, "the dashboard")),
        listeners=setup.listeners,
        channel=channel,
        scoreboard=board,
        row_index=index,
        # The worker would drain at the arbiter's end. Instead `ServerLink` notices it, and ends the
        # worker at once.
        arbiter_pid=os.getpid(),
        server=None,
        tls=setup.tls,
    )
    context.hook_worker = HookWorker(context, row)
    context.mailbox = Mailbox(channel, 1, 1, board)
    context.forks = Forks(setup.listeners, channel, context.mailbox)
    row[row_layout.PID] = os.getpid()
    row[row_layout.STATE] = row_layout.STATE_BOOTING
    return context, theirs
