"""Routes messages between applications, from one worker's channel to another's.

With `servo.cluster` the application in one worker sends messages to the others. Workers share no
channel, so each message goes through the arbiter, which reads only its address.

Routing must not delay the arbiter's other work. So `route_waiting` runs once in each turn of the
loop, for a few milliseconds. It takes messages from each sender in turn, so a flood of messages
slows only its own sender. All messages for one worker are sent by one system call. If the queue of
the receiver is full, the message is dropped, counted and logged. If it was a request, its sender
gets the reason as the answer.
"""

from __future__ import annotations

import logging
import os
import random
from time import monotonic
from typing import TYPE_CHECKING, Any

from servo.cluster.messages import encode_message, encode_topic
from servo.errors import ClusterError
from servo.ipc.drops import Drops
from servo.ipc.messages import (
    ARBITER,
    EVERYONE,
    FAILURE,
    PLAIN,
    REPLY,
    REQUEST,
    AppMessage,
    MessageError,
    to_json,
)
from servo.shared_memory import row_layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from servo.arbiter.hook_objects import ArbiterHookWorker
    from servo.arbiter.processes.workers import WorkerProcess, WorkerProcesses

log = logging.getLogger("servo.error")

# Seconds that one turn of the loop spends on routing.
SLICE_S = 0.005
# Messages of one sender that are routed before the next sender's turn.
MESSAGES_A_TURN = 128
# The arbiter remembers which requests each worker has not answered, and answers them itself if the
# worker ends. It remembers at most this many for a worker, and forgets the oldest ones. Only a
# worker whose handlers never answer reaches this number.
MAX_UNANSWERED = 32_768

# The sender of the arbiter's own messages: slot and serial.
_FROM_ARBITER = (0, 0)
# Of the workers in a slot, the one whose state has the highest rank gets the slot's messages. A
# worker in any other state gets none.
_RANKS = {
    row_layout.STATE_READY: 3,
    row_layout.STATE_BOOTING: 2,
    row_layout.STATE_SPAWNED: 2,
    row_layout.STATE_DRAINING: 1,
}


