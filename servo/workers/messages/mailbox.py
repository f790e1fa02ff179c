"""The mailbox: a worker's side of `servo.cluster`, the messages between applications.

Workers are not connected to each other. Each has one channel to the arbiter, and the arbiter routes
the messages. The channel also carries the arbiter's orders, such as `Stop`.

Sending: any thread may send. It encodes its message, queues it on the channel, and writes as much
as the socket takes. If the socket is full, it wakes the owner (the thread of the poller or event
loop), which sends the rest when the socket has room. Messages of one thread keep their order.

Receiving: the owner reads the channel. It puts messages for the application into the inbox, and a
`Runner` calls their handlers. A reply goes to the thread or task that waits for it, and an order of
the arbiter goes to the worker.

Waiting for a reply: in a `sync` worker the owner also runs requests, and can't read the channel
meanwhile. So a thread that waits for a reply reads instead of the owner. One thread reads at a
time. It keeps orders and messages for the owner, which handles them after the request.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from servo import cluster
from servo.cluster.messages import MAX_MESSAGE_BYTES
from servo.ipc.channel import ChannelClosed
from servo.ipc.drops import Drops
from servo.ipc.messages import (
    ARBITER,
    FAILURE,
    PLAIN,
    REPLY,
    REQUEST,
    AppMessage,
    Message,
    MessageError,
    encode_value,
    to_json,
)

if TYPE_CHECKING:
    import asyncio

    from servo.ipc.channel import Channel
    from servo.ipc.messages import AppCommand, ReplaceMe
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# How many bytes of messages may wait for handlers. A message counts with the size of its payload,
# and that of its Python object.
MAX_INBOX_BYTES = 8 << 20
MESSAGE_OVERHEAD_BYTES = 256
# If the arbiter does not read, a stopping worker tries for this many seconds to send its queued
# messages.
CLOSE_S = 1.0

# The error that a failed request raises, by its name in the FAILURE message.
ERRORS: dict[str, type[cluster.ClusterError]] = {
    "no_worker": cluster.NoSuchWorker,
    "overflow": cluster.ClusterOverflow,
    "lost": cluster.WorkerLost,
    "failed": cluster.RequestFailed,
}


class Owner(Protocol):
    """The part of the worker that the mailbox uses."""

    draining: bool

    def wake(self) -> None:
        """Make the owner's thread call `on_wake` soon. May be called from any thread."""

    def watch_channel(self, writable: bool) -> None:
        """Watch the channel, and call `on_channel` when it is ready.

        writable  whether to also watch for room to write
        """


class HandlerRunner(Protocol):
    """Runs the application's message handlers; see `servo.workers.messages.handlers`."""

    def run(self) -> None:
        """Run the handlers for the messages in the inbox."""

    def handle(self, message: AppMessage, /) -> None:
        """Run the handlers for this message."""


