"""The loop of the blocking workers: what epoll, signals, other processes and the clock ask for.

What is done with a connection is said in `poller.py`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, ClassVar, Final

from servo.http import serialise
from servo.shared_memory import row_layout
from servo.workers import inspection
from servo.workers.accept.acceptor import Acceptor
from servo.workers.forks import hang_up, sever
from servo.workers.messages.handlers import InlineRunner, Runner
from servo.workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.apps.loader import LoadedApp
    from servo.workers.blocking.connection import Connection
    from servo.workers.context import WorkerContext

BEAT_S: Final = 0.005
SWEEP_NS: Final = 1_000_000_000
FLUSH_NS: Final = 100_000_000


class PollLoop(Worker):
    """The part of `PollerWorker` that waits, and accepts; an `acceptor.Driver`."""

    multithread: ClassVar[bool] = False

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.listeners: dict[int, socket.socket] = {}
        self.handlers: dict[int, Callable[[], None]] = {}
        self.waiting: deque[Connection] = deque()  # complete requests, pipelined behind others
        self._later: tuple[int, Callable[[], None]] | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self.finished = False
        # The application has forked, and this is the child.
        self.is_child = False
        self.acceptor = Acceptor(self, self)

    def opened(self, sock: socket.socket, peer: Any) -> None:
        """See acceptor.Driver."""
        raise NotImplementedError

    def _on_connection(self, connection: Connection, mask: int) -> None:
        """Epoll tells this of a connection."""
        raise NotImplementedError

    def _run_waiting(self) -> None:
        """Each connection in `waiting` has its turn."""
        raise NotImplementedError

    def after_poll(self) -> None:
        """Called once a turn, after the sockets were served."""

    def sweep(self, now_ns: int) -> None:
        """Called about once a second."""
        raise NotImplementedError

    def close(self) -> None:
        """Close whatever is still open."""
        raise NotImplementedError

    # --- the loop -------------------------------------------------------------------------------

    def serve(self) -> None:
        """See Worker.serve."""
        self._register_handlers()
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
                serialise.set_clock(time.time())  # too long for the sweep to have kept it right
            for fd, mask in ready:
                connection = connections.get(fd)
                if connection is not None:
                    self._on_connection(connection, mask)
                elif fd in self.listeners:
                    self.acceptor.on_ready(self.listeners[fd])
                elif fd in self.handlers:
                    self.handlers[fd]()
            now = row[row_layout.BEAT_NS] = monotonic_ns()
            self.after_poll()
            if self.waiting:
                self._run_waiting()
            if now >= next_sweep:
                next_sweep = now + SWEEP_NS
                self.sweep(now)
            if self._later is not None and now >= self._later[0]:
                callback, self._later = self._later[1], None
                callback()
            if access is not None and access.pending and now >= next_flush:
                next_flush = now + FLUSH_NS
                access.flush()
            if self.draining and not connections:
                break
        self.close()

    def wait_s(self) -> float:
        """How long the poller may sleep, in seconds."""
        if self.waiting:
            return 0.0
        if self._later is not None:
            return max((self._later[0] - monotonic_ns()) / 1e9, 0.0)
        if self.row[row_layout.IN_FLIGHT]:
            return BEAT_S
        if self.access is not None and self.access.pending:
            return 0.1
        return 1.0 if self.connections else self.nap_s

    # --- what wakes it besides connections -------------------------------------------------------

    def _register_handlers(self) -> None:
        wake_read, wake_write = socket.socketpair()
        wake_read.setblocking(False)
        wake_write.setblocking(False)
        self._wake = (wake_read, wake_write)
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, lambda _number, _frame: None)  # its byte in the pipe tells
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        self.own_handlers()
        self._handle(wake_read.fileno(), self._on_signal)
        self._mail_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._handle(self._mail_fd, self._on_mail)
        self._handle(self.context.channel.fileno(), self.on_channel)
        self.mailbox.attach(self, anyone_reads=not self.multithread)
        self.pidfd = os.pidfd_open(self.context.arbiter_pid)
        self._handle(self.pidfd, self._on_arbiter_gone)

    def in_child(self) -> None:
        """See Worker.in_child."""
        own = [self.epoll.fileno(), *self.handlers]
        if self._wake is not None:
            own.append(self._wake[1].fileno())
        sever(own)
        hang_up(list(self.connections))
        self.is_child = True
        super().in_child()

    def _handle(self, fd: int, handler: Callable[[], None]) -> None:
        self.handlers[fd] = handler
        self.epoll.register(fd, select.EPOLLIN)

    def wake(self) -> None:
        """See mailbox.Owner."""
        os.eventfd_write(self._mail_fd, 1)

    def _on_mail(self) -> None:
        os.eventfd_read(self._mail_fd)
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
        inspection.let_handlers_run()
        assert self._wake is not None
        for signum in set(self._wake[0].recv(4096)):
            if signum == signal.SIGTERM:
                self.on_terminate()
            elif signum == signal.SIGUSR1:
                self.reopen_logs()

    def _on_arbiter_gone(self) -> None:
        self.epoll.unregister(self.pidfd)
        self.on_orphaned()

    def on_orphaned(self) -> None:
        """See Worker.on_orphaned; the dead channel would be readable for ever."""
        fd = self.context.channel.fileno()
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)
        super().on_orphaned()

    # --- accepting (an acceptor.Driver) ---------------------------------------------------------

    def watch_listener(self, listener: socket.socket) -> None:
        """See acceptor.Driver."""
        self.listeners[listener.fileno()] = listener
        self.epoll.register(listener.fileno(), select.EPOLLIN)

    def unwatch_listener(self, listener: socket.socket) -> None:
        """See acceptor.Driver."""
        del self.listeners[listener.fileno()]
        self.epoll.unregister(listener.fileno())

    def call_later(self, delay: float, callback: Callable[[], None], /) -> None:
        """See acceptor.Driver. The acceptor has one call waiting at a time."""
        self._later = (monotonic_ns() + int(delay * 1e9), callback)
