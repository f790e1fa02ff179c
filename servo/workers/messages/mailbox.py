"""A worker's end of `servo.cluster`: messages go out from any thread, and come in by the channel.

Any thread encodes its message, queues it on the shared channel and flushes that: when `send` has
returned the message is on its way, before anything that its sender does next. The owner (the thread
of the poller or the event loop) is woken only to watch a socket that is full.

The owner reads: applications' messages go to the inbox, from which a `Runner` feeds the handlers;
replies to whoever waits for them; the arbiter's own to the worker. A thread that waits for a reply
reads in the owner's place where the owner can't: it is the same thread, or busy with a request.
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
    to_json,
)

if TYPE_CHECKING:
    import asyncio

    from servo.ipc.channel import Channel
    from servo.shared_memory.scoreboard import Scoreboard

log = logging.getLogger("servo.error")

# What may wait for the handlers. An object is more than its bytes: that counts, too.
MAX_INBOX_BYTES = 8 << 20
MESSAGE_BYTES = 256
# A worker that ends waits this long for an arbiter that does not read, to hand over its last words.
CLOSE_S = 1.0

# The error that a failed request raises, by the name that travels.
ERRORS: dict[str, type[cluster.ClusterError]] = {
    "no_worker": cluster.NoSuchWorker,
    "overflow": cluster.ClusterOverflow,
    "lost": cluster.WorkerLost,
    "failed": cluster.RequestFailed,
}


class Owner(Protocol):
    """The worker, as its mailbox needs it."""

    draining: bool

    def wake(self) -> None:
        """Have `on_wake` called in the owner's thread soon. From any thread."""

    def watch_channel(self, writable: bool) -> None:
        """Have `on_channel` called when the channel is writable, too; or no longer then."""


class HandlerRunner(Protocol):
    """Runs the application's message handlers; see `servo.workers.messages.handlers`."""

    def run(self) -> None:
        """Run the handlers for the messages in the inbox."""

    def serve(self, message: AppMessage, /) -> None:
        """Run the handlers for this message."""