class Mailbox:
    """The `cluster.Backend` of a worker process.

    channel     a SharedChannel, with the arbiter at its other end
    slot        this worker's slot
    serial      this worker's serial, the address of replies
    scoreboard  the rows of all workers

    may_control  whether the application may replace, reload and scale workers (`cluster_control`)
    """

    def __init__(self, channel: Channel, slot: int, serial: int, scoreboard: Scoreboard) -> None:
        self.slot = slot
        self.serial = serial
        self.inbox = Inbox()
        self.may_control = False
        self._channel = channel
        self._scoreboard = scoreboard
        self._owner: Owner | None = None
        self._owner_thread = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._any_thread_reads = True  # `attach` may change this
        self._runner: HandlerRunner | None = None
        # One thread reads the channel at a time. The others wait for this condition.
        self._reader_changed = threading.Condition()
        self._has_reader = False
        self._deferred: deque[Message] = deque()  # orders that another thread read for the owner
        self._watching = False  # whether the owner watches the channel for room to write
        self._arbiter_gone = ""  # why messages can't be sent any more; "" while they can
        self._forked = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, concurrent.futures.Future[bytes] | asyncio.Future[bytes]] = {}
        self._counters_lock = threading.Lock()
        self._sent = self._received = self._unheard = 0
        self._overflows = Drops()
        self._drops = Drops()

    # --- start and end --------------------------------------------------------------------------

    def attach(
        self,
        owner: Owner,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        any_thread_reads: bool = False,
    ) -> None:
        """Make the calling thread the owner. It reads the channel from now on.

        owner             the worker
        loop              the event loop that the owner runs, if any
        any_thread_reads  whether a thread that waits for a reply reads instead of the owner, which
                          may be busy with a request
        """
        self._owner = owner
        self._owner_thread = threading.get_ident()
        self._loop = loop
        self._any_thread_reads = any_thread_reads
        owner.wake()

    def open(self, runner: HandlerRunner) -> None:
        """Let handlers run. Called when the worker is ready.

        runner  calls the handlers
        """
        self._runner = runner
        runner.run()

    def run(self) -> None:
        """Run the handlers of waiting messages. Call this after `on_wake` and `on_channel`."""
        if self._runner is not None and self.inbox:
            self._runner.run()

    def close(self) -> None:
        """Send the queued messages before the worker ends. Waits up to `CLOSE_S`."""
        end = time.monotonic() + CLOSE_S
        try:
            while not self._channel.flush() and (left := end - time.monotonic()) > 0:
                self._channel.wait_writable(left)
        except ChannelClosed:
            log.debug("The arbiter is gone; the queued messages are lost")
        self.report()

    def release_owner(self) -> None:
        """Let any thread read its own replies, because the owner no longer reads."""
        self._owner = None
        self._any_thread_reads = True

    def disable_in_child(self) -> None:
        """In a forked child: refuse to send, because the channel belongs to the parent."""
        self._forked = True

    def report(self) -> None:
        """Log the number of lost messages, but not too often. Call this once a second."""
        now = time.monotonic()
        with self._counters_lock:
            overflows, drops = self._overflows.due(now), self._drops.due(now)
        self._log_losses(overflows, drops)

    def _log_losses(self, overflows: int, drops: int) -> None:
        if overflows:
            log.warning("%d messages not sent: too many wait for the arbiter", overflows)
        if drops:
            log.warning("%d messages dropped: their handlers are too slow", drops)

    # --- sending (any thread) -------------------------------------------------------------------

    def send(self, payload: bytes, topic: bytes, target: int, *, with_self: bool) -> bool:
        """See cluster.Backend."""
        # In a broadcast the number field has the serial of the worker to leave out; 0: none.
        return self._send(PLAIN, target, topic, payload, 0 if with_self else self.serial)

    def request(self, payload: bytes, topic: bytes, target: int, timeout: float) -> bytes:
        """See cluster.Backend."""
        future: concurrent.futures.Future[bytes] = concurrent.futures.Future()
        number = self._send_request(future, payload, topic, target)
        try:
            if self._any_thread_reads or threading.get_ident() == self._owner_thread:
                self._read_until(future, time.monotonic() + timeout, to_self=target == self.slot)
                return future.result(0)
            return future.result(timeout)
        except concurrent.futures.TimeoutError as error:
            raise _timed_out(target, timeout) from error
        finally:
            self._waiting.pop(number, None)

    async def arequest(self, payload: bytes, topic: bytes, target: int, timeout: float) -> bytes:
        """See cluster.Backend."""
        import asyncio  # the caller has loaded it already

        loop = asyncio.get_running_loop()
        if self._any_thread_reads:
            return await loop.run_in_executor(None, self.request, payload, topic, target, timeout)
        future: concurrent.futures.Future[bytes] | asyncio.Future[bytes]
        if loop is self._loop:
            answer = future = loop.create_future()
        else:
            future = concurrent.futures.Future()
            answer = asyncio.wrap_future(future)
        number = self._send_request(future, payload, topic, target)
        try:
            return await asyncio.wait_for(answer, timeout)
        except asyncio.TimeoutError as error:
            raise _timed_out(target, timeout) from error
        finally:
            self._waiting.pop(number, None)

    def _send_request(
        self,
        future: concurrent.futures.Future[bytes] | asyncio.Future[bytes],
        payload: bytes,
        topic: bytes,
        target: int,
    ) -> int:
        number = next(self._numbers) & 0xFFFF_FFFF
        self._waiting[number] = future
        if not self._send(REQUEST, target, topic, payload, number):
            del self._waiting[number]
            if self._arbiter_gone:
                raise cluster.ClusterError(self._arbiter_gone)
            raise cluster.ClusterOverflow(
                "the request was not sent: too many messages wait already"
            )
        return number

    def answer(self, request: AppMessage, value: Any) -> None:
        """Send the reply to a request.

        request  the request
        value    the return value of its handler
        """
        try:
            payload = encode_value(value)
        except TypeError as error:
            self.fail(request, "failed", f"the handler returned no JSON value: {error}")
            return
        if len(payload) > MAX_MESSAGE_BYTES:
            self.fail(request, "failed", f"the handler's reply of {len(payload)} bytes is too long")
            return
        self._send(REPLY, request.serial, b"", payload, request.number)

    def fail(self, request: AppMessage, error: str, text: str) -> None:
        """Reply that a request has failed.

        request  the request
        error    a name in ERRORS
        text     the error's message; at most 2000 characters of it are sent
        """
        payload = to_json([error, text[:2000]])
        self._send(FAILURE, request.serial, b"", payload, request.number)

    def _send(self, kind: int, target: int, topic: bytes, payload: bytes, number: int) -> bool:
        if self._forked:
            raise cluster.ClusterError("this process is no worker: the application has forked it")
        if self._arbiter_gone:
            return False
        data = AppMessage.make(kind, (self.slot, self.serial), target, topic, payload, number).data
        queue = self._channel.queue
        if not (queue(data) or (self._flush() and queue(data))):
            with self._counters_lock:
                overflows = self._overflows.note(time.monotonic())
            self._log_losses(overflows, 0)
            return False
        with self._counters_lock:
            self._sent += 1
        return self._flush()

    def _flush(self) -> bool:
        """Write the queued messages. Returns False if the arbiter is gone.

        Then the thread that reads the channel fails the waiting requests.
        """
        try:
            if not self._channel.flush() and not self._watching and self._owner is not None:
                self._owner.wake()
        except ChannelClosed as error:
            self._arbiter_gone = f"the arbiter is gone: {error}"
            return False
        return True

    def control(self, message: ReplaceMe | AppCommand) -> None:
        """See cluster.Backend."""
        if self._forked:
            raise cluster.ClusterError("this process is no worker: the application has forked it")
        if not self.may_control:
            raise cluster.ClusterError(
                "the application may not replace, reload or scale workers: set cluster_control"
            )
        if self._arbiter_gone:
            raise cluster.ClusterError(self._arbiter_gone)
        try:
            self._channel.send(message)
        except ChannelClosed as error:
            raise cluster.ClusterError(f"the arbiter is gone: {error}") from error
        self._flush()

    # --- receiving ------------------------------------------------------------------------------

    def on_wake(self) -> list[Message]:
        """Return the orders that other threads have read.

        Call this in the owner's thread after `Owner.wake`.
        """
        self._watch()
        orders = []
        while self._deferred:
            orders.append(self._deferred.popleft())
        return orders

    def on_channel(self) -> list[Message]:
        """Read and write the channel. Returns the arbiter's orders. Raises ChannelClosed.

        Call this in the owner's thread when the channel is ready.
        """
        if self._watching:
            self._flush()
            self._watch()
        with self._reader_changed:
            if self._has_reader:
                return []  # another thread is reading; it keeps our orders, and wakes us
            self._has_reader = True
        try:
            return self._receive()
        finally:
            self._stop_reading()

    def _watch(self) -> None:
        """Watch the channel for room to write if messages are queued; otherwise don't."""
        # Loop, because another thread may queue a message meanwhile, without waking this one.
        while self._owner is not None and self._watching != self._channel.wants_write:
            self._watching = not self._watching
            self._owner.watch_channel(self._watching)

    def _read_until(
        self, future: concurrent.futures.Future[bytes], deadline: float, *, to_self: bool
    ) -> None:
        """Until the future is done, read the channel in this thread, not in the owner's.

        future    gets the reply
        deadline  when to give up, in monotonic seconds
        to_self   whether the request is for this worker itself. If its handlers run in the calling
                  thread, call them here, in the order of the messages
        """
        is_owner = threading.get_ident() == self._owner_thread
        runner = self._runner if is_owner and self._any_thread_reads and to_self else None
        while not future.done() and (left := deadline - time.monotonic()) > 0:
            # First what an earlier read has brought: the message that we wait for may be there.
            if runner is not None and (message := self.inbox.take()):
                runner.handle(message)
                continue
            with self._reader_changed:
                if self._has_reader:
                    # The thread that reads wakes us after each read: it may have got our reply.
                    if not future.done() and not (runner and self.inbox):
                        self._reader_changed.wait(left)
                    reads = False
                else:
                    self._has_reader = reads = True
            if reads:
                self._read_once(left)

    def _read_once(self, timeout: float) -> None:
        try:
            if self._readable(timeout):
                self._deferred.extend(self._receive())
        except ChannelClosed:
            log.debug("The arbiter is gone")  # `_receive` has failed the waiting requests
        finally:
            self._stop_reading()
        if (self._deferred or self.inbox) and self._owner is not None:
            self._owner.wake()

    def _stop_reading(self) -> None:
        with self._reader_changed:
            self._has_reader = False
            self._reader_changed.notify_all()

    def _readable(self, timeout: float) -> bool:
        """Wait until the channel can be read. Writes to it meanwhile, if it has room."""
        poller = select.poll()
        writing = select.POLLOUT if self._channel.wants_write else 0
        poller.register(self._channel.fileno(), select.POLLIN | writing)
        events = dict(poller.poll(max(timeout, 0.0) * 1000)).get(self._channel.fileno(), 0)
        if events & select.POLLOUT:
            self._flush()
        return bool(events & ~select.POLLOUT)

    def _receive(self) -> list[Message]:
        """Read the channel, and return the arbiter's orders. Raises ChannelClosed."""
        try:
            messages = self._channel.receive()
        except ChannelClosed as error:
            self._on_arbiter_gone(str(error))
            raise
        orders: list[Message] = []
        for message in messages:
            if message.__class__ is not AppMessage:
                orders.append(message)
            elif message.kind in (REPLY, FAILURE):
                self._on_reply(message)
            else:
                self._on_message(message)
        return orders

    def _on_message(self, message: AppMessage) -> None:
        self._received += 1
        if self.inbox.put(message):
            return
        with self._counters_lock:
            drops = self._drops.note(time.monotonic())
        self._log_losses(0, drops)
        if message.kind == REQUEST:
            self.fail(message, "overflow", f"worker {self.slot} has too many messages waiting")

    def _on_reply(self, message: AppMessage) -> None:
        future = self._waiting.get(message.number)
        if future is None:
            return  # the sender of the request has timed out
        try:
            if message.kind == REPLY:
                _resolve(future, message.payload)
            else:
                name, text = message.value()
                _resolve(future, error=ERRORS[name](text))
        except (MessageError, KeyError, TypeError, ValueError) as error:
            _resolve(future, error=cluster.RequestFailed(f"can't decode the reply: {error}"))

    def _on_arbiter_gone(self, text: str) -> None:
        self._arbiter_gone = f"the arbiter is gone: {text}"
        for future in list(self._waiting.values()):
            _resolve(future, error=cluster.ClusterError(self._arbiter_gone))

    def count_unheard(self) -> None:
        """Count a message that has no handler."""
        with self._counters_lock:
            self._unheard += 1

    # --- the rest of cluster.Backend --------------------------------------------------------------

    @property
    def pid(self) -> int:
        """See cluster.Backend."""
        return os.getpid()

    def workers(self) -> list[cluster.WorkerInfo]:
        """See cluster.Backend."""
        return [
            cluster.WorkerInfo(row.slot, row.pid, row.state, row.generation, row.serial)
            for row in self._scoreboard.snapshot()
            if row.pid and row.state != "exited"
        ]

    def is_draining(self) -> bool:
        """See cluster.Backend."""
        return self._owner is not None and self._owner.draining

    def stats(self) -> cluster.Stats:
        """See cluster.Backend."""
        return cluster.Stats(
            self._sent, self._received, self._overflows.total, self._drops.total, self._unheard
        )


