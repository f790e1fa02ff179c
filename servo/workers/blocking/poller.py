"""The poller: one thread that serves all sockets of a blocking worker, by epoll(7).

A WSGI application blocks the thread that calls it. If that thread also read from clients, a slow
client would hold it, and a few slow clients would stop the worker. So the poller handles the
clients: it accepts connections, reads requests until they are complete, sends the rest of
responses, and closes connections. The application gets only complete requests. A slow or silent
client costs a few hundred bytes of memory, and never a thread.

A subclass chooses in `dispatch` which thread runs the application: the poller's own (`sync`), or
one of a pool (`thread`).

One turn of the loop in `serve`:

1. wait until sockets are ready, and serve each of them once;
2. let the subclass take back finished requests (`after_poll`);
3. start the next pipelined request of each connection: a client that pipelines gets only one
   request per turn, like all others;
4. once a second, `sweep`: update the Date of responses, and end connections whose time limit has
   passed. One pass over all connections replaces a timer for each.

`connection.phase` says what a connection is doing; see `blocking.connection`.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from abc import abstractmethod
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final

from servo.apps.body_spool import refusal
from servo.http import serialise
from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.events import Data, Refused, Request
from servo.http.limits import LINGER_S
from servo.net.sockets import WantsWrite
from servo.shared_memory import row_layout
from servo.workers import inspection
from servo.workers.accept.acceptor import Acceptor
from servo.workers.blocking.connection import (
    APP,
    BODY,
    HEAD,
    IDLE,
    LINGER,
    QUEUED,
    SEND,
    Connection,
    ConnectionFactory,
)
from servo.workers.forks import replace_sockets, replace_wakers
from servo.workers.messages.handlers import InlineRunner, Runner
from servo.workers.timing import BEAT_S, FRESH_GRACE_S
from servo.workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.apps.loader import LoadedApp
    from servo.http.events import Event
    from servo.workers.accept.accept_queue import AcceptQueue
    from servo.workers.context import WorkerContext
    from servo.workers.health_probes import Probe

log = logging.getLogger("servo.error")

# Nanoseconds between two sweeps. So a time limit may take effect up to a second late.
SWEEP_NS: Final = 1_000_000_000
# Lines of the access log may wait this many nanoseconds, so that many of them share one write.
FLUSH_NS: Final = 100_000_000
# How many bytes to read from a socket at once.
READ_SIZE: Final = 65536

_READ = select.EPOLLIN | select.EPOLLRDHUP
_GONE = select.EPOLLHUP | select.EPOLLERR


class PollerWorker(Worker):
    """A worker whose main thread is the poller; also an `acceptor.Driver`."""

    multithread: ClassVar[bool] = False

    interfaces: ClassVar[tuple[str, ...]] = ("wsgi",)
    can_fork_mold: ClassVar[bool] = True

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.queues: dict[int, AcceptQueue] = {}
        self.handlers: dict[int, Callable[[], None]] = {}
        self.pipelined: deque[Connection] = deque()  # connections with a pipelined request
        self._delayed_call: tuple[int, Callable[[], None]] | None = None
        self._signal_sockets: tuple[socket.socket, socket.socket] | None = None
        self.finished = False
        # Whether the application has forked this process, so that it must not serve clients.
        self.is_child = False
        self.acceptor = Acceptor(self, self)
        self.keep_alive_s = self.settings.keepalive_s
        self.close_after_response = not self.keep_alive_s
        self.idle_ns = int(self.keep_alive_s * 1e9)
        self.send_timeout_ns = int(self.settings.send_timeout * 1e9)
        self.factory = ConnectionFactory(self, app, type(self).multithread)

    @abstractmethod
    def dispatch(self, connection: Connection) -> None:
        """Call `connection.run()` in any thread, then `self.complete(connection)` in the poller's.

        connection  a connection with a complete request
        """

    @abstractmethod
    def health_check_starter(self, probe: Probe) -> Callable[[], None]:
        """Return the function that starts a health check.

        probe  the check
        """

    def progress(self) -> None:
        """Called when a part of a response was sent, in the thread that runs the application."""

    def after_poll(self) -> None:
        """Called once in each turn of the loop, after the sockets were served."""

    # --- the loop -------------------------------------------------------------------------------

    def serve(self) -> None:
        """See Worker.serve."""
        self._register_handlers()
        if self.health is not None:
            from servo.workers.health_probes import wsgi_probe

            probe = wsgi_probe(self.settings.health_check, self.factory.adapter, self.scheme)
            self.health.first(probe())
            self.health.start = self.health_check_starter(probe)
        self.acceptor.start()
        serialise.set_clock(time.time())
        self.ready()
        next_sweep = monotonic_ns() + SWEEP_NS
        next_flush = 0
        connections = self.connections
        row = self.row
        access = self.access
        while not self.finished:
            wait_s = self.wait_s()
            ready = self.epoll.poll(wait_s, 64)
            if wait_s > 1.0:
                # Update the Date of responses: normally each sweep does this, but the last one was
                # long ago.
                serialise.set_clock(time.time())
            for fd, mask in ready:
                connection = connections.get(fd)
                if connection is not None:
                    self._on_connection(connection, mask)
                elif fd in self.queues:
                    self.acceptor.on_ready(self.queues[fd])
                elif fd in self.handlers:
                    self.handlers[fd]()
            now = row[row_layout.BEAT_NS] = monotonic_ns()
            self.after_poll()
            if self.pipelined:
                self._run_pipelined()
            if now >= next_sweep:
                next_sweep = now + SWEEP_NS
                self.sweep(now)
            if self._delayed_call is not None and now >= self._delayed_call[0]:
                callback, self._delayed_call = self._delayed_call[1], None
                callback()
            if access is not None and access.pending and now >= next_flush:
                next_flush = now + FLUSH_NS
                access.flush()
            if self.draining and not connections:
                break
        self.close()

    def wait_s(self) -> float:
        """How long the poller may sleep, in seconds."""
        if self.pipelined:
            return 0.0
        if self._delayed_call is not None:
            return max((self._delayed_call[0] - monotonic_ns()) / 1e9, 0.0)
        if self.row[row_layout.IN_FLIGHT]:
            return BEAT_S
        if self.access is not None and self.access.pending:
            return 0.1
        return 1.0 if self.connections else self.idle_interval_s

    # --- signals, messages, the arbiter's end -----------------------------------------------------

    def _register_handlers(self) -> None:
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._signal_sockets = (wake_read, wake_write)
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, lambda _number, _frame: None)  # see `_on_signal`
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self.own_handlers()
        self._handle(wake_read.fileno(), self._on_signal)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handle(self._wake_fd, self._on_wake_fd)
        self._handle(self.context.channel.fileno(), self.on_channel)
        self.mailbox.attach(self, any_thread_reads=not self.multithread)
        self.pidfd = os.pidfd_open(self.context.arbiter_pid)
        self._handle(self.pidfd, self._on_arbiter_gone)

    def in_child(self) -> None:
        """See Worker.in_child."""
        own = [self.epoll.fileno(), *self.handlers]
        if self._signal_sockets is not None:
            own.append(self._signal_sockets[1].fileno())
        replace_wakers(own)
        replace_sockets(list(self.connections))
        self.is_child = True
        super().in_child()

    def close_in_mold(self) -> None:
        """See Worker.close_in_mold."""
        self.epoll.close()
        os.close(self._wake_fd)
        os.close(self.pidfd)
        assert self._signal_sockets is not None
        for sock in self._signal_sockets:
            sock.close()

    def _handle(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, select.EPOLLIN)

    def wake(self) -> None:
        """See mailbox.Owner."""
        os.eventfd_write(self._wake_fd, 1)

    def _on_wake_fd(self) -> None:
        os.eventfd_read(self._wake_fd)
        self.on_wake()

    def watch_channel(self, writable: bool) -> None:
        """See mailbox.Owner."""
        fd = self.context.channel.fileno()
        if fd in self.handlers:
            self.epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if writable else 0))

    def message_runner(self) -> Runner:
        """See Worker.message_runner."""
        if self.multithread:
            return super().message_runner()
        return InlineRunner(self.mailbox, self.wake)

    def _on_signal(self) -> None:
        """Handle the signals that `set_wakeup_fd` has written to the socket.

        In this way a signal never interrupts the loop or the application at an arbitrary place.
        """
        inspection.let_handlers_run()
        assert self._signal_sockets is not None
        for signum in set(self._signal_sockets[0].recv(4096)):
            if signum == signal.SIGTERM:
                self.on_terminate()
            elif signum == signal.SIGUSR1:
                self.reopen_logs()

    def _on_arbiter_gone(self) -> None:
        self.epoll.unregister(self.pidfd)
        self.on_orphaned()

    def on_orphaned(self) -> None:
        """See Worker.on_orphaned. Stops watching the channel: a closed one is always readable."""
        fd = self.context.channel.fileno()
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)
        super().on_orphaned()

    # --- accepting (an acceptor.Driver) ---------------------------------------------------------

    def watch_listener(self, queue: AcceptQueue) -> None:
        """See acceptor.Driver."""
        fd = queue.socket.fileno()
        self.queues[fd] = queue
        self.epoll.register(fd, select.EPOLLIN)

    def unwatch_listener(self, queue: AcceptQueue) -> None:
        """See acceptor.Driver."""
        fd = queue.socket.fileno()
        del self.queues[fd]
        self.epoll.unregister(fd)

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        """See acceptor.Driver. Stores one call only: the acceptor never has two pending."""
        self._delayed_call = (monotonic_ns() + int(delay * 1e9), callback)

    def opened(self, sock: socket.socket, peer: Any, local: Any) -> None:
        """See acceptor.Driver."""
        connection = self.factory.make(sock, peer, local)
        self.connections[connection.fd] = connection
        # The first request has usually arrived already. Reading it now saves a call of epoll.
        self._on_readable(connection)

    # --- reading --------------------------------------------------------------------------------

    def _on_connection(self, connection: Connection, mask: int) -> None:
        phase = connection.phase
        if phase < APP:
            if mask & _GONE and not mask & select.EPOLLIN:
                self.drop(connection)
            else:
                self._on_readable(connection)
        elif phase in (APP, QUEUED):
            if connection.output is not None:
                self.flush_running(connection)
            else:
                # The client has sent more, or has closed the connection. We must not read before
                # the current request and those that wait are answered, so stop watching: epoll
                # would report this again and again.
                self.watch(connection, 0)
        elif phase == SEND:
            self._flush(connection)
        else:
            self._discard(connection)

    def _on_readable(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(READ_SIZE)
        except WantsWrite:
            self.watch(connection, _READ | select.EPOLLOUT)
            return
        except BlockingIOError:
            self.watch(connection, _READ)
            return
        except OSError:
            self.drop(connection)
            return
        http = connection.http
        if connection.proxy_reader is not None and data:
            try:
                data = connection.read_proxy_header(data)
            except ProtocolError as error:
                self._refuse(connection, Refused(error))
                return
            if not data:
                self.watch(connection, _READ)
                return
        if data:
            event = http.receive_data(data)
        else:
            connection.eof = True
            event = http.receive_eof()
            if event is None:
                self.drop(connection)
                return
        if event.__class__ is Request and not event.more_body:
            # The common case, a whole request in one read, skips the loop in `_on_event`.
            connection.request = event
            connection.body = event.body
            self._start(connection)
        else:
            self._on_event(connection, event)

    def _await_more(self, connection: Connection) -> None:
        """Wait for more bytes. The time limit of a head begins with its first byte."""
        if connection.phase == IDLE and not connection.http.idle:
            connection.phase = HEAD
            connection.expires_in(self.settings.header_timeout)
        self.watch(connection, _READ)

    def _on_event(self, connection: Connection, event: Event | None) -> None:
        """Handle events until the application has a request, or more bytes are needed."""
        http = connection.http
        while event is not None:
            if isinstance(event, Request):
                connection.request = event
                if not event.more_body:
                    connection.body = event.body
                    self._start(connection)
                    return
                if not self._begin_body(connection, event):
                    return
            elif isinstance(event, Data):
                self.meter.received(len(event.data))
                if not self._store(connection, event.data):
                    return
                if not event.more_body:
                    self._start(connection)
                    return
            else:
                self._refuse(connection, event)
                return
            event = http.next_event()
        self._await_more(connection)

    def _begin_body(self, connection: Connection, request: Request) -> bool:
        connection.begin_body()
        if request.expect_continue:
            interim = connection.http.send_continue()
            try:
                connection.send_some(interim)
            except ClientDisconnected:
                self.drop(connection)
                return False
        return self._store(connection, request.body)

    def _store(self, connection: Connection, data: bytes) -> bool:
        try:
            connection.store(data)
        except OSError as error:
            self._refuse(connection, Refused(refusal(error), in_body=True))
            return False
        return True

    def _refuse(self, connection: Connection, event: Refused) -> None:
        """Refuse a request before admission: count it, log it, and send the error."""
        self.meter.refused(event.error.status, event.method, event.target, connection.peer_name)
        self._answer_refused(connection, event)

    def _answer_refused(self, connection: Connection, event: Refused) -> None:
        log.debug("Refused a request from %s: %s", connection.peer_name, event.error)
        connection.close_body()
        connection.linger = True
        self._send(connection, connection.http.refuse(event))

    # --- the application ------------------------------------------------------------------------

    def _start(self, connection: Connection) -> None:
        """Admit a complete request, and let the application handle it."""
        request = connection.request
        assert request is not None
        if self.close_after_response or self.draining:
            connection.http.close_next()
        admitted = self.admission.admit(request, connection.peer)
        if isinstance(admitted, Refused):
            self._answer_refused(connection, admitted)
            return
        try:
            connection.prepare(admitted)
        except ProtocolError as error:
            self.meter.cancel()
            self._refuse(connection, Refused(error, in_body=True))
            return
        connection.phase = APP
        self.dispatch(connection)

    def complete(self, connection: Connection) -> None:
        """Finish a request after the application has returned: send the rest of the response.

        connection  its `output` has the rest; None if everything was sent
        """
        now = connection.finish_request(self.meter)
        if connection.broken:
            connection.phase = SEND
            self.drop(connection)
        elif connection.output is not None:
            connection.phase = SEND
            connection.expires_in(self.settings.send_timeout)
            self._flush(connection)
        else:
            self._after_response(connection, now)

    def _after_response(self, connection: Connection, now_ns: int) -> None:
        http = connection.http
        if http.close_after:
            self._hang_up(connection)
            return
        connection.phase = IDLE
        connection.deadline_ns = now_ns + self.idle_ns
        if http.idle:
            if connection.watched != _READ:
                self.watch(connection, _READ)
        else:
            # The client has pipelined another request, which waits until other connections have had
            # their turn.
            connection.phase = QUEUED
            connection.deadline_ns = 0
            self.pipelined.append(connection)

    def _run_pipelined(self) -> None:
        for _ in range(len(self.pipelined)):
            connection = self.pipelined.popleft()
            if connection.phase == QUEUED and self.connections.get(connection.fd) is connection:
                connection.phase = HEAD
                connection.expires_in(self.settings.header_timeout)
                self._on_event(connection, connection.http.next_event())
                if connection.corked and connection.phase < APP:
                    # No response follows yet: the request's body is incomplete.
                    connection.uncork()

    # --- writing and closing --------------------------------------------------------------------

    def _send(self, connection: Connection, data: bytes) -> None:
        connection.unsent = data
        connection.phase = SEND
        connection.expires_in(self.settings.send_timeout)
        self._flush(connection)

    def flush_running(self, connection: Connection) -> None:
        """Send buffered bytes of a response that the application is still producing.

        connection  its `output` is the buffer
        """
        output = connection.output
        if output is None:
            return
        try:
            connection.flush_output()
        except ClientDisconnected:
            # The application will get the error when it sends again.
            self.watch(connection, 0)
            return
        if not output.size():
            output.watched = False
            # Check the size again after clearing `watched`. The application's thread appends first
            # and checks `watched` afterwards, so one of the two threads notices new bytes.
            if not output.size():
                self.watch(connection, 0)
                return
            output.watched = True
        self.watch(connection, select.EPOLLOUT)

    def _flush(self, connection: Connection) -> None:
        """Send the rest of a finished response. Then handle the next request, or close."""
        try:
            sent_all, progress = connection.flush()
        except ClientDisconnected:
            self.drop(connection)
            return
        if not sent_all:
            if progress:
                connection.expires_in(self.settings.send_timeout)
            self.watch(connection, select.EPOLLOUT)
        elif connection.linger:
            self._hang_up(connection)
        else:
            self._after_response(connection, monotonic_ns())

    def _hang_up(self, connection: Connection) -> None:
        """Close after a response; linger if bytes from the client may still arrive.

        If a socket is closed with unread input, the kernel resets the connection, and the client
        may lose the response. So close only our side, and discard all input until the client closes
        its side or `LINGER_S` has passed (RFC 9112 section 9.6).
        """
        if not connection.linger and not connection.unread():
            self.drop(connection)
            return
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.drop(connection)
            return
        connection.phase = LINGER
        connection.expires_in(LINGER_S)
        self.watch(connection, _READ)
        self._discard(connection)

    def _discard(self, connection: Connection) -> None:
        try:
            for _ in range(16):
                if not connection.sock.recv(READ_SIZE):
                    self.drop(connection)
                    return
        except BlockingIOError:
            return
        except OSError:
            self.drop(connection)

    def watch(self, connection: Connection, mask: int) -> None:
        """Set the events that epoll reports for a connection.

        mask  EPOLLIN and the like; 0 to report nothing
        """
        watched = connection.watched
        if mask == watched:
            return
        connection.watched = mask
        if not mask:
            self.epoll.unregister(connection.fd)
        elif watched:
            self.epoll.modify(connection.fd, mask)
        else:
            self.epoll.register(connection.fd, mask)

    def drop(self, connection: Connection) -> None:
        """Close a connection at once, and remove it from the worker."""
        if self.connections.pop(connection.fd, None) is None:
            return
        if connection.watched:
            self.epoll.unregister(connection.fd)
            connection.watched = 0
        connection.close()
        self.acceptor.closed()

    # --- once a second --------------------------------------------------------------------------

    def sweep(self, now_ns: int) -> None:
        """Update the Date of responses, and end connections whose time limit has passed.

        now_ns  monotonic nanoseconds
        """
        serialise.set_clock(time.time())
        self.every_second()
        oldest = 0
        for connection in list(self.connections.values()):
            if connection.phase == APP:
                oldest = min(oldest or connection.started_ns, connection.started_ns)
                self.check_running(connection, now_ns)
                output = connection.output
                if output is not None and output.is_stalled(now_ns, self.send_timeout_ns):
                    connection.abort()
            elif connection.deadline_ns and now_ns >= connection.deadline_ns:
                self._on_timeout(connection)
            elif connection.phase == IDLE:
                connection.forget()
        self.row[row_layout.OLDEST_START_NS] = oldest

    def open_requests(self) -> list[tuple[int, str, bytes, str]]:
        """See Worker.open_requests."""
        return [
            (connection.started_ns, request.method, request.target, connection.peer_name)
            for connection in list(self.connections.values())
            if connection.phase == APP and (request := connection.request) is not None
        ]

    def check_running(self, connection: Connection, now_ns: int) -> None:
        """Called in each sweep for a request that the application is running.

        now_ns  monotonic nanoseconds
        """

    def _on_timeout(self, connection: Connection) -> None:
        if connection.phase in (HEAD, BODY):
            what = "head" if connection.phase == HEAD else "body"
            error = ProtocolError(408, f"the request's {what} did not come in time")
            self._refuse(connection, Refused(error, in_body=connection.phase == BODY))
        elif connection.phase != IDLE:
            self.drop(connection)
        elif not connection.unread():
            # Before its first request, a connection has only the time of `header_timeout`.
            idle_left_s = connection.idle_left_s(self.idle_ns) if connection.peer.requests else 0.0
            if idle_left_s:
                connection.expires_in(idle_left_s)
            else:
                self.drop(connection)
        # An idle connection with unread bytes is kept. A request arrived in time, but this thread
        # could not read it: a slow request was running, or the process was stopped.

    # --- the end --------------------------------------------------------------------------------

    def retire(self, take_queued: bool = False) -> None:
        """See Worker.retire."""
        if self.draining:
            return
        self.acceptor.stop(take_queued)
        self._drain(self.settings.drain_idle)

    def stop(self, quick: bool) -> None:
        """See Worker.stop."""
        if not self.draining:
            self.acceptor.stop(take_queued=not quick)
        if quick:
            if not self.draining:
                self.note_draining()
            self.interrupted()
            self.finished = True
            return
        self._drain(0.0)

    def _drain(self, idle_s: float) -> None:
        """Let each connection end with its current request.

        idle_s  seconds that an idle connection stays open for another request. Even with 0, we
                serve a request that has already arrived, and wait for the first request of a new
                connection.
        """
        if not self.draining:
            self.note_draining()
        self.idle_ns = int(self.settings.drain_idle * 1e9)
        for connection in list(self.connections.values()):
            connection.http.close_next()
            if connection.phase != IDLE:
                continue
            if idle_s:
                connection.expires_in(idle_s)
                continue
            self._on_readable(connection)
            if connection.phase == IDLE and connection.peer.requests:
                self.drop(connection)
            elif connection.phase == IDLE:
                connection.expires_in(FRESH_GRACE_S)

    def close(self) -> None:
        """Close all connections that are still open."""
        for connection in list(self.connections.values()):
            self.drop(connection)
        signal.set_wakeup_fd(-1)