class Mailbox:
    """This process's `cluster.Backend`.

    channel     a SharedChannel, with the arbiter at its other end
    scoreboard  of all workers
    """

    def __init__(self, channel: Channel, slot: int, serial: int, scoreboard: Scoreboard) -> None:
        self.slot = slot
        self.serial = serial
        self.inbox = Inbox()
        self._channel = channel
        self._scoreboard = scoreboard
        self._owner: Owner | None = None
        self._owner_thread = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._anyone_reads = True  # until there is an owner
        self._runner: HandlerRunner | None = None
        self._turn = threading.Condition()  # to read the channel
        self._being_read = False
        self._deferred: deque[Message] = deque()
        self._watching = False
        self._gone = ""
        self._forked = False
        self._numbers = itertools.count(1)
        self._waiting: dict[int, concurrent.futures.Future[str] | asyncio.Future[str]] = {}
        self._counting = threading.Lock()
        self._sent = self._received = self._unheard = 0
        self._overflows = Drops()
        self._drops = Drops()

    # --- its life -------------------------------------------------------------------------------

    def attach(
        self,
        owner: Owner,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        anyone_reads: bool = False,
    ) -> None:
        """The calling thread is the owner's, which reads the channel from now on.

        loop          the one that the owner runs, if any
        anyone_reads  the owner may be busy with a request while a thread waits for a reply
        """
        self._owner = owner
        self._owner_thread = threading.get_ident()
        self._loop = loop
        self._anyone_reads = anyone_reads
        owner.wake()

    def open(self, runner: HandlerRunner) -> None:
        """The worker is ready: handlers may run."""
        self._runner = runner
        runner.run()

    def run(self) -> None:
        """Run handlers, if messages wait. To be called after `on_wake` and `on_channel`."""
        if self._runner is not None and self.inbox:
            self._runner.run()

    def close(self) -> None:
        """The worker ends: hand over what is queued, if the arbiter reads it."""
        end = time.monotonic() + CLOSE_S
        try:
            while not self._channel.flush() and (left := end - time.monotonic()) > 0:
                self._channel.wait_writable(left)
        except ChannelClosed:
            log.debug("The arbiter is gone: what was queued for it is lost")
        self.report()

    def leave(self) -> None:
        """The owner has ended, and the process not yet: whoever waits for a reply reads it."""
        self._owner = None
        self._anyone_reads = True

    def detach(self) -> None:
        """This is a child of the worker's: the channel is not its own."""
        self._forked = True

    def report(self) -> None:
        """Log what was dropped, once in a while."""
        now = time.monotonic()
        with self._counting:
            overflows, drops = self._overflows.due(now), self._drops.due(now)
        self._say(overflows, drops)

    def _say(self, overflows: int, drops: int) -> None:
        if overflows:
            log.warning("%d messages not sent: too many wait for the arbiter", overflows)
        if drops:
            log.warning("%d messages dropped: their handlers are too slow", drops)

    # --- sending (any thread) -------------------------------------------------------------------

    def send(self, payload: bytes, topic: bytes, target: int, *, with_self: bool) -> bool:
        """See cluster.Backend."""
        return self._post(PLAIN, target, topic, payload, 0 if with_self else self.serial)

    def request(self, payload: bytes, topic: bytes, target: int, timeout: float) -> str:
        """See cluster.Backend."""
        future: concurrent.futures.Future[str] = concurrent.futures.Future()
        number = self._ask(future, payload, topic, target)
        try:
            if self._anyone_reads or threading.get_ident() == self._owner_thread:
                self._read_until(future, time.monotonic() + timeout, to_self=target == self.slot)
                return future.result(0)
            return future.result(timeout)
        except concurrent.futures.TimeoutError as error:
            raise _timed_out(target, timeout) from error
        finally:
            self._waiting.pop(number, None)

    async def arequest(self, payload: bytes, topic: bytes, target: int, timeout: float) -> str:
        """See cluster.Backend."""
        import asyncio  # whoever waits here has it already

        loop = asyncio.get_running_loop()
        if self._anyone_reads:
            return await loop.run_in_executor(None, self.request, payload, topic, target, timeout)
        future: concurrent.futures.Future[str] | asyncio.Future[str]
        if loop is self._loop:
            answer = future = loop.create_future()
        else:
            future = concurrent.futures.Future()
            answer = asyncio.wrap_future(future)
        number = self._ask(future, payload, topic, target)
        try:
            return await asyncio.wait_for(answer, timeout)
        except asyncio.TimeoutError as error:
            raise _timed_out(target, timeout) from error
        finally:
            self._waiting.pop(number, None)

    def _ask(
        self,
        future: concurrent.futures.Future[str] | asyncio.Future[str],
        payload: bytes,
        topic: bytes,
        target: int,
    ) -> int:
        number = next(self._numbers) & 0xFFFF_FFFF
        self._waiting[number] = future
        if not self._post(REQUEST, target, topic, payload, number):
            del self._waiting[number]
            if self._gone:
                raise cluster.ClusterError(self._gone)
            raise cluster.ClusterOverflow("the request was not sent: too much waits already")
        return number

    def answer(self, request: AppMessage, value: Any) -> None:
        """Reply to a request with what its handler has returned."""
        try:
            payload = to_json(value)
        except TypeError as error:
            self.fail(request, "failed", f"the handler returned no JSON value: {error}")
            return
        if len(payload) > cluster.MAX_MESSAGE_BYTES:
            self.fail(request, "failed", f"the handler's reply of {len(payload)} bytes is too long")
            return
        self._post(REPLY, request.serial, b"", payload, request.number)

    def fail(self, request: AppMessage, error: str, text: str) -> None:
        """Reply that a request can't be answered. `error` is a name of ERRORS."""
        payload = to_json([error, text[:2000]])
        self._post(FAILURE, request.serial, b"", payload, request.number)

    def _post(self, kind: int, target: int, topic: bytes, payload: bytes, number: int) -> bool:
        if self._forked:
            raise cluster.ClusterError("the application has forked this process: it is no worker")
        if self._gone:
            return False
        data = AppMessage.make(kind, (self.slot, self.serial), target, topic, payload, number).data
        queue = self._channel.queue
        if not (queue(data) or (self._flush() and queue(data))):
            with self._counting:
                say = self._overflows.note(time.monotonic())
            self._say(say, 0)
            return False
        with self._counting:
            self._sent += 1
        return self._flush()

    def _flush(self) -> bool:
        """False: the arbiter is gone. Whoever reads finds out, too, and tells those who wait."""
        try:
            if not self._channel.flush() and not self._watching and self._owner is not None:
                self._owner.wake()
        except ChannelClosed as error:
            self._gone = f"the arbiter is gone: {error}"
            return False
        return True

    # --- receiving ------------------------------------------------------------------------------

    def on_wake(self) -> list[Message]:
        """To be called in the owner's thread after `Owner.wake`; what the arbiter has said."""
        self._watch()
        said = []
        while self._deferred:
            said.append(self._deferred.popleft())
        return said

    def on_channel(self) -> list[Message]:
        """To be called in the owner's thread when the channel is ready; what the arbiter says.

        Raises ChannelClosed.
        """
        if self._watching:
            self._flush()
            self._watch()
        with self._turn:
            if self._being_read:
                return []  # whoever reads leaves us what is ours, and wakes us
            self._being_read = True
        try:
            return self._take()
        finally:
            self._end_turn()

    def _watch(self) -> None:
        """Watch for room in the socket just while something waits for it."""
        # Again after a change: a thread that queued amid it has not woken us.
        while self._owner is not None and self._watching != self._channel.wants_write:
            self._watching = not self._watching
            self._owner.watch_channel(self._watching)

    def _read_until(
        self, future: concurrent.futures.Future[str], deadline: float, *, to_self: bool
    ) -> None:
        """Read the channel in the owner's place until the future is done.

        to_self   the reply is to come from a handler of this worker. If handlers run in this very
                  thread, those of all that waits before the request run now.
        """
        is_owner = threading.get_ident() == self._owner_thread
        runner = self._runner if is_owner and self._anyone_reads and to_self else None
        while not future.done() and (left := deadline - time.monotonic()) > 0:
            with self._turn:
                if self._being_read:
                    # One turn ends after each read, and may have brought what is waited for.
                    if not future.done() and not (runner and self.inbox):
                        self._turn.wait(left)
                    reads = False
                else:
                    self._being_read = reads = True
            if reads:
                self._read_turn(left)
            while runner is not None and not future.done() and (message := self.inbox.take()):
                runner.serve(message)

    def _read_turn(self, timeout: float) -> None:
        try:
            if self._readable(timeout):
                self._deferred.extend(self._take())
        except ChannelClosed:
            log.debug("The arbiter is gone")  # `_take` has told whoever waits
        finally:
            self._end_turn()
        if (self._deferred or self.inbox) and self._owner is not None:
            self._owner.wake()

    def _end_turn(self) -> None:
        with self._turn:
            self._being_read = False
            self._turn.notify_all()

    def _readable(self, timeout: float) -> bool:
        poller = select.poll()
        writing = select.POLLOUT if self._channel.wants_write else 0
        poller.register(self._channel.fileno(), select.POLLIN | writing)
        events = dict(poller.poll(max(timeout, 0.0) * 1000)).get(self._channel.fileno(), 0)
        if events & select.POLLOUT:
            self._flush()
        return bool(events & ~select.POLLOUT)

    def _take(self) -> list[Message]:
        """Read; what the arbiter says. Raises ChannelClosed."""
        try:
            messages = self._channel.receive()
        except ChannelClosed as error:
            self._on_gone(str(error))
            raise
        said: list[Message] = []
        for message in messages:
            if message.__class__ is not AppMessage:
                said.append(message)
            elif message.kind in (REPLY, FAILURE):
                self._on_reply(message)
            else:
                self._on_message(message)
        return said

    def _on_message(self, message: AppMessage) -> None:
        self._received += 1
        if self.inbox.put(message):
            return
        with self._counting:
            say = self._drops.note(time.monotonic())
        self._say(0, say)
        if message.kind == REQUEST:
            self.fail(message, "overflow", f"worker {self.slot} has too many messages waiting")

    def _on_reply(self, message: AppMessage) -> None:
        future = self._waiting.get(message.number)
        if future is None:
            return  # whoever asked has given up
        try:
            if message.kind == REPLY:
                _resolve(future, message.payload.decode())
            else:
                name, text = message.value()
                _resolve(future, error=ERRORS[name](text))
        except (MessageError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            _resolve(future, error=cluster.RequestFailed(f"the reply makes no sense: {error}"))

    def _on_gone(self, text: str) -> None:
        self._gone = f"the arbiter is gone: {text}"
        for future in list(self._waiting.values()):
            _resolve(future, error=cluster.ClusterError(self._gone))

    def note_unheard(self) -> None:
        """There was no handler for a message."""
        with self._counting:
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
    """Messages for the handlers, bounded in bytes. One thread puts at a time, and one takes."""

    def __init__(self) -> None:
        self._messages: deque[AppMessage] = deque()
        # Each is written by one side only: a sum that both wrote would lose updates.
        self._bytes_in = self._bytes_out = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: AppMessage) -> bool:
        """False, and nothing is done, when it does not fit."""
        size = len(message.data) + MESSAGE_BYTES
        if self._bytes_in - self._bytes_out + size > MAX_INBOX_BYTES:
            return False
        self._bytes_in += size
        self._messages.append(message)
        return True

    def take(self) -> AppMessage | None:
        """The oldest message; None when there is none."""
        try:
            message = self._messages.popleft()
        except IndexError:
            return None
        self._bytes_out += len(message.data) + MESSAGE_BYTES
        return message


def _resolve(
    future: concurrent.futures.Future[str] | asyncio.Future[str],
    result: str = "",
    error: Exception | None = None,
) -> None:
    # It may have been cancelled, or ended by time, meanwhile; a thread's even after this look.
    if future.done():
        return
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _timed_out(target: int, timeout: float) -> cluster.RequestTimeout:
    who = "the arbiter" if target == ARBITER else f"worker {target}"
    return cluster.RequestTimeout(f"no answer of {who} within {timeout:g} s")
