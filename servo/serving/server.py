"""A server in the process and event loop of its caller: `servo.Server` and `servo.serve`.

There is no arbiter: nothing restarts the process, and there is one worker, of class `async`. This
is for tests, notebooks, and programs that do other things in the same event loop.

The worker is the one that the arbiter would fork. `Server` plays the arbiter: it binds the sockets,
holds the scoreboard and the other end of the channel, and stops the worker.

**Signals.** As in uvicorn, SIGINT and SIGTERM end the server if it runs in the main thread. A
second SIGINT closes the open connections. When the server has ended, the signal is raised again for
the caller's own handler. So after Ctrl-C, `serve` raises KeyboardInterrupt.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from servo.apps.loader import load_app, named_app, prepare_import_path
from servo.errors import ConfigError
from servo.ipc.channel import SharedChannel, channel_pair
from servo.ipc.messages import Ready, ReplaceMe
from servo.logs import error_log as log_module
from servo.net.listeners import Listener, bind_all
from servo.serving.options import flags_of
from servo.settings.sources import load_settings
from servo.shared_memory.scoreboard import Scoreboard
from servo.workers.aio.event_loop import new_event_loop
from servo.workers.aio.worker import AsyncWorker
from servo.workers.context import WorkerContext
from servo.workers.messages.mailbox import Mailbox
from servo.workers.request.hooks import HookWorker

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from servo.apps.loader import LoadedApp
    from servo.ipc.channel import Channel
    from servo.settings.sources import Settings

log = logging.getLogger("servo.error")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Settings that need an arbiter, and their values without effect.
_NEEDS_ARBITER = {
    "workers": (1, "auto"),
    "reload": (False,),
    "daemon": (False,),
    "preload_app": (False,),
    "metrics_bind": (None,),
    "dashboard_bind": (None,),
    "statsd_host": (None,),
    "pidfile": (None,),
    "user": (None,),
    "group": (None,),
    "worker_class": ("auto", "async"),
}


class Server:
    """A server that runs in an event loop of the caller's.

    app      the application, or its name: `module:attribute`
    options  settings of Servo, or options of `uvicorn.run`; see `servo.run`. No configuration file
             and no environment variable is read. With `log_config=None`, the server leaves logging
             as it is

    settings  the settings
    started   whether the server accepts connections
    sockets   its listening sockets; empty until they are bound

    Raises TypeError for an unknown option, and ConfigError for an invalid value.
    """

    def __init__(self, app: Any, **options: Any) -> None:
        self._sets_up_logging = options.get("log_config", True) is not None
        flags = flags_of(options)
        if isinstance(app, str):
            flags["app"] = app
        elif flags.pop("peer_factory", False):
            app = app()
        self._app = app
        self.settings: Settings = load_settings(flags, {}, Path.cwd(), search=False)
        for name, harmless in _NEEDS_ARBITER.items():
            value = getattr(self.settings, name)
            if value not in harmless:
                raise ConfigError(
                    f"{name}: {value!r} needs a server with processes of its own: use servo.run"
                )
        self.started = False
        self.sockets: list[socket.socket] = []
        self._should_exit = self._force_exit = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed: asyncio.Future[None] | None = None
        self._captured: list[int] = []

    @property
    def should_exit(self) -> bool:
        """Whether the server ends when its open requests are answered. Any thread may set it."""
        return self._should_exit

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        self._should_exit = value
        self._wake()

    @property
    def force_exit(self) -> bool:
        """Whether the server closes its connections when it ends. Any thread may set it."""
        return self._force_exit

    @force_exit.setter
    def force_exit(self, value: bool) -> None:
        self._force_exit = value
        self._wake()

    @property
    def servers(self) -> list[SimpleNamespace]:
        """The listening sockets as uvicorn has them: tests read `servers[0].sockets[0]`."""
        return [SimpleNamespace(sockets=[each]) for each in self.sockets]

    def run(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve in a new event loop until the server ends. Raises what `serve` raises."""
        loop = new_event_loop(self.settings.loop)
        try:
            loop.run_until_complete(self.serve(sockets))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    async def serve(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Serve in the running event loop until a signal, or until `should_exit` is set.

        sockets   bound sockets to listen on, instead of the addresses in the settings; they stay
                  the caller's

        Raises BindError if an address can't be bound, AppImportError if the application can't be
        imported, and BootError if its lifespan fails.
        """
        with self._signals(), ExitStack() as opened:
            await self._serve(sockets, opened)

    async def _serve(self, sockets: Sequence[socket.socket] | None, opened: ExitStack) -> None:
        settings = self.settings
        self._loop = asyncio.get_running_loop()
        self._changed = self._loop.create_future()
        opened.callback(self._ended)
        if self._sets_up_logging:
            log_module.setup_logging(settings)
            opened.callback(log_module.drain_logs, 1.0)
        for level, text in settings.notes:
            log.log(logging.getLevelName(level.upper()), text)
        app = self._load()
        listeners = self._listen(sockets)
        for listener in listeners:
            opened.callback(listener.close)
        context = self._context(listeners, opened)
        worker = AsyncWorker(context, app)
        if worker.access is not None:
            opened.callback(worker.access.close)
        self.sockets = [listener.socket for listener in listeners]
        for listener in listeners:
            log.info("Listening on %s", listener.name)
        try:
            await self._until_ended(worker, self._loop.create_task(worker.serve_here()))
        finally:
            # They are cancelled; the application may still clean up.
            left = worker.own_tasks()
            if left:
                await asyncio.wait(left)

    async def _until_ended(self, worker: AsyncWorker, task: asyncio.Task[None]) -> None:
        """Wait until the worker has ended, and stop it if `should_exit` is set."""
        limit_s: float | None = None
        quick = stopped = False
        if self._should_exit:
            self._note_change()  # it was set before the start
        try:
            while not task.done():
                await self._change_or(task, limit_s)
                if self._should_exit and not stopped:
                    stopped, limit_s = True, self.settings.graceful_timeout
                    worker.stop(quick=False)
                elif stopped and not quick and not task.done():
                    # The time is over, or `force_exit` was set.
                    quick = True
                    worker.stop(quick=True)
        except asyncio.CancelledError:
            worker.stop(quick=True)
            await asyncio.wait({task})
            raise
        if not task.cancelled():
            task.result()  # raises its exception

    async def _change_or(self, task: asyncio.Task[None], limit_s: float | None) -> None:
        """Wait until the task is done, a property has changed, or the time is over."""
        assert self._loop is not None
        assert self._changed is not None
        await asyncio.wait(
            {task, self._changed}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        if self._changed.done():
            self._changed = self._loop.create_future()

    def _load(self) -> LoadedApp:
        interface: str = self.settings.interface
        if isinstance(self._app, str):
            prepare_import_path(self.settings)
            return load_app(self.settings.app, interface)
        return named_app(self._app, "the app", interface)

    def _listen(self, sockets: Sequence[socket.socket] | None) -> list[Listener]:
        if sockets is None:
            return bind_all(self.settings, {})
        copies = [os.dup(each.fileno()) for each in sockets]
        given = load_settings(
            {"bind": [f"fd://{fd}" for fd in copies]}, {}, Path.cwd(), search=False
        )
        try:
            return bind_all(given, {})
        except BaseException:
            for fd in copies:
                os.close(fd)
            raise

    def _context(self, listeners: list[Listener], opened: ExitStack) -> WorkerContext:
        """What the arbiter would prepare for a worker."""
        assert self._loop is not None
        scoreboard = Scoreboard(1)
        opened.callback(scoreboard.close)
        row_index = scoreboard.allocate(serial=1, slot=1, generation=1)
        scoreboard.forked(row_index, os.getpid())
        ours, theirs = channel_pair()
        opened.callback(ours.close)
        channel = SharedChannel(theirs)
        opened.callback(channel.close)
        self._loop.add_reader(ours.fileno(), partial(self._on_channel, ours))
        opened.callback(self._loop.remove_reader, ours.fileno())
        context = WorkerContext(
            slot=1,
            serial=1,
            generation=1,
            settings=self.settings,
            listeners=listeners,
            channel=channel,
            scoreboard=scoreboard,
            row_index=row_index,
            arbiter_pid=os.getpid(),
            server=self,
            tls=_tls(self.settings, listeners),
            loop=self._loop,
        )
        context.mailbox = Mailbox(channel, 1, 1, scoreboard)
        context.hook_worker = HookWorker(context, scoreboard.row(row_index))
        return context

    def _on_channel(self, channel: Channel) -> None:
        for message in channel.receive():
            if isinstance(message, Ready):
                self.started = True
            elif isinstance(message, ReplaceMe) and message.reason == "recycled":
                # Nothing can replace the worker: as in uvicorn, the server ends (max_requests).
                log.info("The server ends: %s", message.detail)
                self.should_exit = True

    def _ended(self) -> None:
        self.started = False
        self._loop = self._changed = None

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._note_change)

    def _note_change(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    # --- signals --------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can have handlers
            return
        before = {each: signal.signal(each, self._on_signal) for each in _SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
        while self._captured:
            signal.raise_signal(self._captured.pop())

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self._captured.append(signum)
        if self._should_exit and signum == signal.SIGINT:
            self.force_exit = True
        else:
            self.should_exit = True


def _tls(settings: Settings, listeners: list[Listener]) -> Any:
    from servo.net.tls import make_tls  # slow to import, and seldom needed

    tls = make_tls(settings)
    for listener in listeners if tls is not None else ():
        listener.name = listener.name.replace("http://", "https://", 1)
    return tls
