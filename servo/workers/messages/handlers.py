"""Running the handlers of `cluster.on_message`: in which thread, and how many at once."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from servo import cluster
from servo.ipc.messages import REQUEST, MessageError
from servo.workers.threads import WorkerThread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from servo.ipc.messages import AppMessage
    from servo.workers.messages.mailbox import Mailbox

log = logging.getLogger("servo.error")

# Handlers run for so long before connections and signals have their turn again.
SLICE_NS = 5_000_000
# Coroutine handlers that may be under way at once; further messages wait in the inbox.
MAX_RUNNING = 1000


class Runner(ABC):
    """Feeds the handlers from a mailbox's inbox. What they raise is logged; who asked is told."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.mailbox = mailbox
        self.inbox = mailbox.inbox

    @abstractmethod
    def run(self) -> None:
        """Run the handlers for the messages in the inbox. Only the mailbox's owner calls this."""

    def serve(self, message: AppMessage) -> None:
        """Call the handlers for a message."""
        asks = message.kind == REQUEST
        try:
            topic = message.topic
            handlers = cluster.handlers_for(topic, answering=asks)
            if not handlers:
                self._unheard(message, topic)
            for handler in handlers:
                # Each has a value of its own, to change as it likes.
                self._call(handler, message, message.value())
        except MessageError as error:
            log.error("A message of worker %d makes no sense: %s", message.slot, error)

    def _unheard(self, message: AppMessage, topic: str) -> None:
        self.mailbox.note_unheard()
        if message.kind == REQUEST:
            slot = self.mailbox.slot
            self.mailbox.fail(message, "failed", f"worker {slot} has no handler for {topic!r}")

    def _call(self, handler: cluster.Handler, message: AppMessage, value: Any) -> None:
        try:
            result = handler(value, cluster.Sender(message.slot, message.serial))
        except (Exception, SystemExit) as error:  # noqa: BLE001  `_failed` logs it
            self._failed(message, error)
            return
        if hasattr(result, "__await__"):
            self.start(self._finish(message, result))
        elif message.kind == REQUEST:
            self.mailbox.answer(message, result)

    async def _finish(self, message: AppMessage, result: Awaitable[Any]) -> None:
        try:
            value = await result
        except (Exception, SystemExit) as error:  # noqa: BLE001  `_failed` logs it
            self._failed(message, error)
            return
        if message.kind == REQUEST:
            self.mailbox.answer(message, value)

    def _failed(self, message: AppMessage, error: BaseException) -> None:
        log.error("The handler of a message on %r failed", message.topic, exc_info=error)
        if message.kind == REQUEST:
            text = f"worker {self.mailbox.slot}: {type(error).__name__}: {error}"
            self.mailbox.fail(message, "failed", text)

    def start(self, work: Any) -> None:
        """Run a coroutine. Here: to its end, as there is no loop that goes on."""
        import asyncio  # not needed otherwise

        asyncio.run(work)


class InlineRunner(Runner):
    """In the poller's thread, between requests.

    wake   has `run` called again soon, when others had their turn
    """

    def __init__(self, mailbox: Mailbox, wake: Callable[[], None]) -> None:
        super().__init__(mailbox)
        self._wake = wake

    def run(self) -> None:
        """See Runner.run."""
        end = monotonic_ns() + SLICE_NS
        while (message := self.inbox.take()) is not None:
            self.serve(message)
            if monotonic_ns() >= end and self.inbox:
                self._wake()
                return


class LoopRunner(Runner):
    """On the event loop's thread. Coroutines become tasks, which begin in the messages' order."""

    def __init__(self, mailbox: Mailbox, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(mailbox)
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._due = False

    def run(self) -> None:
        """See Runner.run."""
        if self._due:
            return
        end = monotonic_ns() + SLICE_NS
        while len(self._tasks) < MAX_RUNNING and (message := self.inbox.take()) is not None:
            self.serve(message)
            if monotonic_ns() >= end and self.inbox:
                self._due = True
                self._loop.call_soon(self._run_on)
                return

    def _run_on(self) -> None:
        self._due = False
        self.run()

    def start(self, work: Any) -> None:
        """See Runner.start."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self.inbox:
            self.run()


class ThreadRunner(Runner):
    """In one thread of their own, which begins with the first message."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(mailbox)
        self._awake = threading.Event()
        self._thread: WorkerThread | None = None

    def run(self) -> None:
        """See Runner.run."""
        if not self.inbox:
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = WorkerThread("servo-messages", self._work)
            self._thread.start()
        self._awake.set()

    def _work(self) -> None:
        while True:
            message = self.inbox.take()
            if message is not None:
                self.serve(message)
                continue
            self._awake.wait()
            # What is put after this is seen by the next look, or sets it again.
            self._awake.clear()