class Inbox:
    """The messages that wait for handlers, bounded in bytes.

    It needs no lock if at most one thread at a time calls `put`, and at most one `take`.
    """

    def __init__(self) -> None:
        self._messages: deque[AppMessage] = deque()
        # `put` and `take` each have their own sum: if two threads changed one sum, changes could
        # get lost.
        self._bytes_in = self._bytes_out = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: AppMessage) -> bool:
        """Append a message. Returns False without appending it if it does not fit."""
        size = len(message.data) + MESSAGE_OVERHEAD_BYTES
        if self._bytes_in - self._bytes_out + size > MAX_INBOX_BYTES:
            return False
        self._bytes_in += size
        self._messages.append(message)
        return True

    def take(self) -> AppMessage | None:
        """Remove and return the oldest message; None if there is none."""
        try:
            message = self._messages.popleft()
        except IndexError:
            return None
        self._bytes_out += len(message.data) + MESSAGE_OVERHEAD_BYTES
        return message


def _resolve(
    future: concurrent.futures.Future[bytes] | asyncio.Future[bytes],
    result: bytes = b"",
    error: Exception | None = None,
) -> None:
    # The request may have been cancelled or timed out. If a thread waits for the future, this can
    # happen even after this check.
    if future.done():
        return
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _timed_out(target: int, timeout: float) -> cluster.RequestTimeout:
    receiver = "the arbiter" if target == ARBITER else f"worker {target}"
    return cluster.RequestTimeout(f"no answer from {receiver} within {timeout:g} s")
