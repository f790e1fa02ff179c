"""The `async` worker: an event loop, and a task for each request."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from servo.apps.asgi import ASGIAdapter
from servo.apps.lifespan import Lifespan
from servo.apps.wsgi import WSGIAdapter
from servo.apps.wsgi_in_async import WSGIInAsync
from servo.errors import ConfigError
from servo.http import h1
from servo.observe import scoreboard as board
from servo.workers.acceptor import Acceptor
from servo.workers.base import Worker
from servo.workers.stream import FRESH_GRACE_S, StreamProtocol, StreamServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from servo._types import ASGIApp
    from servo.apps.loader import LoadedApp
    from servo.workers.context import WorkerContext

log = logging.getLogger("servo.error")

BEAT_S = 0.005
# A stopping worker gives idle connections this long: a request that the kernel already holds is
# read within a turn of the loop.
STOP_IDLE_S = 0.05


class AsyncWorker(Worker):
    """Serves ASGI applications, and WSGI ones in threads."""

    kind = "async"

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        self.loop = new_event_loop(self.settings.loop)
        self.asgi_app, self.lifespan = self._prepare(app)
        self.acceptor = Acceptor(self, self)
        self.beating = False
        self.server: StreamServer = None  # type: ignore[assignment]  # made in `serve`
        self.drained: asyncio.Future[None] | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    def _prepare(self, app: LoadedApp) -> tuple[ASGIApp, Lifespan]:
        settings = self.settings
        if app.interface == "asgi":
            return app.app, Lifespan(app.app, settings.lifespan, log)
        adapter = WSGIAdapter(
            app.app,
            log=log,
            multithread=True,
            multiprocess=self.multiprocess,
            root_path=settings.root_path,
            header_map=settings.header_map,
            sendfile=False,
        )
        wrapped = WSGIInAsync(
            adapter, settings.thread_count, settings.body_buffer_size, settings.tmp_upload_dir
        )
        return wrapped, Lifespan(wrapped, "off", log)

    def serve(self) -> None:
        """See Worker.serve."""
        loop = self.loop
        asyncio.set_event_loop(loop)
        self._task = loop.create_task(self._main(), name="servo-worker")
        try:
            loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            log.debug("Told to end while booting")
        finally:
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()

    async def _main(self) -> None:
        loop = self.loop
        self._watch_process()
        await self.lifespan.startup()
        has_state = self.lifespan.supported and self.app.interface == "asgi"
        adapter = ASGIAdapter(
            self.asgi_app,
            log=log,
            root_path=self.settings.root_path,
            state=self.lifespan.state if has_state else None,
        )
        self.server = StreamServer(self, adapter, loop)
        self.drained = loop.create_future()
        self.acceptor.start()
        self._sweep(monotonic_ns())
        self.ready()
        await self.drained
        for connection in list(self.server.connections):
            connection.abort()
        await self.lifespan.shutdown()

    def _watch_process(self) -> None:
        loop = self.loop
        loop.add_signal_handler(signal.SIGTERM, self.on_terminate)
        loop.add_signal_handler(signal.SIGUSR1, self.reopen_logs)
        loop.add_reader(self.context.channel.fileno(), self.on_channel)
        self._pidfd = os.pidfd_open(self.context.arbiter_pid)
        loop.add_reader(self._pidfd, self._on_arbiter_gone)

    def _on_arbiter_gone(self) -> None:
        self.loop.remove_reader(self._pidfd)
        self.on_orphaned()

    def on_orphaned(self) -> None:
        """See Worker.on_orphaned; the dead channel would be readable for ever."""
        self.loop.remove_reader(self.context.channel.fileno())
        super().on_orphaned()

    # --- accepting (an acceptor.Driver) ---------------------------------------------------------

    def watch_listener(self, listener: socket.socket) -> None:
        """See acceptor.Driver. Not `create_server(sock=)`, which accepts a backlog in one go."""
        self.loop.add_reader(listener, self.acceptor.on_ready, listener)

    def unwatch_listener(self, listener: socket.socket) -> None:
        """See acceptor.Driver."""
        self.loop.remove_reader(listener)

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        """See acceptor.Driver."""
        self.loop.call_later(delay, callback)

    def opened(self, sock: socket.socket, peer: Any) -> None:
        """See acceptor.Driver."""
        task = self.loop.create_task(self._connect(sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: StreamProtocol(self.server), sock)
        except OSError as error:
            log.debug("A client was gone before it was served: %s", error)
            sock.close()
            self.connection_closed()

    def connection_closed(self) -> None:
        """A connection is gone."""
        self.acceptor.closed()
        if self.draining:
            self.check_drained()

    # --- beating --------------------------------------------------------------------------------

    def begin_request(self) -> int:
        """Count a request in; returns its start in nanoseconds."""
        started = self.meter.begin()
        if not self.beating:
            self.beating = True
            self.loop.call_later(BEAT_S, self._beat)
        return started

    def _beat(self) -> None:
        self.row[board.BEAT_NS] = monotonic_ns()
        if self.row[board.IN_FLIGHT]:
            self.loop.call_later(BEAT_S, self._beat)
        else:
            self.beating = False

    def _sweep(self, due_ns: int) -> None:
        now = monotonic_ns()
        self.row[board.BEAT_NS] = now
        self.row[board.LAG_US] = max(now - due_ns, 0) // 1000
        h1.set_clock(time.time())
        self.server.sweep(now)
        if self.access is not None:
            self.access.flush()
        self.loop.call_later(1.0, self._sweep, now + 1_000_000_000)

    # --- the end --------------------------------------------------------------------------------

    def retire(self) -> None:
        """See Worker.retire."""
        if self.draining or self._abandons_boot():
            return
        self.acceptor.stop(take_queued=False)
        self._drain(self.settings.drain_idle, self.settings.drain_idle)

    def stop(self, quick: bool) -> None:
        """See Worker.stop."""
        if self._abandons_boot():
            return
        if not self.draining:
            self.acceptor.stop(take_queued=not quick)
        if quick:
            if not self.draining:
                self.note_draining()
            self.interrupted()
            self._end()
            return
        self._drain(STOP_IDLE_S, FRESH_GRACE_S)

    def _abandons_boot(self) -> bool:
        """Still starting up, so there is nothing to answer: end where it is."""
        if self.drained is None:
            self._task.cancel()
        return self.drained is None

    def _drain(self, idle_s: float, fresh_s: float) -> None:
        if not self.draining:
            self.note_draining()
        self.server.draining = True
        for connection in list(self.server.connections):
            connection.drain(idle_s, fresh_s)
        self.check_drained()

    def check_drained(self) -> None:
        """End when nothing is left to do: no connection, and no background work of the app."""
        if not self.acceptor.open and not self.server.calls:
            self._end()

    def _end(self) -> None:
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)


def new_event_loop(name: str) -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed ("auto"), or as asked for. Raises ConfigError."""
    if name != "asyncio":
        try:
            import uvloop
        except ImportError as error:
            if name == "uvloop":
                raise ConfigError("loop = 'uvloop', but uvloop is not installed") from error
        else:
            loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
            return loop
    return asyncio.new_event_loop()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
