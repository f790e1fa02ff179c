"""The `async` worker: one event loop in one thread, and a task for each request.

`AsyncWorker` owns the loop and everything in it but the requests: signals, the channel to the
arbiter, the listeners, TLS handshakes, the sweep, and the end. `StreamServer` has the connections
and requests.

**Draining.** A worker that is told to end stops accepting, asks each connection to drain, and ends
when no connection is open and no call runs, background tasks of the application included.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import sys
import threading
import time
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, cast

from servo.apps.asgi_scope import ASGIAdapter, remote_of
from servo.apps.lifespan import Lifespan
from servo.apps.wsgi_environ import WSGIAdapter
from servo.errors import BootError
from servo.http import serialise
from servo.http.errors import ProtocolError
from servo.http.negotiate import ALPN, protocols
from servo.net import certificates
from servo.shared_memory import row_layout
from servo.workers.accept.acceptor import Acceptor
from servo.workers.accept.plain_http import is_plain_http, plain_http_refusal
from servo.workers.aio.event_loop import new_event_loop
from servo.workers.aio.h1 import H1Protocol
from servo.workers.aio.server import StreamServer
from servo.workers.aio.tls import loop_options, read_proxy_header
from servo.workers.forks import end_on_return, open_fds, replace_wakers
from servo.workers.messages.handlers import LoopRunner, Runner
from servo.workers.timing import FRESH_GRACE_S
from servo.workers.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from types import FrameType

    from servo._types import ASGIApp
    from servo.apps.loader import LoadedApp
    from servo.http.proxy_protocol import ProxyHeader
    from servo.workers.context import WorkerContext

log = logging.getLogger("servo.error")

# Seconds that a stopping worker keeps idle connections. A request that the kernel already holds is
# read within a turn of the loop.
STOP_IDLE_S = 0.05
# TLS handshakes under way for which the worker keeps a duplicate of the socket. It needs one to
# answer a client that speaks plain HTTP, because the loop closes the socket when a handshake fails.
# Above this number a flood of handshakes would use up the descriptors.
MAX_SPARE_SOCKETS = 64


class AsyncWorker(Worker):
    """Serves ASGI applications, and WSGI ones in threads."""

    kind: ClassVar[str] = "async"

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        others = open_fds()
        self.loop = new_event_loop(self.settings.loop)
        self._loop_fds = open_fds() - others
        self._loop_thread = 0
        self._frame: FrameType | None = None
        self.asgi_app, self.lifespan = self._prepare(app)
        self.acceptor = Acceptor(self, self)
        self._sweeps_seldom = False
        self.server: StreamServer = None  # type: ignore[assignment]  # made in `serve`
        self.drained: asyncio.Future[None] | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self.tls_options: dict[str, Any] = {}
        if context.tls is not None:
            versions = protocols(self.settings.http_protocols)
            context.tls.offer(*[ALPN[version] for version in versions])
            self.tls_options = loop_options(
                context.tls.context, self.loop, self.settings.header_timeout
            )

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
        adapter.watch_forks()
        from servo.apps.wsgi_in_async import WSGIInAsync

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
            self._run_until(self._task)
        except asyncio.CancelledError:
            log.debug("Told to end while booting")
        finally:
            self.lifespan.abandon()
            self._cancel_all()
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()

    def _run_until(self, future: asyncio.Future[Any]) -> None:
        """Run the loop until the future is done, whatever tasks of the application raise.

        asyncio passes SystemExit and KeyboardInterrupt of any task on to the caller that runs the
        loop. One request's task must not end a worker that serves others, so that is only logged.
        While the worker boots, it means that the application can't start.

        Raises BootError in that case.
        """
        while (error := self._escaped(future)) is not None:
            if self.row[row_layout.STATE] == row_layout.STATE_BOOTING and future is self._task:
                raise BootError(f"the application has raised {error!r} at its start") from error
            log.error("A task of the application has raised %r", error, exc_info=error)

    def _escaped(self, future: asyncio.Future[Any]) -> BaseException | None:
        """Run the loop until the future is done, or an exception stops the loop.

        Returns the exception; None if the future is done.
        """
        self._frame = sys._getframe()
        self._loop_thread = threading.get_ident()
        try:
            self.loop.run_until_complete(future)
        except (SystemExit, KeyboardInterrupt) as error:
            if future.done():
                raise
            return error
        return None

    def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self._run_until(asyncio.gather(*tasks, return_exceptions=True))

    def in_child(self) -> None:
        """See Worker.in_child. The child must not answer the worker's clients."""
        replace_wakers(self._loop_fds)
        if threading.get_ident() != self._loop_thread or not self.loop.is_running():
            super().in_child()
        elif end_on_return(self._frame) and self.server is not None:
            for call in list(self.server.calls):
                call.disconnect()

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
        if self.server.http2 is not None:
            # A third of what this worker imports. Done here, so that no client waits for it.
            import servo.workers.aio.h2  # noqa: F401
        self.drained = loop.create_future()
        self.acceptor.start()
        self._sweep(monotonic_ns())
        self.ready()
        await self.drained
        for connection in list(self.server.connections):
            connection.abort()
        await self.lifespan.shutdown()
        for call in self.server.calls:
            call.cancelled = True  # `serve` cancels their tasks next

    def _watch_process(self) -> None:
        loop = self.loop
        loop.add_signal_handler(signal.SIGTERM, self.on_terminate)
        loop.add_signal_handler(signal.SIGUSR1, self.reopen_logs)
        self.own_handlers()
        loop.add_reader(self.context.channel.fileno(), self.on_channel)
        self.mailbox.attach(self, loop=loop)
        self._pidfd = os.pidfd_open(self.context.arbiter_pid)
        loop.add_reader(self._pidfd, self._on_arbiter_gone)

    def _on_arbiter_gone(self) -> None:
        self.loop.remove_reader(self._pidfd)
        self.on_orphaned()

    def on_orphaned(self) -> None:
        """See Worker.on_orphaned. A dead channel is always readable, so stop watching it."""
        self.loop.remove_reader(self.context.channel.fileno())
        self.loop.remove_writer(self.context.channel.fileno())
        super().on_orphaned()

    # --- messages (a mailbox.Owner) -------------------------------------------------------------

    def on_wake(self) -> None:
        """See Worker.on_wake."""
        self._resume_sweeping()
        super().on_wake()

    def wake(self) -> None:
        """See mailbox.Owner."""
        try:
            self.loop.call_soon_threadsafe(self.on_wake)
        except RuntimeError:
            log.debug("Nothing to wake: the worker's event loop has ended")

    def watch_channel(self, writable: bool) -> None:
        """See mailbox.Owner."""
        fd = self.context.channel.fileno()
        if writable:
            self.loop.add_writer(fd, self.on_channel)
        else:
            self.loop.remove_writer(fd)

    def message_runner(self) -> Runner:
        """See Worker.message_runner. A WSGI application runs in threads here, too."""
        if self.app.interface == "asgi":
            return LoopRunner(self.mailbox, self.loop)
        return super().message_runner()

    # --- accepting (an acceptor.Driver) ---------------------------------------------------------

    def watch_listener(self, listener: socket.socket) -> None:
        """See acceptor.Driver. asyncio's own `create_server` accepts many connections in one go."""
        self.loop.add_reader(listener, self.acceptor.on_ready, listener)

    def unwatch_listener(self, listener: socket.socket) -> None:
        """See acceptor.Driver."""
        self.loop.remove_reader(listener)

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        """See acceptor.Driver."""
        self.loop.call_later(delay, callback)

    def opened(self, sock: socket.socket, peer: Any) -> None:
        """See acceptor.Driver."""
        self._resume_sweeping()
        task = self.loop.create_task(self._connect(sock, peer))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket, peer: Any) -> None:
        protocol: H1Protocol | None = None
        spare = None
        try:
            if self.tls_options and len(self._connecting) <= MAX_SPARE_SOCKETS:
                spare = sock.dup()
            header = await self._read_proxy_header(sock, peer) if self.tls_options else None
            protocol = H1Protocol(self.server, sock, peer, header)
            made = cast("asyncio.Protocol", protocol)  # it has the methods, but not the base
            await self.loop.connect_accepted_socket(lambda: made, sock, **self.tls_options)
        except (OSError, ProtocolError, asyncio.TimeoutError) as error:
            name = peer[0] if isinstance(peer, tuple) else "A client"
            if isinstance(error, ssl.SSLError) and is_plain_http(error) and spare is not None:
                plain_http_refusal.send(spare, name)
            what = (
                certificates.openssl_reason(error)
                if isinstance(error, ssl.SSLError)
                else str(error)
            )
            log.debug("%s was gone before it was served: %s", name, what or type(error).__name__)
        finally:
            if spare is not None:
                spare.close()
            if protocol is None or not protocol.connected:
                sock.close()
                self.connection_closed()

    async def _read_proxy_header(self, sock: socket.socket, peer: Any) -> ProxyHeader | None:
        proxy_reader = self.proxy_protocol.header_reader(
            peer[:2] if isinstance(peer, tuple) else None
        )
        if proxy_reader is None:
            return None
        return await read_proxy_header(self.loop, sock, proxy_reader, self.settings.header_timeout)

    def connection_closed(self) -> None:
        """A connection is closed."""
        self.acceptor.closed()
        if self.draining:
            self.check_drained()

    # --- once a second --------------------------------------------------------------------------

    def _sweep(self, due_ns: int) -> None:
        now = monotonic_ns()
        self.row[row_layout.BEAT_NS] = now
        self.row[row_layout.LAG_US] = max(now - due_ns, 0) // 1000
        serialise.set_clock(time.time())
        self.server.sweep(now)
        beats = self.server.heartbeat
        self.server.close_after_response = self.should_close_connections(
            beats.requests, beats.blocked_ns, now
        )
        if self.access is not None:
            self.access.flush()
        self.every_second()
        is_busy = self.acceptor.open_connections or self.server.calls
        interval_s = 1.0 if is_busy else self.idle_interval_s
        self._sweeps_seldom = interval_s > 1.0
        self._sweep_in(interval_s, now)

    def _sweep_in(self, delay_s: float, now_ns: int) -> None:
        self._next_sweep = self.loop.call_later(delay_s, self._sweep, now_ns + int(delay_s * 1e9))

    def _resume_sweeping(self) -> None:
        """Sweep once a second again: there is something to do."""
        if self._sweeps_seldom:
            self._sweeps_seldom = False
            self._next_sweep.cancel()
            serialise.set_clock(time.time())
            self._sweep_in(1.0, monotonic_ns())

    # --- for operators --------------------------------------------------------------------------

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """See Worker.event_loop."""
        return self.loop

    def open_requests(self) -> list[tuple[int, str, bytes, str]]:
        """See Worker.open_requests. Without work that goes on after the response."""
        return [
            (call.started_ns, call.request.method, call.request.target, remote_of(call.scope))
            for connection in list(self.server.connections)
            for call in connection.open_calls()
        ]

    def unfinished(self) -> list[tuple[int, str, bytes, str]]:
        """See Worker.unfinished. With work that goes on after the response, or without a client."""
        return [
            (call.started_ns, call.request.method, call.request.target, remote_of(call.scope))
            for call in self.server.calls
        ]

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
        """If the worker still boots, end it: it has nothing to answer. Returns whether it does."""
        if self.drained is None:
            self._task.cancel()
        return self.drained is None

    def _drain(self, idle_s: float, fresh_s: float) -> None:
        self._resume_sweeping()
        if not self.draining:
            self.note_draining()
        self.server.draining = True
        self.server.idle_ns = int(self.settings.drain_idle * 1e9)
        for connection in list(self.server.connections):
            connection.drain(idle_s, fresh_s)
        for handshake in list(self._connecting):
            self.loop.call_later(max(fresh_s, FRESH_GRACE_S), handshake.cancel)
        self.check_drained()

    def check_drained(self) -> None:
        """End the worker if no connection is open and no call of the application runs."""
        if not self.acceptor.open_connections and not self.server.calls:
            self._end()

    def _end(self) -> None:
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
