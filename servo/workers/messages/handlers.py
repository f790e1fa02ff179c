"""Calls the application's message handlers, in the right thread and not too many at once.

An application registers handlers with `cluster.on_message`. The mailbox puts messages for them into
an inbox. A runner takes the messages out, one by one, and calls the handlers. Which thread calls
them depends on the worker, so there are three runners:

* `InlineRunner` in a `sync` worker: in its only thread, between requests.
* `LoopRunner` in an `async` worker with an ASGI application: on the event loop. Handlers that are
  coroutine functions run as tasks.
* `ThreadRunner` in a worker that runs the application in threads: in one separate thread.

Messages must not starve requests. The first two runners stop after `SLICE_NS` and continue when
connections and signals have been served; `LoopRunner` also bounds the number of its tasks.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from servo import cluster
from servo.cluster.messages import Handler, handlers_for
from servo.ipc.messages import REQUEST, MessageError
from servo.workers.threads import WorkerThread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from servo.ipc.messages import AppMessage
    from servo.workers.messages.mailbox import Mailbox

log = logging.getLogger("servo.error")

# After handlers have run for this many nanoseconds, connections and signals are served. The arbiter
# routes messages in slices of the same length.
SLICE_NS = 5_000_000
# How many coroutine handlers may run at once. Further messages wait in the inbox, which is bounded.
MAX_RUNNING = 1000


class Runner(ABC):
    """Takes messages from a mailbox's inbox and calls their handlers.

    If a handler raises, the error is logged. If the message was a request, its sender also gets the
    error.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.inbox = mailbox.inbox

    @abstractmethod
    def run(self) -> None:
        """Run the handlers for the messages in the inbox. Only the mailbox's owner calls this."""

    def handle(self, message: AppMessage) -> None:
        """Call the handlers of a message's topic."""
        is_request = message.kind == REQUEST
        try:
            topic = message.topic
            handlers = handlers_for(topic, answering=is_request)
            if not handlers:
                self._on_no_handler(message, topic)
            for handler in handlers:
                # Decode it again for each handler, because a handler may change the value.
                self._call(handler, message, message.value())
        except MessageError as error:
            log.error("Can't decode a message from worker %d: %s", message.slot, error)

    def _on_no_handler(self, message: AppMessage, topic: str) -> None:
        self.mailbox.count_unheard()
        if message.kind == REQUEST:
            slot = self.mailbox.slot
            self.mailbox.fail(message, "failed", f"worker {slot} has no handler for {topic!r}")

    def _call(self, handler: Handler, message: AppMessage, value: Any) -> None:
        try:
            result = handler(value, cluster.Sender(message.slot, message.serial))
        except (Exception, SystemExit) as error:  # noqa: BLE001  `_on_failed` logs it
            self._on_failed(message, error)
            return
        if hasattr(result, "__await__"):
            self.run_coroutine(self._finish(message, result))
        elif message.kind == REQUEST:
            self.mailbox.answer(message, result)

    async def _finish(self, message: AppMessage, result: Awaitable[Any]) -> None:
        try:
            value = await result
        except (Exception, SystemExit) as error:  # noqa: BLE001  `_on_failed` logs it
            self._on_failed(message, error)
            return
        if message.kind == REQUEST:
            self.mailbox.answer(message, value)

    def _on_failed(self, message: AppMessage, error: BaseException) -> None:
        log.error("The handler of a message on %r failed", message.topic, exc_info=error)
        if message.kind == REQUEST:
            text = f"worker {self.mailbox.slot}: {type(error).__name__}: {error}"
            self.mailbox.fail(message, "failed", text)

    def run_coroutine(self, coroutine: Any) -> None:
        """Run the coroutine of a handler to its end: this thread has no event loop of its own."""
        import asyncio  # imported here: a worker without coroutine handlers need not load it

        asyncio.run(coroutine)


class InlineRunner(Runner):
    """Calls the handlers in the poller's thread, between requests.

    mailbox  takes the replies
    wake     makes the poller call `run` again after it has served its sockets
    """

    def __init__(self, mailbox: Mailbox, wake: Callable[[], None]) -> None:
        super().__init__(mailbox)
        self._wake = wake

    def run(self) -> None:
        """See Runner.run."""
        end = monotonic_ns() + SLICE_NS
        while (message := self.inbox.take()) is not None:
            self.handle(message)
            if monotonic_ns() >= end and self.inbox:
                self._wake()
                return


class LoopRunner(Runner):
    """Calls the handlers on the event loop. Coroutines become tasks, which start in the order of
    their messages.

    mailbox  takes the replies
    loop     the worker's event loop
    """

    def __init__(self, mailbox: Mailbox, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(mailbox)
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._scheduled = False

    def run(self) -> None:
        """See Runner.run."""
        if self._scheduled:
            return
        end = monotonic_ns() + SLICE_NS
        while len(self._tasks) < MAX_RUNNING and (message := self.inbox.take()) is not None:
            self.handle(message)
            if monotonic_ns() >= end and self.inbox:
                self._scheduled = True
                self._loop.call_soon(self._continue)
                return

    def _continue(self) -> None:
        self._scheduled = False
        self.run()

    def run_coroutine(self, coroutine: Any) -> None:
        """Start a task for the coroutine of a handler."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self.inbox:
            self.run()


class ThreadRunner(Runner):
    """Calls the handlers in a separate thread, which starts with the first message."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(mailbox)
        self._woken = threading.Event()
        self._thread: WorkerThread | None = None

    def run(self) -> None:
        """See Runner.run."""
        if not self.inbox:
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = WorkerThread("servo-messages", self._work)
            self._thread.start()
        self._woken.set()

    def _work(self) -> None:
        while True:
            message = self.inbox.take()
            if message is not None:
                self.handle(message)
                continue
            self._woken.wait()
            # Clear the event before checking the inbox: a message that arrives later sets the event
            # again.
            self._woken.clear()