class MessageRouter:
    """Routes the messages that `WorkerProcesses` has received.

    workers      the worker processes
    on_message   returns the configuration's hook for messages to the arbiter, or None. The hook is
                 called with (worker, value, topic)

    routed       the number of messages that were put into a worker's queue
    dropped      the number of messages that found a full queue
    unaddressed  the number of messages to slots without a worker
    """

    def __init__(
        self,
        workers: WorkerProcesses,
        on_message: Callable[[], Callable[[Any, Any, str], Any] | None],
    ) -> None:
        self._workers = workers
        self._on_message = on_message
        self._pid = os.getpid()
        # The workers with unsent messages in their queues, by serial.
        self._queued: dict[int, WorkerProcess] = {}
        # The arbiter's own unanswered requests, by number. After an upgrade of this process, a
        # worker may still answer a request of the previous program, so don't begin with 1.
        self._asked: dict[int, Callable[[str, Any], None]] = {}
        self._last_number = random.randrange(1 << 31)  # noqa: S311  not a secret
        self.routed = 0
        self.dropped = Drops()
        self.unaddressed = Drops()

    @property
    def is_behind(self) -> bool:
        """Whether messages wait for `route_waiting`."""
        return bool(self._workers.with_unrouted)

    def route_waiting(self) -> None:
        """Route the waiting messages, for at most `SLICE_S`, and send them."""
        end = monotonic() + SLICE_S
        senders = self._workers.with_unrouted
        while senders:
            sender = senders.popleft()
            messages = sender.unrouted
            for _ in range(MESSAGES_A_TURN):
                message = messages.popleft()
                if message is None:
                    self._on_worker_gone(sender)
                else:
                    self._route(sender, message)
                if not messages or monotonic() >= end:
                    break
            if messages:
                senders.append(sender)
            if monotonic() >= end:
                break
        self._flush()

    def log_drops(self) -> None:
        """Log the number of dropped messages, but not too often."""
        self._log_unaddressed(self.unaddressed.due(monotonic()))
        for worker in self._workers:
            self._log_dropped(worker, worker.dropped.due(monotonic()))

    # --- messages from the arbiter ----------------------------------------------------------------

    def by_slot(self) -> dict[int, ArbiterHookWorker]:
        """Slot -> the worker that gets messages to this slot."""
        slots = sorted({worker.slot for worker in self._workers})
        found = ((slot, self._of_slot(slot)) for slot in slots)
        return {slot: worker.hook_worker for slot, worker in found if worker is not None}

    def send_to_slot(self, value: Any, slot: int, topic: str = "") -> bool:
        """Send a message to the worker of a slot; see `send_to_worker`."""
        worker = self._of_slot(slot)
        return worker is not None and self.send_to_worker(worker.serial, value, topic)

    def send_to_worker(self, serial: int, value: Any, topic: str = "") -> bool:
        """Send a message to one worker.

        serial  the worker's number
        value   any JSON value
        topic   the topic of the handler, or ""

        Returns False if the worker is gone or its queue is full. Raises TypeError if `value` is not
        a JSON value, and ValueError if it is too long.
        """
        self._refuse_in_child()
        worker = self._workers.get(serial)
        if worker is None or worker.channel is None:
            return False
        sent = self._put(worker, _message(value, worker.slot, topic).data)
        self._flush()
        return sent

    def broadcast(self, value: Any, topic: str = "") -> int:
        """Send a message to every worker. Returns the number of workers that will get it.

        The arguments and errors are those of `send_to_worker`.
        """
        self._refuse_in_child()
        data = _message(value, EVERYONE, topic).data
        count = sum(
            self._put(worker, data) for worker in self._workers if worker.channel is not None
        )
        self._flush()
        return count

    def ask(self, value: Any, slot: int, topic: str, on_answer: Callable[[str, Any], None]) -> int:
        """Send a request to the worker of a slot.

        value      any JSON value
        slot       the worker's slot, from 1 up
        topic      the topic of the handler, or ""
        on_answer  called once with ("", the handler's result) or with the kind of a failure (see
                   `servo.workers.messages.mailbox.ERRORS`) and its text

        Returns the request's number, for `forget`. Raises the errors of `send_to_worker`.
        """
        self._refuse_in_child()
        payload, name = encode_message(value), encode_topic(topic)
        self._last_number = number = (self._last_number + 1) & 0xFFFF_FFFF
        self._asked[number] = on_answer
        self._route_request_to_worker(
            AppMessage.make(REQUEST, _FROM_ARBITER, slot, name, payload, number)
        )
        self._flush()
        return number

    def forget(self, number: int) -> None:
        """Ignore the answer to a request that `ask` has sent."""
        self._asked.pop(number, None)

    def _refuse_in_child(self) -> None:
        # A forked worker has a copy of this object, but the channels in it are the arbiter's.
        if os.getpid() != self._pid:
            raise ClusterError("in a worker, messages are sent by servo.cluster")

    # --- routing ----------------------------------------------------------------------------------

    def _route(self, sender: WorkerProcess, message: AppMessage) -> None:
        if message.serial != sender.serial:
            log.error("Worker %d has sent a message with the serial of another worker", sender.slot)
        elif message.kind == PLAIN:
            self._route_plain(sender, message)
        elif message.kind == REQUEST:
            self._route_request(sender, message)
        else:
            self._route_reply(sender, message)

    def _route_plain(self, sender: WorkerProcess, message: AppMessage) -> None:
        if message.target == EVERYONE:
            for worker in self._workers:
                if worker.channel is not None and worker.serial != message.number:
                    self._put(worker, message.data)
        elif message.target == ARBITER:
            self._receive(sender, message)
        else:
            receiver = self._of_slot(message.target)
            if receiver is None:
                self._log_unaddressed(self.unaddressed.note(monotonic()))
            else:
                self._put(receiver, message.data)

    def _route_request(self, sender: WorkerProcess, message: AppMessage) -> None:
        if message.target == ARBITER:
            self._receive(sender, message)
        else:
            self._route_request_to_worker(message)

    def _route_request_to_worker(self, message: AppMessage) -> None:
        worker = self._of_slot(message.target)
        if worker is None:
            self._fail(message, "no_worker", f"there is no worker {message.target}")
        elif self._put(worker, message.data):
            if len(worker.unanswered) >= MAX_UNANSWERED:
                del worker.unanswered[next(iter(worker.unanswered))]
            worker.unanswered[message.serial, message.number] = message
        else:
            self._fail(message, "overflow", f"worker {worker.slot} does not read its messages")

    def _route_reply(self, sender: WorkerProcess, message: AppMessage) -> None:
        request = sender.unanswered.pop((message.target, message.number), None)
        if message.target == ARBITER:
            if request is not None:  # otherwise, this worker was not asked
                self._take_answer(message)
            return
        asker = self._workers.get(message.target)
        if asker is not None and asker.channel is not None:
            self._put(asker, message.data)

    def _on_worker_gone(self, worker: WorkerProcess) -> None:
        """Fail the requests that a worker did not answer. Called after its last message."""
        unanswered, worker.unanswered = worker.unanswered, {}
        for request in unanswered.values():
            text = f"worker {worker.slot} (pid {worker.pid}) has ended"
            self._fail(request, "lost", text)

    def _of_slot(self, slot: int) -> WorkerProcess | None:
        """The receiver of a slot's messages.

        This is the newest ready worker. If none is ready, it is a booting worker, which reads its
        messages when it is ready. If none boots, it is a draining one.
        """
        best: WorkerProcess | None = None
        best_rank = (0, 0)
        for worker in self._workers.in_slot(slot):
            if worker.channel is None or worker.row is None:
                continue
            rank = (_RANKS.get(worker.row[row_layout.STATE], 0), worker.serial)
            if rank > best_rank and rank[0]:
                best, best_rank = worker, rank
        return best

    def _receive(self, sender: WorkerProcess, message: AppMessage) -> None:
        """Call the configuration's hook for a message to the arbiter."""
        hook = self._on_message()
        asks = message.kind == REQUEST
        if hook is None:
            if asks:
                self._fail(message, "failed", "the configuration has no on_message hook")
            else:
                self._log_unaddressed(self.unaddressed.note(monotonic()))
            return
        try:
            result = hook(sender.hook_worker, message.value(), message.topic)
            payload = encode_message(result) if asks else b""
        except MessageError as error:
            log.error("Worker %d has sent a malformed message: %s", sender.slot, error)
        except Exception as error:
            log.exception("The on_message hook failed")
            self._fail(message, "failed", f"the on_message hook: {type(error).__name__}: {error}")
        else:
            self._reply(message, REPLY, payload)

    def _fail(self, request: AppMessage, error: str, text: str) -> None:
        self._reply(request, FAILURE, to_json([error, text]))

    def _reply(self, request: AppMessage, kind: int, payload: bytes) -> None:
        if request.kind != REQUEST:
            return
        reply = AppMessage.make(kind, _FROM_ARBITER, request.serial, b"", payload, request.number)
        asker = self._workers.get(request.serial)
        if request.serial == ARBITER:
            self._take_answer(reply)
        elif asker is not None and asker.channel is not None:
            self._put(asker, reply.data)

    def _take_answer(self, reply: AppMessage) -> None:
        """Pass on the answer to a request of the arbiter's own."""
        on_answer = self._asked.pop(reply.number, None)
        if on_answer is None:
            return
        try:
            value = reply.value()
        except MessageError as error:
            on_answer("failed", f"can't decode the reply: {error}")
            return
        if isinstance(value, bytes):  # the answer goes to `servoctl call`, which prints JSON
            on_answer("failed", f"the handler returned {len(value)} bytes, and not a JSON value")
        elif reply.kind == REPLY:
            on_answer("", value)
        elif isinstance(value, list) and [type(each) for each in value] == [str, str]:
            on_answer(*value)
        else:
            on_answer("failed", "can't decode the reply")

    # --- queues -----------------------------------------------------------------------------------

    def _put(self, worker: WorkerProcess, data: bytes) -> bool:
        assert worker.channel is not None
        if worker.channel.queue(data):
            self.routed += 1
            self._queued[worker.serial] = worker
            return True
        self.dropped.note(monotonic())
        self._log_dropped(worker, worker.dropped.note(monotonic()))
        return False

    def _flush(self) -> None:
        while self._queued:
            self._workers.flush(self._queued.popitem()[1])

    def _log_dropped(self, worker: WorkerProcess, count: int) -> None:
        if count:
            text = "Worker %d (pid %d) does not read its messages: %d dropped"
            log.warning(text, worker.slot, worker.pid, count)

    def _log_unaddressed(self, count: int) -> None:
        if count:
            log.warning("%d messages dropped: no worker has the slots that they were for", count)


def _message(value: Any, target: int, topic: str) -> AppMessage:
    return AppMessage.make(PLAIN, _FROM_ARBITER, target, encode_topic(topic), encode_message(value))
