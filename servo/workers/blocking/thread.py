"""The `thread` worker: the poller serves the sockets, a pool of threads runs the application.

Requests pass between the poller and the threads through queues that need no lock of ours:

* `to_start`: complete requests that the poller has read. Before the poller waits, it moves them to
  the queue `requests`, from which the threads take them.
* `done`: requests that a thread has finished. The poller sends the rest of the response.
* `to_flush`: running requests with buffered output. The poller sends this output while the
  application still runs.

A thread that puts a request into `done` or `to_flush` wakes the poller by an eventfd, but only if
the poller waits (`poller_waits`). This saves two system calls per request under load.

A thread can't be stopped from outside. If a request runs for longer than `request_timeout`, the
poller answers 504 instead of the thread, and asks the arbiter for a replacement of this worker.
`ThreadConnection.take_claim` decides whether the thread or the poller may answer. The stuck thread
keeps the connection object, and the socket stays open until the thread returns.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections import deque
from queue import SimpleQueue
from time import monotonic_ns
from typing import TYPE_CHECKING, ClassVar, Final

from servo.http.errors import ClientDisconnected, ProtocolError
from servo.http.events import Refused
from servo.http.h1.connection import H1Connection
from servo.ipc.messages import ReplaceMe
from servo.shared_memory import row_layout
from servo.workers.blocking.connection import APP, SEND, Connection, ConnectionFactory
from servo.workers.blocking.poller import PollerWorker
from servo.workers.forks import end_child
from servo.workers.threads import WorkerThread

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from servo.apps.loader import LoadedApp
    from servo.workers.context import WorkerContext
    from servo.workers.health_probes import Probe

log = logging.getLogger("servo.error")

# Seconds that idle threads get to end before a mold is forked.
END_THREADS_S: Final = 1.0


class ThreadWorker(PollerWorker):
    """A poller with a pool of threads that run one request each. The poller sends heartbeats."""

    kind: ClassVar[str] = "thread"
    multithread: ClassVar[bool] = True

    def __init__(self, context: WorkerContext, app: LoadedApp) -> None:
        super().__init__(context, app)
        self.factory = ThreadConnectionFactory(self, app, multithread=True)
        self.requests: SimpleQueue[ThreadConnection | None] = SimpleQueue()
        self.to_start: list[ThreadConnection] = []
        self.done: deque[ThreadConnection] = deque()
        self.to_flush: deque[ThreadConnection] = deque()
        self.poller_waits = False
        self.handed_over = 0  # requests in `requests`, in a thread, or in `done`
        self.waits: deque[int] = deque()  # how long requests have waited for a thread, in ns
        self.stuck = 0
        self.threads: list[WorkerThread] = []
        limit: int = self.settings.limit_concurrency
        self.pool_size = self.capacity  # a copy, because reading the setting takes 1 us
        self.most_running = min(self.pool_size, limit or self.pool_size)
        self.timeout_ns = int(self.settings.request_timeout * 1e9)
        self.threads_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def serve(self) -> None:
        """See Worker.serve."""
        self._handle(self.threads_fd, self._on_threads_fd)
        for number in range(self.settings.thread_count):
            thread = WorkerThread(f"servo-{number}", self._work)
            thread.start()
            self.threads.append(thread)
        super().serve()

    def end_threads(self) -> str:
        """See Worker.end_threads. Idle threads end at once; the others are stuck in a request."""
        for _ in self.threads:
            self.requests.put(None)
        end = time.monotonic() + END_THREADS_S
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        stuck = sum(thread.is_alive() for thread in self.threads)
        return f"{stuck} of its threads hang in requests" if stuck else ""

    def close_in_mold(self) -> None:
        """See Worker.close_in_mold."""
        super().close_in_mold()
        os.close(self.threads_fd)

    def dispatch(self, connection: Connection) -> None:
        """See PollerWorker.dispatch."""
        assert isinstance(connection, ThreadConnection)
        connection.claim = [True]
        self.to_start.append(connection)

    def health_check_starter(self, probe: Probe) -> Callable[[], None]:
        """See PollerWorker.health_check_starter."""
        from servo.workers.health_probes import CheckThread

        assert self.health is not None
        return CheckThread(probe, self.health.done).start

    @property
    def capacity(self) -> int:
        """See Worker.capacity."""
        return int(self.settings.thread_count)

    def held_ns(self, now_ns: int) -> list[int]:
        """See Worker.held_ns. Requests hold the threads of the pool."""
        held_ns: int = self.row[row_layout.LATENCY_SUM_NS]
        # While a request waits for a thread, it holds none.
        held_ns -= self.row[row_layout.THREAD_WAIT_SUM_NS]
        for connection in self.connections.values():
            if connection.phase == APP and connection.thread:
                held_ns += now_ns - connection.started_ns
        return [held_ns // self.most_running]

    def wait_s(self) -> float:
        """See PollerWorker.wait_s. Also passes requests to the threads.

        Passing them earlier would cost more. Each `recv` releases the interpreter's lock (GIL), and
        a thread with work would take it, so each read would cause a switch of threads.
        """
        if self.to_start:
            for connection in self.to_start:
                self.handed_over += 1
                # If a thread is free, the wait is not worth a look at the clock.
                connection.has_to_wait = self.handed_over > self.pool_size
                self.requests.put(connection)
            self.to_start.clear()
        # Set this before checking the queues. A thread appends first and checks `poller_waits`
        # afterwards, so either this check or the thread notices.
        self.poller_waits = True
        return 0.0 if self.done or self.to_flush else super().wait_s()

    def _on_threads_fd(self) -> None:
        os.eventfd_read(self.threads_fd)

    def after_poll(self) -> None:
        """Send output that threads have buffered, and complete the requests that they finished."""
        self.poller_waits = False
        # Empty `to_flush` first. A connection may be in both queues, and `complete` (below) may
        # close it or give it the next request.
        while self.to_flush:
            connection = self.to_flush.popleft()
            running = connection.phase == APP and connection.claim is not None
            if running and self.connections.get(connection.fd) is connection:
                self.flush_running(connection)
        while self.waits:
            row_layout.count_thread_wait(self.row, self.waits.popleft())
        done = self.done
        while done:
            connection = done.popleft()
            self.handed_over -= 1
            if connection.claim is None:
                connection.phase = SEND
                connection.close()  # `_give_up` left the socket open for the stuck thread
                self.stuck -= 1
            else:
                self.complete(connection)

    def _work(self) -> None:
        get = self.requests.get
        done = self.done
        while True:
            connection = get()
            if connection is None:
                return
            connection.thread = threading.get_ident()
            if connection.has_to_wait and connection.claim is not None:
                self.waits.append(monotonic_ns() - connection.started_ns)
            if connection.claim is not None:
                connection.run()
            if self.is_child:
                end_child()
            connection.thread = 0
            done.append(connection)
            if self.poller_waits:
                self._wake_poller()

    def request_flush(self, connection: ThreadConnection) -> None:
        """Make the poller send the buffered output of a running request. Any thread may call it."""
        self.to_flush.append(connection)
        if self.poller_waits:
            self._wake_poller()

    def _wake_poller(self) -> None:
        self.poller_waits = False
        os.eventfd_write(self.threads_fd, 1)

    # --- a request that takes too long ----------------------------------------------------------

    def check_running(self, connection: Connection, now_ns: int) -> None:
        """See PollerWorker.check_running."""
        if self.timeout_ns and now_ns - connection.started_ns > self.timeout_ns:
            assert isinstance(connection, ThreadConnection)
            self._give_up(connection)

    def _give_up(self, connection: ThreadConnection) -> None:
        """Answer 504 for a stuck thread, and ask the arbiter for a replacement of this worker."""
        request = connection.request
        assert request is not None
        claimed = connection.take_claim()
        frame = sys._current_frames().get(connection.thread)
        stack = "".join(traceback.format_stack(frame)) if frame else "  (it was still queued)\n"
        log.error(
            "%s %a has run for more than %g s (request_timeout); its thread hangs here:\n%s",
            request.method,
            request.target.decode("latin-1"),
            self.settings.request_timeout,
            stack.rstrip(),
        )
        self.stuck += 1
        self._release_client(connection, answer=claimed)
        if not self.draining:
            self.tell(ReplaceMe("request_timeout", f"{self.stuck} of its threads hang"))

    def _release_client(self, connection: ThreadConnection, answer: bool) -> None:
        """Send the client a 504 if the response has not begun, and shut the connection down.

        answer  whether to send the 504

        The descriptor stays open, because the stuck thread may still use it: after a close, another
        connection could get the same descriptor.
        """
        factory = self.factory
        http = H1Connection(
            factory.limits, server=factory.server_header, more=factory.response_lines
        )
        timed_out = Refused(ProtocolError(504, "the application took too long"))
        data = http.refuse(timed_out)
        connection.give_up(data if answer else b"")
        assert connection.request is not None
        self.meter.end(connection.started_ns, connection.request, 504, 0, connection.peer_name)
        self.watch(connection, 0)
        del self.connections[connection.fd]
        self.acceptor.closed()


class ThreadConnectionFactory(ConnectionFactory):
    """Makes `ThreadConnection`s."""

    def make(self, sock: socket.socket, peer: Any, local: Any) -> ThreadConnection:
        """See ConnectionFactory.make."""
        return ThreadConnection(self, sock, peer, local)


class ThreadConnection(Connection):
    """A connection that two threads may want to answer, but only one of them can.

    The two are the thread that runs the request, and the poller after `request_timeout`. Before the
    first byte of a response, a thread must take the claim. The claim is a list of one item, and
    `list.pop` is atomic, so only one of the two gets it.
    """

    __slots__ = ("_claimed", "has_to_wait")

    def __init__(
        self, factory: ConnectionFactory, sock: socket.socket, peer: Any, local: Any
    ) -> None:
        super().__init__(factory, sock, peer, local)
        # Whether all threads were busy when its request was handed to them.
        self.has_to_wait = False

    def run(self) -> None:
        """See Connection.run."""
        self._claimed = False
        super().run()

    def send_some(self, data: bytes | memoryview) -> bytes | memoryview:
        """See WSGITransport."""
        if self.phase == APP and not self._claimed:
            if not self.take_claim():
                raise ClientDisconnected("request_timeout has passed")
            self._claimed = True
        return super().send_some(data)

    def _send_before_close(self) -> None:
        """Do nothing: the poller sends while `close` runs."""

    def _notify_sender(self) -> None:
        """Make the poller send the buffered bytes, unless it already does."""
        output = self.output
        if output is not None and output.size() and not output.watched:
            output.watched = True
            worker = self._factory.worker
            assert isinstance(worker, ThreadWorker)
            worker.request_flush(self)

    def _wait_for_progress(self, seconds: float) -> bool:
        """See Connection._wait_for_progress."""
        output = self.output
        if output is None or not output.size():
            # Nothing could be buffered, so the poller has nothing to send: this thread must.
            return super()._wait_for_progress(seconds)
        happened = output.wait(seconds)
        if self.broken:
            raise ClientDisconnected("the client is gone")
        return happened

    def take_claim(self) -> bool:
        """Whether the caller may begin the response. True once per request."""
        claim = self.claim
        try:
            return claim is not None and claim.pop()
        except IndexError:
            return False

    def give_up(self, answer: bytes) -> None:
        """Shut the connection down, without closing the descriptor. The poller calls this.

        answer  the response to send before that; b"" if the thread has already begun one
        """
        self.claim = None
        try:
            if answer:
                super().send_some(answer)
        except ClientDisconnected as error:
            log.debug("%s disconnected before its 504 was sent: %s", self.peer_name, error)
        self.abort()
