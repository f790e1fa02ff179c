"""The `async` worker: one event loop in one thread, and a task for each request.

`AsyncWorker` owns the loop, signals, the channel to the arbiter, the listeners, TLS handshakes, the
sweep, and the end. `StreamServer` owns the connections and requests.

**Draining.** A stopping worker stops accepting, and asks each connection to drain. It ends when no
connection is open and no application call runs. A call may still run after its response is sent.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import ssl
import sys
import threading
import time
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, cast

from servo.apps.asgi_scope import ASGIAdapter, remote_of
from servo.apps.lifespan import Lifespan
from servo.apps.pool_meter import PoolMeter
from servo.apps.wsgi_environ import WSGIAdapter
from servo.errors import BootError
from servo.http import serialise
from servo.http.errors import ProtocolError
from servo.http.negotiate import ALPN, protocols
from servo.ipc.messages import Lingering
from servo.net import certificates
from servo.shared_memory import row_layout
from servo.workers.accept.acceptor import Acceptor
from servo.workers.accept.plain_http import is_plain_http, plain_http_refusal
from servo.workers.aio.event_loop import new_event_loop
from servo.workers.aio.h1 import H1Protocol
from servo.workers.aio.server import StreamServer
from servo.workers.aio.tls import loop_options, read_proxy_header
from servo.workers.forks import end_on_return, open_fds, replace_wakers
from servo.workers.health import Outcome
from servo.workers.messages.handlers import LoopRunner, Runner
from servo.workers.timing import FRESH_GRACE_S
from servo.workers.worker import Worker

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine
    from types import FrameType

    from servo._types import ASGIApp
    from servo.apps.asgi import ASGICall
    from servo.apps.asgi_websocket import WebSocketCall
    from servo.apps.loader import LoadedApp
    from servo.http.proxy_protocol import ProxyHeader
    from servo.workers.accept.accept_queue import AcceptQueue
    from servo.workers.context import WorkerContext
    from servo.workers.health import HealthCheck
    from servo.workers.health_probes import AsyncProbe, Probe

log = logging.getLogger("servo.error")

# A stopping worker keeps idle connections for this many seconds. This is ample for reading a
# request that the kernel already holds: it takes one turn of the loop.
STOP_IDLE_S = 0.05
# During a TLS handshake the worker keeps a duplicate of the socket. It needs the duplicate to
# answer a client that speaks plain HTTP, because the loop closes the socket when the handshake
# fails. At most this many handshakes have a duplicate, so that a flood of them can't use up the
# descriptors.
MAX_SPARE_SOCKETS = 64


class AsyncWorker(Worker):
    """Serves ASGI applications, and WSGI ones in threads."""

    kind: ClassVar[str] = "async"

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        others = open_fds()
        self.loop = context.loop or new_event_loop(self.settings.loop)
        self._loop_fds = open_fds() - others
        self._loop_thread = 0
        self._frame: FrameType | None = None
        self.wsgi_adapter: WSGIAdapter | None = None
        self.pool_meter: PoolMeter | None = None
        self.asgi_app, self.lifespan = self._prepare(app)
        self._health_task: asyncio.Task[Outcome] | None = None
        self.acceptor = Acceptor(self, self)
        self._sweeps_seldom = False
        self._measured_ns = self._limit_used_ns = 0
        self.server: StreamServer = None  # type: ignore[assignment]  # made in `serve`
        self.drained: asyncio.Future[None] | None = None
        self._lingering_told = False
        self._handshakes: set[asyncio.Task[None]] = set()
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
        self.wsgi_adapter = adapter
        from servo.apps.wsgi_in_async import WSGIInAsync

        self.pool_meter = PoolMeter(self.row, settings.thread_count)
        wrapped = WSGIInAsync(
            adapter, self.pool_meter, settings.body_buffer_size, settings.tmp_upload_dir
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

    async def serve_here(self) -> None:
        """Serve in the running event loop, which must be the context's, until the worker has ended.

        The loop belongs to the caller, so this cancels only the worker's own tasks. The caller must
        wait for these: see `own_tasks`. Raises BootError if the application can't start, and
        CancelledError if the worker is stopped before that.
        """
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        try:
            await self._main()
        finally:
            self._leave_loop()

    def _leave_loop(self) -> None:
        self.lifespan.abandon()
        self.loop.remove_reader(self.context.channel.fileno())
        self.loop.remove_writer(self.context.channel.fileno())
        if self.drained is not None:
            self._next_sweep.cancel()
        for task in self.own_tasks():
            task.cancel()

    def own_tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks of this worker, except that of `serve_here`, which have not ended yet."""
        found: list[asyncio.Task[Any] | None] = [self._health_task, self.lifespan.task]
        found += list(self._handshakes)
        if self.server is not None:
            found += [call.task for call in self.server.calls]
        return [task for task in found if task is not None and not task.done()]

    def _run_until(self, future: asyncio.Future[Any]) -> None:
        """Run the loop until the future is done, even if tasks of the application raise.

        If any task raises SystemExit or KeyboardInterrupt, asyncio raises it from the call that
        runs the loop. One request must not end the worker, so the exception is only logged. Before
        the worker is ready, it means that the application can't start: then raises BootError.
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
            # Import it now: the import takes milliseconds, for which the first client would wait.
            import servo.workers.aio.h2  # noqa: F401
        if self.health is not None:
            await self._begin_health_checks(self.health, adapter)
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

    async def _begin_health_checks(self, health: HealthCheck, adapter: ASGIAdapter) -> None:
        """Make the first health check, and prepare the later ones. Raises BootError."""
        from servo.workers.health_probes import CheckThread, asgi_probe, within, wsgi_probe

        target: str = self.settings.health_check
        if self.wsgi_adapter is not None:
            # Use a separate thread: in the pool the check would wait for requests.
            probe: Probe | AsyncProbe = wsgi_probe(target, self.wsgi_adapter, self.scheme)
        else:
            probe = asgi_probe(target, adapter, self.scheme)
        if inspect.iscoroutinefunction(probe):
            health.first(await within(health.timeout_s, probe))
            health.start = partial(self._start_health_check, health, probe)
        else:
            call = cast("Probe", probe)
            health.first(await self.loop.run_in_executor(None, call))
            health.start = CheckThread(call, health.done).start

    def _start_health_check(self, health: HealthCheck, probe: AsyncProbe) -> None:
        from servo.workers.health_probes import within

        task = self.loop.create_task(within(health.timeout_s, probe), name="servo-health")
        self._health_task = task  # keep the task alive: asyncio has only weak references
        task.add_done_callback(partial(_pass_on, health))

    @property
    def capacity(self) -> int:
        """See Worker.capacity. For an ASGI application, the number of connections is the limit."""
        if self.wsgi_adapter is not None:
            return int(self.settings.thread_count)
        return int(self.settings.limit_concurrency or self.settings.worker_connections)

    @property
    def threads_in_pool(self) -> int:
        """See Worker.threads_in_pool."""
        return 0 if self.pool_meter is None else self.pool_meter.threads

    def ready(self) -> None:
        """See Worker.ready."""
        super().ready()
        # Requests are in flight while their bodies arrive, before they need a thread.
        self.row[row_layout.THREAD_REQUESTS] = 0

    def _watch_process(self) -> None:
        loop = self.loop
        loop.add_reader(self.context.channel.fileno(), self.on_channel)
        self.mailbox.attach(self, loop=loop)
        if self.context.loop is not None:
            return  # the process is not a worker: its signals are not ours
        loop.add_signal_handler(signal.SIGTERM, self.on_terminate)
        loop.add_signal_handler(signal.SIGUSR1, self.reopen_logs)
        self.own_handlers()
        self._pidfd = os.pidfd_open(self.context.arbiter_pid)
        loop.add_reader(self._pidfd, self._on_arbiter_gone)

    def _on_arbiter_gone(self) -> None:
        self.loop.remove_reader(self._pidfd)
        self.on_orphaned()

    def on_orphaned(self) -> None:
        """See Worker.on_orphaned. Stops watching the channel: a closed one is always readable."""
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
            log.debug("Can't wake the worker: its event loop has ended")

    def watch_channel(self, writable: bool) -> None:
        """See mailbox.Owner."""
        fd = self.context.channel.fileno()
        if writable:
            self.loop.add_writer(fd, self.on_channel)
        else:
            self.loop.remove_writer(fd)

    def on_certificates(self) -> None:
        """See Worker.on_certificates."""
        assert self.context.tls is not None
        self.tls_options["ssl"] = self.context.tls.context

    def message_runner(self) -> Runner:
        """See Worker.message_runner. In this worker, too, a WSGI application runs in threads."""
        if self.app.interface == "asgi":
            return LoopRunner(self.mailbox, self.loop)
        return super().message_runner()

    # --- accepting (an acceptor.Driver) ---------------------------------------------------------

    def watch_listener(self, queue: AcceptQueue) -> None:
        """See acceptor.Driver. asyncio's `create_server` would accept many connections at once."""
        self.loop.add_reader(queue.socket, self.acceptor.on_ready, queue)

    def unwatch_listener(self, queue: AcceptQueue) -> None:
        """See acceptor.Driver."""
        self.loop.remove_reader(queue.socket)

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        """See acceptor.Driver."""
        self.loop.call_later(delay, callback)

    def opened(self, sock: socket.socket, peer: Any, local: Any) -> None:
        """See acceptor.Driver."""
        if self._sweeps_seldom:
            self._resume_sweeping()
        if not self.tls_options:
            self._attach(H1Protocol(self.server, sock, peer, local), sock)
            return
        task = self.loop.create_task(self._handshake(sock, peer, local))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    def _attach(self, protocol: H1Protocol, sock: socket.socket) -> None:
        """Make the loop serve a connection without TLS.

        A task for the loop's coroutine would cost more than the rest of opening a connection. The
        coroutine makes the transport, and waits once, until `connection_made` was called. So run it
        to this point here, and run the rest when the future that it waits for is done.
        """
        made = cast("asyncio.Protocol", protocol)  # it has the methods, but not the base class
        coroutine = self.loop.connect_accepted_socket(lambda: made, sock)
        try:
            # A coroutine passes the future that it awaits to the code that runs it, with this flag
            # set. To reset it says that we shall run the coroutine again (see asyncio.tasks).
            future: Any = coroutine.send(None)
            future._asyncio_future_blocking = False
        except OSError as error:
            log.debug("%s was gone before it was served: %s", _name(protocol.address), error)
            sock.close()
            self.connection_closed()
            return
        future.add_done_callback(partial(_finish, coroutine))

    async def _handshake(self, sock: socket.socket, peer: Any, local: Any) -> None:
        protocol: H1Protocol | None = None
        spare = None
        try:
            if len(self._handshakes) <= MAX_SPARE_SOCKETS:
                spare = sock.dup()
            header = await self._read_proxy_header(sock, peer)
            protocol = H1Protocol(self.server, sock, peer, local, header)
            made = cast("asyncio.Protocol", protocol)  # see `_attach`
            await self.loop.connect_accepted_socket(lambda: made, sock, **self.tls_options)
        except (OSError, ProtocolError, asyncio.TimeoutError) as error:
            name = _name(peer)
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
        """See server.Host."""
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
        if self.draining:
            self._report_lingering()
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

    def held_ns(self, now_ns: int) -> list[int]:
        """See Worker.held_ns: the event loop, the pool of threads, the limit of requests."""
        held = [self.server.heartbeat.blocked_ns]
        if self.pool_meter is not None:
            held.append(self.pool_meter.held_ns(now_ns) // self.pool_meter.threads)
        limit: int = self.settings.limit_concurrency
        if limit:
            # The number of requests is looked at once a second, and counts for the time since then.
            in_flight: int = self.row[row_layout.IN_FLIGHT]
            elapsed_ns = now_ns - self._measured_ns if self._measured_ns else 0
            self._limit_used_ns += elapsed_ns * in_flight // limit
            held.append(self._limit_used_ns)
        self._measured_ns = now_ns
        return held

    def _sweep_in(self, delay_s: float, now_ns: int) -> None:
        self._next_sweep = self.loop.call_later(delay_s, self._sweep, now_ns + int(delay_s * 1e9))

    def _resume_sweeping(self) -> None:
        """Sweep once a second again, because the worker is no longer idle."""
        if self._sweeps_seldom:
            self._sweeps_seldom = False
            self._next_sweep.cancel()
            serialise.set_clock(time.time())
            # The last heartbeat may be seconds old: too old for a worker with connections.
            now = self.row[row_layout.BEAT_NS] = monotonic_ns()
            self._sweep_in(1.0, now)

    # --- for operators --------------------------------------------------------------------------

    def event_loop(self) -> asyncio.AbstractEventLoop:
        """See Worker.event_loop."""
        return self.loop

    def open_requests(self) -> list[tuple[int, str, bytes, str]]:
        """See Worker.open_requests. Leaves out calls that still run after their response."""
        return [
            (call.started_ns, call.request.method, call.request.target, remote_of(call.scope))
            for connection in list(self.server.connections)
            for call in connection.open_calls()
        ]

    def unfinished(self) -> list[tuple[int, str, bytes, str]]:
        """See Worker.unfinished. Includes calls that still run after their response."""
        return [
            (call.started_ns, call.request.method, call.request.target, remote_of(call.scope))
            for call in self.server.calls
            if not (self.server.lingers and call.is_long_lived)
        ]

    # --- the end --------------------------------------------------------------------------------

    def retire(self, take_queued: bool = False) -> None:
        """See Worker.retire."""
        if self.draining or self._abandons_boot():
            return
        settings = self.settings
        self.acceptor.stop(take_queued)
        if settings.drain_websockets:
            self.server.lingers = True
            self.loop.call_later(settings.drain_websockets, self._end_lingering)
            self.loop.call_later(settings.graceful_timeout, self._cut_requests)
        self._drain(settings.drain_idle, settings.drain_idle)
        self._report_lingering()

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
        self._end_streams()
        self._drain(STOP_IDLE_S, FRESH_GRACE_S)

    @property
    def lingers(self) -> bool:
        """See Worker.lingers."""
        server = self.server
        return server is not None and server.lingers

    def _report_lingering(self) -> None:
        """Report to the arbiter, once, that this worker lingers for a WebSocket or event stream."""
        if self.server.lingers and not self._lingering_told and self.server.long_lived():
            self._lingering_told = True
            self.tell(Lingering())

    def _cut_requests(self) -> None:
        """End all calls except WebSockets and event streams, because `graceful_timeout` is over.

        Only a lingering worker does this. The arbiter kills any other worker at this time.
        """
        if not self._lingering_told:
            return
        kept = self.server.long_lived() if self.server.lingers else []
        self._cancel([call for call in self.server.calls if call not in kept])
        for connection in list(self.server.connections):
            connection.cut_requests(kept)

    def _end_lingering(self) -> None:
        """Close WebSockets and end event streams, because `drain_websockets` is over."""
        if self.server.lingers:
            self._end_streams()
            self._drain(self.settings.drain_idle, self.settings.drain_idle)

    def _end_streams(self) -> None:
        """End the event streams of a lingering worker. `drain` closes its WebSockets."""
        server = self.server
        if not server.lingers:
            return
        server.lingers = False
        self.begin_grace()
        streams = server.end_event_streams()
        # An application notices the end of its stream only when it sends the next event. So cancel
        # the calls that have not returned after this time.
        wait_s = min(self.settings.drain_idle, self.settings.graceful_timeout / 2)
        self.loop.call_later(wait_s, self._cancel, streams)

    def _cancel(self, calls: list[ASGICall | WebSocketCall]) -> None:
        """Cancel these calls, unless they have returned."""
        for call in calls:
            if call in self.server.calls and call.task is not None:
                call.cancelled = True
                call.task.cancel()

    def _abandons_boot(self) -> bool:
        """End the worker without a drain if it is booting. Returns whether it was booting."""
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
        for handshake in list(self._handshakes):
            self.loop.call_later(max(fresh_s, FRESH_GRACE_S), handshake.cancel)
        self.check_drained()

    def check_drained(self) -> None:
        """See server.Host. Ends the worker if no connection is open, and no call or job runs."""
        if self.schedules is not None and self.schedules.is_running:
            return
        if not self.acceptor.open_connections and not self.server.calls:
            self._end()

    def on_jobs_ended(self) -> None:
        """See Worker.on_jobs_ended."""
        if self.draining:
            self.check_drained()

    def _end(self) -> None:
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)


def _finish(coroutine: Coroutine[Any, Any, Any], _future: asyncio.Future[None]) -> None:
    """Run the rest of a coroutine that waits only once, and that can't fail any more."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("the event loop waits twice for a connection")


def _name(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) else "A client"


def _pass_on(health: HealthCheck, task: asyncio.Task[Outcome]) -> None:
    """Pass on the outcome of a health check, unless the check was cancelled."""
    if not task.cancelled():
        error = task.exception()
        health.done(task.result() if error is None else Outcome(f"it raised {error!r}"))
